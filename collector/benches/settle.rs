//! How fast completions are settled, without a broker: `cargo bench -p windrow-collector`.
//!
//! Rates are given by the clock and, since a machine does other things too, by the processor's time.
//! Each row settles a run of items in batches of 512 completions, in a folder below `WINDROW_BENCH_DIR` (the
//! system's temporary folder otherwise; one in memory shows the processor's share, one on a disk its
//! syncs too), with outputs of 150 bytes and a sink in input order.
#![expect(clippy::unwrap_used, reason = "a benchmark stops by it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windrow_collector::engine::{Engine, Now};
use windrow_collector::ledger::sqlite::SqliteLedger;
use windrow_collector::{LedgerPlace, Options, SinkBase};
use windrow_common::envelope::Message;
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::{Completion, Latencies, Opened, Outcomes, Sealed, SourceProgress};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{ChunkId, ProcessId, RunId, SourceName};
use windrow_common::job::{Job, JobSet};
use windrow_common::outcome::Outcome;
use windrow_common::ranges::{Ranges, Runs};
use windrow_common::telemetry::metrics::Metrics;

const BATCH: usize = 512;

const JOB: &str = "name = 'bench'\n[source]\ntype = 'jsonl'\npath = '-'\n[[stage]]\ntype = 'echo'\n\
     [sink]\ntype = 'jsonl'\npath = 'out.jsonl'\n";

/// In which order chunks come.
#[derive(Debug, Clone, Copy)]
enum Arrival {
    /// As they were cut.
    Straight,
    /// In the order eight consumers would finish them in.
    Shuffled,
    /// The first one last.
    FirstHeld,
}

#[tokio::main]
async fn main() {
    println!("items      per chunk  arrival    items/s    of processor   chunks/s of processor");
    for (items, per_chunk, arrival) in [
        (5_000_000, 100, Arrival::Straight),
        (5_000_000, 100, Arrival::Shuffled),
        (5_000_000, 100, Arrival::FirstHeld),
        (500_000, 1, Arrival::Straight),
        (500_000, 1, Arrival::Shuffled),
        (500_000, 1, Arrival::FirstHeld),
    ] {
        let spent = measure(items, per_chunk, arrival).await;
        let per_second = |count: u64, time: Duration| count as f64 / time.as_secs_f64();
        println!(
            "{items:<10} {per_chunk:<10} {:<10} {:<10.0} {:<14.0} {:<.0}",
            format!("{arrival:?}"),
            per_second(items, spent.wall),
            per_second(items, spent.processor),
            per_second(items / per_chunk, spent.processor),
        );
    }
}

/// Time spent in the engine.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    wall: Duration,
    processor: Duration,
}

impl Spent {
    async fn step(&mut self, engine: &mut Engine, messages: &[Message]) {
        let (wall, processor) = (Instant::now(), processor_time());
        engine.step(messages, now()).await.unwrap();
        self.wall += wall.elapsed();
        self.processor += processor_time().saturating_sub(processor);
    }
}

/// The time this thread has been running.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

async fn measure(items: u64, per_chunk: u64, arrival: Arrival) -> Spent {
    let base = std::env::var_os("WINDROW_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(base).unwrap();
    let job = Job::parse(&folder.path().join("job.toml"), JOB).unwrap();
    let run: RunId = "bench".parse().unwrap();
    let chunks = items / per_chunk;
    let options = Options {
        is_alone: true,
        data_dir: folder.path().to_owned(),
        ledger: LedgerPlace::DataDir,
        sink_base: SinkBase::JobFile,
        metrics: Metrics::new("collector"),
        trouble: watch::Sender::new(None),
    };
    let ledger = Box::new(SqliteLedger::open(folder.path()).unwrap());
    let opened = opened(&job, &run);
    let jobs = Arc::new(JobSet::from_jobs([job]));
    let mut engine = Engine::open(ledger, jobs, options, CancellationToken::new(), now()).await.unwrap();
    engine.step(&[opened.to_message(false)], now()).await.unwrap();

    let order = order(chunks, arrival);
    let mut spent = Spent::default();
    for batch in order.chunks(BATCH) {
        let messages: Vec<Message> =
            batch.iter().map(|ordinal| outcomes(&run, *ordinal, per_chunk).to_message(false)).collect();
        spent.step(&mut engine, &messages).await;
    }
    let totals = SourceProgress { accepted: items, chunks, rejected: 0 };
    let sources = BTreeMap::from([(SourceName::only(), totals)]);
    let sealed = Completion::Sealed(Sealed { run: run.clone(), sources, error: None });
    spent.step(&mut engine, &[sealed.to_message(false)]).await;
    let report = engine.snapshots().borrow()[&run].clone();
    assert_eq!(report.state, RunState::Completed);
    spent
}

fn now() -> Now {
    Now { instant: Instant::now(), unix_ms: 1_800_000_000_000 }
}

/// The ordinals in the order of their arrival.
fn order(chunks: u64, arrival: Arrival) -> Vec<u64> {
    let mut order: Vec<u64> = (0..chunks).collect();
    match arrival {
        Arrival::Straight => {}
        Arrival::Shuffled => order.chunks_mut(8).for_each(<[u64]>::reverse),
        Arrival::FirstHeld => order.rotate_left(1),
    }
    order
}

fn opened(job: &Job, run: &RunId) -> Completion {
    Completion::Opened(Opened {
        run: run.clone(),
        root_run: run.clone(),
        job: job.name.clone(),
        hash: job.hash.clone(),
        sources: vec![SourceName::only()],
        fingerprint: "f".into(),
        started_at: 1_800_000_000_000,
        producer: ProcessId::generate(),
    })
}

fn outcomes(run: &RunId, ordinal: u64, count: u64) -> Completion {
    let span = Span { first: ordinal * count, count };
    let line = |index: u64| format!("{{\"n\":{index:0>20},\"text\":\"{}\"}}\n", "x".repeat(110));
    let line = |index: u64| line(index).replace("\"n\":0", "\"n\":1");
    Completion::Outcomes(Outcomes {
        id: ChunkId { run: run.clone(), stage: "echo".parse().unwrap(), source: SourceName::only(), ordinal },
        span,
        hop: 0,
        items: span.to_ranges(),
        outcomes: Runs::repeat(Outcome::Succeeded, count),
        attempts: Runs::repeat(1, count),
        throttles: Runs::repeat(0, count),
        holds: Runs::repeat(0, count),
        handed_over: Ranges::new(),
        claimant: None,
        released: Ranges::new(),
        latencies: Latencies::default(),
        unasked: false,
        ids: false,
        body: Bytes::from(span.to_ranges().iter().map(line).collect::<String>()),
    })
}
