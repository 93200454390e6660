//! The ledger of one data folder: `DATA_DIR/ledger.db`, SQLite in WAL mode, synced at every commit.

mod read;
mod write;

pub(super) use read::SqliteTables;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use windrow_common::envelope::chunk::Span;
use windrow_common::ids::RunId;
use windrow_common::outcome::{Outcome, OutcomeCounts};
use windrow_common::ranges::Runs;

use super::{
    Changes, ChunkKey, Held, Ledger, LedgerError, OpenItems, OpenRuns, Recount, RunKey, RunRecord, SinkSpan,
    read_rates, schema,
};
use crate::chunk_state::ChunkState;
use crate::sink::order::{Piece, Position};
use crate::spool::Extent;

/// The file's name in the data folder.
pub const FILE_NAME: &str = "ledger.db";

/// Pages of the ledger kept in memory, in KiB (SQLite takes them as a negative number): what a run writes next is near
/// what it wrote last, so more buys nothing, and memory would grow with the ledger.
const CACHE_KIB: i32 = -2 * 1024;

/// The ledger of a data folder.
#[derive(Debug)]
pub struct SqliteLedger {
    connection: Connection,
    epoch: i64,
}

impl SqliteLedger {
    /// Opens, or makes, the ledger in `data_dir`, and takes the next epoch.
    pub fn open(data_dir: &Path) -> Result<Self, LedgerError> {
        let mut connection = Connection::open(data_dir.join(FILE_NAME))?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", CACHE_KIB)?;
        // A transaction meets a full disk when it commits, never halfway.
        connection.pragma_update(None, "cache_spill", false)?;
        connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        connection.set_prepared_statement_cache_capacity(64);
        let epoch = take_epoch(&mut connection)?;
        Ok(Self { connection, epoch })
    }

    /// The runs that have ended and of which nothing is left to do, oldest first.
    pub(crate) fn finished_runs(&self) -> Result<Vec<RunRecord>, LedgerError> {
        let mut select =
            self.connection.prepare_cached("SELECT record FROM runs WHERE is_open = 0 ORDER BY run")?;
        let records: Vec<String> = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        records.iter().map(|record| read_run(&self.connection, record)).collect()
    }

    /// Forgets everything of a run.
    pub(crate) fn forget(&mut self, run: RunKey) -> Result<(), LedgerError> {
        let transaction = self.connection.transaction()?;
        for table in schema::OF_A_RUN {
            transaction.execute(&format!("DELETE FROM {table} WHERE run = ?1"), [run])?;
        }
        Ok(transaction.commit()?)
    }

    /// Gives the room of what was forgotten back to the disk.
    pub(crate) fn shrink(&mut self) -> Result<(), LedgerError> {
        Ok(self.connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")?)
    }
}

fn take_epoch(connection: &mut Connection) -> Result<i64, LedgerError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.execute_batch(schema::TABLES)?;
    if !transaction.prepare(schema::HAS_CLAIMS)?.exists([])? {
        transaction.execute_batch(schema::ADD_CLAIMS)?;
    }
    transaction.execute_batch(schema::CLAIMED_CHUNKS)?;
    transaction.execute("INSERT OR IGNORE INTO meta VALUES (1, ?1, 0)", [schema::VERSION])?;
    let version: i64 = transaction.query_row("SELECT version FROM meta", [], |row| row.get(0))?;
    if version != schema::VERSION {
        return Err(LedgerError::Broken(format!(
            "{FILE_NAME} has version {version}, this build knows {}; use the build that wrote it, or another data folder",
            schema::VERSION
        )));
    }
    transaction.execute("UPDATE meta SET epoch = epoch + 1", [])?;
    let epoch = transaction.query_row("SELECT epoch FROM meta", [], |row| row.get(0))?;
    transaction.commit()?;
    Ok(epoch)
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn open_runs(&mut self) -> Result<OpenRuns, LedgerError> {
        let mut select =
            self.connection.prepare_cached("SELECT record FROM runs WHERE is_open = 1 ORDER BY run")?;
        let records: Vec<String> = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut runs = Vec::with_capacity(records.len());
        for record in records {
            runs.push(read_run(&self.connection, &record)?);
        }
        let next_key =
            self.connection.query_row("SELECT COALESCE(MAX(run), 0) + 1 FROM runs", [], |row| row.get(0))?;
        let mut select = self.connection.prepare_cached(schema::LIMITS)?;
        let limits: Vec<(String, String)> =
            select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let limits = limits.into_iter().map(|(name, rates)| Ok((name, read_rates(&rates)?)));
        let limits = limits.collect::<Result<_, LedgerError>>()?;
        let kept_until = |statement| {
            let mut select = self.connection.prepare_cached(statement)?;
            select.query_map([], |row| Ok((row.get(0)?, uint(row.get(1)?))))?.collect::<Result<_, _>>()
        };
        let (outages, pauses) = (kept_until(schema::OUTAGES)?, kept_until(schema::PAUSES)?);
        let mut select = self.connection.prepare_cached(schema::CLAIMED)?;
        let key = |row: &Row<'_>| {
            let (run, stage, source) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(ChunkKey { run, stage, source, ordinal: uint(row.get(3)?) })
        };
        let claimed = select.query_map([], key)?.collect::<Result<_, _>>()?;
        Ok(OpenRuns { runs, next_key, limits, outages, claimed, pauses, is_first: self.epoch == 1 })
    }

    async fn run(&mut self, run: &RunId) -> Result<Option<RunRecord>, LedgerError> {
        let mut select = self.connection.prepare_cached("SELECT record FROM runs WHERE id = ?1")?;
        let record: Option<String> = select.query_row([run.as_str()], |row| row.get(0)).optional()?;
        record.map(|record| read_run(&self.connection, &record)).transpose()
    }

    async fn chunks(&mut self, keys: &[ChunkKey]) -> Result<Vec<Option<ChunkState>>, LedgerError> {
        // One reading transaction: without it every statement would lock and unlock the file for itself.
        let _reading = self.connection.unchecked_transaction()?;
        let mut select = self.connection.prepare_cached(schema::CHUNK)?;
        let mut load = |key: &ChunkKey| {
            let values = params![key.run, key.stage, key.source, int(key.ordinal)];
            select.query_row(values, read_chunk).optional()
        };
        Ok(keys.iter().map(&mut load).collect::<Result<_, _>>()?)
    }

    async fn waiting(
        &mut self,
        run: RunKey,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Piece>, LedgerError> {
        let mut select = self.connection.prepare_cached(schema::PIECES)?;
        let values = params![run, from.source, int(from.ordinal), int(from.offset), int(limit as u64)];
        Ok(select.query_map(values, read_piece)?.collect::<Result<_, _>>()?)
    }

    async fn held(&mut self, run: RunKey) -> Result<Held, LedgerError> {
        let mut spans = self.connection.prepare_cached(schema::SPANS)?;
        let spans = spans
            .query_map([run], |row| Ok(SinkSpan { at: uint(row.get(0)?), extent: read_extent(row, 1)? }))?
            .collect::<Result<_, _>>()?;
        let mut segments = self.connection.prepare_cached(schema::SEGMENTS)?;
        let segments = segments
            .query_map([run], |row| Ok((row.get(0)?, uint(row.get(1)?))))?
            .collect::<Result<_, _>>()?;
        Ok(Held { spans, segments })
    }

    async fn open_items(&mut self, run: RunKey, stage: u32, source: u32) -> Result<OpenItems, LedgerError> {
        let mut select = self.connection.prepare_cached(schema::CHUNK_EDGES)?;
        let mut rows = select.query(params![run, stage, source])?;
        let mut open = OpenItems::default();
        while let Some(row) = rows.next()? {
            let span = Span { first: uint(row.get(1)?), count: uint(row.get(2)?) };
            open.add_chunk(uint(row.get(0)?), span, row.get(3)?);
        }
        Ok(open)
    }

    async fn recount(&mut self, run: RunKey, stage: u32) -> Result<Recount, LedgerError> {
        let mut sums = self.connection.prepare_cached(schema::SUM_CHUNKS)?;
        let (mut settled, chunks) =
            sums.query_row(params![run, stage], |row| Ok((uint(row.get(0)?), read_counts(row, 1)?)))?;
        let mut bitmaps = self.connection.prepare_cached(schema::BITMAPS)?;
        let mut rows = bitmaps.query(params![run, stage])?;
        while let Some(row) = rows.next()? {
            let bits = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
            settled += bits.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        }
        let mut items = OutcomeCounts::default();
        let mut select = self.connection.prepare_cached(schema::SUM_ITEMS)?;
        let mut rows = select.query(params![run, stage])?;
        while let Some(row) = rows.next()? {
            items.add(read_outcome(row, 0)?, uint(row.get(1)?));
        }
        Ok(Recount { settled, chunks, items })
    }

    async fn commit(&mut self, changes: &Changes) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
        let behavior = rusqlite::TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(behavior)?;
        let theirs: i64 =
            transaction.prepare_cached("SELECT epoch FROM meta")?.query_row([], |row| row.get(0))?;
        if theirs != self.epoch {
            return Err(LedgerError::Deposed { ours: self.epoch, theirs });
        }
        let new_rejects = write::changes(&transaction, changes)?;
        transaction.commit()?;
        Ok(new_rejects)
    }
}

fn read_run(connection: &Connection, record: &str) -> Result<RunRecord, LedgerError> {
    let mut run: RunRecord = serde_json::from_str(record)
        .map_err(|error| LedgerError::Broken(format!("{FILE_NAME}: a run cannot be read: {error}")))?;
    let mut count = connection.prepare_cached("SELECT COUNT(*) FROM rejects WHERE run = ?1")?;
    run.rejected = count.query_row([run.key], |row| row.get(0).map(uint))?;
    Ok(run)
}

fn read_chunk(row: &Row<'_>) -> rusqlite::Result<ChunkState> {
    let hops: Option<String> = row.get(4)?;
    let hops = hops.map(|text| text.parse::<Runs<u32>>()).transpose().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, error.into())
    })?;
    let claims: Option<String> = row.get(11)?;
    let claims = claims.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(11, rusqlite::types::Type::Text, error.into())
    })?;
    Ok(ChunkState {
        span: Span { first: uint(row.get(0)?), count: uint(row.get(1)?) },
        settled: row.get(2)?,
        digests: row.get(3)?,
        hops: hops.map(|hops| hops.iter().collect()),
        counts: read_counts(row, 5)?,
        claims: claims.unwrap_or_default(),
    })
}

/// Six columns from `at` on, in the order of [`Outcome::ALL`].
fn read_counts(row: &Row<'_>, at: usize) -> rusqlite::Result<OutcomeCounts> {
    let mut counts = OutcomeCounts::default();
    for (position, outcome) in Outcome::ALL.into_iter().enumerate() {
        counts.add(outcome, uint(row.get(at + position)?));
    }
    Ok(counts)
}

fn read_outcome(row: &Row<'_>, at: usize) -> rusqlite::Result<Outcome> {
    row.get_ref(at)?.as_str()?.parse().map_err(|error: windrow_common::outcome::OutcomeError| {
        rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, error.into())
    })
}

fn read_piece(row: &Row<'_>) -> rusqlite::Result<Piece> {
    let source = row.get(0)?;
    let at = Position { source, ordinal: uint(row.get(1)?), offset: uint(row.get(2)?) };
    let next = Position { source, ordinal: uint(row.get(3)?), offset: uint(row.get(4)?) };
    Ok(Piece { at, next, extent: read_extent(row, 5)? })
}

fn read_extent(row: &Row<'_>, at: usize) -> rusqlite::Result<Extent> {
    Ok(Extent { segment: row.get(at)?, at: uint(row.get(at + 1)?), bytes: uint(row.get(at + 2)?) })
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked,
            ) => Self::Unwritable(error.to_string()),
            _ => Self::Broken(format!("{FILE_NAME}: {error}")),
        }
    }
}

/// SQLite's integers are signed: the bits are kept.
pub(super) fn int(value: u64) -> i64 {
    value.cast_signed()
}

/// The other way round.
pub(super) fn uint(value: i64) -> u64 {
    value.cast_unsigned()
}
