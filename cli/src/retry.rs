//! `windrow retry`: items of an ended run that failed or, when asked for, whose end is not known, as a run of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use windrow_collector::{FailureRow, Reader};
use windrow_common::ids::{JobName, RunId, SourceName};
use windrow_common::job::jq::JqFilter;
use windrow_common::job::{Effect, Job, SinkSpec};
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Ranges;
use windrow_common::telemetry::logging::LogFormat;
use windrow_producer::Retry;

use crate::args::{RetryArgs, RunArgs};
use crate::job_file::load;
use crate::output::{counted, tell};
use crate::run::summary::quoted_text;
use crate::{Failure, run};

/// Rows read at a time.
const PAGE: usize = 1_000;

/// What is run again, and how.
pub(crate) struct Again {
    /// The items, and whose they are.
    pub(crate) retry: Retry,
    /// The run at the root of the chain: its idempotency keys hold.
    pub(crate) root_run: RunId,
    /// The job of the run.
    job: JobName,
    /// The command that goes on with it, for a shell.
    pub(crate) command: String,
}

/// Runs them.
pub(crate) async fn retry(arguments: RetryArgs, log_format: LogFormat) -> Result<(), Failure> {
    let data_dir = arguments.data.data_dir.clone();
    let reader = Reader::open(&data_dir)?;
    let of = reader.resolve(Some(&arguments.run))?;
    let report = reader.report(&of)?;
    if !report.state.is_ended() {
        return Err(Failure::from(format!(
            "run {of} has not ended ({}); its items can be run again once it has",
            report.state.as_str()
        )));
    }
    let job = match &arguments.job {
        Some(path) => path.clone(),
        None => beside(&data_dir, &report.job)?,
    };
    let choice = Choice::new(arguments.filter.as_deref())?;
    let selected = select(&reader, &of, &choice)?;
    let mut items = selected.items;
    if load(&job)?.stages.iter().any(|stage| stage.effect == Effect::AtMostOnce) {
        leave_to_later_retries(&reader, &of, &report.root_run, &mut items)?;
    }
    drop(reader);
    if items.values().all(Ranges::is_empty) {
        return Err(nothing_to_run(&of, &choice, selected.unknown));
    }
    if selected.unknown > 0 {
        tell(left_out(selected.unknown));
    }
    let command = same_command(&arguments, &of);
    let again =
        Again { retry: Retry { of, items }, root_run: report.root_run, job: report.job.clone(), command };
    let arguments = RunArgs { job, run: None, data_dir: Some(data_dir), first: None, here: arguments.here };
    run::run(arguments, Some(again), log_format).await
}

impl Again {
    /// How many items that are.
    pub(crate) fn count(&self) -> u64 {
        self.retry.items.values().map(Ranges::len).sum()
    }

    /// Makes a job file serve the retry: its lines go to a file of their own.
    pub(crate) fn fit(&self, job: &mut Job) -> Result<(), Failure> {
        if job.name != self.job {
            return Err(Failure::usage(format!(
                "{} is of job `{}`, and run {} of job `{}`",
                job.path.display(),
                job.name,
                self.retry.of,
                self.job
            )));
        }
        if let SinkSpec::Jsonl(file) = &mut job.sink {
            file.path = beside_sink(&file.path, &self.retry.of);
        }
        Ok(())
    }
}

/// `out.retry-RUN.jsonl` for `out.jsonl`.
fn beside_sink(path: &Path, of: &RunId) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(format!(".retry-{of}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Which items are run again.
struct Choice {
    filter: Option<JqFilter>,
    /// Whether the filter speaks of items with an unknown end. They may have been done: they are run again only when asked
    /// for by name.
    names_unknown: bool,
}

/// What was chosen.
#[derive(Default)]
struct Selected {
    items: BTreeMap<SourceName, Ranges>,
    /// How many items with an unknown end were left out only because they were not asked for by name.
    unknown: u64,
}

impl Choice {
    fn new(filter: Option<&str>) -> Result<Self, Failure> {
        let compiled = filter.map(JqFilter::compile).transpose();
        Ok(Self {
            filter: compiled.map_err(|error| Failure::usage(format!("--where: {error}")))?,
            names_unknown: filter.is_some_and(|filter| filter.contains("\"unknown\"")),
        })
    }

    fn takes(&self, row: &FailureRow) -> Result<bool, Failure> {
        if !matches!(row.outcome, Outcome::Failed | Outcome::Unknown) {
            return Ok(false);
        }
        let Some(filter) = &self.filter else { return Ok(true) };
        let json = serde_json::to_vec(row)?;
        filter.run_truthy(&json, None).map_err(|error| Failure::usage(format!("--where: {error}")))
    }
}

fn select(reader: &Reader, run: &RunId, choice: &Choice) -> Result<Selected, Failure> {
    let mut selected = Selected::default();
    let mut after: Option<(SourceName, u64)> = None;
    loop {
        let rows = reader.failures(run, after.as_ref().map(|(source, index)| (source, *index)), PAGE)?;
        let Some(last) = rows.last() else { return Ok(selected) };
        after = Some((last.source.clone(), last.index));
        for row in &rows {
            if !choice.takes(row)? {
                continue;
            }
            if row.outcome == Outcome::Unknown && !choice.names_unknown {
                selected.unknown += 1;
            } else {
                selected.items.entry(row.source.clone()).or_default().push(row.index);
            }
        }
    }
}

/// Where the effect must not repeat: an item that a later run of the chain has run again, and ended, is that run's.
fn leave_to_later_retries(
    reader: &Reader,
    of: &RunId,
    root_run: &RunId,
    items: &mut BTreeMap<SourceName, Ranges>,
) -> Result<(), Failure> {
    // Newest first.
    let later = reader.runs()?.into_iter().take_while(|report| report.run != *of);
    for report in later.filter(|report| report.root_run == *root_run && report.state.is_ended()) {
        for (source, carried) in reader.carried(&report.run)? {
            if let Some(items) = items.get_mut(&source) {
                *items = items.filter(|index| !carried.contains(index));
            }
        }
    }
    Ok(())
}

fn nothing_to_run(run: &RunId, choice: &Choice, unknown: u64) -> Failure {
    let what = if choice.filter.is_some() { " for which --where is true" } else { "" };
    let what = format!("no item of run {run} is to be run again{what}");
    Failure::from(if unknown > 0 {
        format!("{what}; {}", left_out(unknown))
    } else {
        format!(
            "{what}: none failed, or all were run again by a later retry; `windrow failures {run}` lists what did not succeed"
        )
    })
}

fn left_out(unknown: u64) -> String {
    format!(
        "{} with an unknown end left alone, since what they do may have been done; to run them again all the same, name \
         them: --where '.outcome == \"unknown\"'",
        counted(unknown, "item")
    )
}

/// The one job file of this name beside the data folder.
fn beside(data_dir: &Path, name: &JobName) -> Result<PathBuf, Failure> {
    let data_dir = std::path::absolute(data_dir)?;
    let folder = data_dir.parent().unwrap_or(&data_dir);
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        let is_toml = path.extension().is_some_and(|extension| extension == "toml");
        if is_toml && Job::load(&path).is_ok_and(|job| job.name == *name) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::usage(format!(
            "no sound job file in {} has the name `{name}`; name it with --job",
            folder.display()
        ))),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Failure::usage(format!(
                "several job files have the name `{name}`: {}; choose one with --job",
                names.join(", ")
            )))
        }
    }
}

/// The command that goes on, for a shell. A broker's address, which may hold a password, is not in it.
fn same_command(arguments: &RetryArgs, of: &RunId) -> String {
    let quoted = |path: &Path| quoted_text(path.display().to_string());
    let mut words = vec![format!("windrow retry {of} --data-dir {}", quoted(&arguments.data.data_dir))];
    words.extend(arguments.filter.iter().map(|filter| format!("--where {}", quoted_text(filter.clone()))));
    words.extend(arguments.job.iter().map(|job| format!("--job {}", quoted(job))));
    if arguments.here.broker.is_some() {
        words.push("--broker ... (as before)".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_retry_go_beside_the_sinks_file() {
        let run = "r1".parse().unwrap();
        for (path, beside) in [
            ("out/contacts.jsonl", "out/contacts.retry-r1.jsonl"),
            ("out", "out.retry-r1"),
            ("/a.b/c.d.jsonl", "/a.b/c.d.retry-r1.jsonl"),
        ] {
            assert_eq!(beside_sink(Path::new(path), &run), Path::new(beside));
        }
    }
}
