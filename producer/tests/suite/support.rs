//! A broker in memory, and runs over files in a temporary folder.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{
    Abilities, Broker, BrokerError, Delivery, Depth, Health, Outgoing, Queue, Settlement, Subscription,
};
use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::completion::{Completion, Reject, Sealed, SourceProgress};
use windrow_common::envelope::control::{RunNews, RunState};
use windrow_common::ids::RunId;
use windrow_common::job::Job;
use windrow_common::telemetry::metrics::Metrics;
use windrow_producer::{Options, Plan, Produced, ProducerError, ProducerProgress, Wiring, plan, produce};

/// Called when a message arrives, before it is kept, with those kept so far.
type OnPublish = Box<dyn Fn(&[Outgoing]) + Send + Sync>;

/// Keeps what is published; confirms as long as its permits last.
pub(crate) struct MemoryBroker {
    kept: watch::Sender<Vec<Outgoing>>,
    confirms: Semaphore,
    on_publish: OnPublish,
    unconfirmed: Mutex<(usize, usize)>,
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryBroker")
    }
}

impl MemoryBroker {
    pub(crate) fn new() -> Arc<Self> {
        Self::with(Vec::new(), Semaphore::MAX_PERMITS, Box::new(|_| ()))
    }

    /// One that holds `kept`, and confirms `confirms` messages until more are allowed.
    pub(crate) fn with(kept: Vec<Outgoing>, confirms: usize, on_publish: OnPublish) -> Arc<Self> {
        let confirms = Semaphore::new(confirms);
        Arc::new(Self { kept: watch::Sender::new(kept), confirms, on_publish, unconfirmed: Mutex::default() })
    }

    pub(crate) fn allow_confirms(&self, confirms: usize) {
        self.confirms.add_permits(confirms);
    }

    pub(crate) fn kept(&self) -> Vec<Outgoing> {
        self.kept.borrow().clone()
    }

    fn count_unconfirmed(&self, more: isize) {
        let mut unconfirmed = self.unconfirmed.lock().unwrap();
        unconfirmed.0 = unconfirmed.0.checked_add_signed(more).unwrap();
        unconfirmed.1 = unconfirmed.1.max(unconfirmed.0);
    }

    pub(crate) fn most_unconfirmed(&self) -> usize {
        self.unconfirmed.lock().unwrap().1
    }

    /// Waits until what was published is such; for a minute at most.
    pub(crate) async fn until(&self, is_so: impl Fn(&Published) -> bool) -> Published {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let mut kept = self.kept.subscribe();
        loop {
            let published = Published::read(&kept.borrow_and_update());
            if is_so(&published) {
                return published;
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let waited = tokio::time::timeout(left, kept.changed()).await;
            waited.expect("what was waited for is not published").unwrap();
        }
    }

    /// Waits for `beats` more reports of progress: whatever could be published by then was.
    pub(crate) async fn after_beats(&self, beats: usize) -> Published {
        let seen = Published::read(&self.kept()).progress.len();
        self.until(|published| published.progress.len() >= seen + beats).await
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn ensure(&self, _queue: &Queue) -> Result<(), BrokerError> {
        Ok(())
    }

    async fn publish(&self, outgoing: Outgoing) -> Result<(), BrokerError> {
        let is_chunk = outgoing.message.kind == "chunk";
        (self.on_publish)(&self.kept.borrow());
        self.kept.send_modify(|kept| kept.push(outgoing));
        if is_chunk {
            self.count_unconfirmed(1);
            self.confirms.acquire().await.unwrap().forget();
            self.count_unconfirmed(-1);
        }
        Ok(())
    }

    async fn subscribe(&self, _queues: Vec<Queue>, _prefetch: u16) -> Result<Subscription, BrokerError> {
        Err(BrokerError::Refused("nobody subscribes here".to_owned()))
    }

    async fn settle(&self, _delivery: Delivery, _out: Vec<Outgoing>) -> Result<Settlement, BrokerError> {
        Err(BrokerError::Refused("nothing is delivered here".to_owned()))
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

/// What was published, understood.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) chunks: Vec<(ChunkHeader, Vec<String>)>,
    pub(crate) rejects: Vec<Reject>,
    pub(crate) progress: Vec<BTreeMap<String, SourceProgress>>,
    pub(crate) opened: usize,
    pub(crate) sealed: Vec<Sealed>,
    /// The kinds in order.
    pub(crate) kinds: Vec<String>,
}

impl Published {
    pub(crate) fn read(kept: &[Outgoing]) -> Self {
        let mut published = Self::default();
        for Outgoing { message, .. } in kept {
            published.kinds.push(message.kind.clone());
            if message.kind == "chunk" {
                let (header, lines) = ChunkHeader::from_message(message).unwrap();
                assert_eq!(message.message_id, header.message_id());
                let lines = lines.iter().map(|line| String::from_utf8(line.to_vec()).unwrap());
                published.chunks.push((header, lines.collect()));
                continue;
            }
            match Completion::from_message(message).unwrap() {
                Completion::Opened(_) => published.opened += 1,
                Completion::Progress(progress) => {
                    let sources = progress.sources.into_iter();
                    published.progress.push(sources.map(|(name, of)| (name.to_string(), of)).collect());
                }
                Completion::Sealed(sealed) => published.sealed.push(sealed),
                Completion::Rejects(rejects) => published.rejects.extend(rejects.rejects),
                other => panic!("a producer does not send {other:?}"),
            }
        }
        published
    }

    /// Items by source and index. Panics if two chunks disagree on one, or a second copy is not marked.
    pub(crate) fn items(&self) -> BTreeMap<(String, u64), String> {
        let mut items = BTreeMap::new();
        for (header, lines) in &self.chunks {
            let is_copy = items.contains_key(&(header.id.source.to_string(), header.span.first));
            assert!(!is_copy || header.resent, "chunk {} came again without a mark", header.id);
            assert_eq!((header.span.count, header.items.len()), (lines.len() as u64, lines.len() as u64));
            for (index, line) in header.items.iter().zip(lines) {
                let old = items.insert((header.id.source.to_string(), index), line.clone());
                assert!(old.is_none_or(|old| &old == line), "item {index} came again and was another");
            }
        }
        items
    }

    /// Rejects, each once.
    pub(crate) fn distinct_rejects(&self) -> BTreeMap<(String, String, u64), String> {
        let key = |reject: &Reject| (reject.source.to_string(), reject.file.clone(), reject.line);
        self.rejects.iter().map(|reject| (key(reject), reject.reason.clone())).collect()
    }

    pub(crate) fn chunk_spans(&self) -> BTreeMap<(String, u64), (u64, u64)> {
        let span = |header: &ChunkHeader| (header.span.first, header.span.count);
        let chunks = self.chunks.iter();
        chunks.map(|(header, _)| ((header.id.source.to_string(), header.id.ordinal), span(header))).collect()
    }
}

/// The numbers from 0 on, a line each.
pub(crate) fn numbers(count: usize) -> Vec<u8> {
    let mut lines = Vec::new();
    for number in 0..count {
        writeln!(lines, "{number}").unwrap();
    }
    lines
}

/// A folder with a job file, its sources, and a data folder.
pub(crate) struct Workplace {
    folder: tempfile::TempDir,
}

impl Workplace {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            fs::write(folder.path().join(name), contents).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    /// A job with these sources and chunk settings, as TOML.
    pub(crate) fn job(&self, text: &str) -> Job {
        let text = format!("name = \"sync\"\n{text}\n[[stage]]\ntype = \"echo\"\n");
        match Job::parse(&self.path("job.toml"), &text) {
            Ok(job) => job,
            Err(problems) => panic!("{problems:?}"),
        }
    }

    pub(crate) fn options(&self) -> Options {
        options(&self.data_dir())
    }
}

pub(crate) fn options(data_dir: &Path) -> Options {
    Options {
        run: None,
        root_run: None,
        retry: None,
        data_dir: data_dir.to_owned(),
        first: None,
        resend: None,
        started_at: 1_700_000_000_000,
        states: BTreeMap::new(),
    }
}

pub(crate) fn named(data_dir: &Path, run: &str) -> Options {
    Options { run: Some(run.parse().unwrap()), ..options(data_dir) }
}

/// A producer at work.
pub(crate) struct Running {
    pub(crate) task: JoinHandle<Result<Produced, ProducerError>>,
    pub(crate) news: watch::Sender<Option<RunNews>>,
    pub(crate) progress: watch::Receiver<ProducerProgress>,
    pub(crate) shutdown: CancellationToken,
}

pub(crate) fn start(plan: Plan, job: &Job, broker: &Arc<MemoryBroker>) -> Running {
    let (news, news_receiver) = watch::channel(None);
    let (progress_sender, progress) = watch::channel(ProducerProgress::default());
    let shutdown = CancellationToken::new();
    let wiring = Wiring {
        broker: Arc::clone(broker) as Arc<dyn Broker>,
        news: news_receiver,
        progress: progress_sender,
        metrics: Metrics::new("producer").producer(&job.name),
        shutdown: shutdown.clone(),
    };
    let task = tokio::spawn(produce(plan, Arc::new(job.clone()), wiring));
    Running { task, news, progress, shutdown }
}

/// Plans and produces a run to its end.
pub(crate) async fn run(
    job: &Job,
    options: &Options,
    broker: &Arc<MemoryBroker>,
) -> Result<Produced, ProducerError> {
    let running = start(plan(job, options)?, job, broker);
    running.task.await.unwrap()
}

/// The same over standard input.
pub(crate) async fn run_piped(
    job: &Job,
    options: &Options,
    broker: &Arc<MemoryBroker>,
    input: Box<dyn Read + Send>,
) -> Result<Produced, ProducerError> {
    let running = start(plan(job, options)?.with_standard_input(input), job, broker);
    running.task.await.unwrap()
}

pub(crate) fn news(run: &RunId, state: RunState, settled_chunks: u64, settled_items: u64) -> RunNews {
    RunNews {
        run: run.clone(),
        state,
        stopping: false,
        settled_chunks,
        settled_items,
        failed_items: 0,
        waiting_items: 0,
    }
}

/// What is on the disk at this moment: what a process killed now would leave.
pub(crate) fn photograph(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
