//! Deliveries of one queue, over as many connections as it takes, and their acknowledgements.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::link::{Link, Live};
use super::topology::{Topology, process_arguments};
use super::{backoff, death, declare, wire};
use crate::broker::{BrokerError, Delivery, Queue, Receipt, parking};
use crate::ids::ProcessId;

/// Quorum queues take no higher prefetch.
const MAX_PREFETCH: u16 = 2000;

/// The receipt's generation of deliveries that need no settling.
const UNSETTLED_FREE: u64 = 0;

/// The sessions that still can acknowledge, by their number.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<u64, mpsc::UnboundedSender<u64>>>);

impl Sessions {
    /// Lets go of a delivery. False when its session is over: the broker has it back.
    pub(super) fn settle(&self, receipt: Receipt) -> bool {
        if receipt.generation == UNSETTLED_FREE {
            return true;
        }
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&receipt.generation).is_some_and(|tags| tags.send(receipt.tag).is_ok())
    }

    fn open(&self) -> (u64, mpsc::UnboundedReceiver<u64>) {
        static NUMBER: AtomicU64 = AtomicU64::new(UNSETTLED_FREE + 1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (sender, tags) = mpsc::unbounded_channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        (number, tags)
    }

    fn end(&self, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

/// What a subscription wants of one queue.
pub(super) struct Wish {
    pub(super) link: Link,
    pub(super) topology: Topology,
    pub(super) queue: Queue,
    pub(super) prefetch: u16,
    pub(super) sessions: Arc<Sessions>,
    /// Cancelled when the subscription is stopped.
    pub(super) stop: CancellationToken,
    /// Cancelled when the broker is being closed.
    pub(super) intake: CancellationToken,
    /// Cancelled after that, when everything that will be settled has been.
    pub(super) finish: CancellationToken,
}

/// A consumer on a channel of its own. Its end is the end of its unsettled deliveries.
pub(super) struct Session {
    live: Arc<Live>,
    channel: Channel,
    consumer: Consumer,
    number: u64,
    tags: mpsc::UnboundedReceiver<u64>,
    acks: Acks,
    last_tag: u64,
    lost: CancellationToken,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// Nothing is left to deliver or to settle.
    Stopped,
    /// The connection, the channel or the consumer is gone.
    Lost,
}

impl Wish {
    /// The first session; waits while there is no connection.
    pub(super) async fn first(&self) -> Result<Session, BrokerError> {
        let mut failures = 0;
        loop {
            let live = self.link.live().await.ok_or(BrokerError::Closed)?;
            match declare::answered(self.open(live)).await {
                Some(Ok(session)) => return Ok(session),
                Some(Err(error)) if declare::refusal(&error).is_some() => {
                    let name = self.topology.queue(&self.queue, "*");
                    return Err(BrokerError::Refused(format!("cannot consume from `{name}`: {error}")));
                }
                Some(Err(_)) | None => failures += 1,
            }
            tokio::time::sleep(backoff::pause(failures)).await;
        }
    }

    /// Delivers into `out` until stopped or closed, one session after another.
    pub(super) async fn serve(self, first: Session, out: mpsc::UnboundedSender<Delivery>) {
        let mut session = first;
        let mut out = Some(out);
        loop {
            let ended = session.run(&self, &mut out).await;
            self.sessions.end(session.number);
            session.lost.cancel();
            // Also after the broker cancelled only the consumer: what it holds for us must go back.
            declare::close(&session.channel).await;
            if ended == Ended::Stopped || out.is_none() {
                return;
            }
            tracing::warn!(queue = self.topology.queue(&self.queue, "*"), "deliveries interrupted");
            session = tokio::select! {
                again = self.again() => match again { Some(session) => session, None => return },
                () = self.stop.cancelled() => return,
                () = self.intake.cancelled() => return,
            };
        }
    }

    /// The next session, after as many tries as it takes. None when the broker was closed.
    async fn again(&self) -> Option<Session> {
        let mut failures = 0;
        loop {
            let live = self.link.live().await?;
            match declare::answered(self.open(live)).await {
                Some(Ok(session)) => return Some(session),
                Some(Err(error)) if declare::refusal(&error).is_some() => {
                    let queue = self.topology.queue(&self.queue, "*");
                    tracing::warn!(queue, %error, "cannot consume; trying again");
                    // Someone deleted the queue, or the broker's data; making it again is all we can do.
                    let mut declarations = self.topology.base();
                    declarations.extend(self.topology.of_queue(&self.queue));
                    drop(declare::declare(&self.link, &declarations).await);
                }
                Some(Err(_)) | None => {}
            }
            failures += 1;
            tokio::time::sleep(backoff::pause(failures)).await;
        }
    }

    async fn open(&self, live: Arc<Live>) -> lapin::Result<Session> {
        let channel = live.channel().await?;
        let (name, no_ack) = match &self.queue {
            Queue::Process(process) => (self.make_process_queue(&channel, process).await?, true),
            queue => (self.topology.queue(queue, ""), false),
        };
        let prefetch = self.prefetch.clamp(1, MAX_PREFETCH);
        channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
        let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(name.into(), "".into(), options, FieldTable::default()).await?;
        let (number, tags) = self.sessions.open();
        let lost = live.down.child_token();
        Ok(Session { live, channel, consumer, number, tags, acks: Acks::default(), last_tag: 0, lost })
    }

    async fn make_process_queue(&self, channel: &Channel, process: &ProcessId) -> lapin::Result<String> {
        let suffix = ProcessId::generate();
        let name = self.topology.queue(&self.queue, suffix.as_str());
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let arguments = declare::table(process_arguments());
        channel.queue_declare(name.as_str().into(), options, arguments).await?;
        let bindings = [
            (self.topology.answer_exchange(), Topology::answer_key(process)),
            (self.topology.control_exchange(), String::new()),
        ];
        for (exchange, key) in bindings {
            let (queue, none) = (name.as_str().into(), FieldTable::default());
            channel.queue_bind(queue, exchange.into(), key.into(), QueueBindOptions::default(), none).await?;
        }
        Ok(name)
    }
}

impl Session {
    async fn run(&mut self, wish: &Wish, out: &mut Option<mpsc::UnboundedSender<Delivery>>) -> Ended {
        let mut batch = Vec::new();
        let mut stopping = false;
        // After the consumer's end only asking tells whether the channel is still there.
        let mut ask = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                delivery = self.consumer.next(), if out.is_some() => match delivery {
                    Some(Ok(delivery)) => self.pass_on(delivery, wish, out.as_ref()),
                    None if stopping => *out = None,
                    Some(Err(_)) | None => return Ended::Lost,
                },
                _ = self.tags.recv_many(&mut batch, 256) => self.acknowledge(&mut batch),
                () = wish.stop.cancelled(), if !stopping => {
                    stopping = true;
                    let tag = self.consumer.tag();
                    let cancelling = self.channel.basic_cancel(tag, BasicCancelOptions::default());
                    drop(declare::answered(cancelling).await);
                }
                // Nothing is cancelled at the broker: a single active consumer's cancel would let the next one
                // read on before it gets back what this one holds.
                () = wish.intake.cancelled(), if out.is_some() => *out = None,
                () = self.live.down.cancelled() => return Ended::Lost,
                () = wish.finish.cancelled() => {
                    while let Ok(tag) = self.tags.try_recv() {
                        batch.push(tag);
                    }
                    self.acknowledge(&mut batch);
                    return Ended::Stopped;
                }
                _ = ask.tick(), if out.is_none() => if !self.channel.status().connected() {
                    return Ended::Lost;
                },
            }
            if out.is_none() && self.acks.all_settled(self.last_tag) {
                return Ended::Stopped;
            }
        }
    }

    fn pass_on(
        &mut self,
        delivery: lapin::message::Delivery,
        wish: &Wish,
        out: Option<&mpsc::UnboundedSender<Delivery>>,
    ) {
        let is_own = matches!(wish.queue, Queue::Process(_));
        if !is_own {
            self.last_tag = delivery.delivery_tag;
        }
        let generation = if is_own { UNSETTLED_FREE } else { self.number };
        let death = match wish.queue {
            Queue::Completion | Queue::Parking => {
                death::of(&wish.topology, &delivery.properties, delivery.routing_key.as_str())
            }
            _ => None,
        };
        let mut message = wire::message(&delivery.properties, delivery.data);
        if let Some(death) = death.filter(|_| !parking::is_marked(&message)) {
            message = death.mark(&message);
        }
        let delivery = Delivery {
            queue: wish.queue.clone(),
            redelivered: delivery.redelivered,
            delivery_count: wire::delivery_count(&delivery.properties),
            received_at: Instant::now(),
            lost: self.lost.clone(),
            receipt: Receipt { generation, tag: delivery.delivery_tag },
            message,
        };
        if let Some(out) = out {
            // When the subscription was dropped, `stop` is cancelled too.
            let _ = out.send(delivery);
        }
    }

    /// Queues the acknowledgements for the socket. Nobody waits for it: there is no answer to wait for, and
    /// an acknowledgement that does not get through means a redelivery, marked as one.
    fn acknowledge(&mut self, tags: &mut Vec<u64>) {
        for ack in self.acks.plan(tags) {
            let options = BasicAckOptions { multiple: ack.multiple };
            #[expect(clippy::disallowed_methods, reason = "the one place that lets go of deliveries")]
            drop(self.channel.basic_ack(ack.tag, options).now_or_never());
        }
    }
}
