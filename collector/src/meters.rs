//! What a run adds to the process's metrics: the growth of its record since it was last looked at.

use windrow_common::ids::StageKey;
use windrow_common::outcome::{Outcome, OutcomeCounts};
use windrow_common::telemetry::metrics::{Metrics, SettlementMetrics, SinkMetrics};

use crate::ledger::{RunRecord, SinkRecord};

/// The meters of one run.
#[derive(Debug)]
pub(crate) struct Meters {
    /// Known once the run's stage is.
    handles: Option<(SettlementMetrics, SinkMetrics)>,
    seen: Totals,
}

/// What was counted already.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    counts: OutcomeCounts,
    duplicates: u64,
    conflicts: u64,
    late: u64,
    sink_bytes: u64,
    spool_bytes: u64,
}

impl Totals {
    fn of(record: &RunRecord, spool_bytes: u64) -> Self {
        let sink_bytes = match &record.sink {
            SinkRecord::File(file) => file.fixed,
            SinkRecord::None | SinkRecord::Unbound | SinkRecord::Refused => 0,
        };
        Self {
            counts: record.counts(),
            duplicates: record.duplicates,
            conflicts: record.conflicts,
            late: record.late,
            sink_bytes,
            spool_bytes,
        }
    }
}

impl Meters {
    /// Meters that count from `record` on.
    pub(crate) fn new(record: &RunRecord) -> Self {
        Self { handles: None, seen: Totals::of(record, 0) }
    }

    /// Counts what has come since; call it when `record` is durable.
    pub(crate) fn catch_up(&mut self, metrics: &Metrics, record: &RunRecord, spool_bytes: u64) {
        if self.handles.is_none()
            && let Some(stage) = record.stages.first()
        {
            let key = StageKey { job: record.opened.job.clone(), stage: stage.name.clone() };
            self.handles = Some((metrics.settlements(&key), metrics.sink(&key.job)));
        }
        let Some((settlements, sink)) = &self.handles else { return };
        let now = Totals::of(record, spool_bytes);
        let seen = std::mem::replace(&mut self.seen, now);
        for outcome in Outcome::ALL {
            let grown = now.counts.of(outcome).saturating_sub(seen.counts.of(outcome));
            settlements.items_settled.of(outcome).inc_by(grown);
        }
        settlements.duplicates.inc_by(now.duplicates.saturating_sub(seen.duplicates));
        settlements.conflicts.inc_by(now.conflicts.saturating_sub(seen.conflicts));
        settlements.late.inc_by(now.late.saturating_sub(seen.late));
        sink.written_bytes.inc_by(now.sink_bytes.saturating_sub(seen.sink_bytes));
        sink.spool_bytes.add(now.spool_bytes.cast_signed() - seen.spool_bytes.cast_signed());
    }
}
