//! The ledger: the durable record of runs, chunks and outcomes, and the only truth about a run.
//!
//! [`Ledger`] is the seam; [`sqlite`] keeps it in one data folder, [`postgres`] in a database that several
//! collectors reach; both pass the contract suite in `tests/tests/ledger_contract.rs`. What is decided, is
//! decided outside, by pure functions over what the ledger loads; it only loads, and commits.

mod place;
pub mod postgres;
mod reader;
pub mod record;
mod schema;
pub mod sqlite;

pub use place::LedgerPlace;
pub use reader::{FailureRow, ReadError, Reader, RunSummary};
pub use record::{RunRecord, SinkRecord, SourceRecord, StageRecord};

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::Reject;
use windrow_common::ids::RunId;
use windrow_common::outcome::{Outcome, OutcomeCounts};
use windrow_common::resilience::rate::Rate;

use crate::chunk_state::ChunkState;
use crate::sink::order::{Piece, Position};
use crate::spool::Extent;

/// A run's number in the ledger.
pub type RunKey = i64;

/// A chunk, by numbers: stage and source count as the run's record lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkKey {
    /// The run.
    pub run: RunKey,
    /// The stage.
    pub stage: u32,
    /// The source.
    pub source: u32,
    /// The ordinal.
    pub ordinal: u64,
}

/// Items that ended alike in a way worth a row: any way but succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemRow {
    /// The run.
    pub run: RunKey,
    /// The stage.
    pub stage: u32,
    /// The source.
    pub source: u32,
    /// The index of the first.
    pub first: u64,
    /// How many, one after another.
    pub count: u64,
    /// How they ended.
    pub outcome: Outcome,
    /// What the user calls the item. Rows with an id are of one item.
    pub id: Option<String>,
    /// How often each was tried.
    pub attempts: u32,
    /// The `ItemError`, as JSON.
    pub error: String,
}

/// Bytes of a sink, fixed: what is at `at` in the sink's stream is what `extent` holds in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkSpan {
    /// Where in the sink's stream of lines, from 0.
    pub at: u64,
    /// Where in the spool.
    pub extent: Extent,
}

/// What the ledger knows of the spool of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Spans not known to be safe in the sink, ascending.
    pub spans: Vec<SinkSpan>,
    /// Bytes still needed, by segment.
    pub segments: BTreeMap<u32, u64>,
}

/// What of a source has not settled, as far as its chunks are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenItems {
    /// Known chunks with open items.
    pub incomplete: Vec<u64>,
    /// Runs of chunks nobody has reported on.
    pub gaps: Vec<Gap>,
    /// The ordinal after the last known chunk.
    pub next_ordinal: u64,
    /// The index after the last known chunk.
    pub next_index: u64,
}

impl OpenItems {
    /// Takes in the next known chunk of the source, in ascending order.
    fn add_chunk(&mut self, ordinal: u64, span: Span, is_complete: bool) {
        if ordinal > self.next_ordinal && span.first > self.next_index {
            self.gaps.push(Gap {
                ordinal: self.next_ordinal,
                next_ordinal: ordinal,
                first: self.next_index,
                count: span.first - self.next_index,
            });
        }
        if !is_complete {
            self.incomplete.push(ordinal);
        }
        self.next_ordinal = ordinal + 1;
        self.next_index = span.first + span.count;
    }
}

/// Chunks nobody has reported on, between two known ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The ordinal of the first.
    pub ordinal: u64,
    /// The ordinal after the last.
    pub next_ordinal: u64,
    /// The index of the first item.
    pub first: u64,
    /// How many items.
    pub count: u64,
}

/// Sums made from the settled set itself, not from kept totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recount {
    /// Items settled, counted bit by bit.
    pub settled: u64,
    /// The sums of the chunks' own counts.
    pub chunks: OutcomeCounts,
    /// The sums of the item rows; none for succeeded.
    pub items: OutcomeCounts,
}

/// Everything one transaction writes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Runs, new or changed, whole.
    pub runs: Vec<RunRecord>,
    /// Chunks, new or changed, whole.
    pub chunks: Vec<(ChunkKey, ChunkState)>,
    /// Items that ended otherwise than succeeded.
    pub items: Vec<ItemRow>,
    /// Rejected rows; known ones change nothing. The source counts as the run's record lists it.
    pub rejects: Vec<(RunKey, u32, Reject)>,
    /// Pieces that wait in the spool for their turn.
    pub waiting: Vec<(RunKey, Piece)>,
    /// Pieces before these positions have had their turn.
    pub placed: Vec<(RunKey, Position)>,
    /// Bytes fixed in a sink's stream.
    pub spans: Vec<(RunKey, SinkSpan)>,
    /// A sink is safe on disk up to here: its spans below are no longer needed.
    pub synced: Vec<(RunKey, u64)>,
    /// Destinations whose rates an operator has set; None: they are those of the job files again.
    pub limits: Vec<(String, Option<Vec<Rate>>)>,
    /// Destinations that are down, and until when they are not to be called, in Unix milliseconds; None: it works again.
    pub outages: Vec<(String, Option<u64>)>,
    /// Destinations that asked to be left alone, and until when, in Unix milliseconds; None: they are not any more.
    pub pauses: Vec<(String, Option<u64>)>,
}

impl Changes {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        let Self { runs, chunks, items, rejects, waiting, placed, spans, synced, limits, outages, pauses } =
            self;
        (runs.is_empty() && chunks.is_empty() && items.is_empty() && rejects.is_empty())
            && (waiting.is_empty()
                && placed.is_empty()
                && spans.is_empty()
                && synced.is_empty()
                && (limits.is_empty() && outages.is_empty() && pauses.is_empty()))
    }
}

/// What a collector takes up: the runs that have not ended, the next free number, and what an operator has set.
#[derive(Debug)]
pub struct OpenRuns {
    /// The runs.
    pub runs: Vec<RunRecord>,
    /// The number for the next new run.
    pub next_key: RunKey,
    /// The rates an operator has set, by destination.
    pub limits: BTreeMap<String, Vec<Rate>>,
    /// The destinations that are down, and until when, in Unix milliseconds.
    pub outages: BTreeMap<String, u64>,
    /// The chunks with items that somebody has claimed.
    pub claimed: Vec<ChunkKey>,
    /// The destinations that are left alone, and until when, in Unix milliseconds.
    pub pauses: BTreeMap<String, u64>,
    /// Whether nobody had opened the ledger before.
    pub is_first: bool,
}

/// What can go wrong in the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another collector has taken over; this one must write nothing more.
    #[error(
        "another collector has taken over this ledger (epoch {theirs}, ours {ours}); started again, this one stands by"
    )]
    Deposed {
        /// Our epoch.
        ours: i64,
        /// The ledger's.
        theirs: i64,
    },
    /// It cannot be written for now: no space, or the disk failed. Nothing of the transaction was kept.
    #[error("the ledger cannot be written: {0}")]
    Unwritable(String),
    /// It is broken, or was written by a newer build.
    #[error("{0}")]
    Broken(String),
}

/// The ledger of a collector group, in the hands of its active collector.
///
/// One task calls it, one call at a time. Opening an implementation takes the next epoch; from then on
/// every commit of an earlier holder fails with [`LedgerError::Deposed`]. What `commit` returned from
/// survives the loss of power; what it failed on left no trace, and may be tried again. After
/// [`LedgerError::Unwritable`] it must be tried again unchanged before anything else is committed: a
/// connection may be lost while the answer was on its way, and only then is it known whether it was done.
#[async_trait]
pub trait Ledger: Send + fmt::Debug {
    /// The runs that have not ended or still have lines to write, oldest first, and what an operator has set.
    async fn open_runs(&mut self) -> Result<OpenRuns, LedgerError>;

    /// One run, ended or not.
    async fn run(&mut self, run: &RunId) -> Result<Option<RunRecord>, LedgerError>;

    /// The chunks of these keys, in order; None for one nobody has reported on.
    async fn chunks(&mut self, keys: &[ChunkKey]) -> Result<Vec<Option<ChunkState>>, LedgerError>;

    /// The pieces of a run that wait at `from` or after, in order, at most `limit`.
    async fn waiting(&mut self, run: RunKey, from: Position, limit: usize)
    -> Result<Vec<Piece>, LedgerError>;

    /// What the spool of a run still holds for it.
    async fn held(&mut self, run: RunKey) -> Result<Held, LedgerError>;

    /// What of a source has not settled.
    async fn open_items(&mut self, run: RunKey, stage: u32, source: u32) -> Result<OpenItems, LedgerError>;

    /// Sums of a stage, made from the settled set itself.
    async fn recount(&mut self, run: RunKey, stage: u32) -> Result<Recount, LedgerError>;

    /// Writes all of it in one transaction, after checking the epoch. Returns how many rejects were new,
    /// by run.
    async fn commit(&mut self, changes: &Changes) -> Result<BTreeMap<RunKey, u64>, LedgerError>;
}

/// Claims as the ledger keeps them: JSON, or nothing where there are none.
fn write_claims(chunk: &ChunkState) -> Result<Option<String>, LedgerError> {
    let written = (!chunk.claims.is_empty()).then(|| serde_json::to_string(&chunk.claims)).transpose();
    written.map_err(|error| LedgerError::Broken(format!("claims: {error}")))
}

/// Rates as the ledger keeps them: a JSON list of texts such as `"10/s"`.
fn write_rates(rates: &[Rate]) -> Result<String, LedgerError> {
    serde_json::to_string(rates).map_err(|error| LedgerError::Broken(format!("rates: {error}")))
}

fn read_rates(text: &str) -> Result<Vec<Rate>, LedgerError> {
    serde_json::from_str(text).map_err(|error| LedgerError::Broken(format!("rates in the ledger: {error}")))
}
