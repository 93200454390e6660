//! What each check of the contract stands on: a group of its own, and messages.

use futures::FutureExt;

use super::{
    Arc, BoxFuture, Broker, BrokerAddress, BrokerError, Bytes, Context, Delivery, Duration, Group, Headers,
    Instant, Message, Outgoing, PATIENCE, ProcessId, Queue, Result, SILENCE, StageKey, Subscription, Target,
    bail, connect, ensure,
};

/// Connects one more process of a group to a broker.
pub type Connector =
    Arc<dyn Fn(Group) -> BoxFuture<'static, Result<Arc<dyn Broker>, BrokerError>> + Send + Sync>;

/// A broker, and a group nobody else uses.
#[derive(Clone)]
pub struct Site {
    connector: Connector,
    pub(super) group: Group,
    pub(super) stage: StageKey,
}

impl Site {
    /// A fresh group on the broker at `address`.
    pub fn new(address: &BrokerAddress) -> Result<Self> {
        let address = address.clone();
        Self::on(Arc::new(move |group| {
            let address = address.clone();
            async move { connect(&address, &group).await }.boxed()
        }))
    }

    /// A fresh group on the broker this connects to.
    pub fn on(connector: Connector) -> Result<Self> {
        let group = ProcessId::generate().as_str().parse()?;
        let stage = StageKey { job: "contacts.sync".parse()?, stage: "push".parse()? };
        Ok(Self { connector, group, stage })
    }

    /// One more process of the group.
    pub async fn connect(&self) -> Result<Arc<dyn Broker>> {
        Ok((self.connector)(self.group.clone()).await?)
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The work queue of the only stage.
    pub fn work(&self) -> Queue {
        Queue::Work(self.stage.clone())
    }

    /// Its due queue.
    pub fn due(&self) -> Queue {
        Queue::Due(self.stage.clone())
    }

    /// Its held queue.
    pub fn held(&self) -> Queue {
        Queue::Held(self.stage.clone())
    }
}

/// A message with a few headers of each kind.
pub fn message(id: &str) -> Message {
    let mut headers = Headers::new();
    headers.set_int("version", 1);
    headers.set_text("job", "contacts.sync");
    headers.set_text("source", "dépôt");
    Message {
        kind: "chunk".to_owned(),
        message_id: id.to_owned(),
        reply_to: String::new(),
        headers,
        content_encoding: String::new(),
        body: Bytes::from(format!("{{\"id\":\"{id}\"}}\n")),
    }
}

/// A message to a queue.
pub fn to(queue: Queue, id: &str) -> Outgoing {
    Outgoing { target: Target::Queue(queue), message: message(id) }
}

/// The next delivery, which must come.
pub async fn next(subscription: &mut Subscription) -> Result<Delivery> {
    let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
    next.context("no delivery came")?.context("the deliveries ended")
}

/// The ids of the next `count` deliveries, each settled at once.
pub async fn take(broker: &dyn Broker, subscription: &mut Subscription, count: usize) -> Result<Vec<String>> {
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let delivery = next(subscription).await?;
        ids.push(delivery.message.message_id.clone());
        broker.settle(delivery, vec![]).await?;
    }
    Ok(ids)
}

/// Waits until a queue holds `ready` messages ready.
pub async fn until_ready(broker: &dyn Broker, queue: &Queue, ready: u64) -> Result<()> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        let depth = broker.depth(queue).await?;
        if depth.ready == ready {
            return Ok(());
        }
        ensure!(Instant::now() < give_up_at, "{queue:?} has {} ready, not {ready}", depth.ready);
        // A broker tells its depth when asked, and only then.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn expect_silence(subscription: &mut Subscription) -> Result<()> {
    match tokio::time::timeout(SILENCE, subscription.next()).await {
        Err(_) => Ok(()),
        Ok(delivery) => bail!("nothing should have come, but {delivery:?} did"),
    }
}
