//! What `windrow run` shows while it runs: a bar on a terminal, a line now and then elsewhere, events when
//! asked for, or nothing.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::output::{grouped, tell};

/// How often the bar, the lines and the events come.
pub(crate) const BAR_INTERVAL: Duration = Duration::from_millis(100);
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Items accepted so far.
    pub(crate) accepted: u64,
    /// Whether the sources have been read to the end, so that `accepted` is the total.
    pub(crate) sealed: bool,
    /// Items settled.
    pub(crate) settled: u64,
    /// Items failed.
    pub(crate) failed: u64,
    /// Attempts beyond one for each settled item.
    pub(crate) retries: u64,
    /// Rows rejected.
    pub(crate) rejected: u64,
}

/// Shows how far a run is.
#[derive(Debug)]
pub(crate) struct Display {
    mode: Mode,
    started: Instant,
    settled_at_start: Option<u64>,
    shown_at: Option<Instant>,
}

#[derive(Debug)]
enum Mode {
    Bar(ProgressBar),
    Lines,
    Events,
    Nothing,
}

impl Display {
    /// A display fit for where standard error goes, unless asked for another.
    pub(crate) fn new(quiet: bool, json: bool) -> Self {
        let mode = if json {
            Mode::Events
        } else if quiet {
            Mode::Nothing
        } else if std::io::stderr().is_terminal() {
            Mode::Bar(bar())
        } else {
            Mode::Lines
        };
        Self { mode, started: Instant::now(), settled_at_start: None, shown_at: None }
    }

    /// The bar, for log lines to be written above it.
    pub(crate) fn bar(&self) -> Option<ProgressBar> {
        if let Mode::Bar(bar) = &self.mode { Some(bar.clone()) } else { None }
    }

    /// Shows something said once.
    pub(crate) fn say(&self, event: &str, text: &str, fields: Value) {
        match &self.mode {
            Mode::Bar(bar) => bar.println(text),
            Mode::Lines => tell(text),
            Mode::Events => write_event(event, fields),
            Mode::Nothing => {}
        }
    }

    /// Shows how far the run is, if it is time to.
    pub(crate) fn update(&mut self, standing: Standing) {
        let settled_at_start = *self.settled_at_start.get_or_insert(standing.settled);
        let interval = match self.mode {
            Mode::Bar(_) => BAR_INTERVAL,
            Mode::Lines => LINE_INTERVAL,
            Mode::Events => EVENT_INTERVAL,
            Mode::Nothing => return,
        };
        let since = self.shown_at.unwrap_or(self.started);
        if since.elapsed() < interval {
            return;
        }
        self.shown_at = Some(Instant::now());
        let rate = rate(standing.settled - settled_at_start, self.started.elapsed());
        match &self.mode {
            Mode::Bar(bar) => draw(bar, standing, rate),
            Mode::Lines => tell(line(standing, rate)),
            Mode::Events => write_event("progress", fields(standing, rate)),
            Mode::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Mode::Bar(bar) = &self.mode {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The template is a constant; the default style shows the same numbers.
    let style =
        ProgressStyle::with_template("{bar:30} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    bar
}

fn draw(bar: &ProgressBar, standing: Standing, rate: f64) {
    bar.set_length(standing.accepted.max(1));
    bar.set_position(standing.settled);
    bar.set_message(line(standing, rate));
}

/// One line for people, such as `1,200 of 3,000 items  410/s  4 s left  2 failed  5 retries`.
pub(crate) fn line(standing: Standing, rate: f64) -> String {
    let more = if standing.sealed { "" } else { "+" };
    let mut parts = vec![
        format!("{} of {}{more} items", grouped(standing.settled), grouped(standing.accepted)),
        format!("{}/s", grouped(rate_rounded(rate))),
    ];
    if let Some(left) = seconds_left(standing, rate) {
        parts.push(format!("{} left", windrow_common::job::format_duration(left)));
    }
    for (count, what) in
        [(standing.failed, "failed"), (standing.retries, "retries"), (standing.rejected, "rejected")]
    {
        if count > 0 {
            parts.push(format!("{} {what}", grouped(count)));
        }
    }
    parts.join("  ")
}

fn fields(standing: Standing, rate: f64) -> Value {
    json!({
        "accepted": standing.accepted,
        "sealed": standing.sealed,
        "settled": standing.settled,
        "failed": standing.failed,
        "retries": standing.retries,
        "rejected": standing.rejected,
        "items_per_second": (rate * 10.0).round() / 10.0,
        "seconds_left": seconds_left(standing, rate).map(|left| left.as_secs()),
    })
}

/// Writes one event to standard output. A reader that went away ends nothing: the run goes on.
fn write_event(event: &str, fields: Value) {
    let mut object = json!({ "event": event });
    if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
        object.extend(fields);
    }
    drop(writeln!(std::io::stdout().lock(), "{object}"));
}

/// Only a sealed run has a total to be left of.
fn seconds_left(standing: Standing, rate: f64) -> Option<Duration> {
    let left = standing.accepted.saturating_sub(standing.settled) as f64 / rate;
    let left = Duration::try_from_secs_f64(left.ceil()).ok()?;
    standing.sealed.then_some(left)
}

fn rate(settled: u64, elapsed: Duration) -> f64 {
    settled as f64 / elapsed.as_secs_f64().max(0.001)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped just before")]
fn rate_rounded(rate: f64) -> u64 {
    rate.round().clamp(0.0, 1e12) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_what_went_wrong() {
        let standing =
            Standing { accepted: 3_000, sealed: true, settled: 1_200, failed: 2, retries: 5, rejected: 0 };
        assert_eq!(line(standing, 450.0), "1,200 of 3,000 items  450/s  4s left  2 failed  5 retries");
    }

    #[test]
    fn without_a_total_there_is_no_time_left() {
        let standing = Standing { accepted: 3_000, settled: 10, ..Standing::default() };
        assert_eq!(line(standing, 5.0), "10 of 3,000+ items  5/s");
    }
}
