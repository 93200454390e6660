//! The broker itself: queues, who reads them, and what is in whose hands. It has no clock and no chance of its own.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{BrokerError, Delivery, Queue, Receipt};
use windrow_common::clock;
use windrow_common::envelope::Message;

use super::{Observer, Seen};

/// The session of deliveries that need no settling.
pub(super) const UNSETTLED_FREE: u64 = 0;

/// A message in a queue.
#[derive(Debug)]
struct Stored {
    message: Message,
    deliveries: u32,
}

/// A message in somebody's hands.
#[derive(Debug)]
struct InHand {
    reader: u64,
    session: u64,
    client: String,
    queue: Queue,
    place: u64,
    stored: Stored,
    lost: CancellationToken,
}

/// A reader of one queue.
#[derive(Debug)]
pub(super) struct Reader {
    /// Of the subscription, which has one for each of its queues.
    pub(super) subscription: u64,
    /// The connection it is on.
    pub(super) session: u64,
    /// Whose it is.
    pub(super) client: String,
    /// What it reads.
    pub(super) queue: Queue,
    /// The most it may have in hand.
    pub(super) prefetch: usize,
    /// Where deliveries go.
    pub(super) deliveries: UnboundedSender<Delivery>,
}

/// Queues, readers, and what is in whose hands.
pub(super) struct Server {
    queues: HashMap<Queue, BTreeMap<u64, Stored>>,
    readers: Vec<(u64, Reader)>,
    in_hand: BTreeMap<u64, InHand>,
    next: u64,
    observer: Observer,
}

impl Server {
    /// Nothing is there yet.
    pub(super) fn new(observer: Observer) -> Self {
        Self {
            queues: HashMap::new(),
            readers: Vec::new(),
            in_hand: BTreeMap::new(),
            next: UNSETTLED_FREE,
            observer,
        }
    }

    /// A number nobody has.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether no message is anywhere but in the queues `aside`.
    pub(super) fn is_empty_but_for(&self, aside: &[Queue]) -> bool {
        let has_none =
            |(queue, ready): (&Queue, &BTreeMap<u64, Stored>)| ready.is_empty() || aside.contains(queue);
        self.in_hand.is_empty() && self.queues.iter().all(has_none)
    }

    /// What is where, for a person.
    pub(super) fn describe(&self) -> String {
        let ids = |ready: &BTreeMap<u64, Stored>| -> Vec<String> {
            ready.values().map(|stored| stored.message.message_id.clone()).collect()
        };
        let ready = self.queues.iter().filter(|(_, ready)| !ready.is_empty());
        let ready: Vec<String> =
            ready.map(|(queue, ready)| format!("{}: {:?}", queue.kind(), ids(ready))).collect();
        let held = self
            .in_hand
            .values()
            .map(|held| format!("{} has {}", held.client, held.stored.message.message_id));
        format!("{}; {}", ready.join(", "), held.collect::<Vec<_>>().join(", "))
    }

    /// Makes a queue.
    pub(super) fn ensure(&mut self, queue: &Queue) {
        self.queues.entry(queue.clone()).or_default();
    }

    /// Messages ready in a queue.
    pub(super) fn ready(&self, queue: &Queue) -> u64 {
        self.queues.get(queue).map_or(0, |ready| ready.len() as u64)
    }

    /// A message for a queue that keeps it.
    pub(super) fn arrive(&mut self, queue: &Queue, message: Message) -> Result<(), BrokerError> {
        let place = self.number();
        let Some(ready) = self.queues.get_mut(queue) else {
            return Err(BrokerError::Unroutable(queue.kind().to_owned()));
        };
        (self.observer)(&Seen::Arrived { queue, message: &message });
        ready.insert(place, Stored { message, deliveries: 0 });
        self.deliver(queue);
        Ok(())
    }

    /// A message for processes that listen now: of one, or of all.
    pub(super) fn tell(&mut self, wanted: Option<&Queue>, message: &Message) {
        let is_told =
            |queue: &Queue| matches!(queue, Queue::Process(_)) && wanted.is_none_or(|wanted| wanted == queue);
        for (_, reader) in self.readers.iter().filter(|(_, reader)| is_told(&reader.queue)) {
            let stored = Stored { message: message.clone(), deliveries: 0 };
            let receipt = Receipt { generation: UNSETTLED_FREE, tag: 0 };
            // Who does not listen any more misses it.
            let _ =
                reader.deliveries.send(delivery(&stored, &reader.queue, CancellationToken::new(), receipt));
        }
    }

    /// Starts a reader.
    pub(super) fn read(&mut self, reader: Reader) {
        let (id, queue) = (self.number(), reader.queue.clone());
        self.readers.push((id, reader));
        self.deliver(&queue);
    }

    /// Ends the readers of a subscription. What it has in hand stays there.
    pub(super) fn stop(&mut self, subscription: u64) {
        let queues: Vec<Queue> = self.readers_where(|reader| reader.subscription == subscription);
        self.readers.retain(|(_, reader)| reader.subscription != subscription);
        for queue in &queues {
            self.deliver(queue);
        }
    }

    /// A connection is gone: what was in hand over it goes back to its place, marked.
    pub(super) fn end_session(&mut self, session: u64) {
        let mut queues: Vec<Queue> = self.readers_where(|reader| reader.session == session);
        self.readers.retain(|(_, reader)| reader.session != session);
        let tags: Vec<u64> =
            self.in_hand.iter().filter(|(_, held)| held.session == session).map(|(tag, _)| *tag).collect();
        for tag in tags {
            queues.extend(self.take_back(tag));
        }
        for queue in &queues {
            self.deliver(queue);
        }
    }

    /// A delivery nobody took goes back.
    pub(super) fn give_back(&mut self, tag: u64) {
        if let Some(queue) = self.take_back(tag) {
            self.deliver(&queue);
        }
    }

    /// Lets go of a delivery, unless it was taken back before.
    pub(super) fn acknowledge(&mut self, tag: u64) {
        let Some(held) = self.in_hand.remove(&tag) else { return };
        (self.observer)(&Seen::LetGo { by: &held.client, tag });
        self.deliver(&held.queue);
    }

    fn take_back(&mut self, tag: u64) -> Option<Queue> {
        let held = self.in_hand.remove(&tag)?;
        (self.observer)(&Seen::Lost { by: &held.client, tag });
        held.lost.cancel();
        let ready = self.queues.entry(held.queue.clone()).or_default();
        ready.insert(held.place, Stored { deliveries: held.stored.deliveries + 1, ..held.stored });
        Some(held.queue)
    }

    fn readers_where(&self, is_one: impl Fn(&Reader) -> bool) -> Vec<Queue> {
        let found = self.readers.iter().filter(|(_, reader)| is_one(reader));
        found.map(|(_, reader)| reader.queue.clone()).collect()
    }

    /// Hands out what is ready, as far as readers take it.
    fn deliver(&mut self, queue: &Queue) {
        while self.queues.get(queue).is_some_and(|ready| !ready.is_empty()) {
            let Some(position) = self.next_reader(queue) else { return };
            let (id, reader) = self.readers.remove(position);
            let Some((place, stored)) = self.queues.get_mut(queue).and_then(BTreeMap::pop_first) else {
                return;
            };
            if self.hand_to(id, &reader, place, stored) {
                // Who was served comes last, but for the one active reader of completions.
                let back = if *queue == Queue::Completion { position } else { self.readers.len() };
                self.readers.insert(back, (id, reader));
            }
        }
    }

    fn next_reader(&self, queue: &Queue) -> Option<usize> {
        let in_hand = |id| self.in_hand.values().filter(|held| held.reader == id).count();
        let mut readers = self.readers.iter().enumerate().filter(|(_, (_, reader))| reader.queue == *queue);
        let may_take = |(id, reader): &(u64, Reader)| in_hand(*id) < reader.prefetch;
        if *queue == Queue::Completion {
            return readers.next().filter(|(_, reader)| may_take(reader)).map(|(position, _)| position);
        }
        readers.find(|(_, reader)| may_take(reader)).map(|(position, _)| position)
    }

    /// False when the reader's subscription was dropped: it reads no more.
    fn hand_to(&mut self, id: u64, reader: &Reader, place: u64, stored: Stored) -> bool {
        let tag = self.number();
        let (client, queue) = (reader.client.clone(), reader.queue.clone());
        let lost = CancellationToken::new();
        (self.observer)(&Seen::Delivered {
            to: &client,
            tag,
            queue: &queue,
            message: &stored.message,
            redelivered: stored.deliveries > 0,
        });
        let receipt = Receipt { generation: reader.session, tag };
        let delivered = reader.deliveries.send(delivery(&stored, &queue, lost.clone(), receipt));
        let session = reader.session;
        self.in_hand.insert(tag, InHand { reader: id, session, client, queue, place, stored, lost });
        if delivered.is_err() {
            self.take_back(tag);
        }
        delivered.is_ok()
    }
}

fn delivery(stored: &Stored, queue: &Queue, lost: CancellationToken, receipt: Receipt) -> Delivery {
    Delivery {
        message: stored.message.clone(),
        queue: queue.clone(),
        redelivered: stored.deliveries > 0,
        delivery_count: stored.deliveries,
        received_at: clock::now(),
        lost,
        receipt,
    }
}
