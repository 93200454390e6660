//! Giving this process to one chunk at a time: those of the alone queue, one of which may end it.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{BrokerError, Delivery, Queue, Subscription};

use super::Taking;
use crate::solitude::Seeker;
use crate::stage::StageIntake;

/// How often it is looked whether others left something in the alone queue.
const PATROL: Duration = Duration::from_secs(10);

/// With nothing in the alone queue for this long, the process is everybody's again ...
const QUIET: Duration = Duration::from_millis(500);

/// ... and in any case after this long, until the next patrol: other work goes on too.
const TURN: Duration = Duration::from_secs(10);

/// Has the stage's intake look at its alone queue whenever there is something in it, until the shutdown.
pub(crate) async fn watch_isolated(intake: Arc<StageIntake>, shutdown: CancellationToken) {
    let queue = Queue::Alone(intake.key.clone());
    loop {
        let depth = tokio::select! {
            () = shutdown.cancelled() => return,
            depth = intake.broker.depth(&queue) => depth,
        };
        match depth {
            Ok(depth) if depth.ready > 0 => intake.isolated.notify_one(),
            Ok(_) => {}
            Err(BrokerError::Closed) => return,
            Err(error) => {
                tracing::debug!(stage = %intake.key, %error, "the alone queue could not be looked at");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PATROL) => {}
        }
    }
}

impl Taking {
    /// Runs what is in the alone queue once nothing else is in this process, and subscribes again. None at the
    /// shutdown, or when the broker was closed.
    pub(super) async fn run_isolated(&mut self, seeker: Seeker) -> Option<Subscription> {
        self.leave().await;
        let alone = tokio::select! {
            () = self.shutdown.cancelled() => return None,
            alone = seeker.alone() => alone,
        };
        if let Err(error) = self.take_isolated().await {
            tracing::error!(stage = %self.intake.key, %error, "the alone queue could not be read");
        }
        drop(alone);
        self.come_back().await?;
        self.subscribe(self.intake.prefetch).await
    }

    /// Leaves the process to whoever wants to be alone in it, and subscribes again afterwards. None at the shutdown, or
    /// when the broker was closed.
    pub(super) async fn make_room(&mut self) -> Option<Subscription> {
        self.leave().await;
        self.come_back().await?;
        self.subscribe(self.intake.prefetch).await
    }

    /// Brings what is in hand to its end, so that nothing of it is here any more.
    pub(super) async fn leave(&mut self) {
        self.end_chunks().await;
        self.company = None;
    }

    /// None at the shutdown.
    pub(super) async fn come_back(&mut self) -> Option<()> {
        let company = tokio::select! {
            () = self.shutdown.cancelled() => return None,
            company = self.intake.solitude.company() => company,
        };
        self.company = Some(company);
        Some(())
    }

    /// Takes one delivery at a time from the alone queue, each to its end before the next.
    async fn take_isolated(&mut self) -> Result<(), BrokerError> {
        let queue = Queue::Alone(self.intake.key.clone());
        let mut subscription = self.intake.broker.subscribe(vec![queue], 1).await?;
        let turn_over = Instant::now() + TURN;
        while let Some(delivery) = self.next_isolated(&mut subscription, turn_over).await {
            self.run_alone(delivery).await;
        }
        subscription.stop();
        while let Some(delivery) = subscription.next().await {
            self.run_alone(delivery).await;
        }
        // What these chunks left there was taken as well, or the next patrol finds it.
        let _ = self.intake.isolated.notified().now_or_never();
        Ok(())
    }

    async fn next_isolated(&self, subscription: &mut Subscription, turn_over: Instant) -> Option<Delivery> {
        let now = Instant::now();
        if now >= turn_over {
            return None;
        }
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            delivery = timeout_at(now + QUIET, subscription.next()) => delivery.ok().flatten(),
        }
    }

    async fn run_alone(&mut self, delivery: Delivery) {
        self.begin(delivery, None);
        self.end_chunks().await;
    }
}
