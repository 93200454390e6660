//! The collector binary: completions to the ledger, lines to the sinks.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use windrow_collector::ledger::postgres::{PostgresAddress, PostgresAddressError};
use windrow_collector::{Collector, LedgerPlace, Options, SinkBase};
use windrow_common::daemon::{Daemon, DaemonArgs, fail};
use windrow_common::job::JobSet;
use windrow_common::shutdown::Drained;

/// Both sides prove this often that they are there. RabbitMQ misses a stopped collector after two to three times
/// that, and gives what it held to the next one: with 3 s that could take 9 of the 10 s a take-over may take.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// How long the broker is given to take leave.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Keeps the ledger of runs: settles outcomes, answers consumers, brings lines to their sinks, writes reports.
#[derive(Debug, Parser)]
#[command(
    name = "windrow-collector",
    version,
    about,
    max_term_width = 110,
    after_help = "\
Examples:
  windrow-collector --jobs /etc/windrow/jobs --broker amqp://windrow:secret@rabbit:5672/%2f --data-dir /var/lib/windrow
  WINDROW_BROKER=embedded:/var/lib/windrow windrow-collector --jobs jobs --data-dir /var/lib/windrow

  WINDROW_LEDGER=postgres://windrow:secret@db:5432/windrow windrow-collector --jobs jobs --broker amqp://rabbit --data-dir data

One collector works on a data folder, unless the ledger is in PostgreSQL: then any number of collectors may be started
with the same data folder, ledger and broker. One is active, the others stand by, and one of them takes over within 10 s
when it is killed or stopped. One that was replaced ends with code 1, and stands by when started again.

Relative sink paths of job files are relative to the data folder. SIGTERM or Ctrl-C ends it with everything in hand
settled. Exit codes: 0 after a shutdown, 1 error, 2 usage or bad job file."
)]
struct Arguments {
    /// The folder of job files. Several versions of a job may be in it.
    #[arg(long, value_name = "DIR")]
    jobs: PathBuf,
    /// Where spool and run folders are, and the ledger unless --ledger names another place. Made if it is not there.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Keep the ledger in PostgreSQL: `postgres://user:password@host:port/database`. Default: in the data folder.
    // Read in `ledger` below: clap would print what it refuses, and with it the password.
    #[arg(long, value_name = "URL", env = "WINDROW_LEDGER", hide_env_values = true)]
    ledger: Option<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let jobs = match JobSet::load_folder(&arguments.jobs) {
        Ok(jobs) => jobs,
        Err(error) => return fail("windrow-collector", error, 2),
    };
    let ledger = match ledger(&arguments) {
        Ok(ledger) => ledger,
        Err(error) => return fail("windrow-collector", error, 2),
    };
    match collect(arguments, ledger, jobs).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail("windrow-collector", error, 1),
    }
}

fn ledger(arguments: &Arguments) -> Result<LedgerPlace, PostgresAddressError> {
    let Some(url) = &arguments.ledger else { return Ok(LedgerPlace::DataDir) };
    let address: PostgresAddress = url.parse()?;
    Ok(LedgerPlace::Postgres(address, arguments.daemon.group.clone()))
}

async fn collect(arguments: Arguments, ledger: LedgerPlace, jobs: JobSet) -> anyhow::Result<()> {
    let address = arguments.daemon.address()?.with_heartbeat(HEARTBEAT);
    let daemon = Daemon::begin_at(&address, &arguments.daemon, "collector").await?;
    let options = Options {
        is_alone: false,
        sink_base: SinkBase::Folder(arguments.data_dir.clone()),
        data_dir: arguments.data_dir,
        ledger,
        metrics: Arc::clone(&daemon.metrics),
        trouble: daemon.trouble,
    };
    let broker = Arc::clone(&daemon.broker);
    let jobs = Arc::new(jobs);
    let drained = match Collector::start_in_turn(jobs, Arc::clone(&broker), options, &daemon.shutdown).await?
    {
        Some(collector) => {
            tracing::info!("collecting");
            collector.run(daemon.shutdown).await
        }
        None => Ok(Drained::clean()),
    };
    broker.close(CLOSE_GRACE).await;
    tracing::info!(shutdown = %drained?, "ended");
    Ok(())
}
