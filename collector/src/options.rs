//! What a collector is started with, and what can go wrong with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use windrow_common::broker::BrokerError;
use windrow_common::job::Job;
use windrow_common::telemetry::metrics::Metrics;

use crate::ledger::{LedgerError, LedgerPlace};

/// What a collector is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where spool and run folders are, and the ledger unless it is elsewhere. Made if it is not there.
    pub data_dir: PathBuf,
    /// Where the ledger is.
    pub ledger: LedgerPlace,
    /// What relative sink paths are relative to.
    pub sink_base: SinkBase,
    /// Whether all consumers end with their collector, as those of `windrow run` do: what an earlier one had lent is then
    /// free at once.
    pub is_alone: bool,
    /// Where this process counts.
    pub metrics: Arc<Metrics>,
    /// Where this process says what cannot be written at the moment, such as a file on a full disk.
    pub trouble: watch::Sender<Option<String>>,
}

/// What relative sink paths are relative to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkBase {
    /// This folder: `DATA_DIR` in a fleet's collector.
    Folder(PathBuf),
    /// The job file's own folder: `windrow run`.
    JobFile,
}

impl SinkBase {
    /// The folder, for this job.
    pub fn of<'a>(&'a self, job: &'a Job) -> &'a Path {
        match self {
            Self::Folder(folder) => folder,
            Self::JobFile => job.folder(),
        }
    }
}

/// Why a collector cannot start, or had to stop. Everything it had not settled is still in the broker.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// Another collector works on the same data folder.
    #[error(
        "another collector works on {}; stop it, or give this one a data folder of its own with --data-dir",
        .0.display()
    )]
    DataDirTaken(PathBuf),
    /// The data folder cannot be used.
    #[error("the data folder {} cannot be used: {}", .0.display(), .1)]
    DataDir(PathBuf, std::io::Error),
    /// The ledger does not work, or another collector has taken it over.
    #[error(transparent)]
    Ledger(LedgerError),
    /// Told to stop while something could not be written.
    #[error("stopped while {0}; nothing is lost, completions wait in the broker")]
    Unwritable(String),
    /// The broker refuses us.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A thread could not be started, or broke off.
    #[error("the collector's thread broke off: {0}")]
    Thread(std::io::Error),
}

/// An open ledger that cannot be reached is waited for: this comes of it once the collector is told to stop.
impl From<LedgerError> for CollectorError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Unwritable(_) => Self::Unwritable(error.to_string()),
            error => Self::Ledger(error),
        }
    }
}
