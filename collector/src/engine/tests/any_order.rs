//! Parts of chunks, in any order, some twice, with a collector that is dropped now and then.

use proptest::prelude::*;

use super::*;

const CHUNKS: u64 = 6;

fn part(ordinal: u64, which: u64) -> Completion {
    let items = span(ordinal).to_ranges().filter(|index| index % 3 == which);
    Completion::Outcomes(outcomes("r1", ordinal, &items.to_string(), Outcome::Succeeded))
}

async fn gives_the_same_output(order: Vec<(u64, u64)>, twice: &[bool], batch: usize, restarts: &[bool]) {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1")]).await;
    let arrivals: Vec<Completion> = order
        .iter()
        .zip(twice)
        .flat_map(|((ordinal, which), twice)| {
            std::iter::repeat_n(part(*ordinal, *which), if *twice { 2 } else { 1 })
        })
        .collect();
    let copies = arrivals.iter().map(item_count).sum::<u64>() - CHUNKS * 10;
    for (arrived, restart) in arrivals.chunks(batch).zip(restarts.iter().cycle()) {
        world.step(arrived).await;
        if *restart {
            world.restart().await;
        }
    }
    world.step(&[sealed("r1", CHUNKS)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.balance_error), (RunState::Completed, None));
    assert_eq!((report.duplicates, report.conflicts), (copies, 0));
    assert_eq!(world.output(), in_order(CHUNKS * 10));
}

fn item_count(completion: &Completion) -> u64 {
    match completion {
        Completion::Outcomes(outcomes) => outcomes.items.len(),
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn gives_each_item_once_in_the_order_of_the_input(
        order in Just((0..CHUNKS).flat_map(|ordinal| (0..3).map(move |which| (ordinal, which))).collect::<Vec<_>>()).prop_shuffle(),
        twice in prop::collection::vec(any::<bool>(), 18),
        batch in 1usize..6,
        restarts in prop::collection::vec(any::<bool>(), 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(gives_the_same_output(order, &twice, batch, &restarts));
    }
}
