//! The control socket `DATA_DIR/control.sock`: how an operator's command reaches the live collector of a data
//! folder, be it `windrow-collector` or `windrow run`.
//!
//! A Unix stream socket with mode 0600: only its owner may command. A client writes a line of JSON and reads one,
//! as often as it likes:
//!
//! ```text
//! {"command":"pause","run":"nightly"}          pause, resume or cancel; the run's whole name
//! {"run":"nightly","state":"paused"}           the run's state, which is in the ledger by then
//! {"error":"ended","run":"nightly","state":"completed"}
//! {"limits":"crm","rates":["10/s"]}            a destination's rates; without `rates` those of the job files again
//! {"limits":"crm","rates":["10/s"]}            the rates that hold from now on, which are in the ledger by then
//! ```
//!
//! The errors are those of [`CommandError`]: `no_such_run`, `ended`, `cancelling`, `no_rate`, `no_collector`,
//! `unreadable`.
//! A request line has at most [`MAX_REQUEST`] bytes. What a killed collector left is replaced by the next one,
//! which holds the folder's lock; a socket that nobody listens at means that no collector lives.

mod client;
mod server;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::RunId;
use windrow_common::job::Rate;

use crate::run_state::{CommandError, RunCommand};

pub use client::{AskError, ask, ask_limits};
pub(crate) use server::serve;

/// Bytes of a request, at most.
pub const MAX_REQUEST: u64 = 4 * 1024;

/// The socket's name in the data folder.
const SOCKET: &str = "control.sock";

/// Where the collector of a data folder listens.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What to do.
    pub command: RunCommand,
    /// With which run.
    pub run: RunId,
}

/// What is asked of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsRequest {
    /// The destination.
    pub limits: String,
    /// Its rates; none: those of the job files again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Vec<Rate>>,
}

/// What is answered: the run's state, the rates, or why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Reply {
    Refused(CommandError),
    Obeyed { run: RunId, state: RunState },
    Limited { limits: String, rates: Vec<Rate> },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_are_written_as_the_page_says() {
        let run: RunId = "nightly".parse().unwrap();
        let request = Request { command: RunCommand::Pause, run: run.clone() };
        let replies = [
            Reply::Obeyed { run: run.clone(), state: RunState::Paused },
            Reply::Refused(CommandError::Ended { run, state: RunState::Completed }),
            Reply::Refused(CommandError::NoCollector),
        ];
        let lines = [
            r#"{"run":"nightly","state":"paused"}"#,
            r#"{"error":"ended","run":"nightly","state":"completed"}"#,
            r#"{"error":"no_collector"}"#,
        ];
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"command":"pause","run":"nightly"}"#);
        for (reply, line) in replies.iter().zip(lines) {
            assert_eq!(serde_json::to_string(reply).unwrap(), line);
            assert_eq!(serde_json::from_str::<Reply>(line).unwrap(), *reply);
        }
    }
}
