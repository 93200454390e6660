//! A destination that goes down while a chunk is worked on.

use std::path::Path;

use windrow_common::job::Job;

use super::*;
use crate::processor::Destinations;

/// How long the breaker stays open: well beyond the moment at which items leave early.
const OPEN: Duration = Duration::from_secs(2);

/// The destination `frail`, which one failed call opens.
fn frail() -> Destinations {
    let text = "name = 'j'\n[source]\ntype = 'json'\npath = '-'\n[[stage]]\ntype = 'echo'\n\
                [destination.frail]\nbreaker = { failures = 1, open = '2s' }\n";
    Destinations::of_jobs([&Job::parse(Path::new("job.toml"), text).unwrap()])
}

fn no_connection() -> BoxFuture<'static, Attempt> {
    let error = ItemError { class: "connect".into(), message: "refused".into(), status: None };
    async move { Attempt::Failed { error, retry: Retry::Later, done: Done::Nothing } }.boxed()
}

#[tokio::test]
async fn what_waits_for_a_destination_leaves_while_a_slow_call_to_it_is_under_way() {
    let release = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&release);
    let calls = Calls(move |item: Item| {
        let gate = Arc::clone(&gate);
        match item.index {
            0 => async move {
                gate.acquire().await.unwrap().forget();
                Attempt::Succeeded(item.raw)
            }
            .boxed(),
            1 => no_connection(),
            index => panic!("item {index} was called while its destination was down"),
        }
    });
    let processor = processor::Stage::of(Arc::new(calls)).calling("frail", &frail());
    let mut bench = Bench::of(USUAL, processor).await;
    bench.publish(&header(10)).await;
    let delivery = bench.work.next().await.unwrap();
    let began = Instant::now();
    let watching = async {
        let told = bench.completions.next().await.unwrap();
        let Completion::Outcomes(early) = Completion::from_message(&told.message).unwrap() else { panic!() };
        assert_eq!((early.items.len(), early.handed_over.to_string()), (0, "1-9".to_owned()));
        bench.broker.settle(told, Vec::new()).await.unwrap();
        let remainder = bench.work.next().await.unwrap();
        assert!(began.elapsed() >= OPEN, "it came back before the destination may be probed");
        let (rest, _) = ChunkHeader::from_message(&remainder.message).unwrap();
        assert_eq!(
            (rest.hop, rest.items.to_string(), rest.attempts.to_string()),
            (1, "1-9".into(), "1,0*8".into())
        );
        assert_eq!(rest.holds.to_string(), "1*9");
        bench.broker.settle(remainder, Vec::new()).await.unwrap();
        let depth = bench.broker.depth(&Queue::Work(bench.intake.key.clone())).await.unwrap();
        assert_eq!(depth.unsettled, 1, "the slow call has not ended");
        release.add_permits(1);
    };
    tokio::join!(handle(&bench.intake, delivery), watching);
    let last = bench.outcomes().await;
    assert_eq!((last.items.to_string(), last.handed_over.is_empty()), ("0".to_owned(), true));
    bench.assert_settled().await;
}
