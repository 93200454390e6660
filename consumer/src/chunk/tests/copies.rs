//! Copies of what another consumer is still working on.

use super::*;

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
