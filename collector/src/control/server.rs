//! The collector's end of the control socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{LimitsRequest, MAX_REQUEST, Reply, Request, socket};
use crate::collector::Controller;
use crate::run_state::CommandError;

/// Connections served at a time; more wait.
const CONNECTIONS: usize = 16;

/// A connection on which nothing is asked for this long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// After a connection that could not be taken, such as for want of files, the next is tried this much later.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// A socket being served. Dropping it takes it away.
#[derive(Debug)]
pub(crate) struct Serving {
    path: PathBuf,
    inode: Option<u64>,
    task: JoinHandle<()>,
}

/// Serves the control socket of a data folder whose lock is ours, or whose turn. Where there can be none, such as on a file system
/// that knows no sockets, the collector works all the same, and says so.
pub(crate) fn serve(data_dir: &Path, controller: Controller) -> Option<Serving> {
    let path = socket(data_dir);
    match listen(&path) {
        Ok(listener) => {
            let inode = inode(&path);
            Some(Serving { path, inode, task: tokio::spawn(accept(listener, controller)) })
        }
        Err(error) => {
            tracing::warn!(
                "runs cannot be paused, resumed or cancelled here: {} cannot be listened at: {error}; a data folder \
                 with a shorter path, or on a disk of this machine, can",
                path.display()
            );
            None
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
        // A collector that took over has put its own there.
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // Left behind it would do no harm: the next collector replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// Nobody but the owner can connect at any time: the mode is set between binding and listening.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        // Of a collector that was killed or replaced: any other would hold the lock, or have the turn.
        fs::remove_file(path)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(16)
}

async fn accept(listener: UnixListener, controller: Controller) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("a control connection could not be taken: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let controller = controller.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &controller).await {
                tracing::debug!("a control connection broke off: {error}");
            }
            drop(slot);
        });
    }
}

async fn obey(line: &[u8], controller: &Controller) -> Result<Reply, CommandError> {
    if let Ok(LimitsRequest { limits, rates }) = serde_json::from_slice(line) {
        let rates = controller.limit(limits.clone(), rates).await?;
        return Ok(Reply::Limited { limits, rates });
    }
    let Request { command, run } = serde_json::from_slice(line)
        .map_err(|error| CommandError::Unreadable { reason: error.to_string() })?;
    let state = controller.command(run.clone(), command).await?;
    Ok(Reply::Obeyed { run, state })
}

/// Answers requests, one after another, until the client has no more.
async fn converse(stream: UnixStream, controller: &Controller) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut stream).take(MAX_REQUEST);
        let read = tokio::time::timeout(IDLE, bounded.read_until(b'\n', &mut line)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return Ok(());
        }
        let reply = obey(&line, controller).await.unwrap_or_else(Reply::Refused);
        let mut answer = serde_json::to_vec(&reply)?;
        answer.push(b'\n');
        stream.write_all(&answer).await?;
        if line.last() != Some(&b'\n') {
            // Cut off, or too long: what follows is no request.
            return Ok(());
        }
    }
}
