//! What a run's report says: one shape for `report.json`, the progress bar and `windrow status`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use windrow_common::envelope::completion::Latencies;
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{JobName, RunId, StageName};
use windrow_common::outcome::OutcomeCounts;

use crate::ledger::{RunRecord, SinkRecord};

/// A run's account. `accepted` is the sum of the outcomes and `open`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The run.
    pub run: RunId,
    /// The root of its chain of retries; itself otherwise.
    pub root_run: RunId,
    /// The job.
    pub job: JobName,
    /// The state.
    pub state: RunState,
    /// Whether the run is being stopped: what is open will be cancelled.
    pub stopping: bool,
    /// Whether the sources have been read to the end and the totals are final.
    pub sealed: bool,
    /// When the producer opened it.
    #[serde(serialize_with = "as_text")]
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(serialize_with = "as_optional_text")]
    pub finished_at: Option<Timestamp>,
    /// Items accepted so far.
    pub accepted: u64,
    /// How the settled ones ended.
    #[serde(flatten)]
    pub outcomes: OutcomeCounts,
    /// Items accepted and not settled.
    pub open: u64,
    /// Rows that were no items.
    pub rejected: u64,
    /// Second outcomes of settled items.
    pub duplicates: u64,
    /// Of these, the ones that differ from the first.
    pub conflicts: u64,
    /// Outcomes that came after the collector had ended their item.
    pub late: u64,
    /// Calls that counted, of the settled items.
    pub attempts: u64,
    /// Calls refused by a limit, of the settled items.
    pub throttles: u64,
    /// Waits without a call, of the settled items.
    pub holds: u64,
    /// Deliveries run without an answer to their question.
    pub unasked: u64,
    /// Chunks published so far.
    pub chunks: u64,
    /// Chunks with every item settled.
    pub settled_chunks: u64,
    /// Items that wait for their next attempt.
    pub waiting: u64,
    /// Settled items per second since the start.
    pub items_per_second: f64,
    /// By stage.
    pub stages: BTreeMap<StageName, StageReport>,
    /// Why the run was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// Why the sources could not be read to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_error: Option<String>,
    /// What did not add up when the run closed. It never should be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_error: Option<String>,
    /// Why lines did not reach the sink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink_error: Option<String>,
}

/// A stage's part of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    /// How long attempts took; null while there was none.
    pub attempt_seconds: Option<Quantiles>,
}

/// Quantiles, in seconds; at most a tenth too long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 95 of 100 were not longer.
    pub p95: f64,
    /// 99 of 100 were not longer.
    pub p99: f64,
}

impl Report {
    /// The report of a run at `now`, in Unix milliseconds.
    pub fn of(run: &RunRecord, now: u64) -> Self {
        let outcomes = run.counts();
        let until = run.finished_at.unwrap_or(now);
        let seconds = until.saturating_sub(run.opened.started_at) as f64 / 1000.0;
        let first = run.stages.first();
        Self {
            run: run.id().clone(),
            root_run: run.opened.root_run.clone(),
            job: run.opened.job.clone(),
            state: run.state,
            stopping: run.is_stopping(),
            sealed: run.sealed,
            started_at: timestamp(run.opened.started_at),
            finished_at: run.finished_at.map(timestamp),
            accepted: run.accepted(),
            outcomes,
            open: run.open(),
            rejected: run.rejected,
            duplicates: run.duplicates,
            conflicts: run.conflicts,
            late: run.late,
            attempts: run.stages.iter().map(|stage| stage.attempts).sum(),
            throttles: run.stages.iter().map(|stage| stage.throttles).sum(),
            holds: run.stages.iter().map(|stage| stage.holds).sum(),
            unasked: run.unasked,
            chunks: run.chunks(),
            settled_chunks: first.map_or(0, |stage| stage.settled_chunks),
            waiting: first.map_or(0, |stage| stage.waiting_items),
            items_per_second: if seconds > 0.0 { outcomes.settled() as f64 / seconds } else { 0.0 },
            stages: run
                .stages
                .iter()
                .map(|stage| {
                    (stage.name.clone(), StageReport { attempt_seconds: quantiles(&stage.latencies) })
                })
                .collect(),
            stop_reason: run.stop_reason.clone(),
            source_error: run.seal_error.clone(),
            balance_error: run.balance_error.clone(),
            sink_error: sink_error(run),
        }
    }
}

fn sink_error(run: &RunRecord) -> Option<String> {
    match &run.sink {
        SinkRecord::Unbound => Some(format!(
            "no job file of {} with hash {} is here; its lines wait in the spool until there is one",
            run.opened.job, run.opened.hash
        )),
        SinkRecord::Refused => run.stop_reason.clone(),
        SinkRecord::File(file) => file.error.clone(),
        SinkRecord::None => None,
    }
}

fn quantiles(latencies: &Latencies) -> Option<Quantiles> {
    let quantile = |share| latencies.quantile(share);
    Some(Quantiles { p50: quantile(0.5)?, p95: quantile(0.95)?, p99: quantile(0.99)? })
}

/// A moment from a message: one out of range is shown as the epoch.
pub(crate) fn timestamp(unix_ms: u64) -> Timestamp {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

fn as_text<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(at)
}

#[expect(clippy::ref_option, reason = "serde asks for this signature")]
fn as_optional_text<S: Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => to.collect_str(at),
        None => to.serialize_none(),
    }
}
