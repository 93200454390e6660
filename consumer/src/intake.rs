//! Taking the deliveries of one stage: until the shutdown, and not while a destination of the stage is down (law 5).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{BrokerError, Delivery, Subscription};

use crate::chunk;
use crate::processor::Destination;
use crate::stage::StageIntake;

/// How long to wait when the broker refuses a subscription.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

/// Takes deliveries until the shutdown, then lets those in hand come to their end.
pub(crate) async fn take(intake: Arc<StageIntake>, subscription: Subscription, shutdown: CancellationToken) {
    let mut taking = Taking { intake, chunks: JoinSet::new(), shutdown };
    let mut next = Some(subscription);
    while let Some(subscription) = next {
        next = match taking.flow(subscription).await {
            Some(destination) => taking.sit_out(&destination).await,
            None => None,
        };
    }
    while let Some(ended) = taking.chunks.join_next().await {
        log_panic(ended);
    }
}

struct Taking {
    intake: Arc<StageIntake>,
    chunks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Taking {
    /// Takes deliveries until a destination is down, which is returned, or until the shutdown.
    async fn flow(&mut self, mut subscription: Subscription) -> Option<Arc<Destination>> {
        let intake = Arc::clone(&self.intake);
        let outage = intake.outage();
        tokio::pin!(outage);
        let down = loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break None,
                destination = &mut outage => break Some(destination),
                delivery = subscription.next() => match delivery {
                    Some(delivery) => self.begin(delivery, None),
                    None => break None,
                },
                Some(ended) = self.chunks.join_next(), if !self.chunks.is_empty() => log_panic(ended),
            }
        };
        self.take_the_rest(subscription, None).await;
        down
    }

    /// Asks for no more and begins what is here already: during an outage each leaves at once as a remainder.
    async fn take_the_rest(&mut self, mut subscription: Subscription, held: Option<&mpsc::Sender<()>>) {
        subscription.stop();
        while let Some(delivery) = subscription.next().await {
            self.begin(delivery, held);
        }
    }

    /// Waits without a subscription until the destination may be called, or probed with one delivery at a time, and
    /// subscribes again when it works. None at the shutdown, or when the broker was closed.
    async fn sit_out(&mut self, destination: &Arc<Destination>) -> Option<Subscription> {
        let shutdown = self.shutdown.clone();
        loop {
            if let Some(outage) = destination.availability().outage_now() {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep_until(Instant::from_std(outage.until)) => {}
                    () = destination.availability().callable() => {}
                }
            }
            while let Some(ended) = self.chunks.try_join_next() {
                log_panic(ended);
            }
            if shutdown.is_cancelled() {
                return None;
            }
            if destination.availability().is_callable() {
                return self.subscribe(self.intake.prefetch).await;
            }
            if destination.availability().outage_now().is_none() {
                self.probe(destination).await?;
            }
        }
    }

    /// Takes one delivery to probe with, and waits for its end or until the destination works. None at the shutdown,
    /// or when the broker was closed.
    async fn probe(&mut self, destination: &Arc<Destination>) -> Option<()> {
        let mut subscription = self.subscribe(1).await?;
        let (held, mut ended) = mpsc::channel(1);
        let shutdown = self.shutdown.clone();
        let taken = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            // Another stage was quicker to probe.
            _ = destination.availability().outage() => None,
            () = destination.availability().callable() => None,
            delivery = subscription.next() => Some(delivery?),
        };
        if let Some(delivery) = taken {
            self.begin(delivery, Some(&held));
        }
        self.take_the_rest(subscription, Some(&held)).await;
        drop(held);
        tokio::select! {
            () = destination.availability().callable() => {}
            _ = ended.recv() => {}
        }
        Some(())
    }

    /// None at the shutdown, or when the broker was closed.
    async fn subscribe(&self, prefetch: u16) -> Option<Subscription> {
        loop {
            match self.intake.broker.subscribe(self.intake.queues(), prefetch).await {
                Ok(subscription) => return Some(subscription),
                Err(BrokerError::Closed) => return None,
                Err(error) => tracing::error!(stage = %self.intake.key, %error, "could not subscribe again"),
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep(SUBSCRIBE_AGAIN) => {}
            }
        }
    }

    fn begin(&mut self, delivery: Delivery, held: Option<&mpsc::Sender<()>>) {
        let intake = Arc::clone(&self.intake);
        let held = held.cloned();
        self.chunks.spawn(async move {
            chunk::handle(&intake, delivery).await;
            drop(held);
        });
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a chunk's task ended badly; the broker keeps its delivery");
    }
}
