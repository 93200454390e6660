//! A process's connection: what is on its way over it, and what happens to it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::parking::Death;
use windrow_common::broker::{
    Abilities, Broker, BrokerError, Delivery, Depth, Health, Outgoing, Queue, Settlement, Subscription,
    Target,
};
use windrow_common::envelope::{MAX_BODY_BYTES, Message};

use super::server::{Reader, UNSETTLED_FREE};
use super::{Seen, Shared, lock};

/// A connection that was cut is there again after at most this many milliseconds.
const MOST_AWAY_MS: u64 = 2_000;

/// A process's connection to the model's broker.
#[derive(Clone)]
pub struct ModelClient(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    name: String,
    state: Mutex<State>,
    session: watch::Sender<Option<Session>>,
    health: watch::Sender<Health>,
    /// Closed by its process.
    closed: CancellationToken,
    /// Its process was killed.
    killed: CancellationToken,
}

/// One connection, from its beginning to its cut.
#[derive(Debug, Clone)]
struct Session {
    number: u64,
    ended: CancellationToken,
}

#[derive(Default)]
struct State {
    wishes: Vec<Wish>,
    /// What is under way, in the order of its departure.
    lanes: HashMap<Lane, VecDeque<Flight>>,
    next_ticket: u64,
    /// How often each message was sent from here.
    sent: HashMap<String, u64>,
    cuts: u64,
}

/// A subscription, for as long as somebody wants its deliveries.
struct Wish {
    subscription: u64,
    prefetch: u16,
    readers: Vec<(Queue, UnboundedSender<Delivery>)>,
}

/// Nothing overtakes in a lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Lane {
    To(Queue),
    Delay(Duration),
    Told,
    Acknowledgements,
}

/// Something under way.
struct Flight {
    ticket: u64,
    session: Session,
    cargo: Cargo,
    cut: Option<Cut>,
    /// Whether it arrives even if its connection is cut meanwhile.
    survives: bool,
    arrived: oneshot::Sender<Result<(), BrokerError>>,
}

enum Cargo {
    Message(Box<Outgoing>),
    Acknowledgement(u64),
}

/// When a flight cuts its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Before it arrives, so it does not.
    Before,
    /// Once it has arrived, so nobody hears of that.
    After,
}

impl ModelClient {
    pub(super) fn new(shared: Arc<Shared>, name: &str) -> Arc<Self> {
        let inner = Arc::new(Inner {
            shared,
            name: name.to_owned(),
            state: Mutex::default(),
            session: watch::Sender::new(None),
            health: watch::Sender::new(Health::Connected),
            closed: CancellationToken::new(),
            killed: CancellationToken::new(),
        });
        inner.begin_session();
        Arc::new(Self(inner))
    }

    /// Its process is dead: nothing it waits for comes, and what it holds goes back.
    pub fn kill(&self) {
        self.0.killed.cancel();
        self.0.end_session();
        lock(&self.0.state).wishes.clear();
    }
}

impl Inner {
    fn begin_session(&self) {
        let mut server = lock(&self.shared.server);
        let session = Session { number: server.number(), ended: CancellationToken::new() };
        for wish in &lock(&self.state).wishes {
            wish.readers(&session, &self.name).for_each(|reader| server.read(reader));
        }
        drop(server);
        self.health.send_replace(Health::Connected);
        self.session.send_replace(Some(session));
    }

    /// Ends the connection, if there is one.
    fn end_session(&self) {
        let Some(session) = self.session.send_replace(None) else { return };
        lock(&self.shared.server).end_session(session.number);
        session.ended.cancel();
    }

    /// Cuts a connection, which comes again after a while.
    fn cut(self: &Arc<Self>, session: &Session) {
        if session.ended.is_cancelled() {
            return;
        }
        (self.shared.observer)(&Seen::Cut { client: &self.name });
        let cuts = {
            let mut state = lock(&self.state);
            state.cuts += 1;
            state.cuts
        };
        self.end_session();
        self.health.send_replace(Health::Disconnected("cut".to_owned()));
        let away_ms = 1 + self.shared.mischief.whims.below(MOST_AWAY_MS, ("away", &self.name, cuts));
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(away_ms)).await;
            if !inner.closed.is_cancelled() && !inner.killed.is_cancelled() {
                inner.begin_session();
            }
        });
    }

    /// The connection, waited for as long as it takes.
    async fn session(&self) -> Result<Session, BrokerError> {
        let mut sessions = self.session.subscribe();
        loop {
            if self.killed.is_cancelled() {
                std::future::pending::<()>().await;
            }
            if self.closed.is_cancelled() {
                return Err(BrokerError::Closed);
            }
            let known = sessions.borrow_and_update().clone();
            if let Some(session) = known {
                return Ok(session);
            }
            tokio::select! {
                biased;
                () = self.killed.cancelled() => {}
                () = self.closed.cancelled() => {}
                _ = sessions.changed() => {}
            }
        }
    }

    /// Sends a cargo on its way. The receiver hears of its arrival, and nothing when it is lost; the second is how long
    /// the news of it take to come back.
    fn depart(
        self: &Arc<Self>,
        session: &Session,
        cargo: Cargo,
        name: &str,
    ) -> (oneshot::Receiver<Result<(), BrokerError>>, Duration) {
        let (lane, mischief) = (lane_of(&cargo), self.shared.mischief);
        let mut state = lock(&self.state);
        let sent = state.sent.entry(name.to_owned()).or_default();
        *sent += 1;
        let question = (&self.name, name, *sent);
        let whims = mischief.whims;
        let latency_ms = u64::try_from(mischief.latency.as_millis()).unwrap_or(0) + 1;
        let way = |which: &str| Duration::from_millis(whims.below(latency_ms, (which, question)));
        let may_cut = Instant::now() < self.shared.cuts_end_at;
        let cut = (may_cut && whims.one_in(mischief.cuts_one_in, ("cut", question)))
            .then(|| whims.pick(&[Cut::Before, Cut::After], ("when", question)));
        let (there, back, survives) = (way("there"), way("back"), whims.one_in(2, ("survives", question)));
        let (arrived, hears) = oneshot::channel();
        state.next_ticket += 1;
        let ticket = state.next_ticket;
        let flight = Flight { ticket, session: session.clone(), cargo, cut, survives, arrived };
        state.lanes.entry(lane.clone()).or_default().push_back(flight);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(there).await;
            inner.land_through(&lane, ticket);
        });
        (hears, back)
    }

    /// Everything in the lane up to this ticket arrives: what departed before it is not overtaken by it.
    fn land_through(self: &Arc<Self>, lane: &Lane, ticket: u64) {
        loop {
            let flight = {
                let mut state = lock(&self.state);
                let Some(flights) = state.lanes.get_mut(lane) else { return };
                if flights.front().is_none_or(|flight| flight.ticket > ticket) {
                    return;
                }
                flights.pop_front()
            };
            if let Some(flight) = flight {
                self.land(flight);
            }
        }
    }

    fn land(self: &Arc<Self>, flight: Flight) {
        let Flight { session, cargo, cut, survives, arrived, .. } = flight;
        if cut == Some(Cut::Before) {
            self.cut(&session);
            return;
        }
        if session.ended.is_cancelled() && !survives {
            return;
        }
        let outcome = match cargo {
            Cargo::Message(outgoing) => self.shared.arrive(*outgoing),
            Cargo::Acknowledgement(tag) => {
                // Its connection may have been cut: then it is nobody's any more.
                lock(&self.shared.server).acknowledge(tag);
                Ok(())
            }
        };
        if cut == Some(Cut::After) {
            self.cut(&session);
        }
        // Who is dead hears nothing.
        let _ = arrived.send(outcome);
    }

    /// Sends a message over this connection. None when what became of it is not known.
    async fn carry(
        self: &Arc<Self>,
        session: &Session,
        outgoing: &Outgoing,
    ) -> Option<Result<(), BrokerError>> {
        let name = name_of(&outgoing.message);
        let (arrived, back) = self.depart(session, Cargo::Message(Box::new(outgoing.clone())), name);
        let confirmed = async {
            let outcome = arrived.await.ok()?;
            tokio::time::sleep(back).await;
            Some(outcome)
        };
        tokio::select! {
            biased;
            () = session.ended.cancelled() => None,
            outcome = confirmed => outcome,
        }
    }

    async fn watch_for_end(
        self: Arc<Self>,
        subscription: u64,
        stop: CancellationToken,
        mut untaken: UnboundedReceiver<Delivery>,
    ) {
        stop.cancelled().await;
        lock(&self.state).wishes.retain(|wish| wish.subscription != subscription);
        lock(&self.shared.server).stop(subscription);
        while let Some(delivery) = untaken.recv().await {
            lock(&self.shared.server).give_back(delivery.receipt.tag);
        }
    }

    fn is_quiet(&self) -> bool {
        lock(&self.state).lanes.values().all(VecDeque::is_empty)
    }
}

impl Wish {
    fn readers<'a>(&'a self, session: &'a Session, client: &'a str) -> impl Iterator<Item = Reader> + 'a {
        self.readers.iter().map(|(queue, deliveries)| Reader {
            subscription: self.subscription,
            session: session.number,
            client: client.to_owned(),
            queue: queue.clone(),
            prefetch: usize::from(self.prefetch.max(1)),
            deliveries: deliveries.clone(),
        })
    }
}

fn lane_of(cargo: &Cargo) -> Lane {
    match cargo {
        Cargo::Acknowledgement(_) => Lane::Acknowledgements,
        Cargo::Message(outgoing) => match &outgoing.target {
            Target::Queue(queue) => Lane::To(queue.clone()),
            Target::Delay { delay, .. } => Lane::Delay(*delay),
            Target::Everybody | Target::Process(_) => Lane::Told,
        },
    }
}

/// What chance knows a message by: not by what was drawn for it.
fn name_of(message: &Message) -> &str {
    let id = message.message_id.as_str();
    match message.kind.as_str() {
        "question" => id.rsplit_once('/').map_or(id, |(name, _)| name),
        "answer" => "answer",
        _ => id,
    }
}

fn check_size(outgoing: &Outgoing) -> Result<(), BrokerError> {
    let (bytes, limit) = (outgoing.message.body.len(), MAX_BODY_BYTES);
    if bytes > limit && Death::of(&outgoing.message).is_none() {
        return Err(BrokerError::TooLarge { id: outgoing.message.message_id.clone(), bytes, limit });
    }
    Ok(())
}

#[async_trait]
impl Broker for ModelClient {
    async fn ensure(&self, queue: &Queue) -> Result<(), BrokerError> {
        self.0.session().await?;
        let mut server = lock(&self.0.shared.server);
        for queue in [queue, &Queue::Parking] {
            server.ensure(queue);
        }
        Ok(())
    }

    async fn publish(&self, mut outgoing: Outgoing) -> Result<(), BrokerError> {
        check_size(&outgoing)?;
        let is_kept = matches!(outgoing.target, Target::Queue(_) | Target::Delay { .. });
        loop {
            let session = self.0.session().await?;
            match self.0.carry(&session, &outgoing).await {
                Some(outcome) => return outcome,
                None if !is_kept => return Ok(()),
                None => outgoing.message.headers.set_int("resent", 1),
            }
        }
    }

    async fn subscribe(&self, queues: Vec<Queue>, prefetch: u16) -> Result<Subscription, BrokerError> {
        let session = self.0.session().await?;
        let (mut receivers, mut readers) = (Vec::new(), Vec::new());
        for queue in queues {
            let (sender, receiver) = unbounded_channel();
            receivers.push(receiver);
            readers.push((queue, sender));
        }
        let mut server = lock(&self.0.shared.server);
        let wish = Wish { subscription: server.number(), prefetch, readers };
        wish.readers(&session, &self.0.name).for_each(|reader| server.read(reader));
        let subscription = wish.subscription;
        lock(&self.0.state).wishes.push(wish);
        drop(server);
        let stop = CancellationToken::new();
        let (returned, untaken) = unbounded_channel();
        tokio::spawn(Arc::clone(&self.0).watch_for_end(subscription, stop.clone(), untaken));
        Ok(Subscription::new(receivers, stop).returning(returned))
    }

    async fn settle(&self, delivery: Delivery, outgoing: Vec<Outgoing>) -> Result<Settlement, BrokerError> {
        outgoing.iter().try_for_each(check_size)?;
        for outgoing in outgoing {
            self.publish(outgoing).await?;
        }
        let session = self.0.session().await?;
        if delivery.receipt.generation == UNSETTLED_FREE {
            return Ok(Settlement::Done);
        }
        if session.number != delivery.receipt.generation {
            return Ok(Settlement::Lost);
        }
        // Nobody confirms an acknowledgement: once it is written, the delivery counts as gone, and may come again.
        let name = format!("ack/{}", name_of(&delivery.message));
        self.0.depart(&session, Cargo::Acknowledgement(delivery.receipt.tag), &name);
        Ok(Settlement::Done)
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        self.0.session().await?;
        Ok(Depth { ready: lock(&self.0.shared.server).ready(queue), unsettled: 0 })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    fn abilities(&self) -> Abilities {
        Abilities { reconnects: true, blocks: false, sees_unsettled: false }
    }

    async fn close(&self, grace: Duration) {
        if self.0.closed.is_cancelled() {
            return;
        }
        self.0.closed.cancel();
        let give_up_at = Instant::now() + grace;
        while !self.0.is_quiet() && Instant::now() < give_up_at {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.0.end_session();
        lock(&self.0.state).wishes.clear();
        self.0.health.send_replace(Health::Closed);
    }
}

impl fmt::Debug for ModelClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelClient({})", self.0.name)
    }
}
