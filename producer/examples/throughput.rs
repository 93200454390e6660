//! How fast a producer is by itself: a file through a broker that confirms at once and keeps nothing.
//!
//! `cargo run --release -p windrow-producer --example throughput [ITEMS] [FORMAT]`, where FORMAT is jsonl
//! (the default), csv, json, jsonl.gz or jsonl.zst. It prints items a second and the CPU time used, once for
//! planning (the fingerprint) and once for reading and publishing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{
    Abilities, Broker, BrokerError, Delivery, Depth, Health, Outgoing, Queue, Settlement, Subscription,
};
use windrow_common::job::Job;
use windrow_common::telemetry::metrics::Metrics;
use windrow_producer::{Options, ProducerProgress, Wiring, plan, produce};

/// Bytes of an item, about.
const ITEM_BYTES: usize = 150;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let items: u64 = arguments.next().map_or(Ok(1_000_000), |items| items.parse())?;
    let format = arguments.next().unwrap_or_else(|| "jsonl".to_owned());
    let folder = tempfile::tempdir()?;
    let file = folder.path().join(format!("items.{format}"));
    write_items(&file, &format, items)?;
    let kind = format.split('.').next().unwrap_or_default();
    let job = format!(
        "name = \"throughput\"\n[source]\ntype = \"{kind}\"\npath = \"items.{format}\"\n[chunk]\nitems = 100\n\
         outstanding = 1000000\n[[stage]]\ntype = \"echo\"\n"
    );
    let job = Job::parse(&folder.path().join("job.toml"), &job)?;
    println!("{items} items, {} bytes as {format}", fs::metadata(&file)?.len());

    let options = Options {
        run: None,
        root_run: None,
        retry: None,
        data_dir: folder.path().join("data"),
        first: None,
        resend: None,
        started_at: 0,
        states: BTreeMap::new(),
    };
    let measure = Measure::begin();
    let plan = plan(&job, &options)?;
    measure.end("planned", items)?;

    let measure = Measure::begin();
    let wiring = Wiring {
        broker: Arc::new(Nowhere),
        news: watch::channel(None).1,
        progress: watch::channel(ProducerProgress::default()).0,
        metrics: Metrics::new("producer").producer(&job.name),
        shutdown: CancellationToken::new(),
    };
    let produced = produce(plan, Arc::new(job), wiring).await?;
    measure.end("produced", items)?;
    anyhow::ensure!(produced.sources.values().map(|source| source.accepted).sum::<u64>() == items);
    Ok(())
}

fn write_items(path: &Path, format: &str, items: u64) -> io::Result<()> {
    let file = BufWriter::new(File::create(path)?);
    let mut out: Box<dyn Write> = match format {
        "jsonl.gz" => Box::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast())),
        "jsonl.zst" => Box::new(zstd::Encoder::new(file, 1)?.auto_finish()),
        _ => Box::new(file),
    };
    if format == "json" {
        out.write_all(b"[")?;
    } else if format == "csv" {
        out.write_all(b"id,email,active,score,note\n")?;
    }
    for item in 0..items {
        let id = item.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let line = if format == "csv" {
            format!("{id},user-{item}@example.test,true,{}.5,", item % 100)
        } else {
            format!(
                "{{\"id\":{id},\"email\":\"user-{item}@example.test\",\"active\":true,\"score\":{}.5,\"note\":\"",
                item % 100
            )
        };
        let note = "lorem ipsum \u{e9} ".repeat(10);
        let room = ITEM_BYTES.saturating_sub(line.len() + 3);
        let note: String = note.chars().take(room).collect();
        let end = match format {
            "csv" => "\n",
            "json" if item + 1 == items => "\"}]",
            "json" => "\"},",
            _ => "\"}\n",
        };
        write!(out, "{line}{note}{end}")?;
    }
    out.flush()
}

struct Measure {
    begun: Instant,
    cpu_seconds: f64,
}

impl Measure {
    fn begin() -> Self {
        Self { begun: Instant::now(), cpu_seconds: cpu_seconds().unwrap_or(0.0) }
    }

    fn end(self, what: &str, items: u64) -> anyhow::Result<()> {
        let wall = self.begun.elapsed().as_secs_f64();
        let cpu = cpu_seconds()? - self.cpu_seconds;
        let (rate, rate_of_core) = (items as f64 / wall, items as f64 / cpu.max(0.01));
        println!("{what}: {wall:.2} s, {rate:.0} items/s; {cpu:.2} CPU s, {rate_of_core:.0} items per CPU s");
        Ok(())
    }
}

/// User and system time of this process, from clock ticks of a hundredth of a second.
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(f64::from(ticks) / 100.0)
}

/// Confirms at once and keeps nothing.
#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl Broker for Nowhere {
    async fn ensure(&self, _queue: &Queue) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn publish(&self, _outgoing: Outgoing) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn subscribe(&self, _queues: Vec<Queue>, _prefetch: u16) -> Result<Subscription, BrokerError> {
        Err(BrokerError::Closed)
    }

    async fn settle(&self, _delivery: Delivery, _out: Vec<Outgoing>) -> Result<Settlement, BrokerError> {
        Err(BrokerError::Closed)
    }

    async fn depth(&self, _queue: &Queue) -> Result<Depth, BrokerError> {
        Ok(Depth::default())
    }

    fn health(&self) -> watch::Receiver<Health> {
        watch::channel(Health::Connected).1
    }

    fn abilities(&self) -> Abilities {
        Abilities { reconnects: false, blocks: false, sees_unsettled: false }
    }

    async fn close(&self, _grace: Duration) {}
}
