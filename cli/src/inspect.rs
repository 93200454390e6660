//! `windrow status`, `failures` and `report`: what the ledger of a data folder says, also while a run is live.

use windrow_collector::{FailureRow, Report};
use windrow_common::envelope::completion::ItemError;
use windrow_common::outcome::Outcome;

use crate::Failure;
use crate::args::{FailuresArgs, ReportArgs, StatusArgs};
use crate::output::{counted, print, tell};

/// One line for each run, or several for one.
pub(crate) fn status(arguments: &StatusArgs) -> Result<(), Failure> {
    let reader = arguments.kept.reader()?;
    let reports = match &arguments.run {
        None => reader.runs()?,
        Some(name) => vec![reader.report(&reader.resolve(Some(name))?)?],
    };
    if arguments.json {
        return print_json(&reports);
    }
    if arguments.run.is_some() {
        return reports.iter().try_for_each(|report| print(one(report)));
    }
    print(table(&reports))
}

/// What did not succeed, and why.
pub(crate) fn failures(arguments: &FailuresArgs) -> Result<(), Failure> {
    let reader = arguments.kept.reader()?;
    let run = reader.resolve(arguments.run.as_deref())?;
    let rows = reader.failures(&run, None, arguments.limit)?;
    for row in &rows {
        print(if arguments.json { serde_json::to_string(row)? } else { failure(row) })?;
    }
    let report = reader.report(&run)?;
    let all = report.outcomes.settled() - report.outcomes.succeeded - report.outcomes.skipped;
    if !arguments.json {
        tell(match all {
            0 => format!("no item of run {run} has failed"),
            all => format!("{} of {all} items of run {run} that did not succeed", rows.len()),
        });
    }
    Ok(())
}

/// The report, as `report.json` has it.
pub(crate) fn report(arguments: &ReportArgs) -> Result<(), Failure> {
    let reader = arguments.kept.reader()?;
    let run = reader.resolve(arguments.run.as_deref())?;
    print_json(&reader.report(&run)?)
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(serde_json::to_string_pretty(value)?)
}

fn table(reports: &[Report]) -> String {
    let heading = format!(
        "{:<36}  {:<20} {:<24} {:>12} {:>12} {:>8}  STARTED",
        "RUN", "JOB", "STATE", "ACCEPTED", "SETTLED", "FAILED"
    );
    let row = |report: &Report| {
        format!(
            "{:<36}  {:<20} {:<24} {:>12} {:>12} {:>8}  {:.0}",
            report.run.as_str(),
            report.job.as_str(),
            state(report),
            report.accepted,
            report.outcomes.settled(),
            report.outcomes.failed,
            report.started_at,
        )
    };
    let lines: Vec<String> = std::iter::once(heading).chain(reports.iter().map(row)).collect();
    lines.join("\n")
}

/// A run in several lines.
pub(crate) fn one(report: &Report) -> String {
    let mut lines = vec![
        format!("run       {} of {}", report.run, report.job),
        format!("state     {}", state(report)),
        format!("accepted  {}{}", report.accepted, if report.sealed { "" } else { " so far" }),
    ];
    for outcome in Outcome::ALL {
        lines.push(format!("{:<9} {}", outcome.as_str(), report.outcomes.of(outcome)));
    }
    lines.extend([
        format!("open      {} ({} waiting for their next attempt)", report.open, report.waiting),
        format!("rejected  {}", report.rejected),
        format!(
            "copies    {} duplicates, {} conflicts, {} late",
            report.duplicates, report.conflicts, report.late
        ),
        format!(
            "calls     {} attempts, {} throttles, {} holds",
            report.attempts, report.throttles, report.holds
        ),
        format!("chunks    {} of {} settled", report.settled_chunks, report.chunks),
        format!("speed     {:.1} items/s", report.items_per_second),
    ]);
    lines.extend(notes(report).into_iter().map(|note| format!("note      {note}")));
    lines.join("\n")
}

/// What there is to say about how a run went, each thing once.
pub(crate) fn notes(report: &Report) -> Vec<&str> {
    let all = [&report.stop_reason, &report.source_error, &report.sink_error, &report.balance_error];
    let mut notes: Vec<&str> = all.into_iter().flatten().map(String::as_str).collect();
    notes.dedup();
    notes
}

fn state(report: &Report) -> String {
    let stopping = report.stopping && !report.state.is_ended();
    if stopping { format!("{} (stopping)", report.state.as_str()) } else { report.state.as_str().to_owned() }
}

fn failure(row: &FailureRow) -> String {
    let error: ItemError = serde_json::from_str(row.error.get()).unwrap_or_default();
    let id = row.id.as_ref().map_or(String::new(), |id| format!(" ({id})"));
    format!(
        "{} {}{id}  {}  after {}  {}: {}",
        row.source,
        row.index,
        row.outcome.as_str(),
        counted(row.attempts.into(), "attempt"),
        error.class,
        error.message
    )
}
