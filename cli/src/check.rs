//! `windrow check`: every problem of a job file, or its plan. Nothing is sent.

use std::sync::Arc;

use serde_json::{Value, json};
use windrow_common::ids::RunId;
use windrow_common::job::{IfExists, Job, SinkSpec, format_bytes, format_duration};
use windrow_consumer::processor::{Destinations, Item, Stage, StageContext};
use windrow_producer::{Preview, PreviewItem, preview};

use crate::Failure;
use crate::args::CheckArgs;
use crate::job_file::load;
use crate::output::{counted, print};

/// Checks a job file, reads its sources, and shows what would be done for the first items.
pub(crate) fn check(arguments: &CheckArgs) -> Result<(), Failure> {
    let job = load(&arguments.job)?;
    let preview = preview(&job, arguments.show)?;
    let stages = described(&job, &preview.items)?;
    let missing: Vec<String> = job
        .missing_variables(&|name| std::env::var(name).ok())
        .into_iter()
        .map(|(stage, variable)| format!("stage `{stage}`: {variable}"))
        .collect();
    if arguments.json {
        print(serde_json::to_string_pretty(&as_json(&job, &preview, &stages, &missing))?)?;
    } else {
        print(as_text(&job, &preview, &stages, &missing))?;
    }
    if preview.errors.is_empty() { Ok(()) } else { Err(Failure::from(preview.errors.join("\n"))) }
}

/// What would be done for an item: its index, and a description or what would fail it.
type Described = (u64, Result<String, String>);

/// What the first stage would do. Variables are shown by their names.
fn described(job: &Job, items: &[PreviewItem]) -> Result<Vec<Described>, Failure> {
    let by_name = |name: &str| Some(format!("${{{name}}}"));
    let Some(spec) = job.stages.first() else { return Ok(Vec::new()) };
    let stage = Stage::build(spec, &Destinations::of_jobs([job]), &by_name)?;
    let run: RunId = "check".parse()?;
    let describe = |item: &PreviewItem| {
        let context = StageContext {
            run: run.clone(),
            root_run: run.clone(),
            job: job.name.clone(),
            stage: spec.name.clone(),
            source: item.source.clone(),
        };
        let item = Item { raw: item.json.clone(), index: item.index, attempt: 1, context: Arc::new(context) };
        let described = stage.describe(&item).map_err(|error| format!("{}: {}", error.class, error.message));
        (item.index, described)
    };
    Ok(items.iter().map(describe).collect())
}

fn as_text(job: &Job, preview: &Preview, described: &[Described], missing: &[String]) -> String {
    let mut lines = vec![format!("job      {} (hash {})", job.name, job.hash)];
    for (name, counts) in &preview.sources {
        lines.push(format!(
            "source   {name}: {} in {} of at most {} items or {}; {} rejected",
            counted(counts.accepted, "item"),
            counted(counts.chunks, "chunk"),
            job.chunk.items,
            format_bytes(job.chunk.bytes),
            counted(counts.rejected, "row"),
        ));
    }
    for name in &preview.unread {
        lines.push(format!("source   {name}: standard input, read only by a run"));
    }
    for reject in &preview.rejects {
        lines.push(format!("reject   {}:{}: {}", reject.file, reject.line, reject.reason));
    }
    for stage in &job.stages {
        lines.push(format!(
            "stage    {}: {} at once, {} an attempt, {} retries",
            stage.name,
            stage.concurrency,
            format_duration(stage.timeout),
            stage.retry.count,
        ));
    }
    lines.push(sink(job));
    lines.extend(missing.iter().map(|variable| format!("missing  {variable}; set it before a run")));
    for (index, described) in described {
        lines.push(match described {
            Ok(text) => format!("\nitem {index} would\n{}", indented(text)),
            Err(error) => format!("\nitem {index} would fail: {error}"),
        });
    }
    lines.join("\n")
}

/// Where results go, and what a run does to what is there.
fn sink(job: &Job) -> String {
    let (SinkSpec::Jsonl(file), Some(path)) = (&job.sink, job.sink_path(job.folder())) else {
        return "sink     none".to_owned();
    };
    let there = match file.if_exists {
        _ if !path.exists() => "",
        IfExists::Error => " (is there: a new run is refused until it is moved, or if_exists set)",
        IfExists::Replace => " (is there: a new run replaces it)",
        IfExists::Append => " (is there: a new run appends to it)",
    };
    format!("sink     {}{there}", path.display())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn as_json(job: &Job, preview: &Preview, described: &[Described], missing: &[String]) -> Value {
    let items: Vec<Value> = described
        .iter()
        .map(|(index, described)| match described {
            Ok(text) => json!({ "item": index, "would": text }),
            Err(error) => json!({ "item": index, "error": error }),
        })
        .collect();
    json!({
        "job": job.name,
        "hash": job.hash,
        "sources": preview.sources,
        "unread": preview.unread,
        "rejects": preview.rejects,
        "errors": preview.errors,
        "missing": missing,
        "items": items,
    })
}
