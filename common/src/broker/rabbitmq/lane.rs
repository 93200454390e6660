//! Publishing: one task owns a channel, and nothing counts as sent before its confirm.
//!
//! lapin's confirm channels must have one owner: it numbers a message and queues its frames under two
//! locks, so two tasks publishing at once can get each other's confirms. It also hands a returned message
//! to whichever confirm completes next; see [`Lane::collect`] for how each finds its own.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::link::{Link, Live};
use super::topology::Route;
use super::wire;
use super::{backoff, declare};
use crate::envelope::Message;

/// Messages sent and not confirmed. More buys nothing: the broker is busy with a few hundred.
const WINDOW_MESSAGES: usize = 1000;
/// Their bodies together, beyond which no further message is sent (one is always allowed).
const WINDOW_BYTES: usize = 32 * 1024 * 1024;

/// Why a message cannot be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No queue, or no exchange, takes it.
    Unroutable,
    /// The broker's reason.
    Refused(String),
}

/// A message on its way. When `done` is dropped unanswered, the broker was closed.
#[derive(Debug)]
pub(super) struct Publishing {
    pub(super) route: Route,
    pub(super) message: Arc<Message>,
    pub(super) done: oneshot::Sender<Result<(), Refusal>>,
}

struct Unconfirmed {
    publishing: Publishing,
    /// Whether it was sent before without an answer: the broker may have it.
    sent: bool,
    returned: bool,
}

type Confirming = Pin<Box<dyn Future<Output = (u64, lapin::Result<Confirmation>)> + Send>>;

/// How a channel ended.
enum End {
    /// The broker object was closed, or every sender is gone.
    Closed,
    /// The connection is gone.
    Lost,
    /// The broker closed the channel for something we sent: its code and reason.
    Refused { code: u16, reason: String },
}

/// The owner of one publishing channel.
pub(super) struct Lane {
    link: Link,
    jobs: mpsc::UnboundedReceiver<Publishing>,
    /// By number, which is the order of arrival.
    unconfirmed: BTreeMap<u64, Unconfirmed>,
    unconfirmed_bytes: usize,
    next: u64,
    /// Numbers to be sent, in order.
    to_send: VecDeque<u64>,
    /// Numbers the broker refused for now.
    nacked: Vec<u64>,
    /// Nacks in a row.
    nacks: u32,
    retry_at: Option<Instant>,
    /// Up to this number messages are sent one by one, because one of them made the broker close a channel.
    one_by_one: Option<u64>,
    last_sent: u64,
    /// Whether no more messages will come.
    ended: bool,
}

impl Lane {
    /// Starts a lane; it ends when the link ends or the sender is dropped. What waits here is bounded by those who
    /// wait for their confirms; a bounded channel would let tasks overtake each other while it is full.
    pub(super) fn start(link: Link) -> mpsc::UnboundedSender<Publishing> {
        let (sender, jobs) = mpsc::unbounded_channel();
        let lane = Self {
            link,
            jobs,
            unconfirmed: BTreeMap::new(),
            unconfirmed_bytes: 0,
            next: 0,
            to_send: VecDeque::new(),
            nacked: Vec::new(),
            nacks: 0,
            retry_at: None,
            one_by_one: None,
            last_sent: 0,
            ended: false,
        };
        tokio::spawn(lane.run());
        sender
    }

    async fn run(mut self) {
        let mut failures = 0;
        while let Some(live) = self.link.live().await {
            let Some(Ok(channel)) = declare::answered(open(&live)).await else {
                failures += 1;
                tokio::time::sleep(backoff::pause(failures)).await;
                continue;
            };
            failures = 0;
            // Whatever is unconfirmed was on an older channel.
            self.to_send = self.unconfirmed.keys().copied().collect();
            self.nacked.clear();
            self.retry_at = None;
            let end = tokio::select! {
                end = self.drive(&channel) => end,
                () = live.down.cancelled() => End::Lost,
            };
            match end {
                End::Closed => return,
                End::Lost => {}
                End::Refused { code, reason } => self.blame(code, reason),
            }
        }
    }

    /// Publishes on one channel until it ends.
    async fn drive(&mut self, channel: &Channel) -> End {
        let mut confirming = FuturesUnordered::new();
        loop {
            while let Some(number) = self.next_to_send(confirming.len()) {
                let sending = self.send(channel, number).await;
                confirming.push(sending);
            }
            if self.ended && self.unconfirmed.is_empty() {
                return End::Closed;
            }
            let takes_more = !self.ended && self.to_send.is_empty() && self.window_is_open(confirming.len());
            let retry_at = self.retry_at.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                Some(first) = confirming.next(), if !confirming.is_empty() => {
                    let confirms = Self::collect(channel, first, &mut confirming);
                    if let Some(end) = self.note(confirms) {
                        return end;
                    }
                }
                () = tokio::time::sleep_until(retry_at), if self.retry_at.is_some() => {
                    self.retry_at = None;
                    self.nacked.sort_unstable();
                    self.to_send.extend(self.nacked.drain(..));
                }
                job = self.jobs.recv(), if takes_more => match job {
                    Some(publishing) => self.accept(publishing),
                    None => self.ended = true,
                },
            }
        }
    }

    fn window_is_open(&self, in_flight: usize) -> bool {
        if self.one_by_one.is_some() {
            return in_flight == 0;
        }
        in_flight == 0 || (in_flight < WINDOW_MESSAGES && self.unconfirmed_bytes < WINDOW_BYTES)
    }

    fn next_to_send(&mut self, in_flight: usize) -> Option<u64> {
        if !self.window_is_open(in_flight) {
            return None;
        }
        self.to_send.pop_front()
    }

    fn accept(&mut self, publishing: Publishing) {
        if publishing.done.is_closed() {
            // Its caller gave up while it waited here.
            return;
        }
        let number = self.next;
        self.next += 1;
        self.unconfirmed_bytes += publishing.message.body.len();
        self.unconfirmed.insert(number, Unconfirmed { publishing, sent: false, returned: false });
        self.to_send.push_back(number);
    }

    /// Puts a message on the channel. It is queued for the socket when this returns, so the order of calls
    /// is the order on the wire; the future returned ends with its confirm.
    async fn send(&mut self, channel: &Channel, number: u64) -> Confirming {
        let Some(unconfirmed) = self.unconfirmed.get_mut(&number) else {
            return Box::pin(std::future::ready((number, Ok(Confirmation::Ack(None)))));
        };
        let resent = std::mem::replace(&mut unconfirmed.sent, true);
        let Publishing { route, message, .. } = &unconfirmed.publishing;
        let lasting = route.lasting;
        let properties = wire::properties(message, lasting, resent);
        let options = BasicPublishOptions { mandatory: lasting, immediate: false };
        let (exchange, key) = (route.exchange.as_str().into(), route.key.as_str().into());
        let channel = channel.clone();
        let message = Arc::clone(message);
        let mut confirming: Confirming = Box::pin(async move {
            #[expect(clippy::disallowed_methods, reason = "the one place that publishes")]
            let written = channel.basic_publish(exchange, key, options, &message.body, properties).await;
            match written {
                Ok(confirm) => (number, confirm.await),
                Err(error) => (number, Err(error)),
            }
        });
        let first_poll = futures::poll!(&mut confirming);
        self.last_sent = number;
        if !lasting {
            // At most once: never sent again, so its confirm is nobody's business.
            self.answer(number, Ok(()));
        }
        match first_poll {
            Poll::Pending => confirming,
            Poll::Ready(ended) => Box::pin(std::future::ready(ended)),
        }
    }

    /// The confirms that are there, `first` among them.
    ///
    /// One frame of the broker can confirm many messages, in any order, and lapin attaches a return to any
    /// of them. It resolves them all under one lock, so taking that lock once means that all are resolved:
    /// collected together, each return is found before the message it is about is reported as safe.
    fn collect(
        channel: &Channel,
        first: (u64, lapin::Result<Confirmation>),
        confirming: &mut FuturesUnordered<Confirming>,
    ) -> Vec<(u64, lapin::Result<Confirmation>)> {
        let lock = channel.wait_for_confirms().now_or_never();
        drop(lock);
        let mut confirms = vec![first];
        while let Some(Some(confirm)) = confirming.next().now_or_never() {
            confirms.push(confirm);
        }
        confirms
    }

    fn note(&mut self, confirms: Vec<(u64, lapin::Result<Confirmation>)>) -> Option<End> {
        let mut confirmed = Vec::with_capacity(confirms.len());
        let mut end = None;
        for (number, confirm) in confirms {
            match confirm {
                Ok(Confirmation::Ack(returned)) => {
                    confirmed.push(number);
                    self.mark_returned(returned.as_ref());
                }
                Ok(Confirmation::Nack(returned)) => {
                    self.mark_returned(returned.as_ref());
                    self.nacked.push(number);
                    self.nacks += 1;
                    let pause = backoff::pause(self.nacks).max(Duration::from_millis(20));
                    self.retry_at.get_or_insert_with(|| Instant::now() + pause);
                }
                Ok(Confirmation::NotRequested) => end = Some(End::Lost),
                Err(error) => end = Some(ending(&error)),
            }
        }
        for number in confirmed {
            self.nacks = 0;
            let returned = self.unconfirmed.get(&number).is_some_and(|unconfirmed| unconfirmed.returned);
            self.answer(number, if returned { Err(Refusal::Unroutable) } else { Ok(()) });
        }
        end
    }

    /// A return names a message by its id; should two on their way have the same, both count as returned.
    fn mark_returned(&mut self, returned: Option<&lapin::message::BasicReturnMessage>) {
        let Some(returned) = returned else { return };
        let id = returned.properties.message_id().as_ref().map_or("", |id| id.as_str());
        for unconfirmed in self.unconfirmed.values_mut() {
            if wire::short(&unconfirmed.publishing.message.message_id) == id {
                unconfirmed.returned = true;
            }
        }
    }

    fn answer(&mut self, number: u64, answer: Result<(), Refusal>) {
        if let Some(unconfirmed) = self.unconfirmed.remove(&number) {
            self.unconfirmed_bytes -= unconfirmed.publishing.message.body.len();
            // The caller may have stopped waiting.
            let _ = unconfirmed.publishing.done.send(answer);
        }
        if self.one_by_one.is_some_and(|last| number >= last) {
            self.one_by_one = None;
        }
    }

    /// The broker closed the channel. With one message on its way it was that one; with several they are
    /// sent again one by one to find out.
    fn blame(&mut self, code: u16, reason: String) {
        const NOT_FOUND: u16 = 404;
        let sent = |(number, unconfirmed): (&u64, &Unconfirmed)| unconfirmed.sent.then_some(*number);
        let suspects: Vec<u64> = self.unconfirmed.iter().filter_map(sent).collect();
        if suspects.len() > 1 && self.one_by_one.is_none() {
            self.one_by_one = suspects.last().copied();
        } else if code == NOT_FOUND {
            self.answer(self.last_sent, Err(Refusal::Unroutable));
        } else {
            self.answer(self.last_sent, Err(Refusal::Refused(reason)));
        }
    }
}

async fn open(live: &Live) -> lapin::Result<Channel> {
    let channel = live.channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

fn ending(error: &lapin::Error) -> End {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(refusal) if error.is_amqp_soft_error() => {
            End::Refused { code: refusal.get_id(), reason: refusal.get_message().to_string() }
        }
        _ => End::Lost,
    }
}
