//! One seed, from its beginning to its judgement: one thread, a clock that jumps, and every process a task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windrow_collector::{Reader, RunCommand};
use windrow_common::broker::Queue;
use windrow_common::clock;
use windrow_common::ids::{ProcessId, RunId, StageKey};
use windrow_common::job::{Job, JobSet};
use windrow_common::telemetry::metrics::Metrics;
use windrow_consumer::{Consumer, Options, Solitude};
use windrow_tests::model_broker::{ModelBroker, ModelClient};

use super::collector::Collector;
use super::judge::{Figures, Judge};
use super::plan::{End, Life, Plan, Script};
use super::producer::{Journal, Producer};
use super::work::{Call, Outside};

/// When the clock of each seed begins, in Unix milliseconds.
const BEGIN_MS: u64 = 1_800_000_000_000;

/// A run that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(900);

/// How long a consumer that is told to stop may take.
const GRACE: Duration = Duration::from_secs(4);

/// What all processes of a seed share: their machine's disk, the broker, and the judge.
pub(crate) struct World {
    pub(crate) plan: Arc<Plan>,
    pub(crate) job: Job,
    pub(crate) jobs: Arc<JobSet>,
    pub(crate) folder: PathBuf,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) judge: Arc<Judge>,
    pub(crate) journal: Mutex<Journal>,
    broker: ModelBroker,
    outside: Arc<Outside>,
    began: Instant,
    commands_done: Mutex<usize>,
}

/// The only run of a seed.
pub(crate) fn run_id() -> RunId {
    "run".parse().unwrap()
}

/// Runs a seed in `folder`, which is its own. An error is what was wrong, with the trace of all that happened.
pub(crate) fn run(seed: u64, folder: &Path, metrics: &Arc<Metrics>) -> Result<(Figures, String), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        clock::set_for_this_thread(BEGIN_MS);
        let world = World::new(Plan::of(seed), folder, metrics);
        world.live().await;
        world.judge_the_end();
        match world.judge.sentence() {
            Some(sentence) => Err(format!("{:#?}\n\n{sentence}", world.plan)),
            None => Ok((world.judge.figures(), world.judge.trace())),
        }
    })
}

impl World {
    fn new(plan: Plan, folder: &Path, metrics: &Arc<Metrics>) -> Arc<Self> {
        let plan = Arc::new(plan);
        let job =
            Job::parse(&folder.join("job.toml"), &plan.job).unwrap_or_else(|problems| panic!("{problems:?}"));
        let judge = Judge::new();
        Arc::new(Self {
            jobs: Arc::new(JobSet::from_jobs([job.clone()])),
            job,
            folder: folder.to_owned(),
            metrics: Arc::clone(metrics),
            broker: ModelBroker::new(plan.mischief, judge.observer()),
            outside: Outside::new(Arc::clone(&plan), Arc::clone(&judge)),
            judge,
            journal: Mutex::default(),
            began: Instant::now(),
            commands_done: Mutex::new(0),
            plan,
        })
    }

    pub(crate) fn stage(&self) -> StageKey {
        self.job.stage_key(&self.job.stages[0])
    }

    /// The next thing somebody asks for.
    pub(crate) fn next_command(&self) -> Option<(Instant, RunCommand)> {
        let (at, command) = self.plan.commands.get(*self.commands_done.lock().unwrap())?;
        Some((self.began + *at, *command))
    }

    pub(crate) fn command_done(&self) {
        *self.commands_done.lock().unwrap() += 1;
    }

    /// Until the run has ended and no message is left.
    async fn live(self: &Arc<Self>) {
        tokio::spawn(Arc::clone(self).keep_producing());
        tokio::spawn(Arc::clone(self).keep_collecting());
        for number in 0..self.plan.consumers.len() {
            tokio::spawn(Arc::clone(self).keep_consuming(number));
        }
        // What is left of a cancelled run in the held queue goes once a collector speaks of another run.
        let mut aside = vec![Queue::Parking];
        if self.plan.is_cancelled() {
            aside.push(Queue::Held(self.stage()));
        }
        let mut quiet = 0;
        while quiet < 3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let is_done = self.judge.has_ended() && self.broker.is_empty_but_for(&aside);
            quiet = if is_done { quiet + 1 } else { 0 };
            if self.began.elapsed() > PATIENCE {
                return self.judge.object(format_args!("the run does not end: {}", self.broker.describe()));
            }
        }
    }

    async fn keep_producing(self: Arc<Self>) {
        for (number, life) in lives(&self.plan.producer) {
            let (process, client) = self.connect("p", 0, number);
            let producing =
                Producer { world: Arc::clone(&self), process: process.clone(), client: Arc::clone(&client) };
            let producing = tokio::spawn(producing.produce());
            self.end(&process, &client, life, producing, None).await;
        }
    }

    async fn keep_collecting(self: Arc<Self>) {
        for (number, life) in lives(&self.plan.collectors) {
            let (process, client) = self.connect("k", 0, number);
            let end = life.map(|life| life.end);
            let world = Arc::clone(&self);
            let collecting = tokio::spawn({
                let client = Arc::clone(&client);
                async move { Collector::start(&world, &client, end)?.collect().await }
            });
            self.end(&process, &client, life, collecting, None).await;
        }
    }

    async fn keep_consuming(self: Arc<Self>, consumer: usize) {
        for (number, life) in lives(&self.plan.consumers[consumer]) {
            let (process, client) = self.connect("c", consumer, number);
            let call = Call { process: process.to_string(), outside: Arc::clone(&self.outside) };
            let options = Options {
                process: process.clone(),
                collector: None,
                grace: GRACE,
                metrics: Arc::clone(&self.metrics),
                solitude: Solitude::default(),
                own_processors: BTreeMap::from([(self.stage(), Arc::new(call) as _)]),
            };
            let shutdown = CancellationToken::new();
            let consuming = tokio::spawn({
                let (world, client, shutdown) = (Arc::clone(&self), Arc::clone(&client), shutdown.clone());
                async move {
                    let consumer = Consumer::start(&world.jobs, client, options, &|_| None).await?;
                    drop(consumer.run(shutdown).await);
                    Ok::<_, windrow_consumer::ConsumerError>(())
                }
            });
            self.end(&process, &client, life, consuming, Some(shutdown)).await;
        }
    }

    fn connect(&self, role: &str, which: usize, number: usize) -> (ProcessId, Arc<ModelClient>) {
        let name = format!("{role}{which}.{number}");
        self.judge.note(format_args!("{name} starts"));
        let client = self.broker.connect(&name);
        (name.parse().unwrap(), client)
    }

    /// Ends a process as its life says, and waits until the next is to start.
    async fn end<E: std::fmt::Display + Send + 'static>(
        &self,
        process: &ProcessId,
        client: &ModelClient,
        life: Option<Life>,
        mut work: tokio::task::JoinHandle<Result<(), E>>,
        shutdown: Option<CancellationToken>,
    ) {
        use windrow_common::broker::Broker;
        let Some(life) = life else {
            let ended = work.await;
            if !matches!(ended, Ok(Ok(()))) {
                self.judge.object(format_args!("{process} ends by itself: {}", said(ended)));
            }
            return;
        };
        let (lasts, drains) = match life.end {
            End::Killed(lasts) => (lasts, None),
            End::Drained(lasts) => (lasts, shutdown),
            End::AtCommit(..) => (PATIENCE, None),
        };
        if let Ok(ended) = tokio::time::timeout(lasts, &mut work).await {
            // At a transaction, or since all is done.
            client.kill();
            self.judge.note_end(process.as_str(), said(ended));
        } else if let Some(shutdown) = drains {
            shutdown.cancel();
            self.judge.note(format_args!("{process} is told to stop"));
            let ended = work.await;
            client.close(Duration::from_secs(1)).await;
            self.judge.note_end(process.as_str(), said(ended));
        } else {
            work.abort();
            client.kill();
            self.judge.note_end(process.as_str(), "killed");
        }
        tokio::time::sleep(life.away).await;
    }

    /// The account, the output and the queues.
    fn judge_the_end(&self) {
        let judge = &self.judge;
        if self.broker.parked() > 0 {
            judge.object("messages are parked");
        }
        let report = Reader::open(&self.folder.join("data")).and_then(|reader| reader.report(&run_id()));
        let report = match report {
            Ok(report) => report,
            Err(error) => return judge.object(format_args!("no report: {error}")),
        };
        judge.note(format_args!("{report:?}"));
        let accepted = self.plan.scripts.len() as u64;
        let settled = report.outcomes.settled();
        if report.balance_error.is_some() || report.sink_error.is_some() || report.open > 0 {
            judge.object(format_args!("the run does not balance: {report:?}"));
        }
        if report.accepted != settled || (report.accepted != accepted && !self.plan.is_cancelled()) {
            judge.object(format_args!("{settled} of {accepted} items have an outcome"));
        }
        let may_differ = self.plan.outage.is_some() || self.plan.may_expire || self.plan.is_cancelled();
        if report.conflicts > 0 && !may_differ {
            judge.object(format_args!("{} items ended in two ways", report.conflicts));
        }
        self.judge_the_output(settled);
    }

    /// Each item once, as it must end.
    fn judge_the_output(&self, settled: u64) {
        let text = std::fs::read_to_string(self.folder.join("out.jsonl")).unwrap_or_default();
        let mut seen = vec![false; self.plan.scripts.len()];
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            let Some(index) = line["item"].as_u64().and_then(|index| usize::try_from(index).ok()) else {
                self.judge.object(format_args!("the output has a broken line: {line}"));
                continue;
            };
            if std::mem::replace(&mut seen[index], true) {
                self.judge.object(format_args!("item {index} is in the output twice"));
            }
            let outcome = line["outcome"].as_str().unwrap_or_default();
            if !self.may_end(self.plan.scripts[index], outcome) {
                self.judge.object(format_args!("item {index} has ended as {outcome}"));
            }
        }
        let lines = seen.iter().filter(|seen| **seen).count() as u64;
        if lines != settled {
            self.judge.object(format_args!("{lines} of {settled} settled items are in the output"));
        }
    }

    fn may_end(&self, script: Script, outcome: &str) -> bool {
        let expected = if matches!(script, Script::IsWrong | Script::Fails) { "failed" } else { "succeeded" };
        match outcome {
            "failed" => outcome == expected || self.plan.outage.is_some(),
            "cancelled" => self.plan.is_cancelled(),
            "expired" => self.plan.may_expire,
            _ => outcome == expected,
        }
    }
}

/// The lives of a process, the last of which has no end.
fn lives(lives: &[Life]) -> impl Iterator<Item = (usize, Option<Life>)> + '_ {
    lives.iter().copied().map(Some).chain([None]).enumerate()
}

fn said<E: std::fmt::Display>(ended: Result<Result<(), E>, tokio::task::JoinError>) -> String {
    match ended {
        Ok(Ok(())) => "done".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}
