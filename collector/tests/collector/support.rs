//! A job, and the completions of a run of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use windrow_common::broker::{Broker, Outgoing, Queue, Target};
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::{Completion, Latencies, Opened, Outcomes, Sealed, SourceProgress};
use windrow_common::ids::{ChunkId, ProcessId, RunId, SourceName};
use windrow_common::job::Job;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::{Ranges, Runs};

pub(crate) const JOB: &str = "name = 'sync'\n[source]\ntype = 'jsonl'\npath = '-'\n[[stage]]\ntype = 'echo'\n\
     [sink]\ntype = 'jsonl'\npath = 'out.jsonl'\n";

pub(crate) fn job(folder: &Path) -> Job {
    Job::parse(&folder.join("job.toml"), JOB).unwrap()
}

pub(crate) fn opened(job: &Job, run: &RunId) -> Completion {
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

/// A chunk of a run cut into chunks of `size` items.
pub(crate) fn chunk(run: &RunId, ordinal: u64, size: u64) -> (ChunkId, Span) {
    let id =
        ChunkId { run: run.clone(), stage: "echo".parse().unwrap(), source: SourceName::only(), ordinal };
    (id, Span { first: ordinal * size, count: size })
}

/// The outcomes of some items of a chunk: those with an index divisible by 7 failed.
pub(crate) fn outcomes(id: ChunkId, span: Span, hop: u32, items: &Ranges) -> Outcomes {
    let end = |index: u64| if index.is_multiple_of(7) { Outcome::Failed } else { Outcome::Succeeded };
    let line = |index: u64| match end(index) {
        Outcome::Failed => "{\"class\":\"test\",\"message\":\"seven\"}\n".to_owned(),
        _ => format!("{{\"n\":{index}}}\n"),
    };
    Outcomes {
        id,
        span,
        hop,
        outcomes: items.iter().map(end).collect(),
        attempts: Runs::repeat(hop + 1, items.len()),
        throttles: Runs::repeat(0, items.len()),
        holds: Runs::repeat(0, items.len()),
        handed_over: span.to_ranges().filter(|index| hop == 0 && !items.contains(index)),
        claimant: None,
        released: Ranges::new(),
        latencies: Latencies::default(),
        unasked: false,
        ids: false,
        body: Bytes::from(items.iter().map(line).collect::<String>()),
        items: items.clone(),
    }
}

pub(crate) fn sealed(run: &RunId, chunks: u64, size: u64) -> Completion {
    let totals = SourceProgress { accepted: chunks * size, chunks, rejected: 0 };
    let sources = BTreeMap::from([(SourceName::only(), totals)]);
    Completion::Sealed(Sealed { run: run.clone(), sources, error: None })
}

pub(crate) async fn publish(broker: &Arc<dyn Broker>, completion: &Completion) {
    let message = completion.to_message(false);
    broker.publish(Outgoing { target: Target::Queue(Queue::Completion), message }).await.unwrap();
}

/// Nothing a test waits for takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < until, "waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn wait_for_exit(child: &mut Child) -> ExitStatus {
    wait_for(|| child.try_wait().unwrap())
}

/// Asks a process to end, and waits for it.
pub(crate) fn end(child: &mut Child) -> ExitStatus {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_for_exit(child)
}

/// A process that does not outlive its test.
pub(crate) struct Guarded(pub(crate) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended, and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
