//! What the end of a program means for its item.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use bytes::Bytes;
use windrow_common::envelope::completion::ItemError;
use windrow_common::job::{CommandOutput, Redactor};

use super::super::output::{NULL, json_line, text_line};
use super::super::{Attempt, Done, Retry};
use super::child::{RunError, Tail};

/// How much of the last line of standard error goes into an error's message.
const STDERR_CHARS: usize = 300;

/// How much of a program's name does.
const PROGRAM_CHARS: usize = 200;

/// The output of a program that ended with exit code 0.
pub(super) fn output(stdout: Vec<u8>, form: CommandOutput) -> Attempt {
    let no_output = |message| Attempt::failed("output", message, Retry::Never);
    match form {
        CommandOutput::Text => match std::str::from_utf8(&stdout) {
            Ok(text) => Attempt::Succeeded(text_line(without_line_break(text))),
            Err(_) => no_output("output is not UTF-8"),
        },
        CommandOutput::Json if stdout.trim_ascii().is_empty() => Attempt::Succeeded(NULL),
        CommandOutput::Json => match json_line(&Bytes::from(stdout)) {
            Some(json) => Attempt::Succeeded(json),
            None => no_output("output is not one JSON value; print one, or set `output = \"text\"`"),
        },
    }
}

fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// The failure of a program that ended otherwise. `retry_exit_codes` are tried again (None: all are), and so are
/// programs killed by a signal.
pub(super) fn failure(
    status: ExitStatus,
    stderr: &Tail,
    retry_exit_codes: Option<&[i32]>,
    redactor: &Redactor,
) -> Attempt {
    let (class, ending, retry) = match (status.code(), status.signal()) {
        (Some(code), _) => {
            let again = retry_exit_codes.is_none_or(|codes| codes.contains(&code));
            ("exit_code", format!("exit code {code}"), if again { Retry::Later } else { Retry::Never })
        }
        (None, signal) => {
            ("signal", format!("killed by signal {}", signal.unwrap_or_default()), Retry::Later)
        }
    };
    let message = match said(stderr, redactor) {
        said if said.is_empty() => ending,
        said => format!("{ending}: {said}"),
    };
    let error = ItemError { class: class.to_owned(), message, status: status.code().map(i64::from) };
    Attempt::Failed { error, retry, done: Done::Maybe }
}

/// The last line of standard error, without secrets and control characters, and bounded.
fn said(stderr: &Tail, redactor: &Redactor) -> String {
    let (line, cut) = stderr.last_line();
    let line = redactor.redact(&line);
    let chars = line.chars().map(|char| if char.is_control() { ' ' } else { char });
    // The beginning says most, unless it is cut: then it may also begin within a secret, which is
    // not recognised any more.
    let skip = if cut { line.chars().count().saturating_sub(STDERR_CHARS) } else { 0 };
    chars.skip(skip).take(STDERR_CHARS).collect()
}

/// The failure of a program that could not be run to its end.
pub(super) fn run_error(error: &RunError, argv_0: &str, max_output_bytes: u64) -> Attempt {
    match error {
        RunError::NotStarted(error) => not_started(error, argv_0),
        RunError::TooMuchOutput => Attempt::failed(
            "output_too_large",
            format!("more than {max_output_bytes} bytes of output; print less or raise `max_output_bytes`"),
            Retry::Never,
        ),
        RunError::Pipe(error) => Attempt::failed("command", error.to_string(), Retry::Later),
    }
}

/// The failure of a program that is in no folder of `PATH`.
pub(super) fn not_found(argv_0: &str) -> Attempt {
    let program = shown(argv_0);
    let message =
        format!("`{program}` is not in PATH; install it where the consumer runs, or name it by its path");
    Attempt::failed("not_started", message, Retry::Never).nothing_done()
}

/// A program's name may come from an item: no more of it than a name has.
fn shown(argv_0: &str) -> String {
    argv_0.chars().take(PROGRAM_CHARS).collect()
}

fn not_started(error: &std::io::Error, argv_0: &str) -> Attempt {
    use std::io::ErrorKind;
    let (remedy, retry) = match error.kind() {
        ErrorKind::NotFound => (
            "install it where the consumer runs, or correct `argv` (for a script: its first line)",
            Retry::Never,
        ),
        ErrorKind::PermissionDenied => ("make it executable for the consumer's user", Retry::Never),
        ErrorKind::ArgumentListTooLong => {
            ("pass large values on standard input rather than in `argv`", Retry::Never)
        }
        ErrorKind::ExecutableFileBusy => ("it is being written", Retry::Later),
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory => ("no room for another process now", Retry::Later),
        // Too many open files, here or in the system.
        _ if matches!(error.raw_os_error(), Some(23 | 24)) => {
            ("raise the limit of open files or lower `concurrency`", Retry::Later)
        }
        _ => ("correct `argv`", Retry::Never),
    };
    let program = shown(argv_0);
    Attempt::failed("not_started", format!("`{program}` cannot be started: {error}; {remedy}"), retry)
        .nothing_done()
}
