//! What the tests of the engine stand on: a folder, a job, completions.

use super::*;

/// An engine over a folder, fed with completions, its clock in the test's hand.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) job: Job,
    pub(super) engine: Option<Engine>,
    pub(super) clock: Instant,
    pub(super) unix_ms: u64,
}

impl World {
    pub(super) async fn new(sink: &str, tolerate: &str) -> Self {
        Self::with_sources(&["main"], sink, tolerate).await
    }

    pub(super) async fn with_sources(sources: &[&str], sink: &str, tolerate: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = |name: &&str| format!("[[source]]\nname = '{name}'\ntype = 'jsonl'\npath = '{name}'\n");
        let sources: String = sources.iter().map(source).collect();
        let stage = "[[stage]]\nname = 'push'\ntype = 'echo'";
        let text = format!("name = 'sync'\n{sources}{stage}\n{sink}\n{tolerate}\n");
        let job = Job::parse(&dir.path().join("job.toml"), &text).unwrap();
        let mut world = Self { dir, job, engine: None, clock: Instant::now(), unix_ms: 1_800_000_000_000 };
        world.restart().await;
        world
    }

    /// Drops the engine, as a crash between two steps would, and opens another on the same folder.
    pub(super) async fn restart(&mut self) {
        self.restart_with(JobSet::from_jobs([self.job.clone()])).await;
    }

    pub(super) async fn restart_with(&mut self, jobs: JobSet) {
        self.engine = None;
        let data_dir = self.dir.path().join("data");
        fs::create_dir_all(&data_dir).unwrap();
        let ledger = Box::new(SqliteLedger::open(&data_dir).unwrap());
        let options = Options {
            is_alone: true,
            data_dir,
            ledger: LedgerPlace::DataDir,
            sink_base: SinkBase::JobFile,
            metrics: Metrics::new("collector"),
            trouble: watch::Sender::new(None),
        };
        let give_up = CancellationToken::new();
        self.engine = Some(Engine::open(ledger, Arc::new(jobs), options, give_up, self.now()).await.unwrap());
    }

    pub(super) fn now(&self) -> Now {
        Now { instant: self.clock, unix_ms: self.unix_ms }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.clock += time;
        self.unix_ms += u64::try_from(time.as_millis()).unwrap();
    }

    pub(super) async fn step(&mut self, completions: &[Completion]) -> Effects {
        let messages: Vec<Message> =
            completions.iter().map(|completion| completion.to_message(false)).collect();
        let now = self.now();
        self.engine.as_mut().unwrap().step(&messages, now).await.unwrap()
    }

    pub(super) async fn tick(&mut self, time: Duration) -> Effects {
        self.pass(time);
        self.step(&[]).await
    }

    pub(super) fn report(&self, run: &str) -> Report {
        Reader::open(&self.data_dir()).unwrap().report(&run.parse().unwrap()).unwrap()
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(super) fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("out.jsonl")).unwrap()
    }

    pub(super) fn opened(&self, run: &str) -> Completion {
        Completion::Opened(Opened {
            run: run.parse().unwrap(),
            root_run: run.parse().unwrap(),
            job: self.job.name.clone(),
            hash: self.job.hash.clone(),
            sources: self.job.sources.iter().map(|source| source.name.clone()).collect(),
            fingerprint: "f".into(),
            started_at: self.unix_ms,
            producer: ProcessId::generate(),
        })
    }
}

/// Chunks of ten items.
pub(super) fn span(ordinal: u64) -> Span {
    Span { first: ordinal * 10, count: 10 }
}

pub(super) fn chunk_id(run: &str, ordinal: u64) -> ChunkId {
    ChunkId { run: run.parse().unwrap(), stage: "push".parse().unwrap(), source: SourceName::only(), ordinal }
}

/// Outcomes of some items: `{"n":INDEX}` for those that succeed.
pub(super) fn outcomes(run: &str, ordinal: u64, items: &str, end: Outcome) -> Outcomes {
    let items: Ranges = items.parse().unwrap();
    let line = |index| match end {
        Outcome::Succeeded => format!("{{\"n\":{index}}}\n"),
        _ => "{\"class\":\"test\",\"message\":\"no\"}\n".to_owned(),
    };
    let body: String = items.iter().map(line).collect();
    Outcomes {
        id: chunk_id(run, ordinal),
        span: span(ordinal),
        hop: 0,
        outcomes: Runs::repeat(end, items.len()),
        attempts: Runs::repeat(1, items.len()),
        throttles: Runs::repeat(0, items.len()),
        holds: Runs::repeat(0, items.len()),
        handed_over: Ranges::new(),
        claimant: None,
        released: Ranges::new(),
        latencies: Latencies::default(),
        unasked: false,
        ids: false,
        body: Bytes::from(body),
        items,
    }
}

pub(super) fn whole(run: &str, ordinal: u64) -> Completion {
    let items = span(ordinal).to_ranges().to_string();
    Completion::Outcomes(outcomes(run, ordinal, &items, Outcome::Succeeded))
}

pub(super) fn totals(chunks: u64) -> BTreeMap<SourceName, SourceProgress> {
    BTreeMap::from([(SourceName::only(), SourceProgress { accepted: chunks * 10, chunks, rejected: 0 })])
}

pub(super) fn sealed(run: &str, chunks: u64) -> Completion {
    Completion::Sealed(Sealed { run: run.parse().unwrap(), sources: totals(chunks), error: None })
}

pub(super) fn progress(run: &str, chunks: u64) -> Completion {
    Completion::Progress(Progress {
        run: run.parse().unwrap(),
        producer: ProcessId::generate(),
        sources: totals(chunks),
    })
}

pub(super) fn line(index: u64) -> String {
    format!("{{\"item\":{index},\"outcome\":\"succeeded\",\"output\":{{\"n\":{index}}},\"attempts\":1}}\n")
}

pub(super) fn in_order(items: u64) -> String {
    (0..items).map(line).collect()
}

pub(super) const INPUT: &str = "[sink]\ntype = 'jsonl'\npath = 'out.jsonl'";
pub(super) const ARRIVAL: &str = "[sink]\ntype = 'jsonl'\npath = 'out.jsonl'\norder = 'arrival'";
