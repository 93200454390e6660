//! What `windrow run` says at its end.

use std::path::Path;

use serde_json::{Value, json};
use windrow_collector::{Reader, Report, run_folder};
use windrow_common::envelope::completion::ItemError;
use windrow_common::envelope::control::RunState;
use windrow_common::ids::RunId;
use windrow_common::outcome::Outcome;

use super::Setting;
use super::progress::Display;
use crate::args::RunArgs;
use crate::inspect::notes;
use crate::output::{counted, grouped};

/// Failures shown at the end; `windrow failures` lists all.
const FAILURES_SHOWN: usize = 3;

/// Says how the run ended, where its results are, and what failed first.
pub(super) fn ended(display: &Display, setting: &Setting, report: &Report) {
    let mut lines = vec![balance(report)];
    if let Some(path) = setting.job.sink_path(setting.job.folder()) {
        lines.push(format!("results   {}", path.display()));
    }
    lines.push(format!(
        "report    {}",
        run_folder(&setting.data_dir, &report.run).join("report.json").display()
    ));
    if report.rejected > 0 {
        let file = run_folder(&setting.data_dir, &report.run).join("rejected.jsonl");
        lines.push(format!("rejected  {}", file.display()));
    }
    lines.extend(notes(report).into_iter().map(|note| format!("because   {note}")));
    if report.outcomes.failed + report.outcomes.unknown + report.outcomes.expired > 0 {
        lines.extend(first_failures(setting, &report.run));
        lines.push(format!(
            "all       windrow failures {} --data-dir {}",
            report.run,
            quoted(&setting.data_dir)
        ));
    }
    // A report is text, numbers and maps with text keys: it always becomes JSON.
    let fields = serde_json::to_value(report).unwrap_or(Value::Null);
    display.say("finished", &lines.join("\n"), fields);
}

/// Says that somebody has paused, resumed or cancelled the run.
pub(super) fn moved(display: &Display, setting: &Setting, run: &RunId, state: RunState) {
    let text = match state {
        RunState::Paused => {
            format!("paused; go on with: windrow resume {run} --data-dir {}", quoted(&setting.data_dir))
        }
        RunState::Running => "resumed".to_owned(),
        RunState::Cancelling => "cancelling: items that run come to their end".to_owned(),
        // `ended` tells.
        _ => return,
    };
    display.say(state.as_str(), &text, json!({ "run": run }));
}

/// Says how far an interrupted run came, and how to go on.
pub(super) fn interrupted(display: &Display, setting: &Setting, run: &RunId, report: Option<&Report>) {
    let settled = report.map_or(0, |report| report.outcomes.settled());
    let text = format!(
        "interrupted with {} settled; nothing is lost. Go on with: {}",
        counted(settled, "item"),
        setting
            .again
            .as_ref()
            .map_or_else(|| same_command(&setting.arguments, run), |again| again.command.clone()),
    );
    display.say("resumable", &text, json!({ "run": run, "settled": settled }));
}

/// The command that goes on with the run, for a shell. A broker's address, which may hold a password, is not in it.
fn same_command(arguments: &RunArgs, run: &RunId) -> String {
    let mut words = vec![format!("windrow run {} --run {run}", quoted(&arguments.job))];
    words.extend(arguments.data_dir.iter().map(|folder| format!("--data-dir {}", quoted(folder))));
    words.extend(arguments.first.map(|first| format!("--first {first}")));
    if arguments.here.broker.is_some() {
        words.push("--broker ... (as before)".to_owned());
    }
    words.join(" ")
}

/// A path as one word of a shell's command.
fn quoted(path: &Path) -> String {
    quoted_text(path.display().to_string())
}

/// A text as one word of a shell's command.
pub(crate) fn quoted_text(text: String) -> String {
    if text.chars().all(|c| c.is_alphanumeric() || "/._-+@%:,".contains(c)) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `completed: 3,376 accepted = 3,364 succeeded + 12 skipped, in 1.2s`.
fn balance(report: &Report) -> String {
    let parts: Vec<String> = Outcome::ALL
        .into_iter()
        .map(|outcome| (report.outcomes.of(outcome), outcome))
        .filter(|(count, outcome)| *count > 0 || *outcome == Outcome::Succeeded)
        .map(|(count, outcome)| format!("{} {outcome}", grouped(count)))
        .collect();
    let mut parts = vec![format!(
        "{}: {} accepted = {}",
        report.state.as_str().replace('_', " "),
        grouped(report.accepted),
        parts.join(" + ")
    )];
    if report.rejected > 0 {
        parts.push(format!("{} rejected", counted(report.rejected, "row")));
    }
    if let Some(finished_at) = report.finished_at {
        let seconds = finished_at.duration_since(report.started_at).as_secs_f64();
        parts.push(format!("{seconds:.1} s, {:.0} items/s", report.items_per_second));
    }
    parts.join("; ")
}

fn first_failures(setting: &Setting, run: &RunId) -> Vec<String> {
    let rows = Reader::open(&setting.data_dir).and_then(|reader| reader.failures(run, None, FAILURES_SHOWN));
    let line = |row: windrow_collector::FailureRow| {
        let error: ItemError = serde_json::from_str(row.error.get()).unwrap_or_default();
        let name = row.id.unwrap_or_else(|| format!("item {}", row.index));
        format!("{:<9} {name}: {}: {}", row.outcome.as_str(), error.class, error.message)
    };
    rows.unwrap_or_default().into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_a_shell() {
        for (path, word) in [
            ("jobs/a-1.toml", "jobs/a-1.toml"),
            ("kept here", "'kept here'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }
}
