//! The consumer as a whole: starts its stages, and drains them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{Broker, BrokerError, Queue, Subscription};
use windrow_common::ids::{ProcessId, StageKey};
use windrow_common::job::JobSet;
use windrow_common::shutdown::Drained;
use windrow_common::telemetry::metrics::Metrics;

use crate::fleet::Fleet;
use crate::in_hand::InHand;
use crate::processor::{self, BuildError, Destinations, Processor};
use crate::questions::Questions;
use crate::runs::RunWords;
use crate::solitude::{Company, Solitude};
use crate::stage::{StageIntake, StageRunner, prefetch};
use crate::{held, intake};

/// What a consumer is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// This process, as answers find it.
    pub process: ProcessId,
    /// The active collector, where it is known already; else it is heard of within a second.
    pub collector: Option<ProcessId>,
    /// How long items that are running may take to end at a shutdown; then they are handed over.
    pub grace: Duration,
    /// Where this process counts.
    pub metrics: Arc<Metrics>,
    /// Processors written in Rust, for stages whose work is not what their job file says but this. Conditions, retries,
    /// limits and all the rest are as the file says. None in the binaries.
    pub own_processors: BTreeMap<StageKey, Arc<dyn Processor>>,
    /// The same for all consumers of one process.
    pub solitude: Solitude,
}

/// How long items that are running may take to end at a shutdown, unless `--grace` says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(25);

/// How long the broker may take, after that, to take what was handed over.
const SETTLING_GRACE: Duration = Duration::from_secs(10);

/// A consumer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// The folder of job files has none.
    #[error("there is no job file to work on")]
    NoJobs,
    /// A stage cannot be made ready.
    #[error("job `{job}`: {error}")]
    Build {
        /// The job.
        job: String,
        /// Why.
        error: BuildError,
    },
    /// The broker refuses.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// A consumer, ready to take work.
#[derive(Debug)]
pub struct Consumer {
    stages: Vec<(Arc<StageIntake>, Subscription, Company)>,
    draining: CancellationToken,
    abort: CancellationToken,
    grace: Duration,
    fleet: Arc<Fleet>,
    broker: Arc<dyn Broker>,
}

impl Consumer {
    /// Makes every stage of `jobs` ready and subscribes to its queues. `env` looks up environment variables.
    pub async fn start(
        jobs: &JobSet,
        broker: Arc<dyn Broker>,
        options: Options,
        env: &(dyn Fn(&str) -> Option<String> + Sync),
    ) -> Result<Self, ConsumerError> {
        let destinations = Destinations::of_jobs(jobs.iter().map(AsRef::as_ref));
        destinations.show_in(&options.metrics);
        let versions = build(jobs, &destinations, &options, env)?;
        if versions.is_empty() {
            return Err(ConsumerError::NoJobs);
        }
        broker.ensure(&Queue::Completion).await?;
        let runs = Arc::new(RunWords::default());
        let in_hand = Arc::new(InHand::default());
        let (fleet, findings) =
            Fleet::new(options.process.clone(), options.collector, &destinations, Arc::clone(&in_hand));
        let questions =
            Questions::open(options.process, Arc::clone(&broker), Arc::clone(&runs), Arc::clone(&fleet))
                .await?;
        let long_chunks = options.metrics.long_chunks();
        tokio::spawn(Arc::clone(&fleet).speak(Arc::clone(&broker), findings, long_chunks));
        let (draining, abort) = (CancellationToken::new(), CancellationToken::new());
        let mut stages = Vec::new();
        for (key, (versions, prefetch)) in versions {
            let intake = StageIntake {
                metrics: options.metrics.stage(&key),
                key,
                versions,
                prefetch,
                broker: Arc::clone(&broker),
                questions: Arc::clone(&questions),
                runs: Arc::clone(&runs),
                in_hand: Arc::clone(&in_hand),
                solitude: options.solitude.clone(),
                isolated: Notify::new(),
                draining: draining.clone(),
                abort: abort.clone(),
            };
            let others = [Queue::Held(intake.key.clone()), Queue::Alone(intake.key.clone())];
            for queue in intake.queues().iter().chain(&others) {
                broker.ensure(queue).await?;
            }
            let company = intake.solitude.company().await;
            let subscription = broker.subscribe(intake.queues(), intake.prefetch).await?;
            stages.push((Arc::new(intake), subscription, company));
        }
        Ok(Self { stages, draining, abort, grace: options.grace, fleet, broker })
    }

    /// Works until `shutdown`, then drains: no intake, running items end or are handed over within the grace
    /// period, every delivery in hand is settled.
    pub async fn run(self, shutdown: CancellationToken) -> Drained {
        let mut intakes = JoinSet::new();
        for (intake, subscription, company) in self.stages {
            intakes.spawn(held::keep(Arc::clone(&intake), shutdown.clone()));
            intakes.spawn(intake::watch_isolated(Arc::clone(&intake), shutdown.clone()));
            intakes.spawn(intake::take(intake, subscription, company, shutdown.clone()));
        }
        shutdown.cancelled().await;
        self.draining.cancel();
        let grace_over = tokio::time::sleep(self.grace);
        tokio::pin!(grace_over);
        let mut drained = Drained::clean();
        loop {
            tokio::select! {
                ended = intakes.join_next() => match ended {
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::error!(%error, "a stage's intake ended badly"),
                    None => break,
                },
                () = &mut grace_over => {
                    if !drained.clean {
                        return Drained::left("the broker took no settlement; chunks in hand will come again");
                    }
                    drained = Drained::left("items that ran longer than the grace period were handed over");
                    self.abort.cancel();
                    grace_over.as_mut().reset(Instant::now() + SETTLING_GRACE);
                }
            }
        }
        self.fleet.leave(&self.broker).await;
        drained
    }
}

type Versions = BTreeMap<StageKey, (Vec<Arc<StageRunner>>, u16)>;

fn build(
    jobs: &JobSet,
    destinations: &Destinations,
    options: &Options,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Versions, ConsumerError> {
    let mut versions = Versions::new();
    for job in jobs.iter() {
        for spec in &job.stages {
            let key = job.stage_key(spec);
            let mut processor = processor::Stage::build(spec, destinations, env)
                .map_err(|error| ConsumerError::Build { job: job.name.to_string(), error })?;
            if let Some(own) = options.own_processors.get(&key) {
                processor = processor.doing(Arc::clone(own));
            }
            let metrics = options.metrics.stage(&key);
            let (runners, most) = versions.entry(key).or_default();
            runners.push(Arc::new(StageRunner::new(job, spec, processor, &metrics)));
            *most = (*most).max(prefetch(job, spec));
        }
    }
    Ok(versions)
}
