//! Reading a ledger without holding it: for `windrow status` and its kin, also while a collector is live.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;
use windrow_common::envelope::completion::Reject;
use windrow_common::ids::{Group, RunId, SourceName};
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Ranges;

use super::postgres::{PostgresAddress, PostgresTables};
use super::sqlite::SqliteTables;
use super::{ItemRow, LedgerError, RunRecord};
use crate::report::Report;

/// A ledger, read only.
#[derive(Debug)]
pub struct Reader {
    tables: Tables,
}

#[derive(Debug)]
enum Tables {
    Sqlite(SqliteTables),
    Postgres(Box<PostgresTables>),
}

/// A rejected row; the source counts as the run's record lists it.
#[derive(Debug)]
pub(super) struct RejectRow {
    pub(super) source: u32,
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) reason: String,
}

/// Why a ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no ledger.
    #[error(
        "no run has left a ledger in {}; runs are kept in `.windrow` beside their job file, or where their \
         --data-dir says: name that folder with --data-dir", .0.display()
    )]
    NoLedger(PathBuf),
    /// There are no runs.
    #[error("the ledger holds no run")]
    NoRuns,
    /// No run has this name or begins like this.
    #[error("there is no run `{0}`; `windrow status` lists the runs there are")]
    NoSuchRun(String),
    /// Several runs begin like this.
    #[error("several runs begin with `{0}`: {1}; give more of the name")]
    Ambiguous(String, String),
    /// It cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A run in a list of runs.
pub type RunSummary = Report;

/// An item that did not succeed and was not skipped.
#[derive(Debug, Clone, Serialize)]
pub struct FailureRow {
    /// Its source.
    pub source: SourceName,
    /// Its index there.
    #[serde(rename = "item")]
    pub index: u64,
    /// What the user calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why: an `ItemError`.
    pub error: Box<RawValue>,
    /// How often it was tried.
    pub attempts: u32,
}

impl Reader {
    /// Opens the ledger in `data_dir`.
    pub fn open(data_dir: &Path) -> Result<Self, ReadError> {
        Ok(Self { tables: Tables::Sqlite(SqliteTables::open(data_dir)?) })
    }

    /// Opens the ledger of `group` in a database. Neither this nor what is asked of it afterwards is to be called on
    /// a thread that serves a runtime.
    pub fn open_postgres(address: &PostgresAddress, group: &Group) -> Result<Self, ReadError> {
        Ok(Self { tables: Tables::Postgres(Box::new(PostgresTables::open(address, group)?)) })
    }

    /// Every run, newest first.
    pub fn runs(&self) -> Result<Vec<RunSummary>, ReadError> {
        let records = match &self.tables {
            Tables::Sqlite(tables) => tables.runs(),
            Tables::Postgres(tables) => tables.runs(),
        };
        Ok(records?.iter().map(report).collect())
    }

    /// The run of this name or of a name beginning like this; the newest one without a name.
    pub fn resolve(&self, name: Option<&str>) -> Result<RunId, ReadError> {
        let ids = match &self.tables {
            Tables::Sqlite(tables) => tables.run_names(),
            Tables::Postgres(tables) => tables.run_names(),
        }?;
        let found = match name {
            None => ids.first().ok_or(ReadError::NoRuns)?,
            Some(name) => match ids.iter().find(|id| *id == name) {
                Some(exact) => exact,
                None => unique_prefix(&ids, name)?,
            },
        };
        found.parse().map_err(|_| ReadError::NoSuchRun(found.clone()))
    }

    /// A run's report.
    pub fn report(&self, run: &RunId) -> Result<Report, ReadError> {
        Ok(report(&self.record(run)?))
    }

    /// Items that neither succeeded nor were skipped, by source and index; those after `after`, at most
    /// `limit`.
    pub fn failures(
        &self,
        run: &RunId,
        after: Option<(&SourceName, u64)>,
        limit: usize,
    ) -> Result<Vec<FailureRow>, ReadError> {
        let record = self.record(run)?;
        let mut rows = Vec::new();
        let start = after.and_then(|(name, _)| record.sources.iter().position(|source| &source.name == name));
        for (number, source) in (0u32..).zip(&record.sources).skip(start.unwrap_or(0)) {
            let from = match after {
                Some((name, index)) if *name == source.name => index + 1,
                _ => 0,
            };
            for (stage, _) in (0u32..).zip(&record.stages) {
                let left = limit - rows.len();
                self.failures_of(&record, (number, stage), from, left, &mut rows)?;
            }
        }
        Ok(rows)
    }

    /// The items of a run's known chunks, by source. In a retry those are the items it runs again.
    pub fn carried(&self, run: &RunId) -> Result<BTreeMap<SourceName, Ranges>, ReadError> {
        let record = self.record(run)?;
        let mut carried = BTreeMap::new();
        for (number, source) in (0u32..).zip(&record.sources) {
            let spans = match &self.tables {
                Tables::Sqlite(tables) => tables.spans(record.key, number),
                Tables::Postgres(tables) => tables.spans(record.key, number),
            }?;
            let indexes = spans.iter().flat_map(|span| span.first..span.first + span.count);
            carried.insert(source.name.clone(), Ranges::from_ascending(indexes));
        }
        Ok(carried)
    }

    /// Rejected rows, by source, file and line; all of them, one call of `each` per row.
    pub fn rejects(
        &self,
        run: &RunId,
        mut each: impl FnMut(&Reject) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let record = self.record(run)?;
        let give = |row: RejectRow| match record.sources.get(row.source as usize) {
            Some(source) => each(&Reject {
                source: source.name.clone(),
                file: row.file,
                line: row.line,
                reason: row.reason,
            }),
            None => Ok(()),
        };
        match &self.tables {
            Tables::Sqlite(tables) => tables.rejects(record.key, give),
            Tables::Postgres(tables) => tables.rejects(record.key, give),
        }
    }

    fn failures_of(
        &self,
        record: &RunRecord,
        (source, stage): (u32, u32),
        from: u64,
        limit: usize,
        to: &mut Vec<FailureRow>,
    ) -> Result<(), ReadError> {
        let most = to.len() + limit;
        let rows = match &self.tables {
            Tables::Sqlite(tables) => tables.failures(record.key, (source, stage), from, limit),
            Tables::Postgres(tables) => tables.failures(record.key, (source, stage), from, limit),
        }?;
        for ItemRow { first, count, outcome, id, attempts, error, .. } in rows {
            let error = RawValue::from_string(error)
                .map_err(|error| LedgerError::Broken(format!("the ledger: an item's error: {error}")))?;
            for index in first.max(from)..first + count {
                if to.len() == most {
                    return Ok(());
                }
                to.push(FailureRow {
                    source: record.sources[source as usize].name.clone(),
                    index,
                    id: id.clone(),
                    outcome,
                    error: error.clone(),
                    attempts,
                });
            }
        }
        Ok(())
    }

    fn record(&self, run: &RunId) -> Result<RunRecord, ReadError> {
        let record = match &self.tables {
            Tables::Sqlite(tables) => tables.run(run),
            Tables::Postgres(tables) => tables.run(run),
        };
        record?.ok_or_else(|| ReadError::NoSuchRun(run.to_string()))
    }
}

fn unique_prefix<'a>(ids: &'a [String], prefix: &str) -> Result<&'a String, ReadError> {
    let mut matching = ids.iter().filter(|id| id.starts_with(prefix));
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(ReadError::NoSuchRun(prefix.to_owned())),
        (Some(first), Some(second)) => {
            Err(ReadError::Ambiguous(prefix.to_owned(), format!("{first}, {second}")))
        }
    }
}

fn report(run: &RunRecord) -> Report {
    Report::of(run, windrow_common::clock::unix_ms())
}
