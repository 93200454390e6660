//! A process in the middle of everything while a fault strikes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use windrow_common::broker::{
    Broker, BrokerError, Health, Outgoing, Queue, Settlement, Subscription, Target,
};
use windrow_common::ids::ProcessId;
use windrow_tests::broker_contract::{Site, message, next, to, until_ready};

use crate::{PATIENCE, until_health};

/// One that publishes, holds deliveries, and listens.
pub(crate) struct Disturbed {
    site: Site,
    /// Its broker.
    pub(crate) broker: Arc<dyn Broker>,
    deliveries: Subscription,
    held: Vec<windrow_common::broker::Delivery>,
    own: Subscription,
    publishing: Vec<tokio::task::JoinHandle<Result<usize, BrokerError>>>,
    enough: tokio_util::sync::CancellationToken,
}

impl Disturbed {
    const PUBLISHERS: usize = 64;

    /// Has it in full swing.
    pub(crate) async fn begin(site: Site) -> Result<Self> {
        let broker = site.connect().await?;
        for queue in [site.work(), site.due(), Queue::Completion] {
            broker.ensure(&queue).await?;
        }
        let own = broker.subscribe(vec![Queue::Process(ProcessId::generate())], 10).await?;
        for number in 0..3 {
            broker.publish(to(site.due(), &number.to_string())).await?;
        }
        let mut deliveries = broker.subscribe(vec![site.due()], 10).await?;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(next(&mut deliveries).await?);
        }
        let enough = tokio_util::sync::CancellationToken::new();
        let publishing = (0..Self::PUBLISHERS)
            .map(|task| {
                let (broker, work, enough) = (Arc::clone(&broker), site.work(), enough.clone());
                tokio::spawn(async move {
                    let mut count = 0;
                    while !enough.is_cancelled() {
                        broker.publish(to(work.clone(), &format!("{task}/{count}"))).await?;
                        count += 1;
                    }
                    Ok(count)
                })
            })
            .collect();
        until_some(&broker, &site.work()).await?;
        Ok(Self { site, broker, deliveries, held, own, publishing, enough })
    }

    /// After the fault: everything is there, and goes on. Returns how many messages were sent again.
    pub(crate) async fn check(mut self) -> Result<usize> {
        for delivery in &self.held {
            tokio::time::timeout(PATIENCE, delivery.lost.cancelled())
                .await
                .context("not told of the loss")?;
        }
        for delivery in self.held.drain(..) {
            let done = to(Queue::Completion, &format!("of {}", delivery.message.message_id));
            ensure!(self.broker.settle(delivery, vec![done]).await? == Settlement::Lost);
        }
        until_ready(self.broker.as_ref(), &Queue::Completion, 3).await?;
        for number in 0..3 {
            let delivery = next(&mut self.deliveries).await?;
            ensure!(delivery.message.message_id == number.to_string() && delivery.redelivered);
            ensure!(self.broker.settle(delivery, vec![]).await? == Settlement::Done);
        }
        self.hear_something().await?;
        until_health(&self.broker, |health| *health == Health::Connected).await?;
        self.enough.cancel();
        let mut published = Vec::new();
        for task in std::mem::take(&mut self.publishing) {
            published.push(task.await??);
        }
        let resent = self.account_for(&published).await?;
        self.broker.close(Duration::from_secs(5)).await;
        Ok(resent)
    }

    /// What is broadcast while this process's own queue is being made again is lost, so it is repeated.
    async fn hear_something(&mut self) -> Result<()> {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            self.broker.publish(Outgoing { target: Target::Everybody, message: message("news") }).await?;
            if tokio::time::timeout(Duration::from_millis(200), self.own.next()).await.is_ok() {
                return Ok(());
            }
            ensure!(Instant::now() < give_up_at, "broadcasts are not heard again");
        }
    }

    /// Every message that was confirmed is there; second copies are marked.
    async fn account_for(&self, published: &[usize]) -> Result<usize> {
        let total: usize = published.iter().sum();
        let mut copies: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut deliveries = self.broker.subscribe(vec![self.site.work()], 200).await?;
        let mut resent = 0;
        while copies.len() < total || self.broker.depth(&self.site.work()).await?.ready > 0 {
            let delivery = next(&mut deliveries).await?;
            let marked = delivery.message.headers.int("resent") == Ok(1);
            let (count, unmarked) = copies.entry(delivery.message.message_id.clone()).or_default();
            *count += 1;
            *unmarked += usize::from(!marked);
            resent += usize::from(marked);
            ensure!(*unmarked <= 1, "two unmarked copies of {}", delivery.message.message_id);
            self.broker.settle(delivery, vec![]).await?;
        }
        let twice = copies.values().filter(|(count, _)| *count > 1).count();
        println!("  {total} published, {resent} sent again, {twice} of them came twice");
        for (task, count) in published.iter().enumerate() {
            for number in 0..*count {
                ensure!(copies.contains_key(&format!("{task}/{number}")), "{task}/{number} is lost");
            }
        }
        Ok(resent)
    }
}

async fn until_some(broker: &Arc<dyn Broker>, queue: &Queue) -> Result<()> {
    let give_up_at = Instant::now() + PATIENCE;
    while broker.depth(queue).await?.ready < 500 {
        ensure!(Instant::now() < give_up_at, "nothing is published");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
