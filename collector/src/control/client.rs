//! The operator's end of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use windrow_common::envelope::control::RunState;
use windrow_common::job::Rate;

use super::{LimitsRequest, Reply, Request, socket};
use crate::run_state::CommandError;

/// How long an answer may take: it waits for the ledger, which may wait for a full disk.
const ANSWER: Duration = Duration::from_secs(15);

/// Bytes of an answer, at most.
const MAX_ANSWER: u64 = 64 * 1024;

/// Why a command got nowhere.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no live collector works on {}: start `windrow-collector` or `windrow run` with this data folder (a run moves \
         only while one of them works), or name the folder of the one that lives with --data-dir", .0.display()
    )]
    NoCollector(PathBuf),
    /// The socket is there, and cannot be used.
    #[error("{} cannot be used: {}; it takes commands only from the user its collector runs as", .0.display(), .1)]
    Unusable(PathBuf, io::Error),
    /// The collector does not answer.
    #[error(
        "the collector did not answer within {} s; it may wait for a full disk (its log says so). `windrow status` \
         says whether the run's state has changed", ANSWER.as_secs()
    )]
    Silent,
    /// It answered, and refuses.
    #[error(transparent)]
    Refused(#[from] CommandError),
}

/// Asks the live collector of a data folder. Returns the run's state, which is in the ledger.
pub async fn ask(data_dir: &Path, request: &Request) -> Result<RunState, AskError> {
    match send(data_dir, request).await? {
        Reply::Obeyed { state, .. } => Ok(state),
        reply => Err(unexpected(data_dir, reply)),
    }
}

/// Asks the live collector of a data folder for other rates of a destination. Returns those that hold from now on,
/// which are in the ledger.
pub async fn ask_limits(data_dir: &Path, request: &LimitsRequest) -> Result<Vec<Rate>, AskError> {
    match send(data_dir, request).await? {
        Reply::Limited { rates, .. } => Ok(rates),
        reply => Err(unexpected(data_dir, reply)),
    }
}

fn unexpected(data_dir: &Path, reply: Reply) -> AskError {
    match reply {
        Reply::Refused(error) => error.into(),
        _ => AskError::Unusable(socket(data_dir), io::Error::other("the answer is to something else")),
    }
}

async fn send(data_dir: &Path, request: &impl Serialize) -> Result<Reply, AskError> {
    let path = socket(data_dir);
    let asked = async {
        let stream = UnixStream::connect(&path).await?;
        exchange(stream, request).await
    };
    let reply = tokio::time::timeout(ANSWER, asked).await.map_err(|_| AskError::Silent)?;
    reply.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AskError::NoCollector(data_dir.to_owned())
        }
        // It ended before it answered.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            CommandError::NoCollector.into()
        }
        _ => AskError::Unusable(path, error),
    })
}

async fn exchange(mut stream: UnixStream, request: &impl Serialize) -> io::Result<Reply> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_ANSWER).read_until(b'\n', &mut answer).await?;
    if answer.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}
