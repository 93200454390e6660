//! One run of a program: fed, listened to, bounded, and gone when its future is.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// How much of the end of standard error is kept.
const TAIL_BYTES: usize = 2 * 1024;

/// How long after its end a program's pipes may stay open before they are left alone. Only something that
/// left its process group can hold them that long.
const DRAIN_TIME: Duration = Duration::from_secs(1);

const READ_BYTES: usize = 8 * 1024;

/// A program that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Tail,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    NotStarted(io::Error),
    #[error("more output than allowed")]
    TooMuchOutput,
    #[error(transparent)]
    Pipe(#[from] io::Error),
}

/// The end of what a program wrote to standard error.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > TAIL_BYTES {
            self.bytes.drain(..self.bytes.len() - TAIL_BYTES);
            self.cut = true;
        }
    }

    /// The last line that says something, and whether its beginning is missing.
    pub(super) fn last_line(&self) -> (String, bool) {
        let text = self.bytes.trim_ascii_end();
        let start = text.iter().rposition(|&byte| byte == b'\n' || byte == b'\r').map_or(0, |at| at + 1);
        (String::from_utf8_lossy(&text[start..]).into_owned(), self.cut && start == 0)
    }
}

/// Runs a program in a process group of its own with `input` on standard input. When it has ended, when it writes
/// more than `max_output_bytes`, and when this future is dropped, whatever is left of the group is killed.
pub(super) async fn run(
    mut command: Command,
    input: &[u8],
    max_output_bytes: u64,
) -> Result<Finished, RunError> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(RunError::NotStarted)?;
    let group = ProcessGroup::of(&child);
    let (mut stdout, mut stderr) = (Vec::new(), Tail::default());
    let talk = talk(&mut child, input, max_output_bytes, &mut stdout, &mut stderr);
    let status = until_end(child, group, talk).await?;
    Ok(Finished { status, stdout, stderr })
}

/// Waits for the end of `child`, whose pipes `talk` serves.
async fn until_end(
    mut child: Child,
    group: ProcessGroup,
    talk: impl Future<Output = Result<(), RunError>>,
) -> Result<ExitStatus, RunError> {
    let mut talk = pin!(talk);
    let (status, talked) = tokio::select! {
        biased;
        talked = &mut talk => {
            if talked.is_err() {
                group.kill();
            }
            (child.wait().await, talked)
        }
        status = child.wait() => {
            // What it left running in its group holds its pipes open and would outlive it.
            group.kill();
            (status, tokio::time::timeout(DRAIN_TIME, talk).await.unwrap_or(Ok(())))
        }
    };
    talked?;
    Ok(status?)
}

/// Writes `input` and reads both outputs until they are closed. Takes the pipes out of `child`.
fn talk<'a>(
    child: &mut Child,
    input: &'a [u8],
    max_output_bytes: u64,
    stdout: &'a mut Vec<u8>,
    stderr: &'a mut Tail,
) -> impl Future<Output = Result<(), RunError>> + use<'a> {
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    async move {
        let (mut to_stdin, from_stdout, from_stderr) = pipes;
        let feed = async {
            if let Some(stdin) = &mut to_stdin {
                // A program need not read its input: it may end, or close it, before all is written.
                let _ = stdin.write_all(input).await;
            }
            drop(to_stdin);
            Ok(())
        };
        let capture = async {
            let keep = |bytes: &[u8]| {
                stdout.extend_from_slice(bytes);
                if stdout.len() as u64 > max_output_bytes { Err(RunError::TooMuchOutput) } else { Ok(()) }
            };
            read_all(from_stdout, keep).await
        };
        let listen = read_all(from_stderr, |bytes| {
            stderr.push(bytes);
            Ok(())
        });
        tokio::try_join!(feed, capture, listen).map(|_| ())
    }
}

async fn read_all<R: AsyncRead + Unpin>(
    pipe: Option<R>,
    mut keep: impl FnMut(&[u8]) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut buffer).await? {
            0 => return Ok(()),
            read => keep(&buffer[..read])?,
        }
    }
}

/// The process group a child leads. Killed when dropped.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }

    fn kill(self) {
        drop(self);
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Fails when nothing of the group is left.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_end_and_knows_when_its_line_is_cut() {
        let mut tail = Tail::default();
        tail.push(b"first\nlast one\n\n");
        assert_eq!(tail.last_line(), ("last one".to_owned(), false));
        tail.push(&[b'x'; 3 * TAIL_BYTES]);
        assert_eq!(tail.last_line(), ("x".repeat(TAIL_BYTES), true));
        tail.push(b"\nend");
        assert_eq!(tail.last_line(), ("end".to_owned(), false));
        assert_eq!(Tail::default().last_line(), (String::new(), false));
    }
}
