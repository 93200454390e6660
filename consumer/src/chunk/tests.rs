//! The life of a delivery, on the embedded broker.

mod adapting;
mod claims;
mod copies;
mod expiry;
mod isolation;
mod outage;
mod pauses;
mod poison;

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::parking::Death;
use windrow_common::broker::{Broker, Outgoing, Queue, Subscription, Target};
use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::completion::{Completion, ItemError, Outcomes, Question};
use windrow_common::envelope::control::{Answer, Control};
use windrow_common::ids::{Group, ProcessId};
use windrow_common::job::{Concurrency, Effect, RetrySpec, Schedule};
use windrow_common::outcome::Outcome;
use windrow_common::telemetry::metrics::Metrics;

use super::handle;
use super::triage::tests::header;
use crate::fleet::Fleet;
use crate::in_hand::InHand;
use crate::processor::Destinations;
use crate::processor::{self, Attempt, Done, Item, Processor, Retry};
use crate::questions::Questions;
use crate::runs::RunWords;
use crate::slots::Slots;
use crate::solitude::Solitude;
use crate::stage::{StageIntake, StageRunner};

/// Calls a closure for each attempt.
struct Calls<F>(F);

impl<F> std::fmt::Debug for Calls<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Calls")
    }
}

impl<F: Fn(Item) -> BoxFuture<'static, Attempt> + Send + Sync> Processor for Calls<F> {
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
        (self.0)(item.clone())
    }
}

fn succeeded(item: &Item) -> BoxFuture<'static, Attempt> {
    let raw = item.raw.clone();
    async move { Attempt::Succeeded(raw) }.boxed()
}

fn failed(retry: Retry) -> BoxFuture<'static, Attempt> {
    async move { Attempt::failed("test", "on purpose", retry) }.boxed()
}

/// A stage, its queues, and the collector's end of the completion queue.
struct Bench {
    _folder: TempDir,
    broker: Arc<dyn Broker>,
    intake: Arc<StageIntake>,
    work: Subscription,
    completions: Subscription,
}

struct Settings {
    concurrency: Concurrency,
    interval: Duration,
    timeout: Duration,
    budget: Duration,
    effect: Effect,
}

const USUAL: Settings = Settings {
    concurrency: Concurrency::Fixed(4),
    interval: Duration::from_millis(10),
    timeout: Duration::from_secs(60),
    budget: Duration::from_secs(60),
    effect: Effect::AtLeastOnce,
};

impl Bench {
    async fn new<F>(settings: Settings, call: F) -> Self
    where
        F: Fn(Item) -> BoxFuture<'static, Attempt> + Send + Sync + 'static,
    {
        Self::of(settings, processor::Stage::of(Arc::new(Calls(call)))).await
    }

    async fn of(settings: Settings, processor: processor::Stage) -> Self {
        let folder = TempDir::new().unwrap();
        let broker: Arc<dyn Broker> = Arc::new(EmbeddedBroker::open(folder.path(), &Group::main()).unwrap());
        let key = header(1).stage_key();
        let metrics = Metrics::new("test").stage(&key);
        let version = StageRunner {
            hash: header(1).hash,
            processor,
            timeout: settings.timeout,
            retry: RetrySpec {
                count: 2,
                interval: settings.interval,
                schedule: Schedule::Fixed,
                max_interval: settings.interval,
                in_place_below: Duration::from_secs(2),
            },
            effect: settings.effect,
            budget: settings.budget,
            compress: false,
            slots: Slots::new(settings.concurrency, metrics.concurrency.clone()),
        };
        let runs = Arc::new(RunWords::default());
        let process = ProcessId::generate();
        let in_hand = Arc::new(InHand::default());
        let (fleet, _) = Fleet::new(process.clone(), None, &Destinations::default(), Arc::clone(&in_hand));
        let questions =
            Questions::open(process, Arc::clone(&broker), Arc::clone(&runs), fleet).await.unwrap();
        let intake = Arc::new(StageIntake {
            metrics,
            key: key.clone(),
            versions: vec![Arc::new(version)],
            prefetch: 10,
            broker: Arc::clone(&broker),
            questions,
            runs,
            in_hand,
            solitude: Solitude::default(),
            isolated: Notify::new(),
            draining: CancellationToken::new(),
            abort: CancellationToken::new(),
        });
        for queue in intake.queues().iter().chain(&[Queue::Held(key.clone()), Queue::Alone(key)]) {
            broker.ensure(queue).await.unwrap();
        }
        broker.ensure(&Queue::Completion).await.unwrap();
        let work = broker.subscribe(intake.queues(), 10).await.unwrap();
        let completions = broker.subscribe(vec![Queue::Completion], 100).await.unwrap();
        Self { _folder: folder, broker, intake, work, completions }
    }

    async fn publish(&self, header: &ChunkHeader) {
        let lines: Vec<String> = header.items.iter().map(|index| format!("{{\"n\":{index}}}")).collect();
        let body = lines.join("\n");
        let target = Target::Queue(Queue::Work(self.intake.key.clone()));
        let message = header.to_message(Bytes::from(body), false);
        self.broker.publish(Outgoing { target, message }).await.unwrap();
    }

    /// Publishes a chunk and handles its delivery to the end.
    async fn handle(&mut self, header: &ChunkHeader) {
        self.publish(header).await;
        let delivery = self.work.next().await.unwrap();
        handle(&self.intake, delivery).await;
    }

    async fn outcomes(&mut self) -> Outcomes {
        let delivery = self.completions.next().await.unwrap();
        let completion = Completion::from_message(&delivery.message).unwrap();
        self.broker.settle(delivery, Vec::new()).await.unwrap();
        match completion {
            Completion::Outcomes(outcomes) => outcomes,
            other => panic!("{other:?}"),
        }
    }

    /// Answers the next question: these items are to run.
    async fn answer(&mut self, run_items: &str) -> Question {
        self.answer_of(run_items, "").await
    }

    async fn answer_of(&mut self, run_items: &str, busy_items: &str) -> Question {
        let asked = self.completions.next().await.unwrap();
        let Completion::Question(question) = Completion::from_message(&asked.message).unwrap() else {
            panic!("not a question");
        };
        let (token, target) = (question.token.clone(), Target::Process(question.reply_to.clone()));
        let (run_items, busy_items) = (run_items.into(), busy_items.into());
        let message = Control::Answer(Answer { token, run_items, busy_items, claimed: None }).to_message();
        self.broker.settle(asked, vec![Outgoing { target, message }]).await.unwrap();
        question
    }

    /// Handles the next delivery, a copy, and answers its question: these items are to run.
    async fn handle_copy(&mut self, run_items: &str) -> Question {
        let delivery = self.work.next().await.unwrap();
        let intake = Arc::clone(&self.intake);
        let ((), question) = tokio::join!(handle(&intake, delivery), self.answer(run_items));
        question
    }

    /// What came back to the stage's own queues.
    async fn next_chunk(&mut self) -> (ChunkHeader, Vec<Bytes>) {
        let delivery = self.work.next().await.unwrap();
        let chunk = ChunkHeader::from_message(&delivery.message).unwrap();
        self.broker.settle(delivery, Vec::new()).await.unwrap();
        chunk
    }

    /// Nothing of the chunk is left in the stage's queues or in anyone's hands.
    async fn assert_settled(&self) {
        for queue in self.intake.queues() {
            let depth = self.broker.depth(&queue).await.unwrap();
            assert_eq!((depth.ready, depth.unsettled), (0, 0), "{queue:?}");
        }
    }
}

#[tokio::test]
async fn every_item_gets_one_outcome_in_the_order_of_the_items() {
    let mut bench = Bench::new(USUAL, |item| succeeded(&item)).await;
    bench.handle(&header(10)).await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.items.to_string(), "0-9");
    assert_eq!(outcomes.outcomes.to_string(), "succeeded*10");
    assert_eq!(outcomes.attempts.to_string(), "1*10");
    assert!(outcomes.body.starts_with(b"{\"n\":0}\n{\"n\":1}\n"));
    bench.assert_settled().await;
}

#[tokio::test]
async fn a_panic_of_a_processor_is_an_outcome_of_its_item_alone() {
    let mut bench = Bench::new(USUAL, |item| match item.index {
        3 => async { panic!("three is too many") }.boxed(),
        _ => succeeded(&item),
    })
    .await;
    bench.handle(&header(5)).await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.outcomes.to_string(), "succeeded*3,failed,succeeded");
    let error: ItemError =
        serde_json::from_slice(outcomes.body.split(|b| *b == b'\n').nth(3).unwrap()).unwrap();
    assert_eq!(error.class, "panic");
    assert!(error.message.contains("three is too many"));
}

#[tokio::test]
async fn short_pauses_stay_in_the_process_and_retries_are_counted() {
    let mut bench = Bench::new(USUAL, |item| match (item.index, item.attempt) {
        (1, 1..=2) | (2, _) => failed(Retry::Later),
        _ => succeeded(&item),
    })
    .await;
    bench.handle(&header(3)).await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.outcomes.to_string(), "succeeded*2,failed");
    assert_eq!(outcomes.attempts.to_string(), "1,3*2");
    bench.assert_settled().await;
}

#[tokio::test]
async fn long_pauses_leave_as_a_remainder_of_just_the_failed_items() {
    let settings = Settings { interval: Duration::from_secs(2), ..USUAL };
    let mut bench = Bench::new(settings, |item| match item.index {
        1 | 4 => failed(Retry::Later),
        _ => succeeded(&item),
    })
    .await;
    let started = Instant::now();
    bench.handle(&header(6)).await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.items.to_string(), "0,2-3,5");
    assert_eq!(outcomes.handed_over.to_string(), "1,4");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let (remainder, lines) = bench.next_chunk().await;
        assert_eq!((remainder.hop, remainder.attempts.iter().next()), (1, Some(1)));
        assert_eq!(lines.len() as u64, remainder.items.len());
        seen.extend(remainder.items.iter());
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 4]);
    assert!(started.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn an_attempt_over_its_timeout_is_cancelled_and_tried_again() {
    let dropped = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&dropped);
    let settings = Settings { timeout: Duration::from_millis(50), ..USUAL };
    let mut bench = Bench::new(settings, move |item| {
        if item.attempt > 1 {
            return succeeded(&item);
        }
        let guard = CountDrop(Arc::clone(&counter));
        async move {
            let _guard = guard;
            pending().await
        }
        .boxed()
    })
    .await;
    bench.handle(&header(1)).await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.outcomes.to_string(), "succeeded");
    assert_eq!(outcomes.attempts.to_string(), "2");
    assert_eq!(dropped.load(Ordering::SeqCst), 1, "the attempt was cancelled");
}

struct CountDrop(Arc<AtomicU32>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn at_the_budget_no_attempt_starts_and_the_rest_is_handed_over_without_an_attempt() {
    let settings = Settings { budget: Duration::from_millis(100), ..USUAL };
    let mut bench = Bench::new(settings, |item| {
        async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    bench.handle(&header(10)).await;
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.items.to_string(), "0-3", "what was running has come to its end");
    assert_eq!(outcomes.handed_over.to_string(), "4-9");
    let (remainder, _) = bench.next_chunk().await;
    assert_eq!(remainder.items.to_string(), "4-9");
    assert!(remainder.attempts.iter().all(|attempts| attempts == 0));
}

#[tokio::test]
async fn a_drain_hands_over_what_has_not_begun_and_an_abort_what_still_runs() {
    let mut bench = Bench::new(USUAL, |_| pending().boxed()).await;
    bench.publish(&header(6)).await;
    let delivery = bench.work.next().await.unwrap();
    bench.intake.draining.cancel();
    let (draining, abort) = (bench.intake.draining.clone(), bench.intake.abort.clone());
    let abort_later = async {
        draining.cancelled().await;
        tokio::task::yield_now().await;
        abort.cancel();
    };
    tokio::join!(handle(&bench.intake, delivery), abort_later);
    let outcomes = bench.outcomes().await;
    assert!(outcomes.items.is_empty());
    assert_eq!(outcomes.handed_over.to_string(), "0-5");
    assert_eq!(bench.next_chunk().await.0.attempts.to_string(), "0*6");
}

#[tokio::test]
async fn a_copy_runs_only_the_items_its_answer_names() {
    let called = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&called);
    let mut bench = Bench::new(USUAL, move |item| {
        log.lock().unwrap().push(item.index);
        succeeded(&item)
    })
    .await;
    let copy = ChunkHeader { resent: true, ..header(5) };
    bench.publish(&copy).await;
    let question = bench.handle_copy("1,3").await;
    assert_eq!((question.items.to_string(), question.hop), ("0-4".to_owned(), 0));
    assert_eq!(*called.lock().unwrap(), [1, 3]);
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.items.to_string(), "1,3");
    assert!(outcomes.handed_over.is_empty());
    bench.assert_settled().await;
}

#[tokio::test]
async fn a_copy_nobody_answers_about_is_put_aside_with_its_hop_and_mark() {
    let mut bench = Bench::new(USUAL, |_| panic!("nothing of it may run")).await;
    let copy = ChunkHeader { hop: 3, ..header(2) };
    bench.handle(&copy).await;
    let depth = bench.broker.depth(&Queue::Due(bench.intake.key.clone())).await.unwrap();
    assert_eq!(depth.unsettled, 0);
    let (held, lines) = bench.next_chunk().await;
    assert_eq!((held.hop, held.resent, held.held_ms), (3, true, 8_000));
    assert_eq!((held.holds.to_string(), held.attempts.to_string()), ("1*2".into(), "0*2".into()));
    assert_eq!(lines.len(), 2);
}

#[tokio::test]
async fn outcomes_of_a_slow_chunk_are_reported_while_it_runs() {
    let release = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&release);
    let mut bench = Bench::new(USUAL, move |item| {
        let gate = Arc::clone(&gate);
        async move {
            if item.index == 1 {
                gate.acquire().await.unwrap().forget();
            }
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    bench.publish(&header(2)).await;
    let delivery = bench.work.next().await.unwrap();
    let watching = async {
        let early = bench.completions.next().await.unwrap();
        let Completion::Outcomes(outcomes) = Completion::from_message(&early.message).unwrap() else {
            panic!()
        };
        assert_eq!(outcomes.items.to_string(), "0");
        bench.broker.settle(early, Vec::new()).await.unwrap();
        release.add_permits(1);
    };
    tokio::join!(handle(&bench.intake, delivery), watching);
    assert_eq!(bench.outcomes().await.items.to_string(), "1");
}

#[tokio::test]
async fn a_lost_delivery_starts_no_further_item_and_sends_nothing_on() {
    let called = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&called);
    let mut bench = Bench::new(USUAL, move |item| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    bench.publish(&header(20)).await;
    let delivery = bench.work.next().await.unwrap();
    let lost = delivery.lost.clone();
    let losing = async {
        while called.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        lost.cancel();
    };
    tokio::join!(handle(&bench.intake, delivery), losing);
    assert_eq!(called.load(Ordering::SeqCst), 4, "only those of the first round");
    let outcomes = bench.outcomes().await;
    assert_eq!(outcomes.items.to_string(), "0-3");
    assert!(outcomes.handed_over.is_empty(), "the copy has them");
}

#[tokio::test]
async fn what_is_no_chunk_is_parked_and_a_chunk_of_a_run_goes_by_the_collector() {
    let mut bench = Bench::new(USUAL, |item| succeeded(&item)).await;
    let mut parking = bench.broker.subscribe(vec![Queue::Parking], 9).await.unwrap();
    let work = Queue::Work(bench.intake.key.clone());
    let broken = header(2).to_message(Bytes::from_static(b"\xff\xfe"), false);
    let mut newer = broken.clone();
    newer.headers.set_int("version", 99);
    let mut nameless = broken.clone();
    nameless.headers.set_text("run", "../x");
    let unknown = ChunkHeader { hash: "ff".parse().unwrap(), held_ms: 600_000, ..header(2) };
    let unknown = unknown.to_message(Bytes::from_static(b"1\n2\n"), false);
    for (message, by_collector, reason) in [
        (broken, true, "1 lines for 2 items"),
        (newer, true, "wire version 99"),
        (unknown, true, "no consumer of this queue holds job"),
        (nameless, false, "`run`"),
    ] {
        let target = Target::Queue(work.clone());
        bench.broker.publish(Outgoing { target, message: message.clone() }).await.unwrap();
        let delivery = bench.work.next().await.unwrap();
        handle(&bench.intake, delivery).await;
        bench.assert_settled().await;
        let dead = if by_collector { &mut bench.completions } else { &mut parking }.next().await.unwrap();
        let death = Death::of(&dead.message).unwrap();
        assert!(death.reason.contains(reason), "{reason}: {death:?}");
        assert_eq!((death.from, dead.message.body), (Some(work.clone()), message.body));
    }
}

#[tokio::test]
async fn an_item_sees_no_other_items_value_however_many_run_at_once() {
    let mut bench = Bench::new(USUAL, |item| {
        async move {
            tokio::time::sleep(Duration::from_millis(item.index % 7)).await;
            Attempt::Succeeded(item.raw)
        }
        .boxed()
    })
    .await;
    bench.handle(&header(500)).await;
    let mut seen = 0;
    while seen < 500 {
        let outcomes = bench.outcomes().await;
        for (index, line) in outcomes.items.iter().zip(outcomes.body.split(|byte| *byte == b'\n')) {
            assert_eq!(line, format!("{{\"n\":{index}}}").as_bytes());
            seen += 1;
        }
        assert!(outcomes.outcomes.iter().all(|outcome| outcome == Outcome::Succeeded));
    }
}
