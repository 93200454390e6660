//! Where a ledger is kept, and how it is opened there.

use std::path::Path;

use windrow_common::ids::Group;

use super::postgres::{PostgresAddress, PostgresLedger};
use super::sqlite::SqliteLedger;
use super::{Ledger, LedgerError, ReadError, Reader};

/// Where a ledger is kept.
#[derive(Debug, Clone)]
pub enum LedgerPlace {
    /// In the data folder, in SQLite: one collector works on it.
    DataDir,
    /// In a database, in a schema of this collector group: others stand by.
    Postgres(PostgresAddress, Group),
}

impl LedgerPlace {
    /// Whether collectors that stand by may be there.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(..))
    }

    /// Makes sure the ledger can be opened, without taking it from who holds it.
    pub(crate) async fn check(&self) -> Result<(), LedgerError> {
        match self {
            Self::DataDir => Ok(()),
            Self::Postgres(address, group) => PostgresLedger::check(address, group).await,
        }
    }

    /// Opens, or makes, the ledger, and takes the next epoch.
    pub(crate) async fn open(&self, data_dir: &Path) -> Result<Box<dyn Ledger>, LedgerError> {
        Ok(match self {
            Self::DataDir => Box::new(SqliteLedger::open(data_dir)?),
            Self::Postgres(address, group) => Box::new(PostgresLedger::open(address, group).await?),
        })
    }

    /// Opens it to read only. Not to be called on a thread that serves a runtime.
    pub(crate) fn read(&self, data_dir: &Path) -> Result<Reader, ReadError> {
        match self {
            Self::DataDir => Reader::open(data_dir),
            Self::Postgres(address, group) => Reader::open_postgres(address, group),
        }
    }
}
