//! The ceiling for the throughput benchmark: a bare lapin loop that moves the same bytes both ways.
//!
//! `bare-loop URI FILE ITEMS_PER_CHUNK` sends the lines of FILE in chunks through one quorum queue to a worker
//! that publishes each body again through a second one, confirms awaited before the ack, to a reader that only
//! counts lines. No identities, no retries, no ledger, no sink. Prints the seconds from first publish to last
//! line counted.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, ensure};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, PublisherConfirm};

/// Publishes not yet confirmed: the best of those tried.
const WINDOW: usize = 500;
/// Deliveries not yet acknowledged.
const PREFETCH: u16 = 100;
const THERE: &str = "bare.there";
const BACK: &str = "bare.back";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, uri, file, items_per_chunk] = arguments.as_slice() else {
        anyhow::bail!("usage: bare-loop URI FILE ITEMS_PER_CHUNK");
    };
    let data = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
    let bodies = cut(&data, items_per_chunk.parse()?);
    let items = memchr::memchr_iter(b'\n', &data).count();

    let admin = connect(uri).await?;
    let channel = admin.create_channel().await?;
    for queue in [THERE, BACK] {
        fresh_queue(&channel, queue).await?;
    }
    let worker = tokio::spawn(work(uri.clone()));
    let started = Instant::now();
    let reader = tokio::spawn(read(uri.clone(), items));
    produce(uri, &bodies).await?;
    reader.await??;
    println!("{:.4}", started.elapsed().as_secs_f64());
    worker.abort();
    for queue in [THERE, BACK] {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    }
    Ok(())
}

/// The data in runs of whole lines.
fn cut(data: &[u8], lines_per_body: usize) -> Vec<&[u8]> {
    let ends = memchr::memchr_iter(b'\n', data).map(|at| at + 1);
    let mut start = 0;
    let mut bodies = Vec::new();
    for (line, end) in ends.enumerate() {
        if (line + 1) % lines_per_body == 0 || end == data.len() {
            bodies.push(&data[start..end]);
            start = end;
        }
    }
    bodies
}

async fn connect(uri: &str) -> anyhow::Result<Connection> {
    Ok(Connection::connect(uri, ConnectionProperties::default()).await?)
}

async fn fresh_queue(channel: &Channel, queue: &str) -> anyhow::Result<()> {
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a ceiling without the broker seam is the point")]
async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> anyhow::Result<PublisherConfirm> {
    let persistent = BasicProperties::default().with_delivery_mode(2);
    Ok(channel
        .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, persistent)
        .await?)
}

async fn confirmed(confirm: PublisherConfirm) -> anyhow::Result<()> {
    ensure!(confirm.await?.is_ack(), "a publish was refused");
    Ok(())
}

async fn produce(uri: &str, bodies: &[&[u8]]) -> anyhow::Result<()> {
    let connection = connect(uri).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut window = VecDeque::new();
    for body in bodies {
        window.push_back(publish(&channel, THERE, body).await?);
        if window.len() >= WINDOW
            && let Some(oldest) = window.pop_front()
        {
            confirmed(oldest).await?;
        }
    }
    for confirm in window {
        confirmed(confirm).await?;
    }
    Ok(())
}

async fn consume(channel: &Channel, queue: &str) -> anyhow::Result<Consumer> {
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?)
}

#[expect(clippy::disallowed_methods, reason = "a ceiling without the broker seam is the point")]
async fn work(uri: String) -> anyhow::Result<()> {
    let connection = connect(&uri).await?;
    let channel = connection.create_channel().await?;
    let publisher = connection.create_channel().await?;
    publisher.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut deliveries = consume(&channel, THERE).await?;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        let confirm = publish(&publisher, BACK, &delivery.data).await?;
        tokio::spawn(async move {
            confirmed(confirm).await?;
            anyhow::Ok(delivery.ack(BasicAckOptions::default()).await?)
        });
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a ceiling without the broker seam is the point")]
async fn read(uri: String, items: usize) -> anyhow::Result<()> {
    let connection = connect(&uri).await?;
    let channel = connection.create_channel().await?;
    let mut deliveries = consume(&channel, BACK).await?;
    let mut seen = 0;
    while seen < items {
        let delivery = deliveries.next().await.context("the connection ended")??;
        seen += memchr::memchr_iter(b'\n', &delivery.data).count();
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}
