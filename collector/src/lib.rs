//! Windrow's collector: from the completion queue to the ledger, and from the ledger to the sink.
//!
//! [`Collector`] is the loop around the broker; [`engine`] is one step of it, in which a batch becomes one
//! transaction; [`chunk_state`] and [`run_state`] hold what is decided, without any shell. The ledger is
//! the truth ([`ledger`]); [`spool`] and [`sink`] bring lines to their file. [`ledger::Reader`] answers
//! questions about runs, with or without a live collector.

mod answers;
pub mod chunk_state;
mod chunks;
pub mod claims;
mod collector;
pub mod control;
mod cut;
mod dead;
mod doubt;
mod duties;
pub mod engine;
mod fleet;
mod incoming;
pub mod ledger;
mod limits;
mod meters;
mod notify;
mod opening;
mod options;
mod outages;
mod outcomes;
mod patience;
mod pauses;
mod place;
mod prune;
mod render;
pub mod report;
mod run;
mod run_folder;
pub mod run_state;
mod settling;
pub mod sink;
pub mod spool;
mod turn;
mod working;

pub use collector::{Collector, Controller};
pub use ledger::{FailureRow, LedgerPlace, ReadError, Reader, RunSummary};
pub use options::{CollectorError, Options, SinkBase};
pub use prune::{PruneError, Pruner};
pub use report::Report;
pub use run_folder::folder as run_folder;
pub use run_state::{CommandError, RunCommand};
