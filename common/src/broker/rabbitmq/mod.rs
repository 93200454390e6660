//! The RabbitMQ backend: quorum queues, confirmed publishes, and a supervisor of its own.
//!
//! [`topology`] has every name; [`link`] keeps the two connections up; [`lane`] publishes; [`consume`]
//! delivers and acknowledges. lapin's types stay in this folder, and out of every log: some print the
//! password, one the body of a message. Its own log target, `lapin`, is to be kept at `off`: at `warn` it
//! writes returned messages out in full.

mod acks;
mod backoff;
mod compare;
mod connect;
mod consume;
mod death;
mod declare;
mod health;
mod lane;
mod link;
mod topology;
mod wire;

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub use self::compare::{Comparison, Difference, Problem};
use self::consume::{Sessions, Wish};
use self::health::{HealthBoard, Side};
use self::lane::{Lane, Publishing, Refusal};
use self::link::Link;
use self::topology::{Declaration, Route, Topology};
use super::address::RabbitMqAddress;
use super::{
    Abilities, Broker, BrokerError, Delivery, Depth, Health, Outgoing, Queue, Settlement, Subscription,
    Target, parking,
};
use crate::crash;
use crate::envelope::Message;
use crate::ids::Group;

/// Publishing channels. Messages of one queue always take the same one, so that they stay in order.
const LANES: usize = 2;

/// A RabbitMQ node or cluster, 3.10 or newer, without plugins.
pub struct RabbitMq {
    address: RabbitMqAddress,
    topology: Topology,
    publish: Link,
    consume: Link,
    health: Arc<HealthBoard>,
    lanes: Vec<mpsc::UnboundedSender<Publishing>>,
    sessions: Arc<Sessions>,
    prepared: Prepared,
    closed: AtomicBool,
    /// Publishes and settlements under way.
    under_way: TaskTracker,
    consumers: TaskTracker,
    /// Cancelled to end deliveries, then to end sessions, then to end connections.
    intake: CancellationToken,
    finish: CancellationToken,
    ended: CancellationToken,
}

/// What was made in the broker by this process, so that publishing need not make it each time.
#[derive(Debug, Default)]
struct Prepared {
    base: AtomicBool,
    levels: AtomicBool,
    making: tokio::sync::Mutex<()>,
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitMq({})", self.address)
    }
}

impl RabbitMq {
    /// Connects for a collector group. What the broker refuses (password, virtual host, TLS) is an error at
    /// once; no answer is one after the address's `connect_timeout`. Later losses are waited out.
    pub async fn connect(address: &RabbitMqAddress, group: &Group) -> Result<Self, BrokerError> {
        let health = Arc::new(HealthBoard::new());
        let ended = CancellationToken::new();
        let on_failure = ended.clone().drop_guard();
        let publish = Link::start(address, Side::Publish, Arc::clone(&health), ended.clone()).await?;
        let consume = Link::start(address, Side::Consume, Arc::clone(&health), ended.clone()).await?;
        on_failure.disarm();
        Ok(Self {
            address: address.clone(),
            topology: Topology::new(group),
            lanes: (0..LANES).map(|_| Lane::start(publish.clone())).collect(),
            publish,
            consume,
            health,
            sessions: Arc::default(),
            prepared: Prepared::default(),
            closed: AtomicBool::new(false),
            under_way: TaskTracker::new(),
            consumers: TaskTracker::new(),
            intake: CancellationToken::new(),
            finish: CancellationToken::new(),
            ended,
        })
    }

    /// Compares what is at the broker with what these queues need, and changes nothing. Bindings cannot be asked
    /// about; `ensure` makes those that are missing.
    pub async fn compare(&self, queues: &[Queue]) -> Result<Comparison, BrokerError> {
        let _under_way = self.enter()?;
        compare::compare(&self.consume, &self.topology.needed_by(queues)).await
    }

    /// Refuses when closed; otherwise keeps `close` waiting until the token is dropped.
    fn enter(&self) -> Result<TaskTrackerToken, BrokerError> {
        let token = self.under_way.token();
        if self.closed.load(Ordering::SeqCst) { Err(BrokerError::Closed) } else { Ok(token) }
    }

    async fn send(&self, outgoing: Outgoing) -> Result<(), BrokerError> {
        if let Target::Queue(Queue::Process(_)) = outgoing.target {
            return Err(BrokerError::Refused("a process is reached by `Target::Process`".to_owned()));
        }
        let is_parked = outgoing.target == Target::Queue(Queue::Parking);
        wire::check(&outgoing.message, is_parked || parking::is_marked(&outgoing.message))?;
        self.prepare(&outgoing.target).await?;
        let route = self.topology.route(&outgoing.target);
        let message = Arc::new(outgoing.message);
        let mut refusal = match self.pass_to_lane(&route, &message).await? {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        if refusal == Refusal::Unroutable {
            // Somebody deleted it since, or it never was there.
            self.prepare_anew(&outgoing.target).await?;
            refusal = match self.pass_to_lane(&route, &message).await? {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
        }
        Err(match refusal {
            Refusal::Unroutable => BrokerError::Unroutable(format!("`{}`", name_of(&route))),
            Refusal::Refused(reason) => BrokerError::Refused(format!(
                "the broker refuses messages for `{}`: {reason}; give this user the right to write there",
                name_of(&route)
            )),
        })
    }

    async fn pass_to_lane(
        &self,
        route: &Route,
        message: &Arc<Message>,
    ) -> Result<Result<(), Refusal>, BrokerError> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(route);
        let lane = usize::try_from(hash % LANES as u64).unwrap_or(0);
        let (done, answer) = oneshot::channel();
        let publishing = Publishing { route: route.clone(), message: Arc::clone(message), done };
        self.lanes[lane].send(publishing).map_err(|_| BrokerError::Closed)?;
        answer.await.map_err(|_| BrokerError::Closed)
    }

    /// Makes what publishing to `target` relies on, unless this process did before. An exchange that is not
    /// there would cost the publishing channel.
    async fn prepare(&self, target: &Target) -> Result<(), BrokerError> {
        self.prepare_base().await?;
        if let Target::Delay { .. } = target { self.prepare_levels().await } else { Ok(()) }
    }

    async fn prepare_anew(&self, target: &Target) -> Result<(), BrokerError> {
        self.prepared.base.store(false, Ordering::Release);
        self.prepared.levels.store(false, Ordering::Release);
        self.prepare(target).await?;
        if let Target::Queue(queue) = target {
            let declared = declare::declare(&self.consume, &self.topology.of_queue(queue)).await;
            if let Err(error) = &declared {
                tracing::warn!(%error, "a queue is missing and cannot be made");
            }
        }
        Ok(())
    }

    async fn prepare_base(&self) -> Result<(), BrokerError> {
        if self.prepared.base.load(Ordering::Acquire) {
            return Ok(());
        }
        let _making = self.prepared.making.lock().await;
        if !self.prepared.base.load(Ordering::Acquire) {
            declare::declare(&self.consume, &self.topology.base()).await?;
            self.prepared.base.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// All delay levels at once, on a few channels side by side: the broker makes a quorum queue in some
    /// tens of milliseconds, and several at the same time.
    async fn prepare_levels(&self) -> Result<(), BrokerError> {
        const SIDE_BY_SIDE: usize = 5;
        if self.prepared.levels.load(Ordering::Acquire) {
            return Ok(());
        }
        let _making = self.prepared.making.lock().await;
        if !self.prepared.levels.load(Ordering::Acquire) {
            let levels = topology::delay_levels();
            let share = levels.len().div_ceil(SIDE_BY_SIDE);
            let shares: Vec<Vec<Declaration>> = levels.chunks(share).map(<[_]>::concat).collect();
            try_join_all(shares.iter().map(|share| declare::declare(&self.consume, share))).await?;
            self.prepared.levels.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// What a route leads to, for people: the key of a direct exchange is the queue's name.
fn name_of(route: &Route) -> &str {
    if route.exchange.starts_with("windrow.v1.delay.") { &route.exchange } else { &route.key }
}

#[async_trait]
impl Broker for RabbitMq {
    async fn ensure(&self, queue: &Queue) -> Result<(), BrokerError> {
        let _under_way = self.enter()?;
        self.prepare_base().await?;
        if let Queue::Due(_) = queue {
            self.prepare_levels().await?;
        }
        declare::declare(&self.consume, &self.topology.of_queue(queue)).await
    }

    async fn publish(&self, outgoing: Outgoing) -> Result<(), BrokerError> {
        let _under_way = self.enter()?;
        self.send(outgoing).await
    }

    async fn subscribe(&self, queues: Vec<Queue>, prefetch: u16) -> Result<Subscription, BrokerError> {
        let stop = CancellationToken::new();
        let undone = stop.clone().drop_guard();
        let mut receivers = Vec::with_capacity(queues.len());
        for queue in queues {
            self.ensure(&queue).await?;
            let wish = Wish {
                link: self.consume.clone(),
                topology: self.topology.clone(),
                queue,
                prefetch,
                sessions: Arc::clone(&self.sessions),
                stop: stop.clone(),
                intake: self.intake.clone(),
                finish: self.finish.clone(),
            };
            let first = wish.first().await?;
            let (sender, receiver) = mpsc::unbounded_channel();
            self.consumers.spawn(wish.serve(first, sender));
            receivers.push(receiver);
        }
        undone.disarm();
        Ok(Subscription::new(receivers, stop))
    }

    async fn settle(&self, delivery: Delivery, outgoing: Vec<Outgoing>) -> Result<Settlement, BrokerError> {
        let _under_way = self.enter()?;
        crash::point("settle.publishing");
        for outgoing in outgoing {
            self.send(outgoing).await?;
        }
        crash::point("settle.confirmed");
        let ours = !delivery.lost.is_cancelled() && self.sessions.settle(delivery.receipt);
        crash::point("settle.settled");
        Ok(if ours { Settlement::Done } else { Settlement::Lost })
    }

    async fn depth(&self, queue: &Queue) -> Result<Depth, BrokerError> {
        let _under_way = self.enter()?;
        if let Queue::Process(_) = queue {
            return Ok(Depth::default());
        }
        let ready = declare::depth(&self.consume, &self.topology.queue(queue, "")).await?;
        Ok(Depth { ready, unsettled: 0 })
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.watch()
    }

    fn abilities(&self) -> Abilities {
        Abilities { reconnects: true, blocks: true, sees_unsettled: false }
    }

    async fn close(&self, grace: Duration) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.intake.cancel();
        self.under_way.close();
        drop(tokio::time::timeout(grace, self.under_way.wait()).await);
        self.finish.cancel();
        self.consumers.close();
        drop(tokio::time::timeout(Duration::from_secs(2), self.consumers.wait()).await);
        tokio::join!(self.publish.close(), self.consume.close());
        self.ended.cancel();
        self.health.close();
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.intake.cancel();
        self.finish.cancel();
        self.ended.cancel();
    }
}
