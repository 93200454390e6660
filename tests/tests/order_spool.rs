//! Input order is kept on disk, not in memory: a first item that is held back for as long as five million others
//! settle costs space in the spool and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tempfile::TempDir;
use windrow_common::broker::address::connect;
use windrow_common::broker::{Broker, Outgoing, Queue, Target};
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::{Completion, Latencies, Opened, Outcomes, Sealed, SourceProgress};
use windrow_common::ids::{ChunkId, Group, ProcessId, RunId, SourceName};
use windrow_common::job::Job;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::{Ranges, Runs};
use windrow_tests::account::{check_balance, report};
use windrow_tests::fleet::Fleet;
use windrow_tests::process::wait_until;

const ITEMS: u64 = 5_000_000;
const CHUNK: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(300);

/// Publishes under way at once.
const IN_FLIGHT: usize = 64;

/// How much the collector may grow while all of it passes.
const GROWTH_KIB: u64 = 128 * 1024;

const JOB: &str = "name = 'held'\n[source]\ntype = 'jsonl'\npath = '-'\n[[stage]]\ntype = 'echo'\n\
                   [sink]\ntype = 'jsonl'\npath = 'out.jsonl'\norder = 'input'\n";

fn opened(job: &Job, run: &RunId) -> Completion {
    Completion::Opened(Opened {
        run: run.clone(),
        root_run: run.clone(),
        job: job.name.clone(),
        hash: job.hash.clone(),
        sources: vec![SourceName::only()],
        fingerprint: "f".to_owned(),
        started_at: 1_800_000_000_000,
        producer: ProcessId::generate(),
    })
}

fn sealed(run: &RunId) -> Completion {
    let totals = SourceProgress { accepted: ITEMS, chunks: ITEMS / CHUNK, rejected: 0 };
    Completion::Sealed(Sealed {
        run: run.clone(),
        sources: BTreeMap::from([(SourceName::only(), totals)]),
        error: None,
    })
}

/// Some items of a chunk succeeded, each with the output `1`.
fn succeeded(run: &RunId, ordinal: u64, items: Ranges) -> Completion {
    let count = items.len();
    let stage = "echo".parse().unwrap();
    Completion::Outcomes(Outcomes {
        id: ChunkId { run: run.clone(), stage, source: SourceName::only(), ordinal },
        span: Span { first: ordinal * CHUNK, count: CHUNK },
        hop: 0,
        items,
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
        body: Bytes::from("1\n".repeat(usize::try_from(count).unwrap())),
    })
}

async fn publish(broker: &Arc<dyn Broker>, completion: Completion) {
    let message = completion.to_message(false);
    broker.publish(Outgoing { target: Target::Queue(Queue::Completion), message }).await.unwrap();
}

/// The most memory a process has had at once, in KiB.
fn peak_memory_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_first_item_held_until_five_million_have_settled_costs_no_memory() {
    let folder = TempDir::new().unwrap();
    let address = format!("embedded:{}", folder.path().join("queue").display());
    let fleet = Fleet::new(folder.path(), &address, JOB);
    let sink = fleet.data().join("out.jsonl");
    let collector = fleet.collector(None);
    wait_until("the collector collects", PATIENCE, || collector.log().contains("collecting"));
    let before = peak_memory_kib(collector.id());

    let (job, run) = (Job::load(&fleet.job()).unwrap(), "held".parse::<RunId>().unwrap());
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let broker = runtime.block_on(async {
        let broker = connect(&address.parse().unwrap(), &Group::main()).await.unwrap();
        publish(&broker, opened(&job, &run)).await;
        // Of the first chunk all but its first item.
        let first = succeeded(&run, 0, Ranges::span(1, CHUNK - 1));
        let others =
            (1..ITEMS / CHUNK).map(|ordinal| succeeded(&run, ordinal, Ranges::span(ordinal * CHUNK, CHUNK)));
        let all = stream::iter(std::iter::once(first).chain(others));
        all.map(|completion| publish(&broker, completion)).buffered(IN_FLIGHT).collect::<()>().await;
        publish(&broker, sealed(&run)).await;
        broker
    });
    let folder_of_run = fleet.run_folder("held");
    wait_until("all but one have settled", PATIENCE, || {
        folder_of_run.join("report.json").exists()
            && report(&folder_of_run)["accepted"] == ITEMS
            && report(&folder_of_run)["open"] == 1
    });
    println!("{} items settled in {:.1?}", ITEMS - 1, began.elapsed());
    assert_eq!(std::fs::metadata(&sink).unwrap().len(), 0, "nothing has its turn before the first item");

    runtime.block_on(publish(&broker, succeeded(&run, 0, Ranges::span(0, 1))));
    wait_until("the run ends", PATIENCE, || report(&folder_of_run)["state"] == "completed");
    let grown = peak_memory_kib(collector.id()) - before;
    println!("the run ended after {:.1?}; the collector grew by {} MiB", began.elapsed(), grown / 1024);
    check_balance(&report(&folder_of_run), ITEMS);
    check_lines(&sink);
    assert!(grown < GROWTH_KIB, "the collector grew by {grown} KiB");
    runtime.block_on(broker.close(Duration::from_secs(5)));
}

/// Every item has its line, in the order of the input.
fn check_lines(sink: &Path) {
    let mut lines = BufReader::with_capacity(1 << 20, File::open(sink).unwrap());
    let (mut line, mut index) = (Vec::new(), 0);
    while lines.read_until(b'\n', &mut line).unwrap() > 0 {
        let expected =
            format!("{{\"item\":{index},\"outcome\":\"succeeded\",\"output\":1,\"attempts\":1}}\n");
        assert!(line == expected.as_bytes(), "line {index} is {}", String::from_utf8_lossy(&line));
        line.clear();
        index += 1;
    }
    assert_eq!(index, ITEMS);
}
