//! Forgetting runs: their rows in the ledger of a data folder, and their folders.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use windrow_common::ids::RunId;

use crate::CollectorError;
use crate::collector::lock_folder;
use crate::ledger::sqlite::{FILE_NAME, SqliteLedger};
use crate::ledger::{LedgerError, ReadError, RunRecord};
use crate::report::Report;
use crate::run_folder::folder;

/// Runs cannot be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// A collector works on the folder.
    #[error(
        "a collector works on {}; stop it, prune, and start it again: nothing is lost, what comes meanwhile waits in the \
         broker", .0.display()
    )]
    InUse(PathBuf),
    /// There is no ledger, or it cannot be used.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(CollectorError),
    /// Something of a run cannot be removed; the run is still in the ledger.
    #[error("{} cannot be removed: {}; remedy that and prune again", .0.display(), .1)]
    Remove(PathBuf, io::Error),
}

impl From<LedgerError> for PruneError {
    fn from(error: LedgerError) -> Self {
        Self::Read(error.into())
    }
}

/// A data folder whose runs may be forgotten: no collector works on it meanwhile.
#[derive(Debug)]
pub struct Pruner {
    data_dir: PathBuf,
    ledger: SqliteLedger,
    _lock: File,
}

impl Pruner {
    /// Takes the data folder.
    pub fn open(data_dir: &Path) -> Result<Self, PruneError> {
        if !data_dir.join(FILE_NAME).exists() {
            return Err(ReadError::NoLedger(data_dir.to_owned()).into());
        }
        let lock = lock_folder(data_dir, false).map_err(|error| match error {
            CollectorError::DataDirTaken(folder) => PruneError::InUse(folder),
            error => PruneError::Folder(error),
        })?;
        Ok(Self { data_dir: data_dir.to_owned(), ledger: SqliteLedger::open(data_dir)?, _lock: lock })
    }

    /// The runs that ended before this time, in Unix milliseconds, oldest first.
    pub fn ended_before(&self, unix_ms: u64) -> Result<Vec<Report>, PruneError> {
        let is_old = |run: &RunRecord| run.finished_at.is_some_and(|finished_at| finished_at < unix_ms);
        let runs = self.ledger.finished_runs()?;
        Ok(runs.iter().filter(|run| is_old(run)).map(|run| Report::of(run, unix_ms)).collect())
    }

    /// Forgets a run that has ended. Its folder goes first: as long as that fails, the ledger still knows the run.
    pub fn forget(&mut self, run: &RunId) -> Result<(), PruneError> {
        let known = self.ledger.finished_runs()?.into_iter().find(|record| record.id() == run);
        let Some(record) = known else { return Err(ReadError::NoSuchRun(run.to_string()).into()) };
        let folder = folder(&self.data_dir, run);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(PruneError::Remove(folder, error));
            }
            _ => {}
        }
        Ok(self.ledger.forget(record.key)?)
    }

    /// Gives the room of what was forgotten back to the disk.
    pub fn finish(mut self) -> Result<(), PruneError> {
        Ok(self.ledger.shrink()?)
    }
}
