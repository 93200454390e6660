//! The parking queue in an operator's hands: what is taken and not settled goes back at the close, in its place.

use std::sync::Arc;
use std::time::Duration;

use windrow_common::broker::address::{BrokerAddress, connect};
use windrow_common::broker::{Broker, BrokerError, Delivery, Outgoing, Queue, Subscription};

use super::args::DeadPlace;
use crate::Failure;
use crate::output::tell;

/// How long to wait for a letter that the broker says is there: somebody else may have it in hand.
const SILENCE: Duration = Duration::from_secs(10);

/// How long the broker is given to take leave.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// The dead letters there were at the start, one after another.
pub(super) struct Parking {
    broker: Arc<dyn Broker>,
    /// None when there was nothing to take.
    deliveries: Option<Subscription>,
    at_start: u64,
    /// Letters still to come.
    left: u64,
    /// Letters taken and not settled; the broker gives no more than `window` of them.
    held: u64,
    window: u64,
}

impl Parking {
    /// Connects. At most `window` letters can be taken without settling any. Where there is nothing, nothing is
    /// made, either.
    pub(super) async fn open(place: &DeadPlace, window: u16) -> Result<Self, Failure> {
        let broker = connect(&address(place)?, &place.group).await?;
        let depth = broker.depth(&Queue::Parking).await?;
        if depth.unsettled > 0 {
            tell(format_args!("{} more are in somebody else's hands", depth.unsettled));
        }
        let deliveries = match depth.ready {
            0 => None,
            _ => Some(broker.subscribe(vec![Queue::Parking], window).await?),
        };
        let (at_start, left) = (depth.ready, depth.ready);
        Ok(Self { broker, deliveries, at_start, left, held: 0, window: window.into() })
    }

    /// How many letters there were.
    pub(super) fn at_start(&self) -> u64 {
        self.at_start
    }

    /// The broker.
    pub(super) fn broker(&self) -> &dyn Broker {
        self.broker.as_ref()
    }

    /// The next letter. None once all that were there have been given, or no more can be held.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        if self.left == 0 || self.held == self.window {
            return None;
        }
        self.left -= 1;
        let Ok(next) = tokio::time::timeout(SILENCE, self.deliveries.as_mut()?.next()).await else {
            self.left = 0;
            tell("not all came: somebody else has some in hand; try again later");
            return None;
        };
        self.held += u64::from(next.is_some());
        next
    }

    /// Lets go of a letter, once what is sent in its place is safe.
    pub(super) async fn settle(
        &mut self,
        delivery: Delivery,
        outgoing: Vec<Outgoing>,
    ) -> Result<(), BrokerError> {
        self.broker.settle(delivery, outgoing).await?;
        self.held -= 1;
        Ok(())
    }

    /// Gives back what was not settled.
    pub(super) async fn close(self) {
        self.broker.close(CLOSE_GRACE).await;
    }
}

/// The broker given, or the embedded one of a data folder. Looking at a folder that has none makes none.
fn address(place: &DeadPlace) -> Result<BrokerAddress, Failure> {
    let address = match &place.broker {
        Some(url) => url.parse().map_err(|error| Failure::usage(format!("--broker: {error}")))?,
        None => BrokerAddress::Embedded(place.data.data_dir.join("queue")),
    };
    match &address {
        BrokerAddress::Embedded(folder) if !folder.join("queue.db").exists() => Err(Failure::from(format!(
            "there is no broker in {}: say where it is with --data-dir or --broker",
            folder.display()
        ))),
        _ => Ok(address),
    }
}
