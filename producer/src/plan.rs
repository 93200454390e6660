//! Before a run: what its sources are, and whether an unfinished run is taken up again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use windrow_common::envelope::completion::SourceProgress;
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{ProcessId, RunId, SourceName};
use windrow_common::job::{Job, SourcePath};
use windrow_common::ranges::Ranges;

use crate::chunker::{ChunkLimits, Mark};
use crate::error::ProducerError;
use crate::files::{SourceFile, expand};
use crate::journal::{RunFolder, Story, producers_folder};
use crate::manifest::{Manifest, SourceManifest, describe, fingerprint};
use crate::source::{Inputs, StandardInput};

/// What a producer is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The run's name. None: an unfinished run of the same job over the same sources is resumed, else one
    /// with a generated id begins.
    pub run: Option<RunId>,
    /// The root of the run's chain of retries; None: the run itself.
    pub root_run: Option<RunId>,
    /// Which items of which run to run again; None: a run of its own.
    pub retry: Option<Retry>,
    /// The data folder; the producer keeps its state in `producer/RUN/` below it.
    pub data_dir: PathBuf,
    /// Read this many items at most, over all sources.
    pub first: Option<u64>,
    /// Publish all of it once more, as copies of this hop: consumers ask about each, and run what has not settled. It
    /// must be higher than any hop the run has seen.
    pub resend: Option<u32>,
    /// When a run that begins is said to have begun, in Unix milliseconds.
    pub started_at: u64,
    /// What the caller knows of runs, from a ledger. One that has ended is never resumed; one that was
    /// sealed is resumed only if it is here and has not ended.
    pub states: BTreeMap<RunId, RunState>,
}

/// Some items of a run, to be run again under their old indexes.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The run.
    pub of: RunId,
    /// The items, by source.
    pub items: BTreeMap<SourceName, Ranges>,
}

/// A run about to begin or to go on. While it exists no other process can produce the run.
#[derive(Debug)]
pub struct Plan {
    pub(crate) story: Story,
    pub(crate) folder: RunFolder,
    pub(crate) inputs: Vec<Inputs>,
    pub(crate) producer: ProcessId,
    pub(crate) resend: Option<u32>,
}

/// Finds the files of the job's sources, reads them through for their fingerprint, and decides which run
/// this is. Publishes nothing. It blocks for as long as reading all source files takes.
///
/// # Errors
/// Sources that are not there or cannot be read; several runs that could be resumed, or one that was begun
/// with something else; a run that has ended, or that another process is producing; a run to be retried whose sources
/// are not what they were.
pub fn plan(job: &Job, options: &Options) -> Result<Plan, ProducerError> {
    let inputs = survey(job)?;
    let wanted = wanted(job, options, &inputs);
    if let Some(retry) = &options.retry {
        refuse_other_sources(&retry.of, options, &wanted)?;
    }
    let run = match &options.run {
        Some(run) => Some(run.clone()),
        None => find_unfinished(&wanted, options)?,
    };
    let (folder, story) = take(wanted, options, run)?;
    Ok(Plan { story, folder, inputs, producer: ProcessId::generate(), resend: options.resend })
}

impl Plan {
    /// The run.
    pub fn run(&self) -> &RunId {
        &self.story.manifest.run
    }

    /// Whether the run was begun before.
    pub fn is_resumed(&self) -> bool {
        self.story.has_begun()
    }

    /// Whether the run was sealed before: there is nothing left to publish.
    pub fn is_sealed(&self) -> bool {
        self.story.seal.is_some()
    }

    /// What was published and confirmed before, by source.
    pub fn confirmed(&self) -> BTreeMap<SourceName, SourceProgress> {
        let sources = self.story.manifest.sources.iter();
        sources.map(|source| (source.name.clone(), self.story.reached(&source.name).mark.into())).collect()
    }

    /// What tells this run's items from those of another reading of its sources.
    pub fn fingerprint(&self) -> &str {
        &self.story.manifest.fingerprint
    }

    /// The process id this producer goes by on the wire.
    pub fn producer(&self) -> &ProcessId {
        &self.producer
    }

    /// Bytes of all source files as they are on disk. None when standard input is among the sources.
    pub fn total_bytes(&self) -> Option<u64> {
        let mut total = 0;
        for input in &self.inputs {
            match input {
                Inputs::Files(files) => total += files.iter().map(|file| file.bytes).sum::<u64>(),
                Inputs::StandardInput(_) => return None,
            }
        }
        Some(total)
    }

    /// Reads `reader` where the job says `-`, in place of the process's standard input.
    #[must_use]
    pub fn with_standard_input(mut self, reader: Box<dyn Read + Send>) -> Self {
        for input in &mut self.inputs {
            if let Inputs::StandardInput(stream) = input {
                *stream = Some(StandardInput::from_reader(reader));
                break;
            }
        }
        self
    }
}

impl From<Mark> for SourceProgress {
    fn from(mark: Mark) -> Self {
        Self { accepted: mark.accepted(), chunks: mark.ordinal, rejected: mark.rejected }
    }
}

/// The bytes of each source.
pub(crate) fn survey(job: &Job) -> Result<Vec<Inputs>, ProducerError> {
    let mut piped: Option<&SourceName> = None;
    let mut inputs = Vec::with_capacity(job.sources.len());
    for source in &job.sources {
        inputs.push(match &source.path {
            SourcePath::StandardInput => {
                if let Some(other) = piped.replace(&source.name) {
                    return Err(ProducerError::StandardInputTwice(other.clone(), source.name.clone()));
                }
                Inputs::StandardInput(Some(StandardInput::of_process()))
            }
            SourcePath::Files(pattern) => {
                let paths = expand(pattern, job.folder())?;
                let files = paths.into_iter().map(|path| SourceFile::fingerprint(path, job.folder()));
                Inputs::Files(files.collect::<Result<_, _>>()?)
            }
        });
    }
    Ok(inputs)
}

/// The manifest of the run that is asked for, were it to begin now.
fn wanted(job: &Job, options: &Options, inputs: &[Inputs]) -> Manifest {
    let sources: Vec<SourceManifest> = job
        .sources
        .iter()
        .zip(inputs)
        .map(|(source, inputs)| SourceManifest {
            name: source.name.clone(),
            format: describe(&source.kind),
            files: match inputs {
                Inputs::Files(files) => Some(files.iter().map(Into::into).collect()),
                Inputs::StandardInput(_) => None,
            },
        })
        .collect();
    let run = options.run.clone().unwrap_or_else(RunId::generate);
    let only = options.retry.as_ref().map(|retry| retry.items.clone());
    Manifest {
        root_run: options.root_run.clone().unwrap_or_else(|| run.clone()),
        run,
        job: job.name.clone(),
        hash: job.hash.clone(),
        fingerprint: fingerprint(&sources, options.first, only.as_ref()),
        chunk: ChunkLimits { items: job.chunk.items, bytes: job.chunk.bytes },
        sources,
        first: options.first,
        only,
        started_at: options.started_at,
    }
}

/// An item of a retry is what it was in the run that is retried.
fn refuse_other_sources(run: &RunId, options: &Options, wanted: &Manifest) -> Result<(), ProducerError> {
    let folder = producers_folder(&options.data_dir).join(run.as_str());
    let Some(story) = Story::read(&folder)? else { return Err(ProducerError::NotHere(run.clone())) };
    if !story.manifest.is_replayable() {
        return Err(ProducerError::NotKept(run.clone()));
    }
    let changes = story.manifest.source_changes(wanted);
    if changes.is_empty() { Ok(()) } else { Err(ProducerError::OtherItems { run: run.clone(), changes }) }
}

/// Takes the run of this name, begun before or not; none: a new one.
fn take(
    wanted: Manifest,
    options: &Options,
    run: Option<RunId>,
) -> Result<(RunFolder, Story), ProducerError> {
    let run = run.unwrap_or_else(|| wanted.run.clone());
    let folder = RunFolder::take(&options.data_dir, &run)?;
    if options.states.get(&run).is_some_and(|state| state.is_ended()) {
        return Err(ProducerError::Ended(run));
    }
    let Some(story) = Story::read(folder.path())? else { return Ok((folder, Story::new(wanted))) };
    let changes = story.manifest.changes(&wanted);
    if changes.is_empty() { Ok((folder, story)) } else { Err(ProducerError::Changed { run, changes }) }
}

/// The one run that the same command began before and that is not finished.
fn find_unfinished(wanted: &Manifest, options: &Options) -> Result<Option<RunId>, ProducerError> {
    if !wanted.is_replayable() {
        return Ok(None);
    }
    let is_same = |other: &Manifest| {
        (&other.job, &other.hash, &other.fingerprint) == (&wanted.job, &wanted.hash, &wanted.fingerprint)
    };
    let mut unfinished = Vec::new();
    for folder in run_folders(&options.data_dir)? {
        let Some(story) = Story::read_if(&folder, is_same)? else { continue };
        let run = story.manifest.run;
        let is_unfinished = match options.states.get(&run) {
            Some(state) => !state.is_ended(),
            None => story.seal.is_none(),
        };
        if is_unfinished {
            unfinished.push(run);
        }
    }
    unfinished.sort();
    match unfinished.len() {
        0 | 1 => Ok(unfinished.pop()),
        _ => Err(ProducerError::Ambiguous(unfinished)),
    }
}

fn run_folders(data_dir: &Path) -> Result<Vec<PathBuf>, ProducerError> {
    let producers = producers_folder(data_dir);
    let entries = match fs::read_dir(&producers) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(ProducerError::state(&producers))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(ProducerError::state(&producers))).collect()
}
