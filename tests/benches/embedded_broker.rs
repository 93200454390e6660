//! How many chunks a second the embedded broker moves in one process: published, leased, settled with a
//! completion of the same size, which is leased and settled in turn.
//!
//! `cargo bench -p windrow-tests --bench embedded_broker -- [CHUNKS] [BODY_BYTES] [FOLDER]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::{Broker, BrokerError, Outgoing, Queue, Settlement, Subscription, Target};
use windrow_common::envelope::chunk::{ChunkHeader, Span};
use windrow_common::envelope::{Headers, Message};
use windrow_common::ids::{ChunkId, Group, RunId, SourceName, StageKey};
use windrow_common::ranges::Runs;

const PUBLISHES_UNDER_WAY: usize = 128;
const PREFETCH: u16 = 128;
const ITEMS_PER_CHUNK: u64 = 100;

fn stage() -> StageKey {
    StageKey { job: "bench".parse().unwrap(), stage: "push".parse().unwrap() }
}

/// The headers of a chunk as a producer writes them.
fn chunk_headers(run: &RunId, ordinal: u64) -> Headers {
    let span = Span { first: ordinal * ITEMS_PER_CHUNK, count: ITEMS_PER_CHUNK };
    let header = ChunkHeader {
        id: ChunkId { run: run.clone(), stage: stage().stage, source: SourceName::only(), ordinal },
        root_run: run.clone(),
        job: stage().job,
        hash: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        span,
        items: span.to_ranges(),
        attempts: Runs::repeat(0, ITEMS_PER_CHUNK),
        throttles: Runs::repeat(0, ITEMS_PER_CHUNK),
        holds: Runs::repeat(0, ITEMS_PER_CHUNK),
        hop: 0,
        held_ms: 0,
        not_before: None,
        expires: None,
        resent: false,
        alone: false,
        returns: 0,
        id_field: None,
        traceparent: None,
    };
    header.to_message(Bytes::new(), false).headers
}

fn message(kind: &str, headers: Headers, id: String, body: Bytes) -> Message {
    Message {
        kind: kind.to_owned(),
        message_id: id,
        reply_to: String::new(),
        headers,
        content_encoding: String::new(),
        body,
    }
}

async fn produce(broker: Arc<EmbeddedBroker>, chunks: u64, body: Bytes) -> Result<(), BrokerError> {
    let run = RunId::generate();
    let publishes = futures::stream::iter(0..chunks).map(|ordinal| {
        let id = format!("{run}/push/main/{ordinal}/0/0-99");
        let message = message("chunk", chunk_headers(&run, ordinal), id, body.clone());
        broker.publish(Outgoing { target: Target::Queue(Queue::Work(stage())), message })
    });
    let mut publishes = std::pin::pin!(publishes.buffered(PUBLISHES_UNDER_WAY));
    while let Some(published) = publishes.next().await {
        published?;
    }
    Ok(())
}

/// Settles `count` deliveries, many at a time, each with what `outgoing` says.
async fn settle_all(
    broker: Arc<EmbeddedBroker>,
    mut subscription: Subscription,
    count: u64,
    outgoing: impl Fn(Message) -> Vec<Outgoing>,
) -> Result<(), BrokerError> {
    let mut under_way = futures::stream::FuturesUnordered::new();
    let (mut taken, mut settled) = (0, 0);
    while settled < count {
        tokio::select! {
            Some(delivery) = subscription.next(), if taken < count => {
                taken += 1;
                let outgoing = outgoing(delivery.message.clone());
                under_way.push(broker.settle(delivery, outgoing));
            }
            Some(done) = under_way.next() => {
                assert_eq!(done?, Settlement::Done);
                settled += 1;
            }
        }
    }
    Ok(())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), BrokerError> {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|each| each != "--bench").collect();
    let number =
        |place: usize, default: u64| arguments.get(place).map_or(default, |text| text.parse().unwrap());
    let (chunks, body_bytes) = (number(0, 50_000), number(1, 15_000));
    let temporary = tempfile::TempDir::new().unwrap();
    let folder = arguments.get(2).map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let broker = Arc::new(EmbeddedBroker::open(&folder, &Group::main())?);
    broker.ensure(&Queue::Work(stage())).await?;
    broker.ensure(&Queue::Completion).await?;
    let body = Bytes::from(vec![b'7'; usize::try_from(body_bytes).unwrap()]);
    let work = broker.subscribe(vec![Queue::Due(stage()), Queue::Work(stage())], PREFETCH).await?;
    let completions = broker.subscribe(vec![Queue::Completion], PREFETCH).await?;
    let completion = |chunk: Message| {
        let message = message("outcomes", chunk.headers, chunk.message_id, chunk.body);
        vec![Outgoing { target: Target::Queue(Queue::Completion), message }]
    };
    let started = Instant::now();
    tokio::try_join!(
        produce(Arc::clone(&broker), chunks, body),
        settle_all(Arc::clone(&broker), work, chunks, completion),
        settle_all(Arc::clone(&broker), completions, chunks, |_| Vec::new()),
    )?;
    let seconds = started.elapsed().as_secs_f64();
    let file_mib = folder.join("queue.db").metadata().map_or(0, |file| file.len()) / (1024 * 1024);
    println!(
        "{chunks} chunks of {body_bytes} bytes in {seconds:.2} s: {:.0} chunks/s, {:.0} MB/s written; file {file_mib} MiB",
        chunks as f64 / seconds,
        (chunks * body_bytes * 2) as f64 / seconds / 1e6,
    );
    broker.close(Duration::from_secs(10)).await;
    Ok(())
}
