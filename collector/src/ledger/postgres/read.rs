//! Reading a ledger on PostgreSQL without holding it.

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use windrow_common::envelope::chunk::Span;
use windrow_common::ids::{Group, RunId};

use super::{Connection, PostgresAddress, read_run, schema, small, unreadable};
use crate::ledger::reader::RejectRow;
use crate::ledger::sqlite::{int, uint};
use crate::ledger::{ItemRow, LedgerError, RunKey, RunRecord};

/// Rejects are read in pages of this many.
const PAGE: i64 = 10_000;

/// The tables, read only, from a thread that serves no runtime.
#[derive(Debug)]
pub(in crate::ledger) struct PostgresTables {
    connection: Connection,
    runtime: Runtime,
}

impl PostgresTables {
    /// Opens the ledger of `group`, which must be there.
    pub(in crate::ledger) fn open(address: &PostgresAddress, group: &Group) -> Result<Self, LedgerError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| LedgerError::Broken(format!("no thread to read with: {error}")))?;
        let connection = Connection::new(address, group)?;
        runtime.block_on(async { connection.check_version(&connection.client().await?).await })?;
        Ok(Self { connection, runtime })
    }

    fn rows(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, LedgerError> {
        self.runtime.block_on(self.connection.rows(statement, values))
    }

    /// Every run, newest first.
    pub(in crate::ledger) fn runs(&self) -> Result<Vec<RunRecord>, LedgerError> {
        self.rows(schema::ALL_RUNS, &[])?.iter().map(read_run).collect()
    }

    /// The names of all runs, newest first.
    pub(in crate::ledger) fn run_names(&self) -> Result<Vec<String>, LedgerError> {
        Ok(self.rows(schema::RUN_NAMES, &[])?.iter().map(|row| row.get(0)).collect())
    }

    /// One run.
    pub(in crate::ledger) fn run(&self, run: &RunId) -> Result<Option<RunRecord>, LedgerError> {
        self.rows(schema::RUN, &[&run.as_str()])?.first().map(read_run).transpose()
    }

    /// Items that neither succeeded nor were skipped, of one source and stage, from an index on.
    pub(in crate::ledger) fn failures(
        &self,
        run: RunKey,
        (source, stage): (u32, u32),
        from: u64,
        limit: usize,
    ) -> Result<Vec<ItemRow>, LedgerError> {
        let values: [&(dyn ToSql + Sync); 5] =
            [&run, &i64::from(source), &i64::from(stage), &int(from), &int(limit as u64)];
        let rows = self.rows(schema::FAILURES, &values)?;
        let read = |row: &Row| {
            let id: Option<&str> = row.get(3);
            Ok(ItemRow {
                run,
                stage,
                source,
                first: uint(row.get(0)),
                count: uint(row.get(1)),
                outcome: row.get::<_, &str>(2).parse().map_err(unreadable)?,
                id: id.map(serde_json::from_str).transpose().map_err(unreadable)?,
                attempts: small(row.get(4))?,
                error: row.get(5),
            })
        };
        rows.iter().map(read).collect()
    }

    /// What the known chunks of a source cover, ascending.
    pub(in crate::ledger) fn spans(&self, run: RunKey, source: u32) -> Result<Vec<Span>, LedgerError> {
        let rows = self.rows(schema::CHUNK_EDGES, &[&run, &0_i64, &i64::from(source)])?;
        Ok(rows.iter().map(|row| Span { first: uint(row.get(1)), count: uint(row.get(2)) }).collect())
    }

    /// Rejected rows, by source, file and line, one call of `each` per row.
    pub(in crate::ledger) fn rejects<E: From<LedgerError>>(
        &self,
        run: RunKey,
        mut each: impl FnMut(RejectRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = (-1, String::new(), 0);
        loop {
            let values: [&(dyn ToSql + Sync); 5] = [&run, &after.0, &after.1, &after.2, &PAGE];
            let rows = self.rows(schema::REJECTS, &values)?;
            for row in &rows {
                after = (row.get(0), row.get(1), row.get(2));
                each(RejectRow {
                    source: small(after.0)?,
                    file: serde_json::from_str(&after.1).map_err(unreadable)?,
                    line: uint(after.2),
                    reason: serde_json::from_str(row.get(3)).map_err(unreadable)?,
                })?;
            }
            if (rows.len() as u64) < PAGE.unsigned_abs() {
                return Ok(());
            }
        }
    }
}
