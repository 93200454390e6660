//! The held queue of a stage: chunks of paused runs are put there, and go back to the due queue once their run is not
//! paused any more.
//!
//! Chunks of several runs share the queue, so those of runs that stay paused have to be taken out and put back at its
//! end. That is done once for each time that something may have become free, never over and over: a round takes as
//! many chunks as the queue held when it began.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{BrokerError, Delivery, Outgoing, Queue, Target};
use windrow_common::ids::RunId;

use crate::stage::StageIntake;

/// Chunks moved at once in a round.
const PREFETCH: u16 = 64;

/// A round ends when nothing comes for this long: another consumer has taken the rest.
const QUIET: Duration = Duration::from_millis(500);

/// A round without an occasion, for what was put there by a consumer that had not heard of the resumption and died.
const PATROL: Duration = Duration::from_secs(60);

/// Gives held chunks back until the shutdown.
pub(crate) async fn keep(intake: Arc<StageIntake>, shutdown: CancellationToken) {
    let mut released = intake.runs.released();
    while !shutdown.is_cancelled() {
        match round(&intake, &shutdown).await {
            Ok(()) => {}
            Err(BrokerError::Closed) => return,
            Err(error) => {
                tracing::error!(stage = %intake.key, %error, "held chunks could not be moved; they are tried again");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            // The sender lives as long as the intake.
            _ = released.changed() => {}
            () = tokio::time::sleep(PATROL) => {}
        }
    }
}

/// Looks at each chunk in the held queue once.
async fn round(intake: &StageIntake, shutdown: &CancellationToken) -> Result<(), BrokerError> {
    let queue = Queue::Held(intake.key.clone());
    if !intake.runs.may_release() {
        return Ok(());
    }
    let mut left = intake.broker.depth(&queue).await?.ready;
    if left == 0 {
        return Ok(());
    }
    let mut subscription = intake.broker.subscribe(vec![queue], PREFETCH).await?;
    let mut moving = FuturesUnordered::new();
    while left > 0 {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => left = 0,
            Some(moved) = moving.next() => moved?,
            next = tokio::time::timeout(QUIET, subscription.next()), if moving.len() < PREFETCH.into() => {
                left -= 1;
                match next {
                    Ok(Some(delivery)) => moving.push(move_on(intake, delivery)),
                    Ok(None) | Err(_) => left = 0,
                }
            }
        }
    }
    subscription.stop();
    while let Some(delivery) = subscription.next().await {
        moving.push(move_on(intake, delivery));
    }
    while let Some(moved) = moving.next().await {
        moved?;
    }
    Ok(())
}

/// Back to the queue's end while its run is paused; else on. What cannot be read goes on too, to be parked with its
/// reason.
async fn move_on(intake: &StageIntake, delivery: Delivery) -> Result<(), BrokerError> {
    let run = delivery.message.headers.parse::<RunId>("run");
    let stays = run.is_ok_and(|run| intake.runs.keeps(&run));
    let key = intake.key.clone();
    let target = Target::Queue(if stays { Queue::Held(key) } else { Queue::Due(key) });
    let message = delivery.message.clone();
    intake.broker.settle(delivery, vec![Outgoing { target, message }]).await?;
    Ok(())
}
