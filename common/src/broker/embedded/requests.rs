//! What callers ask of the writer thread.

use tokio::sync::{mpsc, oneshot};

use super::super::{BrokerError, Delivery, Outgoing, Queue, Receipt, Settlement};
use super::subscribers::Unread;

/// What the writer's inbox carries.
pub(super) enum Command {
    /// Do this in a transaction.
    Do(Box<Request>),
    /// Deliver no more to this subscription.
    Stop { subscription: u64 },
    /// Do what has been asked so far, leave, and answer.
    Close { answer: oneshot::Sender<()> },
    /// Leave at once; what has not been done is not done.
    Abandon,
}

/// A task, and whom to tell once it is on disk. Tasks that can't lose anything answer `Done`.
pub(super) struct Request {
    pub(super) task: Task,
    pub(super) answer: oneshot::Sender<Result<Settlement, BrokerError>>,
}

impl Request {
    /// A request nobody waits for.
    pub(super) fn unanswered(task: Task) -> Self {
        Self { task, answer: oneshot::channel().0 }
    }
}

/// One change, done whole or not at all.
pub(super) enum Task {
    Ensure(Queue),
    Publish(Outgoing),
    Settle {
        receipt: Receipt,
        outgoing: Vec<Outgoing>,
    },
    Subscribe {
        subscription: u64,
        readers: Vec<NewReader>,
        prefetch: u32,
    },
    /// Messages leased by us that nobody has seen go back as they were.
    GiveBack(Vec<Receipt>),
    /// We read these queues no more, so that others may.
    StopReading(Unread),
}

impl Task {
    /// How many bytes of bodies the task writes.
    pub(super) fn body_bytes(&self) -> usize {
        match self {
            Self::Publish(outgoing) => outgoing.message.body.len(),
            Self::Settle { outgoing, .. } => outgoing.iter().map(|each| each.message.body.len()).sum(),
            _ => 0,
        }
    }

    /// Whether the task must outlive a power cut. Messages to processes need not.
    pub(super) fn is_durable(&self) -> bool {
        !matches!(self, Self::Publish(outgoing) if outgoing.target.is_to_processes())
    }
}

/// Where deliveries of one queue of a new subscription go.
pub(super) struct NewReader {
    pub(super) queue: Queue,
    pub(super) sender: mpsc::UnboundedSender<Delivery>,
}

impl super::super::Target {
    /// Whether this goes to processes' own queues, at most once.
    pub(super) fn is_to_processes(&self) -> bool {
        matches!(self, Self::Everybody | Self::Process(_))
    }
}
