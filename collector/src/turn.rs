//! Whose turn it is: of several collectors on one completion queue and one ledger, one is active.
//!
//! The queue has one reader at a time, so whoever is given a delivery is the active one, and until then a collector
//! touches neither ledger nor data folder. When nothing is under way nothing would be delivered, and nobody would
//! notice that the active one is gone: so who stands by sends a word to the queue itself, now and then.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use windrow_common::broker::{Broker, BrokerError, Delivery, Outgoing, Queue, Subscription, Target};
use windrow_common::envelope::completion::{Completion, StandsBy};
use windrow_common::ids::ProcessId;

use crate::collector::AbortOnDrop;

/// Deliveries in hand: one batch being settled, one gathering, and some being let go of.
const PREFETCH: u16 = 1_000;

/// Who stands by says so this often, at most.
const WORD_INTERVAL: Duration = Duration::from_secs(2);

/// The completion queue in the hands of the active collector.
#[derive(Debug)]
pub(crate) struct Turn {
    first: Option<Delivery>,
    /// What comes after the first.
    pub(crate) subscription: Subscription,
}

impl Turn {
    /// The turn of the only collector.
    pub(crate) async fn take(broker: &Arc<dyn Broker>) -> Result<Self, BrokerError> {
        broker.ensure(&Queue::Completion).await?;
        broker.ensure(&Queue::Parking).await?;
        let subscription = broker.subscribe(vec![Queue::Completion], PREFETCH).await?;
        Ok(Self { first: None, subscription })
    }

    /// Stands by until a delivery comes. None when `shutdown` came first, or the broker was closed.
    pub(crate) async fn wait(
        broker: &Arc<dyn Broker>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, BrokerError> {
        let mut turn = Self::take(broker).await?;
        let _words = AbortOnDrop(tokio::spawn(send_words(Arc::clone(broker))));
        let first = shutdown.run_until_cancelled(turn.subscription.next()).await.flatten();
        turn.first = first;
        Ok(turn.first.is_some().then_some(turn))
    }

    /// The next delivery; see [`Subscription::next`].
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        match self.first.take() {
            Some(first) => Some(first),
            None => self.subscription.next().await,
        }
    }
}

/// Sends a word each time nothing waits in the queue: what waits there wakes the next one just as well, and an active
/// collector that lets go of nothing for long is sent no more than it can hold.
async fn send_words(broker: Arc<dyn Broker>) {
    let word = Completion::StandsBy(StandsBy { process: ProcessId::generate() }).to_message(false);
    let mut interval = tokio::time::interval(WORD_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let sent = async {
            if broker.depth(&Queue::Completion).await?.ready == 0 {
                let target = Target::Queue(Queue::Completion);
                broker.publish(Outgoing { target, message: word.clone() }).await?;
            }
            Ok::<_, BrokerError>(())
        };
        if let Err(error) = sent.await {
            tracing::warn!("standing by, but cannot say so: {error}");
        }
    }
}
