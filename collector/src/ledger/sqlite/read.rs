//! Reading the ledger of a data folder without holding it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use windrow_common::envelope::chunk::Span;
use windrow_common::ids::RunId;

use super::{FILE_NAME, int, read_outcome, read_run, uint};
use crate::ledger::reader::RejectRow;
use crate::ledger::{ItemRow, LedgerError, ReadError, RunKey, RunRecord, schema};

const FAILURES: &str = "SELECT first, count, outcome, id, attempts, error FROM items \
     WHERE run = ?1 AND source = ?2 AND stage = ?3 AND first + count > ?4 AND outcome <> 'skipped' \
     ORDER BY first LIMIT ?5";

/// The tables, read only.
#[derive(Debug)]
pub(in crate::ledger) struct SqliteTables {
    connection: Connection,
}

impl SqliteTables {
    /// Opens the ledger in `data_dir`.
    pub(in crate::ledger) fn open(data_dir: &Path) -> Result<Self, ReadError> {
        let file = data_dir.join(FILE_NAME);
        if !file.exists() {
            return Err(ReadError::NoLedger(data_dir.to_owned()));
        }
        let opened = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let connection = opened.map_err(LedgerError::from)?;
        let tables = Self { connection };
        tables.check_version()?;
        Ok(tables)
    }

    fn check_version(&self) -> Result<(), LedgerError> {
        self.connection.busy_timeout(Duration::from_secs(5))?;
        let version: i64 = self.connection.query_row("SELECT version FROM meta", [], |row| row.get(0))?;
        if version != schema::VERSION {
            return Err(LedgerError::Broken(format!(
                "{FILE_NAME} has version {version}, this build knows {}; use the build that wrote it",
                schema::VERSION
            )));
        }
        Ok(())
    }

    fn texts(&self, statement: &str) -> Result<Vec<String>, LedgerError> {
        let mut select = self.connection.prepare_cached(statement)?;
        Ok(select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// Every run, newest first.
    pub(in crate::ledger) fn runs(&self) -> Result<Vec<RunRecord>, LedgerError> {
        let records = self.texts("SELECT record FROM runs ORDER BY run DESC")?;
        records.iter().map(|record| read_run(&self.connection, record)).collect()
    }

    /// The names of all runs, newest first.
    pub(in crate::ledger) fn run_names(&self) -> Result<Vec<String>, LedgerError> {
        self.texts("SELECT id FROM runs ORDER BY run DESC")
    }

    /// One run.
    pub(in crate::ledger) fn run(&self, run: &RunId) -> Result<Option<RunRecord>, LedgerError> {
        let mut select = self.connection.prepare_cached("SELECT record FROM runs WHERE id = ?1")?;
        let record: Option<String> = select.query_row([run.as_str()], |row| row.get(0)).optional()?;
        record.map(|record| read_run(&self.connection, &record)).transpose()
    }

    /// Items that neither succeeded nor were skipped, of one source and stage, from an index on.
    pub(in crate::ledger) fn failures(
        &self,
        run: RunKey,
        (source, stage): (u32, u32),
        from: u64,
        limit: usize,
    ) -> Result<Vec<ItemRow>, LedgerError> {
        let mut select = self.connection.prepare_cached(FAILURES)?;
        let values = params![run, source, stage, int(from), int(limit as u64)];
        let rows = select.query_map(values, |row| {
            Ok(ItemRow {
                run,
                stage,
                source,
                first: uint(row.get(0)?),
                count: uint(row.get(1)?),
                outcome: read_outcome(row, 2)?,
                id: row.get(3)?,
                attempts: row.get(4)?,
                error: row.get(5)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What the known chunks of a source cover, ascending.
    pub(in crate::ledger) fn spans(&self, run: RunKey, source: u32) -> Result<Vec<Span>, LedgerError> {
        let mut select = self.connection.prepare_cached(schema::CHUNK_EDGES)?;
        let span = |row: &rusqlite::Row<'_>| Ok(Span { first: uint(row.get(1)?), count: uint(row.get(2)?) });
        Ok(select.query_map(params![run, 0, source], span)?.collect::<Result<_, _>>()?)
    }

    /// Rejected rows, by source, file and line, one call of `each` per row.
    pub(in crate::ledger) fn rejects<E: From<LedgerError>>(
        &self,
        run: RunKey,
        mut each: impl FnMut(RejectRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error: rusqlite::Error| E::from(LedgerError::from(error));
        let mut select = self
            .connection
            .prepare(
                "SELECT source, file, line, reason FROM rejects WHERE run = ?1 ORDER BY source, file, line",
            )
            .map_err(failed)?;
        let read = |row: &rusqlite::Row<'_>| {
            Ok(RejectRow {
                source: row.get(0)?,
                file: row.get(1)?,
                line: uint(row.get(2)?),
                reason: row.get(3)?,
            })
        };
        for row in select.query_map([run], read).map_err(failed)? {
            each(row.map_err(failed)?)?;
        }
        Ok(())
    }
}
