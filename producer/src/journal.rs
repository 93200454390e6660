//! What a producer must still know after a crash: what the run was begun with, which chunks may have been
//! published, and which were confirmed.
//!
//! Two marks move up a source. Chunks below the *horizon* may have been published; it is on disk before
//! anything beyond it is sent. Chunks below the *confirmed* mark are safe in the broker. After a crash
//! those in between are sent again, marked as possible copies; those beyond are new. A confirmed mark that
//! was lost costs copies, never items.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use windrow_common::envelope::completion::SourceProgress;
use windrow_common::ids::{RunId, SourceName};

use crate::chunker::Mark;
use crate::error::ProducerError;
use crate::framed::{Framed, Records};
use crate::manifest::Manifest;

/// A record of a journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// What the run was begun with; always the first.
    Manifest(Box<Manifest>),
    /// Chunks of `source` with ordinals under `below` may have been published.
    Horizon {
        /// The source.
        source: SourceName,
        /// The lowest ordinal that was not published.
        below: u64,
    },
    /// Everything of `source` before `mark` is confirmed.
    Confirmed {
        /// The source.
        source: SourceName,
        /// The place.
        mark: Mark,
        /// Whether the source ends there.
        ended: bool,
    },
    /// The run's sealing is confirmed.
    Sealed(Seal),
}

/// How a run was sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    /// Totals by source.
    pub(crate) sources: BTreeMap<SourceName, SourceProgress>,
    /// Why the sources could not be read to the end.
    pub(crate) error: Option<String>,
}

/// How far a source was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Chunks under this ordinal may have been published.
    pub(crate) horizon: u64,
    /// Everything before is confirmed.
    pub(crate) mark: Mark,
    /// Whether the source ends at `mark`.
    pub(crate) ended: bool,
}

impl Reached {
    /// Nothing was read.
    pub(crate) fn nothing() -> Self {
        Self { horizon: 0, mark: Mark::start(), ended: false }
    }

    /// To be read once more from the start.
    pub(crate) fn started_over(self) -> Self {
        Self { horizon: self.horizon, ..Self::nothing() }
    }
}

/// What a journal tells.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    /// What the run was begun with.
    pub(crate) manifest: Manifest,
    /// How the run was sealed, if it was.
    pub(crate) seal: Option<Seal>,
    sources: BTreeMap<SourceName, Reached>,
    valid_bytes: u64,
}

impl Story {
    /// The story of a run that is about to begin.
    pub(crate) fn new(manifest: Manifest) -> Self {
        Self { manifest, seal: None, sources: BTreeMap::new(), valid_bytes: 0 }
    }

    /// Reads the journal in a run's folder. None when no run was begun there.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, ProducerError> {
        Self::read_if(folder, |_| true)
    }

    /// Reads it to the end only if its manifest is `wanted`. None otherwise.
    pub(crate) fn read_if(
        folder: &Path,
        wanted: impl Fn(&Manifest) -> bool,
    ) -> Result<Option<Self>, ProducerError> {
        let path = journal_path(folder);
        let failed = || ProducerError::state(&path);
        let Some(mut records) = Records::open(&path).map_err(failed())? else { return Ok(None) };
        let mut story: Option<Self> = None;
        while let Some(payload) = records.next().map_err(failed())? {
            // A record this build cannot read comes from a later one: guessing on would be worse.
            let record = serde_json::from_slice(&payload)
                .map_err(|error| failed()(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
            match (&mut story, record) {
                (Some(story), record) => story.add(record),
                (None, Record::Manifest(manifest)) if wanted(&manifest) => story = Some(Self::new(*manifest)),
                (None, _) => return Ok(None),
            }
        }
        if let Some(story) = &mut story {
            story.valid_bytes = records.valid_bytes();
        }
        Ok(story)
    }

    /// How far a source was read.
    pub(crate) fn reached(&self, source: &SourceName) -> Reached {
        self.sources.get(source).copied().unwrap_or_else(Reached::nothing)
    }

    /// Whether the run was begun before.
    pub(crate) fn has_begun(&self) -> bool {
        self.valid_bytes > 0
    }

    fn add(&mut self, record: Record) {
        match record {
            Record::Manifest(_) => {}
            Record::Horizon { source, below } => self.reached_mut(source).horizon = below,
            Record::Confirmed { source, mark, ended } => {
                let reached = self.reached_mut(source);
                (reached.mark, reached.ended) = (mark, ended);
            }
            Record::Sealed(seal) => self.seal = Some(seal),
        }
    }

    fn reached_mut(&mut self, source: SourceName) -> &mut Reached {
        self.sources.entry(source).or_insert_with(Reached::nothing)
    }
}

/// The folder of the producers of a data folder.
pub(crate) fn producers_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("producer")
}

/// Removes what a producer keeps of a run, unless one is at work on it.
///
/// # Errors
/// A producer of the run is at work, or the folder cannot be removed.
pub fn forget(data_dir: &Path, run: &RunId) -> Result<(), ProducerError> {
    let path = producers_folder(data_dir).join(run.as_str());
    if !path.exists() {
        return Ok(());
    }
    let taken = RunFolder::take(data_dir, run)?;
    fs::remove_dir_all(taken.path()).map_err(ProducerError::state(&path))
}

fn journal_path(folder: &Path) -> PathBuf {
    folder.join("journal")
}

/// A run's folder, which no other process has while this one does.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Holds the lock; the kernel lets go of it when the process ends, however it does.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder if need be, and takes it for this process.
    pub(crate) fn take(data_dir: &Path, run: &RunId) -> Result<Self, ProducerError> {
        let path = producers_folder(data_dir).join(run.as_str());
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(ProducerError::state(&path))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(ProducerError::state(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(ProducerError::Busy(run.clone())),
            Err(TryLockError::Error(error)) => Err(ProducerError::state(&lock_path)(error)),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a source read from standard input is spooled.
    pub(crate) fn spool_path(&self, source: &SourceName) -> PathBuf {
        self.path.join(format!("spool-{source}"))
    }
}

/// A journal being written.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: RunFolder,
    path: PathBuf,
    file: Framed,
}

impl Journal {
    /// Opens the journal behind what `story` tells; for a run that begins, puts its manifest on the disk.
    pub(crate) fn open(folder: RunFolder, story: &Story) -> Result<Self, ProducerError> {
        let path = journal_path(folder.path());
        let file = Framed::open(&path, story.valid_bytes).map_err(ProducerError::state(&path))?;
        let journal = Self { folder, path, file };
        if !story.has_begun() {
            journal.append_safely(&Record::Manifest(Box::new(story.manifest.clone())))?;
            // The folder's entry and the journal's must survive the machine too.
            for folder in journal.folder.path().ancestors().take(2) {
                let synced = File::open(folder).and_then(|folder| folder.sync_all());
                synced.map_err(ProducerError::state(folder))?;
            }
        }
        Ok(journal)
    }

    /// Where the run's files are.
    pub(crate) fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Appends a record. It survives this process, but not yet the machine.
    pub(crate) fn append(&self, record: &Record) -> Result<(), ProducerError> {
        let written = serde_json::to_vec(record).map_err(std::io::Error::from);
        written.and_then(|json| self.file.append(&[&json])).map_err(ProducerError::state(&self.path))
    }

    /// Appends a record and returns once it, and all before it, are on the disk.
    pub(crate) fn append_safely(&self, record: &Record) -> Result<(), ProducerError> {
        self.append(record)?;
        self.file.sync().map_err(ProducerError::state(&self.path))
    }

    /// Records the sealing, and does away with the spools, which nothing needs any more.
    pub(crate) fn seal(&self, seal: &Seal) -> Result<(), ProducerError> {
        self.append_safely(&Record::Sealed(seal.clone()))?;
        for source in seal.sources.keys() {
            match fs::remove_file(self.folder.spool_path(source)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%source, %error, "cannot remove the spool of a sealed run");
                }
                _ => {}
            }
        }
        Ok(())
    }
}
