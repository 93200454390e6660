//! A fleet of ours in one folder: a collector, consumers and a producer as processes, on one broker.
//!
//! The folder holds `jobs/job.toml`; the collector's data, and so the sink, is in `data/`, the producer's in
//! `producer/`. What the processes print is in `*.log` beside them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use windrow_common::crash;

use crate::process::{Process, binary, wait_until};

/// How long a process may take to start.
const START: Duration = Duration::from_secs(60);

/// The environment variable that has a consumer's number, for jobs that pass it on.
pub const CALLER: &str = "WINDROW_TEST_CONSUMER";

/// Where a fleet lives.
#[derive(Debug, Clone)]
pub struct Fleet {
    folder: PathBuf,
    broker: String,
    ledger: Option<String>,
}

impl Fleet {
    /// A fleet in `folder` on `broker`, with this job file.
    pub fn new(folder: &Path, broker: &str, job: &str) -> Self {
        let fleet = Self { folder: folder.to_path_buf(), broker: broker.to_owned(), ledger: None };
        std::fs::create_dir_all(fleet.jobs()).unwrap();
        std::fs::write(fleet.job(), job).unwrap();
        fleet
    }

    /// The same fleet with its ledger in a database.
    #[must_use]
    pub fn with_ledger(self, url: &str) -> Self {
        Self { ledger: Some(url.to_owned()), ..self }
    }

    /// The same fleet by another address of its broker, for processes started by what is returned.
    #[must_use]
    pub fn by_way_of(&self, broker: &str) -> Self {
        Self { broker: broker.to_owned(), ..self.clone() }
    }

    fn jobs(&self) -> PathBuf {
        self.folder.join("jobs")
    }

    /// The job file.
    pub fn job(&self) -> PathBuf {
        self.jobs().join("job.toml")
    }

    /// The collector's data folder, where relative sinks are.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder of a run, with its reports.
    pub fn run_folder(&self, run: &str) -> PathBuf {
        self.data().join("runs").join(run)
    }

    /// Starts a collector that aborts at the crash point, if one is given.
    pub fn collector(&self, crash: Option<&str>) -> Process {
        self.collector_named("collector", crash)
    }

    /// Starts a collector that prints into `NAME.log`.
    pub fn collector_named(&self, name: &str, crash: Option<&str>) -> Process {
        let mut command = self.command("windrow-collector", crash);
        command.arg("--jobs").arg(self.jobs()).arg("--data-dir").arg(self.data());
        command.env_remove("WINDROW_LEDGER").envs(self.ledger.iter().map(|url| ("WINDROW_LEDGER", url)));
        Process::start(name, &mut command, &self.folder)
    }

    /// Starts consumer number `number`.
    pub fn consumer(&self, number: usize, crash: Option<&str>) -> Process {
        let mut command = self.command("windrow-consumer", crash);
        command.arg("--jobs").arg(self.jobs()).env(CALLER, number.to_string());
        Process::start(&format!("consumer-{number}"), &mut command, &self.folder)
    }

    /// Starts consumer number `number`, which tells what it counts; see [`crate::metrics::Metrics`].
    pub fn watched_consumer(&self, number: usize) -> Process {
        let mut command = self.command("windrow-consumer", None);
        command.arg("--jobs").arg(self.jobs()).args(["--listen", "127.0.0.1:0"]);
        Process::start(&format!("consumer-{number}"), &mut command, &self.folder)
    }

    /// Starts a producer that waits for the end of its run.
    pub fn producer(&self, run: &str, crash: Option<&str>) -> Process {
        Process::start("producer", &mut self.producing(run, crash), &self.folder)
    }

    /// Starts a producer that publishes its run once more, and waits for its end.
    pub fn resending_producer(&self, run: &str) -> Process {
        let mut command = self.producing(run, None);
        Process::start("producer", command.arg("--resend"), &self.folder)
    }

    fn producing(&self, run: &str, crash: Option<&str>) -> Command {
        let mut command = self.command("windrow-producer", crash);
        command.arg(self.job()).args(["--run", run, "--wait"]);
        command.arg("--data-dir").arg(self.folder.join("producer"));
        command
    }

    /// A collector and a consumer, once both work.
    pub fn start(&self) -> (Process, Process) {
        let (collector, consumer) = (self.collector(None), self.consumer(0, None));
        wait_until("the collector collects", START, || collector.log().contains("collecting"));
        wait_until("the consumer consumes", START, || consumer.log().contains("consuming"));
        (collector, consumer)
    }

    fn command(&self, name: &str, crash: Option<&str>) -> Command {
        let mut command = Command::new(binary(name));
        command.args(["--broker", &self.broker]).env_remove(crash::VARIABLE);
        if let Some(point) = crash {
            command.env(crash::VARIABLE, point);
        }
        command
    }
}
