//! Windrow's front door: every role in one process, and the operator's commands.

mod args;
mod check;
mod control;
mod dead;
mod inspect;
mod job_file;
mod output;
mod prune;
mod retry;
mod run;
mod topology;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use windrow_collector::RunCommand;

use crate::args::{Cli, Command};

/// Exit codes, the same for every command (`windrow --help` lists them).
mod exit {
    /// Something went wrong that is not the job's own outcome.
    pub(crate) const ERROR: u8 = 1;
    /// The command line or the job file is wrong; nothing was begun.
    pub(crate) const USAGE: u8 = 2;
    /// The run ended with failures the job tolerates.
    pub(crate) const COMPLETED_WITH_FAILURES: u8 = 3;
    /// The run ended as failed.
    pub(crate) const FAILED: u8 = 4;
    /// The run was cancelled.
    pub(crate) const CANCELLED: u8 = 5;
}

/// An end other than success: what to say, if it was not said already, and the exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: Option<String>,
}

impl Failure {
    /// Ends with `code`, saying nothing more.
    fn silent(code: u8) -> Self {
        Self { code, message: None }
    }

    /// Ends with [`exit::USAGE`].
    fn usage(message: impl std::fmt::Display) -> Self {
        Self { code: exit::USAGE, message: Some(message.to_string()) }
    }
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: exit::ERROR, message: Some(format!("{error:#}")) }
    }
}

/// Reads a ledger away from the threads that serve the runtime.
async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await?
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Command::Run(arguments) => run::run(arguments, None, cli.log_format).await,
        Command::Retry(arguments) => retry::retry(arguments, cli.log_format).await,
        Command::Check(arguments) => check::check(&arguments),
        Command::Status(arguments) => reading(move || inspect::status(&arguments)).await,
        Command::Watch(arguments) => reading(move || watch::watch(&arguments)).await,
        Command::Failures(arguments) => reading(move || inspect::failures(&arguments)).await,
        Command::Report(arguments) => reading(move || inspect::report(&arguments)).await,
        Command::Prune(arguments) => prune::prune(&arguments),
        Command::Pause(arguments) => control::control(RunCommand::Pause, &arguments).await,
        Command::Resume(arguments) => control::control(RunCommand::Resume, &arguments).await,
        Command::Cancel(arguments) => control::control(RunCommand::Cancel, &arguments).await,
        Command::Limits(arguments) => control::limits(&arguments).await,
        Command::Dead(arguments) => dead::dead(&arguments).await,
        Command::Topology(arguments) => topology::topology(&arguments).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message {
                output::tell(format_args!("windrow: {message}"));
            }
            ExitCode::from(failure.code)
        }
    }
}
