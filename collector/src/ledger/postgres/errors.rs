//! What an error of PostgreSQL means for the ledger.

use std::error::Error as _;

use deadpool_postgres::{HookError, PoolError};
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::ledger::LedgerError;

/// Classes of SQLSTATE that pass: connection, resources, the server's own state, its disk; also conflicts between
/// transactions, which are to be tried again.
const PASSING: [&str; 5] = ["08", "40", "53", "57", "58"];

/// What an error of a statement means.
pub(super) fn ledger_error(error: &Error) -> LedgerError {
    let text = match (error.as_db_error(), error.source()) {
        (Some(refusal), _) => format!("PostgreSQL: {}", refusal.message()),
        (None, Some(source)) => format!("PostgreSQL: {error}: {source}"),
        (None, None) => format!("PostgreSQL: {error}"),
    };
    let passes = match error.code() {
        Some(code) => {
            PASSING.contains(&&code.code()[..2])
                || *code == SqlState::LOCK_NOT_AVAILABLE
                || *code == SqlState::READ_ONLY_SQL_TRANSACTION
                || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
        }
        None => {
            error.is_closed() || error.source().is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
        }
    };
    if passes { LedgerError::Unwritable(text) } else { LedgerError::Broken(text) }
}

/// The error of PostgreSQL in an error of the pool, if it is one.
pub(super) fn backend(error: &PoolError) -> Option<&Error> {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => Some(error),
        _ => None,
    }
}

impl From<Error> for LedgerError {
    fn from(error: Error) -> Self {
        ledger_error(&error)
    }
}
