//! What ends a producer without sealing its run.

use std::io;
use std::path::{Path, PathBuf};

use windrow_common::broker::BrokerError;
use windrow_common::ids::{JobName, RunId, SourceName};

use crate::patience::is_full;

/// What ends a producer without sealing its run. Nothing is lost by any of them: with the cause removed,
/// the same command goes on where this one stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    /// A source's path stands for no file: the path, and why.
    #[error("source path `{0}`: {1}")]
    NoFiles(String, String),
    /// A source's file cannot be read.
    #[error("cannot read {0}: {1}")]
    Unreadable(String, #[source] io::Error),
    /// Two sources want standard input.
    #[error("sources `{0}` and `{1}` both read standard input; only one can")]
    StandardInputTwice(SourceName, SourceName),
    /// Several runs could be resumed.
    #[error(
        "several unfinished runs of this job over the same sources could be resumed: {}; choose one with --run NAME, or begin another with a new name", list(.0)
    )]
    Ambiguous(Vec<RunId>),
    /// The run that was named, or found, was begun with something else.
    #[error(
        "run `{run}` is unfinished and cannot be resumed, because this has changed since it began:\n  {}\nPut it back to resume the run, or begin another with --run and a new name", changes.join("\n  ")
    )]
    Changed {
        /// The run.
        run: RunId,
        /// What has changed, a line each: what, what it was, what it is.
        changes: Vec<String>,
    },
    /// A run to be retried was produced elsewhere.
    #[error(
        "run `{0}` was not produced from this data folder, so what its items were is not known here; retry it where \
         it was run"
    )]
    NotHere(RunId),
    /// A run to be retried read standard input.
    #[error(
        "run `{0}` read standard input, which is not kept once it is read; run the failed items as a new run"
    )]
    NotKept(RunId),
    /// The sources of a run to be retried have changed.
    #[error(
        "the items of run `{run}` cannot be run again, because its sources have changed since:\n  {}\nPut them back, or run them as a new run", changes.join("\n  ")
    )]
    OtherItems {
        /// The run.
        run: RunId,
        /// What has changed, a line each.
        changes: Vec<String>,
    },
    /// The run has ended.
    #[error("run `{0}` has ended; choose another name with --run")]
    Ended(RunId),
    /// Another process is producing the run.
    #[error(
        "another process is producing run `{0}` right now; wait for it, or begin another run with --run and a new name"
    )]
    Busy(RunId),
    /// The producer's own files cannot be written or read.
    #[error("cannot keep the producer's state in {}: {error}{}", path.display(), remedy(error))]
    State {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        error: io::Error,
    },
    /// Standard input is not what it was when the run began.
    #[error(
        "standard input differs from what run `{run}` read before, at item {index} of source `{source_name}`; pipe in the same data, or begin another run with --run and a new name"
    )]
    InputDiffers {
        /// The run.
        run: RunId,
        /// The source.
        source_name: SourceName,
        /// The first item that differs, or comes behind what was piped in.
        index: u64,
    },
    /// The job has no stage to publish for.
    #[error("job `{0}` has no stage; give it a [[stage]]")]
    NoStage(JobName),
    /// The broker refuses, or is closed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The reading thread could not be started, or ended without a word: a defect.
    #[error("the reading thread failed: {0}")]
    Reader(String),
}

impl ProducerError {
    pub(crate) fn state(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |error| Self::State { path: path.to_owned(), error }
    }
}

fn list(runs: &[RunId]) -> String {
    runs.iter().map(RunId::as_str).collect::<Vec<_>>().join(", ")
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_full(error) => {
            "; free some space there and give the same command again: the run goes on where it stopped"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make it writable, or name another folder with --data-dir"
        }
        _ => "",
    }
}
