//! Who in this process reads what, and how much more each may be given.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::mpsc::UnboundedSender;

use super::super::{Delivery, Queue};
use crate::ids::ProcessId;

/// All subscriptions of this process. A queue may have several readers, who take turns.
#[derive(Default)]
pub(super) struct Subscribers {
    queues: BTreeMap<i64, QueueReaders>,
    processes: Vec<ProcessReader>,
    /// Our leases: which queue and subscription each message went to.
    held: HashMap<i64, (i64, u64)>,
    /// Subscriptions that were found to have ended.
    gone: Vec<u64>,
}

/// The readers of one queue.
struct QueueReaders {
    queue: Queue,
    readers: Vec<Reader>,
    /// The place in `readers` of who is next.
    turn: usize,
    /// Whether the queue may hold something: false once it was seen empty and nothing has come since.
    look: bool,
}

struct Reader {
    subscription: u64,
    sender: UnboundedSender<Delivery>,
    prefetch: u32,
    unsettled: u32,
}

/// A reader of a process's own queue.
pub(super) struct ProcessReader {
    pub(super) subscription: u64,
    pub(super) id: ProcessId,
    pub(super) sender: UnboundedSender<Delivery>,
}

/// What a queue's readers could be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) queue: i64,
    pub(super) at_most: u32,
    /// Whether only one process may read the queue.
    pub(super) single_reader: bool,
}

/// What nobody here reads any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unread {
    pub(super) queues: Vec<i64>,
    pub(super) process_queues: Vec<ProcessId>,
}

impl Unread {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.process_queues.is_empty()
    }
}

impl QueueReaders {
    fn is_single(&self) -> bool {
        self.queue == Queue::Completion
    }

    /// Of a queue read by one at a time, the first to come is the reader.
    fn active(&self) -> &[Reader] {
        let count = if self.is_single() { self.readers.len().min(1) } else { self.readers.len() };
        &self.readers[..count]
    }

    fn credit(&self) -> u32 {
        self.active().iter().map(Reader::credit).fold(0, u32::saturating_add)
    }

    /// Whose turn it is among those who may be given more.
    fn next_reader(&mut self) -> Option<&mut Reader> {
        let count = self.active().len();
        let place = (0..count)
            .map(|offset| (self.turn + offset) % count)
            .find(|place| self.readers[*place].credit() > 0)?;
        self.turn = place + 1;
        self.readers.get_mut(place)
    }
}

impl Reader {
    fn credit(&self) -> u32 {
        self.prefetch.saturating_sub(self.unsettled)
    }
}

impl Subscribers {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.processes.is_empty()
    }

    /// Adds a reader of a queue, whose number is `number`.
    pub(super) fn add(
        &mut self,
        (number, queue): (i64, Queue),
        subscription: u64,
        sender: UnboundedSender<Delivery>,
        prefetch: u32,
    ) {
        let entry = self.queues.entry(number).or_insert_with(|| QueueReaders {
            queue,
            readers: Vec::new(),
            turn: 0,
            look: true,
        });
        entry.look = true;
        entry.readers.push(Reader { subscription, sender, prefetch, unsettled: 0 });
    }

    /// Adds a reader of a process's own queue.
    pub(super) fn add_process(&mut self, reader: ProcessReader) {
        self.processes.push(reader);
    }

    /// The readers of processes' own queues.
    pub(super) fn processes(&self) -> &[ProcessReader] {
        &self.processes
    }

    /// Removes a subscription; what it holds stays its to settle. Returns what nobody here reads now.
    pub(super) fn remove(&mut self, subscription: u64) -> Unread {
        let mut unread = Unread::default();
        self.queues.retain(|number, readers| {
            readers.readers.retain(|reader| reader.subscription != subscription);
            if readers.readers.is_empty() {
                unread.queues.push(*number);
            }
            !readers.readers.is_empty()
        });
        self.processes.retain(|reader| {
            if reader.subscription == subscription {
                unread.process_queues.push(reader.id.clone());
            }
            reader.subscription != subscription
        });
        unread
    }

    /// Something may have come to a queue.
    pub(super) fn look_at(&mut self, queue: i64) {
        if let Some(readers) = self.queues.get_mut(&queue) {
            readers.look = true;
        }
    }

    /// Something may have come to any queue.
    pub(super) fn look_everywhere(&mut self) {
        self.queues.values_mut().for_each(|readers| readers.look = true);
    }

    /// A queue gave less than was asked of it.
    pub(super) fn saw_empty(&mut self, queue: i64) {
        if let Some(readers) = self.queues.get_mut(&queue) {
            readers.look = false;
        }
    }

    /// The queues that may hold something for readers that may be given more.
    pub(super) fn wants(&self) -> Vec<Want> {
        self.queues
            .iter()
            .filter(|(_, readers)| readers.look && readers.credit() > 0)
            .map(|(queue, readers)| Want {
                queue: *queue,
                at_most: readers.credit(),
                single_reader: readers.is_single(),
            })
            .collect()
    }

    /// The subscription that held a message may be given another in its place.
    pub(super) fn settled(&mut self, message: i64) {
        let Some((queue, subscription)) = self.held.remove(&message) else { return };
        let Some(readers) = self.queues.get_mut(&queue) else { return };
        if let Some(reader) = readers.readers.iter_mut().find(|reader| reader.subscription == subscription) {
            reader.unsettled = reader.unsettled.saturating_sub(1);
        }
    }

    /// Subscriptions nobody listens to, to be removed.
    pub(super) fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }

    /// Forgets all leases: they are no longer ours.
    pub(super) fn forget_leases(&mut self) {
        self.held.clear();
        let readers = self.queues.values_mut().flat_map(|readers| &mut readers.readers);
        readers.for_each(|reader| reader.unsettled = 0);
        self.look_everywhere();
    }

    /// Gives a message just leased to the reader whose turn it is. False when no reader took it.
    pub(super) fn give(
        &mut self,
        queue: i64,
        message: i64,
        delivery: impl FnOnce(Queue) -> Delivery,
    ) -> bool {
        let Some(readers) = self.queues.get_mut(&queue) else { return false };
        let name = readers.queue.clone();
        let Some(reader) = readers.next_reader() else { return false };
        let sent = reader.sender.send(delivery(name)).is_ok();
        if sent {
            reader.unsettled += 1;
            self.held.insert(message, (queue, reader.subscription));
        } else {
            self.gone.push(reader.subscription);
        }
        sent
    }
}
