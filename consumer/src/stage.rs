//! One stage of one job as this process works on it: its processor, its slots, its queues.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{Broker, Queue};
use windrow_common::ids::{JobHash, StageKey};
use windrow_common::job::{Bounds, Concurrency, Effect, Job, ProcessorSpec, RetrySpec, StageSpec};
use windrow_common::telemetry::metrics::StageMetrics;

use crate::in_hand::InHand;
use crate::processor::{self, Destination};
use crate::questions::Questions;
use crate::runs::RunWords;
use crate::slots::Slots;
use crate::solitude::Solitude;

/// Deliveries held of a stage that only computes: enough to hide the round trips of settling.
const COMPUTING_PREFETCH: u64 = 64;

/// No stage holds more deliveries than this; with `chunk.bytes` it bounds the bytes in hand.
const MAX_PREFETCH: u64 = 512;

/// Bytes of chunks in hand of one stage, as far as prefetch can bound them.
const MAX_HELD_BYTES: u64 = 32 * 1024 * 1024;

/// What every chunk of one stage (of one version of a job) is worked on with.
#[derive(Debug)]
pub(crate) struct StageRunner {
    /// The hash of the version of the job.
    pub(crate) hash: JobHash,
    /// The processor and its conditions.
    pub(crate) processor: processor::Stage,
    /// `timeout`.
    pub(crate) timeout: Duration,
    /// `retry`.
    pub(crate) retry: RetrySpec,
    /// `effect`.
    pub(crate) effect: Effect,
    /// `chunk.budget`.
    pub(crate) budget: Duration,
    /// `chunk.compress`.
    pub(crate) compress: bool,
    /// `concurrency`: one for each item being worked on.
    pub(crate) slots: Slots,
}

/// A stage's queues and every version of it this process holds.
#[derive(Debug)]
pub(crate) struct StageIntake {
    /// The queue family.
    pub(crate) key: StageKey,
    /// By hash.
    pub(crate) versions: Vec<Arc<StageRunner>>,
    /// Deliveries in hand per queue.
    pub(crate) prefetch: u16,
    /// The broker.
    pub(crate) broker: Arc<dyn Broker>,
    /// What is counted of this stage.
    pub(crate) metrics: StageMetrics,
    /// How copies ask.
    pub(crate) questions: Arc<Questions>,
    /// What the collector says of runs.
    pub(crate) runs: Arc<RunWords>,
    /// What this process is working on.
    pub(crate) in_hand: Arc<InHand>,
    /// How a chunk gets this process to itself.
    pub(crate) solitude: Solitude,
    /// Told when there is something in the alone queue.
    pub(crate) isolated: Notify,
    /// Cancelled when nothing new is to be started.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the grace period is over: what runs is dropped and handed over.
    pub(crate) abort: CancellationToken,
}

impl StageRunner {
    /// A stage of a job, ready for chunks.
    pub(crate) fn new(
        job: &Job,
        spec: &StageSpec,
        processor: processor::Stage,
        metrics: &StageMetrics,
    ) -> Self {
        Self {
            hash: job.hash.clone(),
            processor,
            timeout: spec.timeout,
            retry: spec.retry.clone(),
            effect: spec.effect,
            budget: job.chunk.budget,
            compress: job.chunk.compress,
            slots: Slots::new(concurrency(job, spec), metrics.concurrency.clone()),
        }
    }
}

impl StageIntake {
    /// The version of this hash.
    pub(crate) fn version(&self, hash: &JobHash) -> Option<&Arc<StageRunner>> {
        self.versions.iter().find(|version| version.hash == *hash)
    }

    /// The destinations its versions call.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Arc<Destination>> {
        self.versions.iter().filter_map(|version| version.processor.destination())
    }

    /// Waits until one of its destinations is not called for a while; for ever when it has none.
    pub(crate) async fn outage(&self) -> Arc<Destination> {
        let opened = |destination: &Arc<Destination>| {
            let destination = Arc::clone(destination);
            Box::pin(async move { (destination.availability().outage().await, destination) })
        };
        let mut opened: FuturesUnordered<_> = self.destinations().map(opened).collect();
        match opened.next().await {
            Some((_, destination)) => destination,
            None => std::future::pending().await,
        }
    }

    /// The queues to take from, the preferred one first.
    pub(crate) fn queues(&self) -> Vec<Queue> {
        vec![Queue::Due(self.key.clone()), Queue::Work(self.key.clone())]
    }
}

/// `concurrency`. More items at once than the destination has connections would only wait for them, and show nothing.
fn concurrency(job: &Job, spec: &StageSpec) -> Concurrency {
    let destination = spec.destination.as_ref().and_then(|name| job.destinations.get(name));
    match (spec.concurrency, destination) {
        (Concurrency::Auto(bounds), Some(destination)) => Concurrency::Auto(Bounds {
            most: bounds.most.min(destination.max_connections).max(bounds.least),
            ..bounds
        }),
        (as_written, _) => as_written,
    }
}

/// How many deliveries of a stage to hold: enough to fill its slots while others are being settled, and no
/// more, since a delivery's time budget runs while it waits here and nobody else can take it meanwhile.
pub(crate) fn prefetch(job: &Job, spec: &StageSpec) -> u16 {
    let items = job.chunk.items.max(1);
    let wanted = match spec.processor {
        ProcessorSpec::Echo | ProcessorSpec::Jq { .. } => (6_400 / items).max(COMPUTING_PREFETCH),
        ProcessorSpec::Http(_) | ProcessorSpec::Command(_) => {
            2 + (u64::from(concurrency(job, spec).most()) * 2).div_ceil(items)
        }
    };
    let by_bytes = (MAX_HELD_BYTES / job.chunk.bytes.max(1)).max(2);
    u16::try_from(wanted.min(by_bytes).min(MAX_PREFETCH)).unwrap_or(u16::MAX)
}
