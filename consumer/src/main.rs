//! The consumer binary: takes chunks, runs items, reports outcomes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use windrow_common::daemon::{Daemon, DaemonArgs, fail};
use windrow_common::job::{JobSet, parse_duration};
use windrow_consumer::{Consumer, Options, Solitude};

/// How long the broker is given to take leave.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Takes chunks of the stages of its job files, runs their items, and reports one outcome for each.
#[derive(Debug, Parser)]
#[command(
    name = "windrow-consumer",
    version,
    about,
    max_term_width = 110,
    after_help = "\
Examples:
  windrow-consumer --jobs /etc/windrow/jobs --broker amqp://windrow:secret@rabbit:5672/%2f
  WINDROW_BROKER=embedded:/var/lib/windrow windrow-consumer --jobs jobs --grace 1m

SIGTERM or Ctrl-C drains it: nothing new is taken, running items end or are handed over within --grace. Exit codes:
0 after a shutdown, 1 error, 2 usage or bad job file."
)]
struct Arguments {
    /// The folder of job files. Several versions of a job may be in it.
    #[arg(long, value_name = "DIR")]
    jobs: PathBuf,
    /// How long running items may take to end at a shutdown, such as `25s` or `PT2M`.
    #[arg(long, value_name = "D", default_value = "25s", value_parser = parse_duration)]
    grace: Duration,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let jobs = match JobSet::load_folder(&arguments.jobs) {
        Ok(jobs) => jobs,
        Err(error) => return fail("windrow-consumer", error, 2),
    };
    match consume(&arguments, &jobs).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail("windrow-consumer", error, 1),
    }
}

async fn consume(arguments: &Arguments, jobs: &JobSet) -> anyhow::Result<()> {
    let daemon = Daemon::begin(&arguments.daemon, "consumer").await?;
    let options = Options {
        collector: None,
        process: daemon.process.clone(),
        grace: arguments.grace,
        metrics: Arc::clone(&daemon.metrics),
        own_processors: BTreeMap::new(),
        solitude: Solitude::default(),
    };
    let broker = Arc::clone(&daemon.broker);
    let environment = |name: &str| std::env::var(name).ok();
    let consumer = Consumer::start(jobs, Arc::clone(&broker), options, &environment).await?;
    tracing::info!(jobs = jobs.iter().count(), "consuming");
    let drained = consumer.run(daemon.shutdown).await;
    broker.close(CLOSE_GRACE).await;
    tracing::info!(shutdown = %drained, "ended");
    Ok(())
}
