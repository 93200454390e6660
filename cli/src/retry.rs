//! `windrow retry`: items of an ended run that failed, or whose end is not known, as a run of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use windrow_collector::{FailureRow, Reader};
use windrow_common::ids::{JobName, RunId, SourceName};
use windrow_common::job::jq::JqFilter;
use windrow_common::job::{Job, SinkSpec};
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Ranges;
use windrow_common::telemetry::logging::LogFormat;
use windrow_producer::Retry;

use crate::args::{RetryArgs, RunArgs};
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
    let compile = |filter: &String| JqFilter::compile(filter);
    let filter = arguments.filter.as_ref().map(compile).transpose();
    let filter = filter.map_err(|error| Failure::usage(format!("--where: {error}")))?;
    let items = select(&reader, &of, filter.as_ref())?;
    drop(reader);
    if items.is_empty() {
        let what = if filter.is_some() { " for which --where is true" } else { "" };
        return Err(Failure::from(format!(
            "no item of run {of} failed or has an unknown end{what}; `windrow failures {of}` lists what did not succeed"
        )));
    }
    let job = match &arguments.job {
        Some(path) => path.clone(),
        None => beside(&data_dir, &report.job)?,
    };
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

fn select(
    reader: &Reader,
    run: &RunId,
    filter: Option<&JqFilter>,
) -> Result<BTreeMap<SourceName, Ranges>, Failure> {
    let mut items: BTreeMap<SourceName, Ranges> = BTreeMap::new();
    let mut after: Option<(SourceName, u64)> = None;
    loop {
        let rows = reader.failures(run, after.as_ref().map(|(source, index)| (source, *index)), PAGE)?;
        let Some(last) = rows.last() else { return Ok(items) };
        after = Some((last.source.clone(), last.index));
        for row in &rows {
            if is_wanted(row, filter)? {
                items.entry(row.source.clone()).or_default().push(row.index);
            }
        }
    }
}

fn is_wanted(row: &FailureRow, filter: Option<&JqFilter>) -> Result<bool, Failure> {
    if !matches!(row.outcome, Outcome::Failed | Outcome::Unknown) {
        return Ok(false);
    }
    let Some(filter) = filter else { return Ok(true) };
    let json = serde_json::to_vec(row)?;
    filter.run_truthy(&json, None).map_err(|error| Failure::usage(format!("--where: {error}")))
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
