//! A broker in memory that does to its clients, by a seed, all that AMQP allows: messages of different publishers and
//! queues overtake each other, connections are cut in the middle of a publish or an acknowledgement and what was under
//! way arrives or does not, deliveries come again, dead-lettering from a delay level sends a message twice, and what is
//! told to processes gets lost. It keeps the contract of the seam (`tests/tests/broker_contract.rs`), on any clock.
//!
//! [`server`] has the queues, [`client`] is a process's connection and has the mischief, [`whims`] is chance.

mod client;
mod server;
mod whims;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use windrow_common::broker::{BrokerError, Outgoing, Queue, Target, delay};
use windrow_common::envelope::Message;

pub use self::client::ModelClient;
use self::server::Server;
pub use self::whims::Whims;

/// What the broker does to its clients.
#[derive(Debug, Clone, Copy)]
pub struct Mischief {
    /// Decides when, and to whom.
    pub whims: Whims,
    /// A message is on its way for at most this long, there or back.
    pub latency: Duration,
    /// One message in so many cuts the connection it goes over; none when 0 ...
    pub cuts_one_in: u64,
    /// ... and none after this time.
    pub cuts_end_in: Duration,
    /// One message in so many comes twice out of a delay level; none when 0.
    pub doubles_one_in: u64,
}

impl Mischief {
    /// Every message arrives once, after at most a few milliseconds.
    pub fn none() -> Self {
        let (latency, cuts_end_in) = (Duration::from_millis(3), Duration::ZERO);
        Self { whims: Whims::new(1), latency, cuts_one_in: 0, cuts_end_in, doubles_one_in: 0 }
    }
}

/// What an observer is told of, as it happens.
#[derive(Debug)]
pub enum Seen<'a> {
    /// A message came to a queue that keeps it.
    Arrived {
        /// The queue.
        queue: &'a Queue,
        /// The message.
        message: &'a Message,
    },
    /// A message was given to a process.
    Delivered {
        /// The process.
        to: &'a str,
        /// What the delivery is known by.
        tag: u64,
        /// The queue it is from.
        queue: &'a Queue,
        /// The message.
        message: &'a Message,
        /// Whether it was delivered before.
        redelivered: bool,
    },
    /// A process let go of a delivery.
    LetGo {
        /// The process.
        by: &'a str,
        /// The delivery's.
        tag: u64,
    },
    /// A delivery was taken back from a process.
    Lost {
        /// The process.
        by: &'a str,
        /// The delivery's.
        tag: u64,
    },
    /// A process's connection was cut.
    Cut {
        /// The process.
        client: &'a str,
    },
}

/// Told of what happens. It must not call the broker.
pub type Observer = Arc<dyn Fn(&Seen<'_>) + Send + Sync>;

/// The broker all processes of a model connect to.
#[derive(Clone)]
pub struct ModelBroker(Arc<Shared>);

/// What all connections share.
struct Shared {
    server: Mutex<Server>,
    /// Messages in delay levels.
    delayed: Mutex<u64>,
    mischief: Mischief,
    cuts_end_at: Instant,
    observer: Observer,
}

impl ModelBroker {
    /// A broker without queues.
    pub fn new(mischief: Mischief, observer: Observer) -> Self {
        Self(Arc::new(Shared {
            server: Mutex::new(Server::new(Arc::clone(&observer))),
            delayed: Mutex::new(0),
            mischief,
            cuts_end_at: Instant::now() + mischief.cuts_end_in,
            observer,
        }))
    }

    /// A connection for the process `name`, which chance knows it by.
    pub fn connect(&self, name: &str) -> Arc<ModelClient> {
        ModelClient::new(Arc::clone(&self.0), name)
    }

    /// Whether no message is anywhere but in the queues `aside`.
    pub fn is_empty_but_for(&self, aside: &[Queue]) -> bool {
        *lock(&self.0.delayed) == 0 && lock(&self.0.server).is_empty_but_for(aside)
    }

    /// How many messages are parked.
    pub fn parked(&self) -> u64 {
        lock(&self.0.server).ready(&Queue::Parking)
    }

    /// What is where, for a person.
    pub fn describe(&self) -> String {
        let delayed = *lock(&self.0.delayed);
        format!("{delayed} in delay levels; {}", lock(&self.0.server).describe())
    }
}

impl Shared {
    /// A message has come over a connection.
    fn arrive(self: &Arc<Self>, outgoing: Outgoing) -> Result<(), BrokerError> {
        match outgoing.target {
            Target::Queue(queue) => lock(&self.server).arrive(&queue, outgoing.message)?,
            Target::Everybody => lock(&self.server).tell(None, &outgoing.message),
            Target::Process(process) => {
                lock(&self.server).tell(Some(&Queue::Process(process)), &outgoing.message);
            }
            Target::Delay { delay: wanted, stage } => {
                *lock(&self.delayed) += 1;
                let (shared, queue) = (Arc::clone(self), Queue::Due(stage));
                tokio::spawn(async move {
                    tokio::time::sleep(delay::level(wanted)).await;
                    shared.come_due(&queue, outgoing.message);
                });
            }
        }
        Ok(())
    }

    /// A message leaves its delay level: dead-lettering is at least once.
    fn come_due(&self, queue: &Queue, message: Message) {
        let Mischief { whims, doubles_one_in, .. } = self.mischief;
        let times = if whims.one_in(doubles_one_in, ("double", &message.message_id)) { 2 } else { 1 };
        *lock(&self.delayed) -= 1;
        let mut server = lock(&self.server);
        for message in std::iter::repeat_n(message, times) {
            // Whoever delayed it has ensured its due queue.
            server.arrive(queue, message).expect("the due queue is there");
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ModelBroker")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
