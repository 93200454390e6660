//! Publishes under way: many at once, confirmed in the order they were begun.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use windrow_common::broker::{Broker, BrokerError, Outgoing};

use crate::standing::Advance;

/// What a confirm means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmed {
    /// A piece of the source at this place.
    Piece(usize, Advance),
    /// A report of progress.
    Progress,
}

/// Publishes under way. They go on only while [`InFlight::next`] is waited for.
pub(crate) struct InFlight {
    broker: Arc<dyn Broker>,
    publishes: FuturesOrdered<BoxFuture<'static, Result<Confirmed, BrokerError>>>,
}

impl InFlight {
    /// None under way.
    pub(crate) fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, publishes: FuturesOrdered::new() }
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.publishes.len()
    }

    /// Publishes `outgoing`, if there is any; `held` is dropped after the confirm.
    pub(crate) fn push(
        &mut self,
        outgoing: Option<Outgoing>,
        confirmed: Confirmed,
        held: impl Send + 'static,
    ) {
        let broker = Arc::clone(&self.broker);
        self.publishes.push_back(Box::pin(async move {
            if let Some(outgoing) = outgoing {
                broker.publish(outgoing).await?;
            }
            drop(held);
            Ok(confirmed)
        }));
    }

    /// Waits for the oldest publish. None when there is none. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<Result<Confirmed, BrokerError>> {
        self.publishes.next().await
    }
}
