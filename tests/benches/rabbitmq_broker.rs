//! How many chunks a second the RabbitMQ backend moves, beside a bare client doing the same by hand:
//! published and confirmed, delivered, a completion published and confirmed, the chunk acknowledged, the
//! completion delivered and acknowledged.
//!
//! `cargo bench -p windrow-tests --bench rabbitmq_broker -- [CHUNKS] [BODY_BYTES] [COMPLETION_BYTES] [ROUNDS]
//! [WINDOW] [PREFETCH]`
//!
//! Both take turns on a node of their own, so that what disturbs the machine disturbs both; the ratio is of
//! the medians.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, PublisherConfirm};
use windrow_common::broker::{Broker, Outgoing, Queue, Settlement, Target};
use windrow_tests::broker_contract::{Site, message};
use windrow_tests::rabbitmq_server::{RabbitMqServer, process_cpu_seconds};

const COMPLETION_PREFETCH: u16 = 1000;

/// Processor time used so far.
struct Cpu {
    client: f64,
    broker: f64,
}

impl Cpu {
    fn now(server: &RabbitMqServer) -> Self {
        Self { client: process_cpu_seconds(std::process::id()), broker: server.cpu_seconds() }
    }

    /// What was used per chunk: steadier than rates on a machine that has other work.
    fn since(&self, before: &Self, load: Load) -> String {
        let per_chunk = |seconds: f64| seconds * 1e6 / load.chunks as f64;
        format!(
            "us of CPU a chunk: client {:.0}, broker {:.0}",
            per_chunk(self.client - before.client),
            per_chunk(self.broker - before.broker)
        )
    }
}

/// One measurement.
#[derive(Clone, Copy)]
struct Load {
    chunks: usize,
    body_bytes: usize,
    completion_bytes: usize,
    /// Publishes under way at once.
    window: usize,
    prefetch: u16,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<usize> =
        std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let argument = |at: usize, default| arguments.get(at).copied().unwrap_or(default);
    let load = Load {
        chunks: argument(0, 10_000),
        body_bytes: argument(1, 15_000),
        completion_bytes: argument(2, 15_000),
        // The bare client's best: more of either gains it nothing.
        window: argument(4, 500),
        prefetch: u16::try_from(argument(5, 100))?,
    };
    let server = RabbitMqServer::start().await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=argument(3, 3) {
        let before = Cpu::now(&server);
        let our_rate = windrow(&server, load).await?;
        let between = Cpu::now(&server);
        let bare_rate = by_hand(&server, load).await?;
        let (our_cpu, bare_cpu) = (between.since(&before, load), Cpu::now(&server).since(&between, load));
        println!(
            "round {round}: ours {our_rate:.0} chunks/s ({our_cpu}), by hand {bare_rate:.0} ({bare_cpu})"
        );
        // The first round warms up the broker.
        if round > 0 {
            ours.push(our_rate);
            bare.push(bare_rate);
        }
    }
    let (ours, bare) = (median(ours), median(bare));
    println!("median: ours {ours:.0}, by hand {bare:.0}, ratio {:.3}", ours / bare);
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Chunks a second over the broker seam.
async fn windrow(server: &RabbitMqServer, load: Load) -> Result<f64> {
    let site = Site::new(&server.uri().parse()?)?;
    // Three processes in a fleet, so three connections here, as the bare client has.
    let (producer, consumer, collector) =
        (site.connect().await?, site.connect().await?, site.connect().await?);
    producer.ensure(&site.work()).await?;
    collector.ensure(&Queue::Completion).await?;
    let mut completions = collector.subscribe(vec![Queue::Completion], COMPLETION_PREFETCH).await?;
    let mut work = consumer.subscribe(vec![site.work()], load.prefetch).await?;
    let begun = Instant::now();
    let producing = tokio::spawn(produce(Arc::clone(&producer), site.work(), load));
    let consuming = {
        let consumer = Arc::clone(&consumer);
        tokio::spawn(async move {
            for _ in 0..load.chunks {
                let chunk = work.next().await.context("work ended")?;
                let consumer = Arc::clone(&consumer);
                tokio::spawn(async move {
                    let mut completion = message(&chunk.message.message_id);
                    completion.body = Bytes::from(vec![b'x'; load.completion_bytes]);
                    let target = Target::Queue(Queue::Completion);
                    consumer.settle(chunk, vec![Outgoing { target, message: completion }]).await
                });
            }
            anyhow::Ok(work)
        })
    };
    for _ in 0..load.chunks {
        let completion = completions.next().await.context("completions ended")?;
        ensure!(collector.settle(completion, vec![]).await? == Settlement::Done);
    }
    let elapsed = begun.elapsed();
    producing.await??;
    drop(consuming.await??);
    for broker in [producer, consumer, collector] {
        broker.close(Duration::from_secs(5)).await;
    }
    // As the bare client deletes its own: what is left of a queue keeps the broker's disk busy.
    let admin = Bare::connect(server).await?;
    for queue in [format!("work.{}.contacts~sync.push", site.group()), format!("completion.{}", site.group())]
    {
        let name = format!("windrow.v1.{queue}");
        // The broker may fail at deleting a busy queue; it is only tidying up.
        drop(admin.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await);
    }
    Ok(load.chunks as f64 / elapsed.as_secs_f64())
}

async fn produce(broker: Arc<dyn Broker>, queue: Queue, load: Load) -> Result<()> {
    let publishes = futures::stream::iter(0..load.chunks).map(|number| {
        let mut message = message(&format!("run/push/main/{number}/0/0-99"));
        message.body = Bytes::from(vec![b'x'; load.body_bytes]);
        broker.publish(Outgoing { target: Target::Queue(queue.clone()), message })
    });
    let mut publishes = publishes.buffered(load.window);
    while let Some(published) = publishes.next().await {
        published?;
    }
    Ok(())
}

/// Chunks a second of a client that uses lapin directly.
async fn by_hand(server: &RabbitMqServer, load: Load) -> Result<f64> {
    let admin = Bare::connect(server).await?;
    for queue in ["bare-work", "bare-completion"] {
        admin.make(queue).await?;
    }
    let (producer, consumer, collector) =
        (Bare::connect(server).await?, Bare::connect(server).await?, Bare::connect(server).await?);
    let mut completions = collector.consume("bare-completion", COMPLETION_PREFETCH).await?;
    let mut work = consumer.consume("bare-work", load.prefetch).await?;
    let begun = Instant::now();
    let producing = tokio::spawn(async move {
        let mut under_way = VecDeque::new();
        for _ in 0..load.chunks {
            under_way.push_back(producer.publish("bare-work", load.body_bytes).await?);
            if under_way.len() >= load.window {
                confirmed(under_way.pop_front()).await?;
            }
        }
        while let Some(confirm) = under_way.pop_front() {
            confirmed(Some(confirm)).await?;
        }
        anyhow::Ok(())
    });
    let consuming = tokio::spawn(async move {
        let consumer = Arc::new(consumer);
        for _ in 0..load.chunks {
            let chunk = work.next().await.context("work ended")??;
            let consumer = Arc::clone(&consumer);
            tokio::spawn(async move {
                confirmed(Some(consumer.publish("bare-completion", load.completion_bytes).await?)).await?;
                acknowledge(&chunk).await
            });
        }
        anyhow::Ok(consumer)
    });
    for _ in 0..load.chunks {
        acknowledge(&completions.next().await.context("completions ended")??).await?;
    }
    let elapsed = begun.elapsed();
    producing.await??;
    drop(consuming.await??);
    for queue in ["bare-work", "bare-completion"] {
        drop(admin.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await);
    }
    Ok(load.chunks as f64 / elapsed.as_secs_f64())
}

/// A connection with a channel to consume and one to publish.
struct Bare {
    _connection: Connection,
    channel: Channel,
    publishing: Channel,
}

impl Bare {
    async fn connect(server: &RabbitMqServer) -> Result<Self> {
        let connection = Connection::connect(&server.uri(), ConnectionProperties::default()).await?;
        let (channel, publishing) = (connection.create_channel().await?, connection.create_channel().await?);
        publishing.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel, publishing })
    }

    async fn make(&self, queue: &str) -> Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, arguments).await?;
        Ok(())
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer> {
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        Ok(self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?)
    }

    #[expect(clippy::disallowed_methods, reason = "the bare client is what the seam is measured against")]
    async fn publish(&self, queue: &str, bytes: usize) -> Result<PublisherConfirm> {
        let body = vec![b'x'; bytes];
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        Ok(self.publishing.basic_publish("".into(), queue.into(), options, &body, properties).await?)
    }
}

async fn confirmed(confirm: Option<PublisherConfirm>) -> Result<()> {
    let confirmation = confirm.context("nothing is under way")?.await?;
    ensure!(confirmation.is_ack(), "not confirmed");
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the bare client is what the seam is measured against")]
async fn acknowledge(delivery: &lapin::message::Delivery) -> Result<()> {
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(())
}
