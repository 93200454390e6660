//! A run, as the ledger keeps it: one document, read and written whole.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use windrow_common::envelope::completion::{Latencies, Opened};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{RunId, SourceName, StageName};
use windrow_common::job::{Job, SinkOrder};
use windrow_common::outcome::OutcomeCounts;

use super::RunKey;
use crate::run_state::Tolerated;
use crate::sink::order::Position;

/// A run with its totals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four facts apart from one another")]
pub struct RunRecord {
    /// Its number.
    pub key: RunKey,
    /// How it was opened; its producer is the latest one.
    pub opened: Opened,
    /// Its state.
    pub state: RunState,
    /// Unix milliseconds.
    pub finished_at: Option<u64>,
    /// Why the run is being stopped, or was: too many failures, its deadline, a sink that cannot be opened. Not set by
    /// a cancellation, which is a state.
    pub stop_reason: Option<String>,
    /// Whether the totals of the sources are final.
    pub sealed: bool,
    /// Why the sources could not be read to the end.
    pub seal_error: Option<String>,
    /// Whether the open items were ended as cancelled: what comes now is late.
    pub cut: bool,
    /// What the job tolerates.
    pub tolerated: Tolerated,
    /// When the run is stopped if it has not ended; Unix milliseconds.
    #[serde(default)]
    pub deadline: Option<u64>,
    /// The sources, in the order of the job file.
    pub sources: Vec<SourceRecord>,
    /// The stages, in order.
    pub stages: Vec<StageRecord>,
    /// Second outcomes of settled items.
    pub duplicates: u64,
    /// Of these, the ones that differ from the first.
    pub conflicts: u64,
    /// Outcomes that came after their item was ended by the collector.
    pub late: u64,
    /// Deliveries run without an answer to their question.
    pub unasked: u64,
    /// Rejected rows. Counted from the rows when a run is loaded.
    #[serde(skip)]
    pub rejected: u64,
    /// The sink.
    pub sink: SinkRecord,
    /// Pieces waiting in the spool for their turn.
    pub waiting_pieces: u64,
    /// What did not add up when the run closed.
    pub balance_error: Option<String>,
    /// Whether the run folder has said how the run ended.
    pub is_reported: bool,
    /// Whether everybody who wants to hear how it ended was told, or given up.
    #[serde(default = "yes")]
    pub is_told: bool,
}

/// Runs of before there was anybody to tell.
fn yes() -> bool {
    true
}

/// A source of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Its name.
    pub name: SourceName,
    /// Items accepted, as its producer says.
    pub accepted: u64,
    /// Chunks published, as its producer says.
    pub chunks: u64,
    /// The index after the last item of any chunk seen: those were accepted, whatever was said so far.
    pub seen_items: u64,
    /// The ordinal after the last chunk seen.
    pub seen_chunks: u64,
}

/// A stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Its name.
    pub name: StageName,
    /// How its items ended.
    pub counts: OutcomeCounts,
    /// Attempts of the settled items.
    pub attempts: u64,
    /// Throttles of the settled items.
    pub throttles: u64,
    /// Holds of the settled items.
    pub holds: u64,
    /// Chunks with every item settled.
    pub settled_chunks: u64,
    /// Open items handed to a higher hop.
    pub waiting_items: u64,
    /// How long attempts took.
    #[serde(with = "as_text")]
    pub latencies: Latencies,
}

/// Where a run's lines go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkRecord {
    /// Nowhere.
    None,
    /// Not known yet: no job file of the run's name and hash. The lines stay in the spool.
    Unbound,
    /// Nowhere: the sink refused the run at its opening.
    Refused,
    /// To a file.
    File(FileRecord),
}

/// A sink's file and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The file.
    pub path: PathBuf,
    /// Whether lines are in the order of the input; of their arrival otherwise.
    pub input_order: bool,
    /// Where in the file the run's lines begin.
    pub base: u64,
    /// Whether the byte before `base` is a line break this run adds.
    pub break_before: bool,
    /// The next item in input order.
    pub head: Position,
    /// Bytes fixed so far.
    pub fixed: u64,
    /// Bytes known to be safe on disk.
    pub synced: u64,
    /// What is wrong with the file, found when the run closed.
    pub error: Option<String>,
}

impl RunRecord {
    /// A run as it begins.
    pub fn new(key: RunKey, opened: Opened) -> Self {
        let source = |name: &SourceName| SourceRecord {
            name: name.clone(),
            accepted: 0,
            chunks: 0,
            seen_items: 0,
            seen_chunks: 0,
        };
        Self {
            key,
            sources: opened.sources.iter().map(source).collect(),
            opened,
            state: RunState::Running,
            finished_at: None,
            stop_reason: None,
            sealed: false,
            seal_error: None,
            cut: false,
            tolerated: Tolerated::All,
            deadline: None,
            stages: Vec::new(),
            duplicates: 0,
            conflicts: 0,
            late: 0,
            unasked: 0,
            rejected: 0,
            sink: SinkRecord::Unbound,
            waiting_pieces: 0,
            balance_error: None,
            is_reported: false,
            is_told: true,
        }
    }

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.opened.run
    }

    /// Freezes what the job says of the run's end.
    pub fn bind_to(&mut self, job: &Job) {
        self.tolerated = Tolerated::from(job.tolerate);
        let time_ms = job.deadline.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self.deadline = time_ms.map(|time_ms| self.opened.started_at.saturating_add(time_ms));
    }

    /// Whether it is a retry: its chunks cover only some items of each source, so indexes say nothing of how many there
    /// are. What is open in one that stops is ended by consumers, and its producer seals it: nobody else knows its items.
    pub fn is_retry(&self) -> bool {
        self.opened.root_run != self.opened.run
    }

    /// Items accepted: what the producer said; while it has not sealed, at least what chunks have shown.
    pub fn accepted(&self) -> u64 {
        if self.is_retry() && !self.sealed {
            let said: u64 = self.sources.iter().map(|source| source.accepted).sum();
            return said.max(self.counts().settled());
        }
        let of = |source: &SourceRecord| {
            if self.sealed { source.accepted } else { source.accepted.max(source.seen_items) }
        };
        self.sources.iter().map(of).sum()
    }

    /// Chunks published, by the same rule.
    pub fn chunks(&self) -> u64 {
        let of = |source: &SourceRecord| {
            if self.sealed { source.chunks } else { source.chunks.max(source.seen_chunks) }
        };
        self.sources.iter().map(of).sum()
    }

    /// How the run's items ended.
    pub fn counts(&self) -> OutcomeCounts {
        self.stages.first().map_or_else(OutcomeCounts::default, |stage| stage.counts)
    }

    /// Items accepted and not settled.
    pub fn open(&self) -> u64 {
        self.accepted().saturating_sub(self.counts().settled())
    }

    /// Whether the run is being stopped: what is open will be cancelled.
    pub fn is_stopping(&self) -> bool {
        !self.state.is_ended() && (self.stop_reason.is_some() || self.state == RunState::Cancelling)
    }

    /// Whether a collector that starts is to take the run up.
    pub fn is_unfinished(&self) -> bool {
        !self.state.is_ended() || self.keeps_spool() || !self.is_reported || !self.is_told
    }

    /// Whether lines in the spool are not yet safe in the sink.
    pub fn keeps_spool(&self) -> bool {
        match &self.sink {
            SinkRecord::File(file) => self.waiting_pieces > 0 || file.synced < file.fixed,
            SinkRecord::Unbound => self.waiting_pieces > 0,
            SinkRecord::None | SinkRecord::Refused => false,
        }
    }

    /// Whether lines are still to be brought to the sink.
    pub fn has_lines_to_place(&self) -> bool {
        self.waiting_pieces > 0 && matches!(self.sink, SinkRecord::File(_))
    }
}

impl StageRecord {
    /// A stage of which nothing has come yet.
    pub fn new(name: StageName) -> Self {
        Self {
            name,
            counts: OutcomeCounts::default(),
            attempts: 0,
            throttles: 0,
            holds: 0,
            settled_chunks: 0,
            waiting_items: 0,
            latencies: Latencies::default(),
        }
    }
}

impl FileRecord {
    /// A file at its beginning.
    pub fn new(path: PathBuf, order: SinkOrder, base: u64, break_before: bool) -> Self {
        let input_order = order == SinkOrder::Input;
        Self {
            path,
            input_order,
            base,
            break_before,
            head: Position::START,
            fixed: 0,
            synced: 0,
            error: None,
        }
    }
}

/// Latencies as the wire writes them.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use windrow_common::envelope::completion::Latencies;

    pub(super) fn serialize<S: Serializer>(latencies: &Latencies, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(latencies)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Latencies, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}
