//! The broker seam: how messages move and how deliveries are let go of.
//!
//! [`Broker`] has two implementations, [`rabbitmq`] and [`embedded`]; both pass the contract suite in
//! `tests/tests/broker_contract.rs`. The comments here are the contract. Law 2 lives in
//! [`Broker::settle`]: there is no other way to let go of a delivery.

pub mod address;
pub mod delay;
pub mod embedded;
pub mod parking;
pub mod rabbitmq;

use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::envelope::Message;
use crate::ids::{ProcessId, StageKey};

/// A queue. The collector group is the broker's own; it is part of every queue's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Queue {
    /// New chunks of a stage.
    Work(StageKey),
    /// Chunks of a stage that come back: from a delay level, or handed back. Consumed before `Work`.
    Due(StageKey),
    /// Chunks of a stage whose run is paused.
    Held(StageKey),
    /// Chunks of a stage that are suspected of ending the processes they run in. Whoever reads it reads nothing else
    /// and holds one delivery at a time, so that a returned one tells what its process died of.
    Alone(StageKey),
    /// What the collector reads. One reader at a time; the next takes over when it is gone. Chunks that were
    /// delivered too often, or whose due queue is gone, come here too, marked ([`parking`]).
    Completion,
    /// What nobody can handle ([`parking`]).
    Parking,
    /// A process's own queue: answers to it, and everything broadcast. It lives as long as its subscription.
    Process(ProcessId),
}

impl Queue {
    /// The stage it is a queue of, if it is one of a stage's.
    pub fn stage(&self) -> Option<&StageKey> {
        match self {
            Self::Work(key) | Self::Due(key) | Self::Held(key) | Self::Alone(key) => Some(key),
            Self::Completion | Self::Parking | Self::Process(_) => None,
        }
    }

    /// What kind of queue it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Work(_) => "work",
            Self::Due(_) => "due",
            Self::Held(_) => "held",
            Self::Alone(_) => "alone",
            Self::Completion => "completion",
            Self::Parking => "parking",
            Self::Process(_) => "process",
        }
    }
}

/// Where a message is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To a queue (any but `Process`).
    Queue(Queue),
    /// Put aside for the delay level at or above `delay`, then to `Queue::Due` of the stage.
    Delay {
        /// The wanted wait, rounded up to a level; see [`delay::step`].
        delay: Duration,
        /// Whose due queue it comes back to.
        stage: StageKey,
    },
    /// To every process of the group that has a subscription to its own queue. At most once.
    Everybody,
    /// To one process's own queue. At most once; a process that is gone is no error.
    Process(ProcessId),
}

/// A message and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where.
    pub target: Target,
    /// What.
    pub message: Message,
}

/// A message in the hands of this process, to be settled once.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The queue it came from.
    pub queue: Queue,
    /// Whether it was delivered before, to anyone.
    pub redelivered: bool,
    /// How often it was delivered before, as far as the broker says.
    pub delivery_count: u32,
    /// When it arrived here: time budgets count from now.
    pub received_at: Instant,
    /// Cancelled when the delivery is no longer this process's (law 4): start no further item of it.
    pub lost: CancellationToken,
    /// The backend's own reference.
    pub receipt: Receipt,
}

/// What a backend knows a delivery by; of no use to anyone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Of the connection or lease the delivery belongs to.
    pub generation: u64,
    /// Of the delivery within it.
    pub tag: u64,
}

/// How a settlement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Everything is confirmed and the delivery is gone.
    Done,
    /// Everything is confirmed, but the delivery was no longer ours: a copy will come to somebody.
    Lost,
}

/// Messages ready and messages in somebody's hands. Backends that can't see the latter say 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting to be delivered.
    pub ready: u64,
    /// Delivered and not settled.
    pub unsettled: u64,
}

/// How the broker is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Messages move.
    Connected,
    /// The broker takes no publishes, for the reason it gave; deliveries go on.
    Blocked(String),
    /// There is no connection; the backend is trying again.
    Disconnected(String),
    /// Closed by us.
    Closed,
}

/// What backends differ in, declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Whether the connection can be lost and made again.
    pub reconnects: bool,
    /// Whether the broker can refuse publishes for a while ([`Health::Blocked`]).
    pub blocks: bool,
    /// Whether [`Depth::unsettled`] is known.
    pub sees_unsettled: bool,
}

/// What can go wrong at the seam. A lost connection is not among it: backends wait and go on.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached or refuses us at the start; the message says what to do.
    #[error("{0}")]
    Connect(String),
    /// No queue takes this message: the topology is not there.
    #[error(
        "no queue takes messages for {0}; run `windrow topology apply`, or give this user the right to declare"
    )]
    Unroutable(String),
    /// The message is larger than the broker takes.
    #[error("message {id} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// The message id.
        id: String,
        /// Its body.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The embedded broker's folder cannot be written or read.
    #[error("{0}")]
    Storage(String),
    /// The broker refuses what we ask for, and would again.
    #[error("{0}")]
    Refused(String),
    /// [`Broker::close`] was called.
    #[error("the broker connection is closed")]
    Closed,
}

/// A broker. All methods may be called from any task at once.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug {
    /// Makes sure a queue exists, with everything that hangs on it (exchanges, bindings, delay levels, the
    /// parking queue). Doing it again, from any process, changes nothing.
    async fn ensure(&self, queue: &Queue) -> Result<(), BrokerError>;

    /// Publishes and returns once the broker has it safe: a confirm without a return, or a commit. Waits
    /// as long as it takes while disconnected or blocked. After a lost connection a message whose fate is
    /// unknown is sent again with the header `resent` = 1. `Everybody` and `Process` targets return once
    /// sent. Messages published by one task, one after another, arrive in that order in each queue; a
    /// re-sent one may come twice. Several publishes under way at once share round trips.
    async fn publish(&self, outgoing: Outgoing) -> Result<(), BrokerError>;

    /// Starts deliveries from `queues`; where several are ready, earlier ones in the list come first. At
    /// most `prefetch` deliveries per queue are unsettled at a time. Deliveries of one queue come in the
    /// order they were published, returned ones first. After a lost connection deliveries go on by
    /// themselves. Subscribing to `Process` makes that queue; its deliveries need no settling. Taking deliveries and
    /// closing the broker gives them back in their places: that is how one looks at a queue.
    async fn subscribe(&self, queues: Vec<Queue>, prefetch: u16) -> Result<Subscription, BrokerError>;

    /// Sends `outgoing`, one after another, each confirmed before the next is sent, then lets go of the
    /// delivery: the only way to do so. In a backend with transactions all of it is one. After an error
    /// the delivery is still ours. When the delivery was lost meanwhile, the messages are sent all the
    /// same: what they say is true, and the copy will ask.
    async fn settle(&self, delivery: Delivery, outgoing: Vec<Outgoing>) -> Result<Settlement, BrokerError>;

    /// How many messages a queue holds. A queue that is not there holds none.
    async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError>;

    /// How the broker is reached, and each change of it.
    fn health(&self) -> watch::Receiver<Health>;

    /// What this backend can do.
    fn abilities(&self) -> Abilities;

    /// Ends deliveries, waits for publishes under way for at most `grace`, and disconnects; unsettled
    /// deliveries go back to their queues. Afterwards every call fails with [`BrokerError::Closed`]; a
    /// second close returns at once.
    async fn close(&self, grace: Duration);
}

/// Deliveries of some queues, in order. Dropping it ends them like [`Subscription::stop`]; those not taken
/// by then go back to their queues, at once where the backend can, else when the process leaves.
#[derive(Debug)]
pub struct Subscription {
    deliveries: Vec<mpsc::UnboundedReceiver<Delivery>>,
    stop: CancellationToken,
    untaken: Option<mpsc::UnboundedSender<Delivery>>,
}

impl Subscription {
    /// For backends: one receiver per queue, in the order of preference. The backend bounds what it puts
    /// in by the prefetch, and drops the senders once `stop` is cancelled.
    pub fn new(deliveries: Vec<mpsc::UnboundedReceiver<Delivery>>, stop: CancellationToken) -> Self {
        Self { deliveries, stop, untaken: None }
    }

    /// For backends that can give single deliveries back: where those go that were not taken.
    #[must_use]
    pub fn returning(mut self, untaken: mpsc::UnboundedSender<Delivery>) -> Self {
        self.untaken = Some(untaken);
        self
    }

    /// The next delivery. None after [`Subscription::stop`] once those already here have been taken, or
    /// after the broker was closed.
    pub async fn next(&mut self) -> Option<Delivery> {
        std::future::poll_fn(|context| {
            let mut ended = 0;
            for receiver in &mut self.deliveries {
                match receiver.poll_recv(context) {
                    std::task::Poll::Ready(Some(delivery)) => return std::task::Poll::Ready(Some(delivery)),
                    std::task::Poll::Ready(None) => ended += 1,
                    std::task::Poll::Pending => {}
                }
            }
            if ended == self.deliveries.len() {
                std::task::Poll::Ready(None)
            } else {
                std::task::Poll::Pending
            }
        })
        .await
    }

    /// A delivery that is already here, without waiting.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.deliveries.iter_mut().find_map(|receiver| receiver.try_recv().ok())
    }

    /// Asks the broker for no more. Deliveries already here are still given by `next`, and are still ours
    /// to settle.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.stop.cancel();
        let Some(untaken) = &self.untaken else { return };
        for receiver in &mut self.deliveries {
            receiver.close();
            while let Ok(delivery) = receiver.try_recv() {
                // Fails when the broker was closed, which has given them back.
                let _ = untaken.send(delivery);
            }
        }
    }
}
