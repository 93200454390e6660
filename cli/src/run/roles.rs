//! Producer, consumers and collector as tasks of this process, and leaving them in the right order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use windrow_collector::{Collector, CollectorError};
use windrow_common::broker::Health;
use windrow_common::ids::ProcessId;
use windrow_common::job::JobSet;
use windrow_common::shutdown::Drained;
use windrow_consumer::{Consumer, Solitude};
use windrow_producer::{Plan, Produced, ProducerError, ProducerProgress, Wiring, follow_news, produce};

use super::Setting;
use crate::Failure;

/// How long running items may take to end at an interruption.
const GRACE: Duration = Duration::from_secs(10);

/// For how long a broker in trouble is waited for at an interruption.
const TROUBLE_AT_LEAVING: Duration = Duration::from_secs(3);

/// How long the broker is given to take leave.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// The tasks, each with what stops it.
pub(super) struct Roles {
    producer: Option<JoinHandle<Result<Produced, ProducerError>>>,
    stop_producer: CancellationToken,
    consumers: JoinSet<Drained>,
    stop_consumers: CancellationToken,
    collector: Option<JoinHandle<Result<Drained, CollectorError>>>,
    stop_collector: CancellationToken,
}

impl Roles {
    /// Starts them, those that take before those that give.
    pub(super) async fn start(
        setting: &Setting,
        jobs: &JobSet,
        collector: Collector,
        plan: Plan,
    ) -> Result<Self, Failure> {
        let (stop_producer, stop_consumers, stop_collector) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let process = collector.process().clone();
        let collector = tokio::spawn(collector.run(stop_collector.clone()));
        let mut consumers = JoinSet::new();
        let solitude = Solitude::default();
        for _ in 0..setting.arguments.here.consumers {
            let options = windrow_consumer::Options {
                process: ProcessId::generate(),
                collector: Some(process.clone()),
                grace: GRACE,
                metrics: Arc::clone(&setting.metrics),
                own_processors: BTreeMap::new(),
                solitude: solitude.clone(),
            };
            let environment = |name: &str| std::env::var(name).ok();
            let consumer = Consumer::start(jobs, Arc::clone(&setting.broker), options, &environment).await?;
            consumers.spawn(consumer.run(stop_consumers.clone()));
        }
        let news = follow_news(&setting.broker, plan.producer(), plan.run().clone()).await?;
        let wiring = Wiring {
            broker: Arc::clone(&setting.broker),
            news,
            progress: tokio::sync::watch::Sender::new(ProducerProgress::default()),
            metrics: setting.metrics.producer(&setting.job.name),
            shutdown: stop_producer.clone(),
        };
        let producer = tokio::spawn(produce(plan, Arc::clone(&setting.job), wiring));
        Ok(Self {
            producer: Some(producer),
            stop_producer,
            consumers,
            stop_consumers,
            collector: Some(collector),
            stop_collector,
        })
    }

    /// Waits for a role to fail. A producer that has come to its end is no failure.
    pub(super) async fn broken(&mut self) -> Failure {
        loop {
            tokio::select! {
                produced = ended(&mut self.producer) => {
                    self.producer = None;
                    if let Err(error) = produced.map_err(Failure::from).and_then(|produced| Ok(produced?)) {
                        return error;
                    }
                }
                collected = ended(&mut self.collector) => {
                    self.collector = None;
                    return match collected {
                        Ok(Ok(_)) => Failure::from("the collector stopped before the run ended"),
                        Ok(Err(error)) => error.into(),
                        Err(error) => error.into(),
                    };
                }
            }
        }
    }

    /// Tells them to end without waiting for what they have in hand.
    pub(super) fn abandon(&self) {
        for stop in [&self.stop_producer, &self.stop_consumers, &self.stop_collector] {
            stop.cancel();
        }
    }

    /// Ends them in the order of the data: what gives before what takes, so that all in hand is settled.
    pub(super) async fn leave(&mut self) -> Result<(), Failure> {
        self.stop_producer.cancel();
        let produced = match self.producer.take() {
            Some(producer) => Some(producer.await?),
            None => None,
        };
        self.stop_consumers.cancel();
        while let Some(drained) = self.consumers.join_next().await {
            let drained = drained?;
            if !drained.clean {
                tracing::warn!(shutdown = %drained, "a consumer did not end cleanly");
            }
        }
        self.stop_collector.cancel();
        if let Some(collector) = self.collector.take() {
            collector.await??;
        }
        if let Some(produced) = produced {
            produced?;
        }
        Ok(())
    }
}

/// Returns once the broker has been out of reach, or has taken nothing, for a few seconds on end: why.
pub(super) async fn out_of_reach(mut health: watch::Receiver<Health>) -> String {
    loop {
        let trouble =
            health.wait_for(|health| matches!(health, Health::Blocked(_) | Health::Disconnected(_)));
        let reason = match trouble.await.as_deref() {
            Ok(Health::Blocked(reason) | Health::Disconnected(reason)) => reason.clone(),
            // Closed: whatever waits for it is told so.
            _ => std::future::pending().await,
        };
        let back = health.wait_for(|health| matches!(health, Health::Connected | Health::Closed));
        if tokio::time::timeout(TROUBLE_AT_LEAVING, back).await.is_err() {
            return reason;
        }
    }
}

/// Waits for a task; for ever when it has been waited for already.
async fn ended<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}
