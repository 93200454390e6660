//! Chunks of runs that are paused, resumed and stopped.

use tokio::sync::Semaphore as Gate;
use windrow_common::broker::Depth;
use windrow_common::envelope::control::RunState;
use windrow_common::ids::RunId;
use windrow_common::ranges::Runs;

use super::*;
use crate::held;
use crate::runs::tests::news;

impl Bench {
    fn hear(&self, run: &str, state: RunState) {
        self.intake.runs.hear(&news(run, state));
    }

    fn held(&self) -> Queue {
        Queue::Held(self.intake.key.clone())
    }

    async fn until_held(&self, chunks: u64) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.broker.depth(&self.held()).await.unwrap().ready != chunks {
            assert!(Instant::now() < until, "{:?}", self.broker.depth(&self.held()).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Gives held chunks back from now on.
    async fn keep_held(&self) {
        tokio::spawn(held::keep(Arc::clone(&self.intake), CancellationToken::new()));
        // Its first look is over: from now on it waits for an occasion.
        tokio::task::yield_now().await;
    }
}

fn of_run(run: &str, ordinal: u64) -> ChunkHeader {
    let mut header = header(3);
    header.id.run = run.parse::<RunId>().unwrap();
    header.id.ordinal = ordinal;
    header
}

#[tokio::test]
async fn a_chunk_of_a_paused_run_waits_in_the_held_queue_and_comes_back_on_resume_as_it_was() {
    let mut bench = Bench::new(USUAL, |_| panic!("called while paused")).await;
    bench.hear("r1", RunState::Paused);
    bench.keep_held().await;
    bench.handle(&ChunkHeader { attempts: Runs::repeat(2, 3), hop: 1, ..of_run("r1", 7) }).await;
    bench.until_held(1).await;
    bench.hear("r1", RunState::Running);
    let (back, lines) = bench.next_chunk().await;
    assert_eq!((back.id.ordinal, back.hop, back.held_ms, lines.len()), (7, 1, 0, 3));
    assert_eq!((back.attempts.to_string(), back.holds.to_string()), ("2*3".into(), "1*3".into()));
    assert!(back.may_be_copy(), "it asks before it runs");
    bench.until_held(0).await;
}

#[tokio::test]
async fn a_pause_hands_what_has_not_begun_over_while_the_rest_still_runs() {
    let gate = Arc::new(Gate::new(0));
    let begun = Arc::new(AtomicU32::new(0));
    let (open, count) = (Arc::clone(&gate), Arc::clone(&begun));
    let mut bench = Bench::new(USUAL, move |item| {
        let (open, count) = (Arc::clone(&open), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            open.acquire().await.unwrap().forget();
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    bench.publish(&header(10)).await;
    let delivery = bench.work.next().await.unwrap();
    let intake = Arc::clone(&bench.intake);
    let handling = tokio::spawn(async move { handle(&intake, delivery).await });
    while begun.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    bench.hear("r1", RunState::Paused);
    let handed_over = bench.outcomes().await;
    assert_eq!((handed_over.items.len(), handed_over.handed_over.to_string()), (0, "4-9".into()));
    bench.until_held(1).await;
    assert!(!handling.is_finished(), "four still run");

    gate.add_permits(4);
    let outcomes = bench.outcomes().await;
    assert_eq!((outcomes.items.to_string(), outcomes.handed_over.len()), ("0-3".into(), 0));
    handling.await.unwrap();
    bench.assert_settled().await;
    bench.keep_held().await;
    bench.hear("r1", RunState::Running);
    let (remainder, _) = bench.next_chunk().await;
    assert_eq!((remainder.hop, remainder.items.to_string()), (1, "4-9".into()));
    assert_eq!((remainder.attempts.to_string(), remainder.holds.to_string()), ("0*6".into(), "1*6".into()));
    assert_eq!(begun.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_stop_ends_what_has_not_begun_as_cancelled() {
    let gate = Arc::new(Gate::new(0));
    let open = Arc::clone(&gate);
    let mut bench = Bench::new(USUAL, move |item| {
        let open = Arc::clone(&open);
        async move {
            open.acquire().await.unwrap().forget();
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    bench.publish(&header(6)).await;
    let delivery = bench.work.next().await.unwrap();
    let intake = Arc::clone(&bench.intake);
    let handling = tokio::spawn(async move { handle(&intake, delivery).await });
    while bench.intake.versions[0].slots.try_acquire().is_some() {
        tokio::task::yield_now().await;
    }
    bench.hear("r1", RunState::Cancelling);
    let cancelled = bench.outcomes().await;
    assert_eq!(
        (cancelled.items.to_string(), cancelled.outcomes.to_string()),
        ("4-5".into(), "cancelled*2".into())
    );
    gate.add_permits(4);
    assert_eq!(bench.outcomes().await.outcomes.to_string(), "succeeded*4");
    handling.await.unwrap();
    bench.assert_settled().await;
}

#[tokio::test]
async fn a_resumption_looks_at_the_held_chunks_of_other_runs_once() {
    let mut bench = Bench::new(USUAL, |item| succeeded(&item)).await;
    bench.hear("r1", RunState::Paused);
    bench.hear("r2", RunState::Paused);
    for ordinal in 0..5 {
        bench.handle(&of_run("r1", ordinal)).await;
        bench.handle(&of_run("r2", ordinal)).await;
    }
    bench.keep_held().await;
    bench.until_held(10).await;
    bench.hear("r2", RunState::Running);
    let mut back = Vec::new();
    for _ in 0..5 {
        let (chunk, _) = bench.next_chunk().await;
        assert_eq!(chunk.id.run.as_str(), "r2");
        back.push(chunk.id.ordinal);
    }
    back.sort_unstable();
    assert_eq!(back, [0, 1, 2, 3, 4]);
    bench.until_held(5).await;
    for _ in 0..50 {
        let quiet = Depth { ready: 5, unsettled: 0 };
        assert_eq!(bench.broker.depth(&bench.held()).await.unwrap(), quiet, "they are left alone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_chunk_held_after_its_run_was_resumed_comes_back_too() {
    let mut bench = Bench::new(USUAL, |item| succeeded(&item)).await;
    bench.keep_held().await;
    bench.hear("r1", RunState::Running);
    // Put there by a consumer that had not heard yet.
    let target = Target::Queue(bench.held());
    let message = ChunkHeader { resent: true, ..header(1) }.to_message(Bytes::from("1"), false);
    bench.broker.publish(Outgoing { target, message }).await.unwrap();
    bench.intake.runs.was_held(&header(1).id.run);
    assert_eq!(bench.next_chunk().await.0.id.ordinal, 0);
}
