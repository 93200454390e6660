//! Copies of what another consumer is still working on.

use std::path::Path;

use windrow_common::job::Job;
use windrow_common::ranges::Ranges;

use super::*;
use crate::processor::Destinations;

#[tokio::test]
async fn a_copy_of_what_another_consumer_works_on_waits_and_runs_once_that_one_is_done() {
    let mut bench = Bench::new(USUAL, |item| succeeded(&item)).await;
    bench.publish(&ChunkHeader { hop: 2, ..header(5) }).await;
    let delivery = bench.work.next().await.unwrap();
    let intake = Arc::clone(&bench.intake);
    tokio::join!(handle(&intake, delivery), bench.answer_of("1-4", "3"));
    // No other completion: nothing has ended, and nothing was handed over.
    bench.handle_copy("4").await;
    let outcomes = bench.outcomes().await;
    assert_eq!((outcomes.items.to_string(), outcomes.hop), ("4".into(), 2));
    assert_eq!((outcomes.attempts.to_string(), outcomes.holds.to_string()), ("1".into(), "1".into()));
    bench.assert_settled().await;
}

#[tokio::test]
async fn an_item_of_a_copy_that_waited_long_for_its_permit_is_asked_about_again() {
    let text = "name = 'j'\n[source]\ntype = 'json'\npath = '-'\n[[stage]]\ntype = 'echo'\n\
                [destination.narrow]\nmax_connections = 1\n";
    let narrow = Destinations::of_jobs([&Job::parse(Path::new("job.toml"), text).unwrap()]);
    let calls = Calls(|item: Item| {
        async move {
            tokio::time::sleep(Duration::from_millis(3_500)).await;
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    });
    let processor = processor::Stage::of(Arc::new(calls)).calling("narrow", &narrow);
    let mut bench = Bench::of(USUAL, processor).await;
    bench.publish(&ChunkHeader { hop: 1, ..header(2) }).await;
    bench.handle_copy("0-1").await;
    let mut handed_over = Ranges::new();
    let mut ended = Ranges::new();
    while ended.len() + handed_over.len() < 2 {
        let outcomes = bench.outcomes().await;
        handed_over = outcomes.handed_over.clone();
        ended = if ended.is_empty() { outcomes.items } else { ended };
    }
    assert_eq!((ended.to_string(), handed_over.to_string()), ("0".into(), "1".into()));
    let again = bench.work.next().await.unwrap();
    let (rest, _) = ChunkHeader::from_message(&again.message).unwrap();
    assert_eq!((rest.hop, rest.items.to_string(), rest.attempts.to_string()), (2, "1".into(), "0".into()));
}
