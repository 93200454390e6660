//! Chunks that nobody could handle.

use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::ids::StageKey;

use super::*;

/// Some items of chunk `ordinal`, marked as dead.
fn dead(world: &World, run: &str, ordinal: u64, hop: u32, items: &str) -> Message {
    let items: Ranges = items.parse().unwrap();
    let header = ChunkHeader {
        id: chunk_id(run, ordinal),
        root_run: run.parse().unwrap(),
        job: world.job.name.clone(),
        hash: world.job.hash.clone(),
        span: span(ordinal),
        attempts: (0..).take(usize::try_from(items.len()).unwrap()).collect(),
        throttles: Runs::repeat(0, items.len()),
        holds: Runs::repeat(0, items.len()),
        hop,
        held_ms: 0,
        not_before: None,
        expires: None,
        resent: false,
        alone: false,
        returns: 0,
        id_field: Some("n".into()),
        traceparent: None,
        items,
    };
    let lines: Vec<String> = header.items.iter().map(|index| format!("{{\"n\":{index}}}")).collect();
    let body = lines.join("\n");
    let from = Queue::Work(StageKey { job: world.job.name.clone(), stage: "push".parse().unwrap() });
    Death::new("nobody knows its job", &from, 7).mark(&header.to_message(Bytes::from(body), false))
}

async fn step(world: &mut World, messages: &[Message]) -> Vec<Option<Death>> {
    let now = world.now();
    world.engine.as_mut().unwrap().step(messages, now).await.unwrap().parked
}

#[tokio::test]
async fn what_is_open_of_a_dead_chunk_ends_as_failed_and_its_run_ends() {
    let mut world = World::new(INPUT, "").await;
    let mut first = outcomes("r1", 0, "0-3", Outcome::Succeeded);
    first.handed_over = "8-9".parse().unwrap();
    world.step(&[world.opened("r1"), Completion::Outcomes(first), whole("r1", 1), sealed("r1", 2)]).await;

    let chunk = dead(&world, "r1", 0, 0, "0-9");
    let died = step(&mut world, &[chunk.clone(), chunk.clone()]).await;
    let failed: Vec<_> = died.iter().flatten().map(|death| death.failed_items).collect();
    assert_eq!(failed, [Some(4), Some(4)], "a copy of it ends nothing more");
    assert_eq!(died[0], Some(Death { failed_items: Some(4), ..Death::of(&chunk).unwrap() }));
    let report = world.report("r1");
    assert_eq!((report.state, report.open, report.outcomes.failed), (RunState::Running, 2, 4));

    // After a crash before it was let go of, it comes again, and so does its remainder.
    world.restart().await;
    let remainder = dead(&world, "r1", 0, 1, "8-9");
    let died = step(&mut world, &[chunk.clone(), remainder]).await;
    let failed: Vec<_> = died.iter().flatten().map(|death| death.failed_items).collect();
    assert_eq!(failed, [Some(4), Some(2)]);
    let report = world.report("r1");
    assert_eq!((report.state, report.open), (RunState::CompletedWithFailures, 0));
    assert_eq!((report.outcomes.failed, report.outcomes.succeeded), (6, 14));
    assert_eq!((report.duplicates, report.conflicts, report.late, report.balance_error), (0, 0, 0, None));
    assert_eq!(step(&mut world, &[chunk]).await[0].as_ref().unwrap().failed_items, Some(6));

    let rows = Reader::open(&world.data_dir()).unwrap().failures(&"r1".parse().unwrap(), None, 9).unwrap();
    assert_eq!((rows[0].index, rows[0].id.as_deref(), rows[0].attempts), (4, Some("4"), 4));
    assert!(rows[0].error.get().contains("dead_letter") && rows[0].error.get().contains("nobody knows"));
    assert_eq!(world.output().lines().count(), 20);
}

#[tokio::test]
async fn a_dead_chunk_of_no_run_is_parked_with_both_reasons_and_one_unmarked_ends_nothing() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1")]).await;
    let stranger = dead(&world, "r9", 0, 0, "0-9");
    let mut unmarked = dead(&world, "r1", 0, 0, "0-9");
    unmarked.headers = windrow_common::broker::parking::unmarked(&unmarked.headers);
    let mut other_span = dead(&world, "r1", 0, 0, "3");
    step(&mut world, &[whole("r1", 0).to_message(false)]).await;
    other_span.headers.set_text("span", "0-3");
    let died = step(&mut world, &[stranger, unmarked, other_span]).await;
    let reasons: Vec<&str> = died.iter().flatten().map(|death| death.reason.as_str()).collect();
    assert_eq!(reasons[0], "nobody knows its job; the ledger knows no run `r9`");
    assert!(reasons[1].contains("kind `chunk`"), "{reasons:?}");
    assert!(reasons[2].contains("another span"), "{reasons:?}");
    assert_eq!(world.report("r1").outcomes.failed, 0);
}

#[tokio::test]
async fn people_are_told_of_the_first_dead_letter_of_a_run_and_of_the_next_after_a_while() {
    let notify = "[notify]\non = ['dead_letter']\nurl = 'http://127.0.0.1:1/'";
    let mut world = World::new(INPUT, notify).await;
    world.step(&[world.opened("r1"), progress("r1", 3)]).await;
    let chunks: Vec<Message> = (0..3)
        .map(|ordinal| dead(&world, "r1", ordinal, 0, &span(ordinal).to_ranges().to_string()))
        .collect();
    let mut told = Vec::new();
    for (chunk, pass) in chunks.iter().zip([0, 1, 600]) {
        world.pass(Duration::from_secs(pass));
        let now = world.now();
        let effects = world.engine.as_mut().unwrap().step(std::slice::from_ref(chunk), now).await.unwrap();
        told.extend(effects.notices.iter().map(|notice| notice.reason.clone().unwrap()));
    }
    assert_eq!(told, ["nobody knows its job", "nobody knows its job"]);
}
