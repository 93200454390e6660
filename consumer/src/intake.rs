//! Taking the deliveries of one stage: until the shutdown, and not while a destination of the stage is down (law 5), nor
//! while a chunk is to be alone in this process ([`alone`]).

mod alone;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{BrokerError, Delivery, Subscription};

pub(crate) use self::alone::watch_isolated;
use crate::chunk;
use crate::processor::Destination;
use crate::solitude::{Company, Seeker};
use crate::stage::StageIntake;

/// How long to wait when the broker refuses a subscription.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

/// Takes deliveries until the shutdown, then lets those in hand come to their end. `company` is what it holds them by.
pub(crate) async fn take(
    intake: Arc<StageIntake>,
    subscription: Subscription,
    company: Company,
    shutdown: CancellationToken,
) {
    let mut taking = Taking { intake, chunks: JoinSet::new(), company: Some(company), shutdown };
    let mut next = Some(subscription);
    while let Some(subscription) = next {
        next = match taking.flow(subscription).await {
            Interruption::Over => None,
            Interruption::Outage(destination) => taking.sit_out(&destination).await,
            Interruption::Isolated(seeker) => taking.run_isolated(seeker).await,
            Interruption::Sought => taking.make_room().await,
        };
    }
    taking.end_chunks().await;
}

struct Taking {
    intake: Arc<StageIntake>,
    chunks: JoinSet<()>,
    /// None while another is, or wants to be, alone in this process.
    company: Option<Company>,
    shutdown: CancellationToken,
}

/// Why no more deliveries are taken.
enum Interruption {
    /// The shutdown has begun, or the broker was closed.
    Over,
    /// A destination is down.
    Outage(Arc<Destination>),
    /// The alone queue of the stage has something, and the others were told to leave.
    Isolated(Seeker),
    /// Another stage or consumer wants the process to itself.
    Sought,
}

impl Taking {
    /// Takes deliveries until something comes between.
    async fn flow(&mut self, mut subscription: Subscription) -> Interruption {
        let intake = Arc::clone(&self.intake);
        let outage = intake.outage();
        tokio::pin!(outage);
        let interruption = loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break Interruption::Over,
                destination = &mut outage => break Interruption::Outage(destination),
                () = intake.isolated.notified() => break Interruption::Isolated(intake.solitude.seek()),
                () = intake.solitude.sought() => break Interruption::Sought,
                delivery = subscription.next() => match delivery {
                    Some(delivery) => self.begin(delivery, None),
                    None => break Interruption::Over,
                },
                Some(ended) = self.chunks.join_next(), if !self.chunks.is_empty() => log_panic(ended),
            }
        };
        self.take_the_rest(subscription, None).await;
        interruption
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
                    () = self.intake.solitude.sought() => {}
                }
            }
            while let Some(ended) = self.chunks.try_join_next() {
                log_panic(ended);
            }
            if shutdown.is_cancelled() {
                return None;
            }
            if self.intake.solitude.is_sought() {
                self.leave().await;
                self.come_back().await?;
                continue;
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
            () = self.intake.solitude.sought() => None,
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
    async fn subscribe(&mut self, prefetch: u16) -> Option<Subscription> {
        loop {
            match self.intake.broker.subscribe(self.intake.queues(), prefetch).await {
                Ok(subscription) => return Some(subscription),
                Err(BrokerError::Closed) => return None,
                Err(error) => tracing::error!(stage = %self.intake.key, %error, "could not subscribe again"),
            }
            // The others are not kept waiting for this.
            self.company = None;
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep(SUBSCRIBE_AGAIN) => {}
            }
            self.come_back().await?;
        }
    }

    /// Lets what is in hand come to its end.
    async fn end_chunks(&mut self) {
        while let Some(ended) = self.chunks.join_next().await {
            log_panic(ended);
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
