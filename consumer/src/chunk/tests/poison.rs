//! Chunks that come back again and again, and what is run with nothing else in the process.

use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::control::RunState;
use windrow_common::ranges::Ranges;

use super::*;
use crate::intake::take;
use crate::runs::tests::news;

impl Bench {
    /// From now on `work` is the alone queue.
    async fn take_alone(&mut self) {
        let queue = Queue::Alone(self.intake.key.clone());
        self.work = self.broker.subscribe(vec![queue], 10).await.unwrap();
    }

    async fn publish_alone(&self, header: &ChunkHeader) {
        let lines: Vec<String> = header.items.iter().map(|index| format!("{{\"n\":{index}}}")).collect();
        let target = Target::Queue(Queue::Alone(self.intake.key.clone()));
        let message = header.to_message(Bytes::from(lines.join("\n")), false);
        self.broker.publish(Outgoing { target, message }).await.unwrap();
    }
}

fn alone(items: u64, returns: u32) -> ChunkHeader {
    ChunkHeader { hop: 1, alone: true, returns, ..header(items) }
}

#[tokio::test]
async fn a_chunk_that_came_back_three_times_is_sent_on_to_run_alone_without_what_has_settled() {
    let mut bench = Bench::new(USUAL, |_| panic!("nothing of it may run")).await;
    bench.publish(&ChunkHeader { resent: true, returns: 3, ..header(5) }).await;
    bench.handle_copy("1,3-4").await;
    assert_eq!(bench.outcomes().await.handed_over.to_string(), "1,3-4");
    bench.assert_settled().await;
    bench.take_alone().await;
    let (sent_on, lines) = bench.next_chunk().await;
    assert_eq!((sent_on.hop, sent_on.alone, sent_on.returns), (1, true, 0));
    assert_eq!((sent_on.items.to_string(), lines.len()), ("1,3-4".to_owned(), 3));
    assert_eq!(sent_on.attempts.to_string(), "0*3");
}

#[tokio::test]
async fn a_chunk_that_ended_its_process_alone_is_sent_on_item_by_item() {
    let mut bench = Bench::new(USUAL, |_| panic!("nothing of it may run")).await;
    bench.take_alone().await;
    bench.publish_alone(&alone(4, 1)).await;
    bench.handle_copy("0,2-3").await;
    assert_eq!(bench.outcomes().await.handed_over.to_string(), "0,2-3");
    for item in ["0", "2", "3"] {
        let (sent_on, _) = bench.next_chunk().await;
        assert_eq!((sent_on.items.to_string().as_str(), sent_on.hop, sent_on.alone), (item, 2, true));
    }
}

#[tokio::test]
async fn an_item_that_ended_three_processes_alone_ends_as_failed_uncalled() {
    let mut bench = Bench::new(USUAL, |_| panic!("nothing of it may run")).await;
    bench.take_alone().await;
    bench.publish_alone(&alone(1, 3)).await;
    bench.handle_copy("0").await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.outcomes.to_string(), "failed");
    let error: ItemError = serde_json::from_slice(outcomes.body.trim_ascii_end()).unwrap();
    assert_eq!(error.class, "poison");
    // What has settled meanwhile is left alone.
    bench.publish_alone(&alone(1, 3)).await;
    bench.handle_copy("").await;
    let depth = bench.broker.depth(&Queue::Completion).await.unwrap();
    assert_eq!((depth.ready, depth.unsettled), (0, 0), "nothing is said of it");
}

#[tokio::test]
async fn what_is_to_run_alone_goes_back_there_with_its_returns_and_so_does_what_is_held() {
    let mut bench = Bench::new(USUAL, |_| panic!("nothing of it may run")).await;
    bench.publish(&alone(1, 2)).await;
    let delivery = bench.work.next().await.unwrap();
    handle(&bench.intake, delivery).await;
    bench.take_alone().await;
    // Whatever it waits for, it loses none of its returns.
    bench.intake.runs.hear(&news("r1", RunState::Paused));
    let delivery = bench.work.next().await.unwrap();
    handle(&bench.intake, delivery).await;
    let held = vec![Queue::Held(bench.intake.key.clone())];
    bench.work = bench.broker.subscribe(held, 10).await.unwrap();
    let (held, _) = bench.next_chunk().await;
    assert_eq!((held.hop, held.alone, held.returns), (1, true, 2));
}

#[tokio::test]
async fn an_item_to_be_tried_again_later_has_shown_that_it_ends_no_process() {
    let settings = Settings { interval: Duration::from_secs(2), ..USUAL };
    let mut bench = Bench::new(settings, |_| failed(Retry::Later)).await;
    bench.take_alone().await;
    bench.publish_alone(&alone(1, 2)).await;
    bench.handle_copy("0").await;
    bench.work = bench.broker.subscribe(bench.intake.queues(), 10).await.unwrap();
    let (later, _) = bench.next_chunk().await;
    assert_eq!((later.hop, later.alone, later.returns), (2, false, 0));
}

/// What runs beside what, while a stage takes chunks.
#[derive(Default)]
struct Seen {
    others: AtomicU32,
    alone: AtomicU32,
}

#[tokio::test]
async fn a_chunk_that_runs_alone_has_the_process_to_itself_and_the_others_go_on_afterwards() {
    const SUSPECT: u64 = 900;
    let seen = Arc::new(Seen::default());
    let called = Arc::clone(&seen);
    let mut bench = Bench::new(USUAL, move |item| {
        let seen = Arc::clone(&called);
        async move {
            if item.index >= SUSPECT {
                for _ in 0..10 {
                    assert_eq!(seen.others.load(Ordering::SeqCst), 0, "something else is running");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                seen.alone.fetch_add(1, Ordering::SeqCst);
            } else {
                seen.others.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                seen.others.fetch_sub(1, Ordering::SeqCst);
            }
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    for number in 0..2 {
        let mut suspect = alone(1, 2);
        suspect.id.ordinal = 50 + number;
        suspect.span = Span { first: SUSPECT + number, count: 1 };
        suspect.items = Ranges::span(SUSPECT + number, 1);
        bench.publish_alone(&suspect).await;
    }
    for ordinal in 0..5 {
        let mut chunk = header(20);
        chunk.id.ordinal = ordinal;
        chunk.span = Span { first: ordinal * 20, count: 20 };
        chunk.items = Ranges::span(ordinal * 20, 20);
        bench.publish(&chunk).await;
    }
    let shutdown = CancellationToken::new();
    let company = bench.intake.solitude.company().await;
    let work = bench.broker.subscribe(bench.intake.queues(), 3).await.unwrap();
    let nobody = bench.broker.subscribe(vec![Queue::Parking], 1).await.unwrap();
    drop(std::mem::replace(&mut bench.work, nobody));
    let taking = tokio::spawn(take(Arc::clone(&bench.intake), work, company, shutdown.clone()));
    while seen.others.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.intake.isolated.notify_one();
    let mut ended = std::collections::BTreeSet::new();
    while ended.len() < 102 {
        let message = bench.completions.next().await.unwrap();
        match Completion::from_message(&message.message).unwrap() {
            Completion::Question(question) => {
                let open = question.items.filter(|index| !ended.contains(&index));
                let (token, run_items) = (question.token, open.to_string());
                let answer = Answer { token, run_items, busy_items: String::new(), claimed: None };
                let target = Target::Process(question.reply_to);
                let answer = Outgoing { target, message: Control::Answer(answer).to_message() };
                bench.broker.settle(message, vec![answer]).await.unwrap();
            }
            Completion::Outcomes(outcomes) => {
                for index in outcomes.items.iter() {
                    assert!(ended.insert(index), "{index} ended twice");
                }
                bench.broker.settle(message, Vec::new()).await.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.alone.load(Ordering::SeqCst), 2);
    shutdown.cancel();
    taking.await.unwrap();
}
