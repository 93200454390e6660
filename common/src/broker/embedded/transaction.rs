//! One transaction: everything asked for since the last, then leases for who may be given more.

use std::collections::HashMap;

use super::super::{BrokerError, Outgoing, Queue, Receipt, Settlement, Target, delay};
use super::posts::Post;
use super::requests::{NewReader, Request, Task};
use super::storage::Store;
use super::subscribers::{Subscribers, Unread};
use crate::crash;
use crate::envelope::Message;

/// At most this many messages are leased from a queue in one transaction.
const LEASE_BATCH: u32 = 512;

/// What a transaction did, to be told once it is on disk.
#[derive(Default)]
pub(super) struct Effects {
    /// One for each request, in order.
    pub(super) answers: Vec<Result<Settlement, BrokerError>>,
    /// Messages now ours, in the order of their queues.
    pub(super) leased: Vec<Leased>,
    /// Messages for processes' own queues here.
    pub(super) posts: Vec<Post>,
    /// The number of the last post before a new subscription: it gets those after.
    pub(super) last_post: i64,
    /// When the next delayed message is due, in Unix milliseconds.
    pub(super) next_due_ms: Option<i64>,
}

/// A message leased to this process.
pub(super) struct Leased {
    pub(super) queue: i64,
    pub(super) number: i64,
    pub(super) deliveries: i64,
    pub(super) message: Message,
}

/// A transaction under way. The caller begins and commits it.
pub(super) struct Changes<'a> {
    pub(super) store: &'a Store,
    /// This process, as leases name it.
    pub(super) process: i64,
    /// Unix milliseconds.
    pub(super) now_ms: i64,
    pub(super) subscribers: &'a mut Subscribers,
    /// Messages stored in this transaction: leased at once, they need not be read again.
    stored: HashMap<i64, &'a Message>,
    effects: Effects,
}

impl<'a> Changes<'a> {
    pub(super) fn new(store: &'a Store, process: i64, now_ms: i64, subscribers: &'a mut Subscribers) -> Self {
        Self { store, process, now_ms, subscribers, stored: HashMap::new(), effects: Effects::default() }
    }

    /// Does what was asked. An error that only concerns one request becomes its answer; an error of the
    /// store ends the transaction.
    pub(super) fn apply(&mut self, request: &'a Request) -> rusqlite::Result<()> {
        let answer = match &request.task {
            Task::Ensure(queue) => self.store.ensure_queue(queue).map(|_| Ok(Settlement::Done)),
            Task::Publish(outgoing) => self.publish(std::slice::from_ref(outgoing)),
            Task::Settle { receipt, outgoing } => self.settle(*receipt, outgoing),
            Task::Subscribe { readers, .. } => self.subscribe(readers),
            Task::GiveBack(receipts) => self.give_back(receipts),
            Task::StopReading(unread) => self.stop_reading(unread),
        }?;
        self.effects.answers.push(answer);
        Ok(())
    }

    /// Moves what is due, and leases for every reader that may be given more.
    pub(super) fn lease(&mut self) -> rusqlite::Result<()> {
        for queue in self.store.move_due(self.now_ms)? {
            self.subscribers.look_at(queue);
        }
        for want in self.subscribers.wants() {
            if want.single_reader && !self.store.claim_reading(want.queue, self.process)? {
                self.subscribers.saw_empty(want.queue);
                continue;
            }
            let at_most = want.at_most.min(LEASE_BATCH);
            let leases = self.store.lease(want.queue, self.process, at_most)?;
            if leases.len() < at_most as usize {
                self.subscribers.saw_empty(want.queue);
            }
            for lease in leases {
                let message = match self.stored.get(&lease.message) {
                    Some(message) => (*message).clone(),
                    None => self.store.load_message(lease.message)?,
                };
                let (number, deliveries) = (lease.message, lease.deliveries);
                self.effects.leased.push(Leased { queue: want.queue, number, deliveries, message });
            }
        }
        Ok(())
    }

    /// What all of it was.
    pub(super) fn finish(mut self) -> rusqlite::Result<Effects> {
        self.effects.next_due_ms = self.store.next_due_ms()?;
        Ok(self.effects)
    }

    /// All of `outgoing`, or none of it when one has nowhere to go.
    fn publish(&mut self, outgoing: &'a [Outgoing]) -> rusqlite::Result<Result<Settlement, BrokerError>> {
        let mut queues = Vec::with_capacity(outgoing.len());
        for each in outgoing {
            match self.destination(&each.target)? {
                Ok(queue) => queues.push(queue),
                Err(error) => return Ok(Err(error)),
            }
        }
        for (each, queue) in outgoing.iter().zip(queues) {
            self.send(each, queue)?;
        }
        Ok(Ok(Settlement::Done))
    }

    /// The queue a target leads to; 0 for targets that are no queue.
    fn destination(&self, target: &Target) -> rusqlite::Result<Result<i64, BrokerError>> {
        Ok(match target {
            Target::Queue(queue @ Queue::Process(_)) => {
                Err(BrokerError::Refused(format!("{queue:?} is published to by `Target::Process`")))
            }
            Target::Queue(queue) => {
                self.store.find_queue(queue)?.ok_or_else(|| BrokerError::Unroutable(format!("{queue:?}")))
            }
            // What is put aside must not be lost for want of a queue to come back to.
            Target::Delay { stage, .. } => Ok(self.store.ensure_queue(&Queue::Due(stage.clone()))?),
            Target::Everybody | Target::Process(_) => Ok(0),
        })
    }

    fn send(&mut self, outgoing: &'a Outgoing, queue: i64) -> rusqlite::Result<()> {
        let message = &outgoing.message;
        match &outgoing.target {
            Target::Queue(_) => {
                let number = self.store.insert_message(message)?;
                self.store.enqueue(queue, number)?;
                self.stored.insert(number, message);
                self.subscribers.look_at(queue);
            }
            Target::Delay { delay, .. } => {
                let wait_ms = delay::level(*delay).as_millis();
                let due_ms = self.now_ms.saturating_add(i64::try_from(wait_ms).unwrap_or(i64::MAX));
                let number = self.store.insert_message(message)?;
                self.store.delay(queue, number, due_ms)?;
            }
            Target::Everybody => self.post(Post { to: None, message: message.clone() })?,
            Target::Process(id) => self.post(Post { to: Some(id.clone()), message: message.clone() })?,
        }
        Ok(())
    }

    fn post(&mut self, post: Post) -> rusqlite::Result<()> {
        self.store.leave_post(&post, self.process, self.now_ms)?;
        self.effects.posts.push(post);
        Ok(())
    }

    fn settle(
        &mut self,
        receipt: Receipt,
        outgoing: &'a [Outgoing],
    ) -> rusqlite::Result<Result<Settlement, BrokerError>> {
        if let Err(error) = self.publish(outgoing)? {
            return Ok(Err(error));
        }
        // All of it is one transaction: what dies here has sent nothing.
        crash::point("settle.confirmed");
        if receipt == POST_RECEIPT {
            return Ok(Ok(Settlement::Done));
        }
        let message = receipt.tag.cast_signed();
        self.subscribers.settled(message);
        let held = self.store.settle(message, receipt.generation.cast_signed())?;
        Ok(Ok(if held { Settlement::Done } else { Settlement::Lost }))
    }

    fn subscribe(&mut self, readers: &[NewReader]) -> rusqlite::Result<Result<Settlement, BrokerError>> {
        for reader in readers {
            if let Queue::Process(id) = &reader.queue {
                self.store.open_process_queue(id, self.process)?;
                self.effects.last_post = self.store.last_post()?;
                continue;
            }
            let number = self.store.ensure_queue(&reader.queue)?;
            if reader.queue == Queue::Completion {
                self.store.claim_reading(number, self.process)?;
            }
        }
        Ok(Ok(Settlement::Done))
    }

    fn give_back(&mut self, receipts: &[Receipt]) -> rusqlite::Result<Result<Settlement, BrokerError>> {
        for receipt in receipts {
            let message = receipt.tag.cast_signed();
            self.subscribers.settled(message);
            if let Some(queue) = self.store.give_back(message, receipt.generation.cast_signed())? {
                self.subscribers.look_at(queue);
            }
        }
        Ok(Ok(Settlement::Done))
    }

    fn stop_reading(&mut self, unread: &Unread) -> rusqlite::Result<Result<Settlement, BrokerError>> {
        for queue in &unread.queues {
            self.store.leave_reading(*queue, self.process)?;
        }
        for id in &unread.process_queues {
            self.store.close_process_queue(id, self.process)?;
        }
        Ok(Ok(Settlement::Done))
    }
}

/// What deliveries of processes' own queues are known by: they need no settling.
pub(super) const POST_RECEIPT: Receipt = Receipt { generation: 0, tag: 0 };
