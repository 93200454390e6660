//! Each policy of a consumer on a clock that jumps: when it calls, to the second, however long that takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{Broker, Outgoing, Queue, Target};
use windrow_common::clock;
use windrow_common::envelope::chunk::{ChunkHeader, Span};
use windrow_common::envelope::completion::{Completion, ItemError, Outcomes};
use windrow_common::envelope::control::{Answer, Control};
use windrow_common::ids::{ChunkId, ProcessId, SourceName};
use windrow_common::job::{Job, JobSet};
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Runs;
use windrow_common::telemetry::metrics::Metrics;
use windrow_consumer::processor::{Attempt, Item, Processor, Retry};
use windrow_consumer::{Consumer, Options, Solitude};
use windrow_tests::model_broker::{Mischief, ModelBroker, ModelClient};

/// Longer than any policy here takes.
const PATIENCE: Duration = Duration::from_secs(3_600);

type Answering = fn(&Item, Duration) -> Attempt;

/// What happened to one chunk.
struct Story {
    /// Seconds since the start, and the item.
    calls: Vec<(f64, u64)>,
    outcomes: Vec<Outcomes>,
    ended_at: f64,
}

impl Story {
    /// How its items ended, by index.
    fn ends(&self) -> BTreeMap<u64, (Outcome, u32)> {
        let of = |outcomes: &Outcomes| -> Vec<_> {
            let ends = outcomes.outcomes.iter().zip(outcomes.attempts.iter());
            outcomes.items.iter().zip(ends).collect()
        };
        self.outcomes.iter().flat_map(of).collect()
    }

    fn pauses(&self) -> Vec<f64> {
        self.calls.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }
}

/// What an item meets, and when it was called.
struct Called {
    began: Instant,
    takes: Duration,
    answering: Answering,
    calls: Mutex<Vec<(f64, u64)>>,
}

impl std::fmt::Debug for Called {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Called")
    }
}

impl Processor for Called {
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
        async move {
            let at = self.began.elapsed();
            self.calls.lock().unwrap().push((at.as_secs_f64(), item.index));
            tokio::time::sleep(self.takes).await;
            (self.answering)(item, at)
        }
        .boxed()
    }
}

/// A chunk of some items through a consumer.
struct Setting {
    stage: &'static str,
    rest: &'static str,
    items: u64,
    takes: Duration,
    answering: Answering,
    /// Whether a collector answers questions.
    is_answered: bool,
    /// Whether the chunk may be a copy.
    resent: bool,
    lifetime_ms: Option<u64>,
}

const USUAL: Setting = Setting {
    stage: "",
    rest: "",
    items: 1,
    takes: Duration::ZERO,
    answering: |_, _| succeeded(),
    is_answered: true,
    resent: false,
    lifetime_ms: None,
};

fn succeeded() -> Attempt {
    Attempt::Succeeded(Bytes::from_static(b"1"))
}

async fn story(setting: Setting) -> Story {
    clock::set_for_this_thread(1_800_000_000_000);
    let Setting { stage, rest, items, .. } = setting;
    let text = format!(
        "name = 'j'\n[source]\ntype = 'jsonl'\npath = '-'\n[[stage]]\nname = 's'\ntype = 'command'\nargv = ['true']\n{stage}\n{rest}\n"
    );
    let job =
        Job::parse(std::path::Path::new("job.toml"), &text).unwrap_or_else(|problems| panic!("{problems:?}"));
    let key = job.stage_key(&job.stages[0]);
    let broker = ModelBroker::new(Mischief { latency: Duration::ZERO, ..Mischief::none() }, Arc::new(|_| ()));
    let called = Arc::new(Called {
        began: Instant::now(),
        takes: setting.takes,
        answering: setting.answering,
        calls: Mutex::default(),
    });
    let options = Options {
        process: "consumer".parse().unwrap(),
        collector: None,
        grace: Duration::ZERO,
        metrics: Metrics::new("schedules"),
        solitude: Solitude::default(),
        own_processors: BTreeMap::from([(key.clone(), Arc::clone(&called) as _)]),
    };
    let jobs = JobSet::from_jobs([job.clone()]);
    let consumer = Consumer::start(&jobs, broker.connect("consumer"), options, &|_| None).await.unwrap();
    let consuming = tokio::spawn(consumer.run(CancellationToken::new()));
    let client = broker.connect("others");
    let message =
        chunk(&job, &setting).to_message(Bytes::from("1\n".repeat(usize::try_from(items).unwrap())), false);
    client.publish(Outgoing { target: Target::Queue(Queue::Work(key)), message }).await.unwrap();
    let outcomes = tokio::time::timeout(PATIENCE, collect(&client, items, setting.is_answered)).await;
    let outcomes = outcomes.expect("it does not end");
    consuming.abort();
    let calls = std::mem::take(&mut *called.calls.lock().unwrap());
    Story { calls, outcomes, ended_at: called.began.elapsed().as_secs_f64() }
}

fn chunk(job: &Job, setting: &Setting) -> ChunkHeader {
    let span = Span { first: 0, count: setting.items };
    ChunkHeader {
        id: ChunkId {
            run: "r".parse().unwrap(),
            stage: job.stages[0].name.clone(),
            source: SourceName::only(),
            ordinal: 0,
        },
        root_run: "r".parse().unwrap(),
        job: job.name.clone(),
        hash: job.hash.clone(),
        span,
        items: span.to_ranges(),
        attempts: Runs::repeat(0, span.count),
        throttles: Runs::repeat(0, span.count),
        holds: Runs::repeat(0, span.count),
        hop: 0,
        alone: false,
        returns: 0,
        held_ms: 0,
        not_before: None,
        expires: setting.lifetime_ms.map(|lifetime| clock::unix_ms() + lifetime),
        resent: setting.resent,
        id_field: None,
        traceparent: None,
    }
}

/// Completions until every item has ended; questions are answered with everything asked for, or not at all.
async fn collect(client: &ModelClient, items: u64, is_answered: bool) -> Vec<Outcomes> {
    let mut completions = client.subscribe(vec![Queue::Completion], 10).await.unwrap();
    let (mut all, mut ended) = (Vec::new(), 0);
    while ended < items {
        let delivery = completions.next().await.unwrap();
        match Completion::from_message(&delivery.message).unwrap() {
            Completion::Outcomes(outcomes) => {
                ended += outcomes.items.len();
                all.push(outcomes);
            }
            Completion::Question(question) if is_answered => {
                let process: ProcessId = question.reply_to;
                let (token, run_items) = (question.token, question.items.to_string());
                let answer = Answer { token, run_items, busy_items: String::new(), claimed: None };
                let message = Control::Answer(answer).to_message();
                client.publish(Outgoing { target: Target::Process(process), message }).await.unwrap();
            }
            _ => {}
        }
        client.settle(delivery, Vec::new()).await.unwrap();
    }
    all
}

#[tokio::test(start_paused = true)]
async fn retries_come_by_their_schedule_and_at_most_a_third_and_a_second_later() {
    for (stage, expected) in [
        (
            "retry = { count = 3, interval = '3s', max_interval = '10s', type = 'exponential' }",
            [3.0, 6.0, 10.0],
        ),
        ("retry = { count = 3, interval = '3s', max_interval = '100s', type = 'linear' }", [3.0, 6.0, 9.0]),
        ("retry = { count = 3, interval = '300s', max_interval = '300s', type = 'fixed' }", [300.0; 3]),
    ] {
        let answering: Answering = |_, _| Attempt::failed("test", "no", Retry::Later);
        let story = story(Setting { stage, answering, ..USUAL }).await;
        assert_eq!(story.ends()[&0], (Outcome::Failed, 4), "{stage}");
        let pauses = story.pauses();
        assert_eq!(pauses.len(), 3, "{stage}");
        for (pause, wanted) in pauses.into_iter().zip(expected) {
            assert!((wanted..=wanted * 1.32 + 1.1).contains(&pause), "{stage}: {pause} for {wanted}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_pause_stays_in_the_process() {
    let stage = "retry = { count = 3, interval = '1s', type = 'fixed' }";
    let answering: Answering = |_, _| Attempt::failed("test", "no", Retry::Later);
    let story = story(Setting { stage, answering, ..USUAL }).await;
    assert!(story.pauses().iter().all(|pause| *pause <= 1.01), "{:?}", story.calls);
    assert!(story.outcomes.iter().all(|outcomes| outcomes.hop == 0 && outcomes.handed_over.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_call_comes_again_when_it_may_and_costs_no_attempt() {
    let answering: Answering = |_, at| match at.as_secs() {
        0 => Attempt::Throttled { error: ItemError::default(), after: Some(Duration::from_secs(30)) },
        _ => succeeded(),
    };
    let story = story(Setting { answering, ..USUAL }).await;
    assert_eq!(story.ends()[&0], (Outcome::Succeeded, 1));
    assert!((30.0..=34.1).contains(&story.pauses()[0]), "{:?}", story.calls);
}

#[tokio::test(start_paused = true)]
async fn a_copy_nobody_answers_is_held_and_runs_unasked_after_ten_minutes_of_holds() {
    let story = story(Setting { is_answered: false, resent: true, ..USUAL }).await;
    let [(at, 0)] = story.calls[..] else { panic!("{:?}", story.calls) };
    // 75 holds of 8 s, and 5 s of waiting for an answer before each of them and before the run.
    assert!((980.0..=981.0).contains(&at), "{at}");
    assert!(story.outcomes.last().unwrap().unasked);
}

#[tokio::test(start_paused = true)]
async fn an_item_expires_in_its_time_and_is_not_called_after_it() {
    let stage = "retry = { count = 100, interval = '3s', type = 'fixed' }";
    let answering: Answering = |_, _| Attempt::failed("test", "no", Retry::Later);
    let story = story(Setting { stage, answering, lifetime_ms: Some(10_000), ..USUAL }).await;
    assert_eq!(story.ends()[&0].0, Outcome::Expired);
    assert!(story.calls.len() >= 2 && story.calls.iter().all(|(at, _)| *at < 10.0), "{:?}", story.calls);
    assert!((10.0..=12.1).contains(&story.ended_at), "{}", story.ended_at);
}

#[tokio::test(start_paused = true)]
async fn at_its_budget_a_chunk_starts_nothing_more_and_the_rest_comes_again_without_an_attempt() {
    let (stage, rest) = ("concurrency = 1", "[chunk]\nbudget = '2s'");
    let story = story(Setting { stage, rest, items: 4, takes: Duration::from_millis(1_500), ..USUAL }).await;
    let handed: Vec<_> =
        story.outcomes.iter().map(|outcomes| (outcomes.hop, outcomes.handed_over.to_string())).collect();
    assert!(handed.contains(&(0, "2-3".to_owned())), "{handed:?}");
    assert!(story.ends().values().all(|end| *end == (Outcome::Succeeded, 1)));
    assert_eq!(story.calls.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_outage_sees_no_call_but_one_probe_at_a_time_and_no_item_fails_for_it() {
    let (stage, rest) = (
        "destination = 'd'\nconcurrency = 1",
        "[destination.d]\nbreaker = { failures = 2, open = '6s', probe_interval = '3s' }",
    );
    let answering: Answering = |_, at| {
        if at < Duration::from_secs(30) {
            Attempt::failed("connect", "refused", Retry::Later)
        } else {
            succeeded()
        }
    };
    let story = story(Setting { stage, rest, items: 20, answering, ..USUAL }).await;
    assert!(story.ends().values().all(|(outcome, _)| *outcome == Outcome::Succeeded), "{:?}", story.ends());
    let during = |from: f64, to: f64| story.calls.iter().filter(|(at, _)| (from..to).contains(at)).count();
    // Without a collector calls begin once none has been heard of for a while.
    let began = story.calls[0].0;
    assert!(began < 11.0, "{began}");
    assert_eq!((during(began, began + 0.1), during(began + 0.1, began + 6.0)), (2, 0), "{:?}", story.calls);
    // A probe, and 3 s of peace after it.
    assert!((2..=8).contains(&during(began + 6.0, 30.0)), "{:?}", story.calls);
    assert!(story.ended_at < 45.0, "{}", story.ended_at);
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_no_second_sees_more_calls_than_the_floor_and_without_a_floor_none_is_made() {
    let stage = "destination = 'd'\nconcurrency = 10";
    let rest = "[destination.d]\nrate = '50/s'\nrate_floor = '2/s'";
    let story = story(Setting { stage, rest, items: 12, ..USUAL }).await;
    for (first, _) in &story.calls {
        let within = story.calls.iter().filter(|(at, _)| (*first..*first + 1.0).contains(at)).count();
        assert!(within <= 2, "{within} calls: {:?}", story.calls);
    }
    assert!(story.ended_at < 30.0, "the floor is used: {}", story.ended_at);
    let strict = Setting {
        stage,
        rest: "[destination.d]\nrate = '50/s'",
        items: 1,
        lifetime_ms: Some(60_000),
        ..USUAL
    };
    let strict = self::story(strict).await;
    assert_eq!((strict.calls.len(), strict.ends()[&0].0), (0, Outcome::Expired));
}
