//! A connection that is made again whenever it is lost.
//!
//! lapin's own recovery stays off: it knows one host only, gives up, and can leave a consumer hanging
//! after the broker closed its channel. Here every connection is a new one with a generation of its own,
//! and everything that was done on an older one belongs to that.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use lapin::{Channel, Connection, Event};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::backoff;
use super::connect::{Failure, connect};
use super::health::{HealthBoard, Side};
use crate::broker::address::RabbitMqAddress;
use crate::broker::{BrokerError, Health};

/// A connection while it lives.
pub(super) struct Live {
    connection: Connection,
    /// Cancelled when the connection is gone.
    pub(super) down: CancellationToken,
    /// Rises with each connection of the process.
    pub(super) generation: u64,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never lapin's own form: it has the password in it.
        write!(f, "Live({})", self.generation)
    }
}

impl Live {
    /// A new channel.
    pub(super) async fn channel(&self) -> lapin::Result<Channel> {
        self.connection.create_channel().await
    }
}

/// One side's connection, present or being made.
#[derive(Debug, Clone)]
pub(super) struct Link {
    live: watch::Receiver<Option<Arc<Live>>>,
}

impl Link {
    /// Connects for the first time, for at most the address's `connect_timeout`, and then keeps the
    /// connection up until `ended` is cancelled.
    pub(super) async fn start(
        address: &RabbitMqAddress,
        side: Side,
        health: Arc<HealthBoard>,
        ended: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let keeper = Keeper { address: address.clone(), side, health, ended };
        let first = keeper.first().await?;
        let (sender, live) = watch::channel(Some(Arc::clone(&first.0)));
        tokio::spawn(async move { keeper.keep(first, &sender).await });
        Ok(Self { live })
    }

    /// The connection, as soon as there is one. None when the broker was closed.
    pub(super) async fn live(&self) -> Option<Arc<Live>> {
        let mut live = self.live.clone();
        let present = live.wait_for(|live| live.as_ref().is_some_and(|live| !live.down.is_cancelled()));
        present.await.ok().and_then(|live| live.clone())
    }

    /// Closes the connection the orderly way, if there is one.
    pub(super) async fn close(&self) {
        let live = self.live.borrow().clone();
        if let Some(live) = live {
            // On a blocked connection nothing is written, so there would be no answer.
            let closing = live.connection.close(200, "closed by windrow".into());
            drop(tokio::time::timeout(Duration::from_secs(2), closing).await);
        }
    }
}

type Events = std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>;

struct Keeper {
    address: RabbitMqAddress,
    side: Side,
    health: Arc<HealthBoard>,
    ended: CancellationToken,
}

impl Keeper {
    async fn first(&self) -> Result<(Arc<Live>, Events), BrokerError> {
        let give_up_at = Instant::now() + self.address.connect_timeout;
        for failures in 1.. {
            let cause = match self.try_hosts().await {
                Ok(connected) => return Ok(connected),
                Err(Failure::Lasting(text)) => return Err(BrokerError::Connect(text)),
                Err(Failure::Passing(text)) => text,
            };
            let pause = backoff::pause(failures);
            if Instant::now() + pause >= give_up_at {
                return Err(BrokerError::Connect(format!(
                    "no broker answers at {} for {} s ({cause}); is it running, and are host and port right?",
                    self.address,
                    self.address.connect_timeout.as_secs(),
                )));
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop above only ends by returning")
    }

    /// Tries each host once, in random order. A lasting failure of one ends it.
    async fn try_hosts(&self) -> Result<(Arc<Live>, Events), Failure> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let mut hosts = self.address.hosts.clone();
        shuffle(&mut hosts);
        let mut last = Failure::Passing("no host".to_owned());
        let name = format!("windrow {} {}", self.side.as_str(), std::process::id());
        for host in &hosts {
            match connect(&self.address, host, &name).await {
                Ok(connection) => {
                    let events: Events = Box::pin(connection.events_listener());
                    let down = CancellationToken::new();
                    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
                    self.health.set(self.side, Health::Connected);
                    return Ok((Arc::new(Live { connection, down, generation }), events));
                }
                Err(failure @ Failure::Lasting(_)) => return Err(failure),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn keep(&self, first: (Arc<Live>, Events), sender: &watch::Sender<Option<Arc<Live>>>) {
        let mut connected = first;
        loop {
            let cause = self.watch(&connected.0, &mut connected.1).await;
            connected.0.down.cancel();
            if self.ended.is_cancelled() {
                return;
            }
            sender.send_replace(None);
            tracing::warn!(side = self.side.as_str(), cause, "connection to the broker lost; reconnecting");
            self.health.set(self.side, Health::Disconnected(cause));
            connected = tokio::select! {
                again = self.again() => again,
                () = self.ended.cancelled() => return,
            };
            tracing::info!(side = self.side.as_str(), "connected to the broker again");
            sender.send_replace(Some(Arc::clone(&connected.0)));
        }
    }

    /// Waits for the end of a connection; returns why it ended.
    async fn watch(&self, live: &Live, events: &mut Events) -> String {
        // Events tell at once; asking is for endings that make none.
        let mut ask = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => self.health.set(self.side, Health::Blocked(reason)),
                    Some(Event::ConnectionUnblocked) => self.health.set(self.side, Health::Connected),
                    Some(Event::Error(error)) => return error.to_string(),
                    Some(_) => {}
                    None => return "closed".to_owned(),
                },
                _ = ask.tick() => if !live.connection.status().connected() {
                    return "closed".to_owned();
                },
                () = self.ended.cancelled() => return "closed by us".to_owned(),
            }
        }
    }

    async fn again(&self) -> (Arc<Live>, Events) {
        let mut failures = 1;
        loop {
            tokio::time::sleep(backoff::pause(failures)).await;
            match self.try_hosts().await {
                Ok(connected) => return connected,
                // Also what would be lasting at the start: rights and certificates are put right meanwhile.
                Err(Failure::Lasting(cause) | Failure::Passing(cause)) => {
                    self.health.set(self.side, Health::Disconnected(cause));
                }
            }
            failures += 1;
        }
    }
}

fn shuffle<T>(items: &mut [T]) {
    for end in (1..items.len()).rev() {
        let share = backoff::chance() * (end + 1) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and end + 1")]
        items.swap(end, (share as usize).min(end));
    }
}
