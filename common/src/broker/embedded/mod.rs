//! The embedded backend: one SQLite file in a folder, no server.
//!
//! Several processes of one machine may share the folder. Each holds a kernel lock ([`membership`]), and
//! each delivery is leased to one of them; when a lock can be taken, its process is dead and its leases
//! go back. All that is written goes through one thread per process ([`writer`]): it takes whatever waits,
//! does it in one transaction ([`transaction`]) and answers once that is on disk, so callers share syncs.

mod membership;
mod messages;
mod posts;
mod queues;
mod requests;
mod storage;
mod subscribers;
#[cfg(test)]
mod tests;
mod transaction;
mod turn;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::membership::Member;
use self::requests::{Command, NewReader, Request, Task};
use self::storage::Store;
use self::writer::Writer;
use super::{
    Abilities, Broker, BrokerError, Delivery, Depth, Health, Outgoing, Queue, Settlement, Subscription,
    Target, parking,
};
use crate::crash;
use crate::envelope::MAX_BODY_BYTES;
use crate::ids::Group;

/// A broker in a folder. Dropping it without [`Broker::close`] gives its deliveries back too.
pub struct EmbeddedBroker {
    commands: mpsc::Sender<Command>,
    counting: Arc<Mutex<Option<Store>>>,
    health: watch::Receiver<Health>,
    next_subscription: AtomicU64,
    closing: AtomicBool,
    closed: CancellationToken,
}

impl EmbeddedBroker {
    /// Opens the broker of `group` in `folder`, which is made when it is not there, and takes over what
    /// dead processes held. Blocks for the few milliseconds the file system takes.
    ///
    /// Fails with [`BrokerError::Storage`] when the folder cannot be written, when its file is damaged,
    /// or when another version of this program wrote it.
    pub fn open(folder: &Path, group: &Group) -> Result<Self, BrokerError> {
        let (store, member) = storage::open_and_join(folder, group)?;
        Self::start(store, member)
    }

    fn start(store: Store, member: Member) -> Result<Self, BrokerError> {
        let counting = store.another_reader()?;
        let (commands, inbox) = mpsc::channel();
        let (health, seen_health) = watch::channel(Health::Connected);
        let writer = Writer::new(store, member, inbox, health);
        std::thread::Builder::new()
            .name("embedded-broker".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| BrokerError::Storage(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            commands,
            counting: Arc::new(Mutex::new(Some(counting))),
            health: seen_health,
            next_subscription: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
        })
    }

    /// Hands `task` to the writer and waits until it is on disk.
    async fn ask(&self, task: Task) -> Result<Settlement, BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let (answer, answered) = oneshot::channel();
        let command = Command::Do(Box::new(Request { task, answer }));
        self.commands.send(command).map_err(|_| BrokerError::Closed)?;
        answered.await.unwrap_or(Err(BrokerError::Closed))
    }

    /// Tells the writer when `stop` is cancelled, and which deliveries nobody took.
    fn watch_for_end(
        &self,
        subscription: u64,
        stop: CancellationToken,
        mut untaken: UnboundedReceiver<Delivery>,
    ) {
        let (commands, closed) = (self.commands.clone(), self.closed.clone());
        let watching = async move {
            stop.cancelled().await;
            // Sending fails when the writer is gone, and all of this with it.
            let _ = commands.send(Command::Stop { subscription });
            let mut receipts = Vec::new();
            while let Some(delivery) = untaken.recv().await {
                receipts.push(delivery.receipt);
            }
            let request = Request::unanswered(Task::GiveBack(receipts));
            let _ = commands.send(Command::Do(Box::new(request)));
        };
        tokio::spawn(async move { closed.run_until_cancelled(watching).await });
    }
}

fn check_size(outgoing: &Outgoing) -> Result<(), BrokerError> {
    let (bytes, limit) = (outgoing.message.body.len(), MAX_BODY_BYTES);
    let is_parked = outgoing.target == Target::Queue(Queue::Parking) || parking::is_marked(&outgoing.message);
    if bytes > limit && !is_parked {
        return Err(BrokerError::TooLarge { id: outgoing.message.message_id.clone(), bytes, limit });
    }
    Ok(())
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn ensure(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.ask(Task::Ensure(queue.clone())).await.map(drop)
    }

    async fn publish(&self, outgoing: Outgoing) -> Result<(), BrokerError> {
        check_size(&outgoing)?;
        self.ask(Task::Publish(outgoing)).await.map(drop)
    }

    async fn subscribe(&self, queues: Vec<Queue>, prefetch: u16) -> Result<Subscription, BrokerError> {
        let subscription = self.next_subscription.fetch_add(1, Ordering::Relaxed);
        let mut receivers = Vec::with_capacity(queues.len());
        let readers = queues.into_iter().map(|queue| {
            let (sender, receiver) = unbounded_channel();
            receivers.push(receiver);
            NewReader { queue, sender }
        });
        let readers = readers.collect();
        let prefetch = u32::from(prefetch.max(1));
        self.ask(Task::Subscribe { subscription, readers, prefetch }).await?;
        let stop = CancellationToken::new();
        let (return_untaken, untaken) = unbounded_channel();
        self.watch_for_end(subscription, stop.clone(), untaken);
        Ok(Subscription::new(receivers, stop).returning(return_untaken))
    }

    async fn settle(&self, delivery: Delivery, outgoing: Vec<Outgoing>) -> Result<Settlement, BrokerError> {
        outgoing.iter().try_for_each(check_size)?;
        crash::point("settle.publishing");
        let settlement = self.ask(Task::Settle { receipt: delivery.receipt, outgoing }).await;
        crash::point("settle.settled");
        settlement
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        let (counting, queue) = (Arc::clone(&self.counting), queue.clone());
        let counted = tokio::task::spawn_blocking(move || {
            let counting = counting.lock().unwrap_or_else(PoisonError::into_inner);
            counting.as_ref().ok_or(BrokerError::Closed)?.depth(&queue)
        });
        counted.await.unwrap_or(Err(BrokerError::Closed))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn abilities(&self) -> Abilities {
        Abilities { reconnects: false, blocks: false, sees_unsettled: true }
    }

    async fn close(&self, grace: Duration) {
        if self.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.closed.cancel();
        let (answer, mut left) = oneshot::channel();
        let _ = self.commands.send(Command::Close { answer });
        if tokio::time::timeout(grace, &mut left).await.is_err() {
            let _ = self.commands.send(Command::Abandon);
            // An error, too, says that the writer is gone.
            let _ = left.await;
        }
        let counting = Arc::clone(&self.counting);
        let disconnected = tokio::task::spawn_blocking(move || {
            counting.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        let _ = disconnected.await;
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.closed.cancel();
        let _ = self.commands.send(Command::Abandon);
    }
}

impl fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedBroker").field("health", &*self.health.borrow()).finish_non_exhaustive()
    }
}
