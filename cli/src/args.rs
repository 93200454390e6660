//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use windrow_collector::Reader;
use windrow_collector::ledger::postgres::PostgresAddress;
use windrow_common::ids::{Group, RunId};
use windrow_common::job::Rate;

use crate::Failure;
use crate::dead::args::DeadArgs;

/// Runs one piece of work for every item of a dataset, durably, and ends with a balanced account of every item.
#[derive(Debug, Parser)]
#[command(
    name = "windrow",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  windrow run job.toml                     run a job here, without a server
  windrow run job.toml --first 10          try it on the first ten items
  windrow check job.toml                   every problem of a job file, or its plan; nothing is sent
  windrow status                           runs of this folder and how far they are
  windrow failures                         what failed in the newest run, and why
  windrow pause nightly                    start nothing new of a run, until `windrow resume nightly`

Exit codes:
  0    all succeeded
  1    error
  2    usage or bad job file
  3    completed with failures
  4    failed: more failures than the job tolerates, its deadline passed, or a source that cannot be read
  5    cancelled
  130  interrupted; the same command goes on"
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How the log on standard error is written: `text` or `json`. What is logged: `WINDROW_LOG`.
    #[arg(long, global = true, value_name = "FORMAT", env = "WINDROW_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: windrow_common::telemetry::logging::LogFormat,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a job with everything in this process; after a crash or Ctrl-C the same command goes on.
    Run(RunArgs),
    /// Run those items of an ended run again that failed or whose end is not known, as a run of their own.
    Retry(RetryArgs),
    /// Show every problem of a job file, or its plan with the first items rendered. Sends nothing.
    Check(CheckArgs),
    /// Show the runs of a data folder, or one of them.
    Status(StatusArgs),
    /// Show how far a run is until it ends, also one of a fleet. Exits as `windrow run` does.
    Watch(WatchArgs),
    /// List what failed in a run, and why.
    Failures(FailuresArgs),
    /// Print the report of a run as JSON.
    Report(ReportArgs),
    /// Start nothing new of a run until it is resumed. What runs comes to its end.
    Pause(ControlArgs),
    /// Go on with a paused run.
    Resume(ControlArgs),
    /// End a run: what runs comes to its end, what is open is cancelled.
    Cancel(ControlArgs),
    /// Change how often a destination may be called, by all consumers together, while runs go on.
    Limits(LimitsArgs),
    /// List, show, send back or drop messages that nobody could handle.
    Dead(DeadArgs),
    /// Forget runs that ended long ago: their rows in the ledger, and their folders. Sinks stay.
    Prune(PruneArgs),
    /// Declare, show or check the exchanges and queues on a RabbitMQ broker.
    Topology(TopologyArgs),
}

/// `windrow run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windrow run job.toml
  windrow run job.toml --run nightly-2026-01-31
  cat items.jsonl | windrow run job.toml --run from-pipe
  windrow run job.toml --broker amqp://user:secret@localhost:5672/%2f
  windrow run job.toml --json > events.jsonl")]
pub(crate) struct RunArgs {
    /// The job file.
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// A name for the run, or the run to resume.
    #[arg(long, value_name = "NAME")]
    pub(crate) run: Option<RunId>,
    /// Where runs are kept. Default: `.windrow` beside the job file.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Take only the first N items, as a trial.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) first: Option<u64>,
    #[command(flatten)]
    pub(crate) here: HereArgs,
}

/// How a run runs in this process.
#[derive(Debug, Args)]
pub(crate) struct HereArgs {
    /// The broker: `amqp[s]://user:password@host:port/vhost`. Without it, the embedded one in the data folder.
    #[arg(long, value_name = "URL", env = "WINDROW_BROKER", hide_env_values = true)]
    pub(crate) broker: Option<String>,
    /// Consumers to start in this process.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) consumers: u16,
    /// Serve `/metrics`, `/healthz` and `/readyz` at this address, such as 127.0.0.1:9090.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Show nothing but problems.
    #[arg(long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    /// Write events to standard output, one JSON object a line, instead of showing progress.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `windrow retry`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windrow retry nightly-2026-01-31
  windrow retry nightly-2026-01-31 --where '.error.class == \"timeout\"'
  windrow retry nightly-2026-01-31 --job corrected.toml

The items run as a new run, under their old indexes and with their old idempotency keys, everything in this process as
with `windrow run`. Their lines go beside the sink's file: with out.jsonl, to out.retry-RUN.jsonl. The same command
after a crash or Ctrl-C goes on. Exit codes are those of `windrow run`.")]
pub(crate) struct RetryArgs {
    /// The run, or the beginning of its name. It must have ended.
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Only items for which this jq filter is true; it sees what `windrow failures --json` prints. Items with an unknown
    /// end are taken only when it names them: `.outcome == "unknown"`.
    #[arg(long = "where", value_name = "FILTER")]
    pub(crate) filter: Option<String>,
    /// The job file, corrected or not. Default: the one beside the data folder that has the job's name.
    #[arg(long, value_name = "JOB.toml")]
    pub(crate) job: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataDir,
    #[command(flatten)]
    pub(crate) here: HereArgs,
}

/// `windrow check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The job file.
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// How many items to show rendered.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) show: usize,
    /// Print the plan as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The data folder.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDir {
    /// Where runs are kept.
    #[arg(long, value_name = "DIR", default_value = ".windrow", env = "WINDROW_DATA_DIR")]
    pub(crate) data_dir: PathBuf,
}

/// Where runs are kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct Kept {
    #[command(flatten)]
    pub(crate) data: DataDir,
    /// The ledger, where the collector has it in PostgreSQL: `postgres://user:password@host:port/database`.
    // Read in `reader` below: clap would print what it refuses, and with it the password.
    #[arg(long, value_name = "URL", env = "WINDROW_LEDGER", hide_env_values = true)]
    pub(crate) ledger: Option<String>,
    /// The collector group whose ledger in PostgreSQL it is.
    #[arg(long, value_name = "NAME", default_value = "main")]
    group: Group,
}

impl Kept {
    /// Opens the ledger to read. Neither this nor the reader is to be used on a thread that serves the runtime.
    pub(crate) fn reader(&self) -> Result<Reader, Failure> {
        let Some(url) = &self.ledger else { return Ok(Reader::open(&self.data.data_dir)?) };
        let address: PostgresAddress = url.parse().map_err(Failure::usage)?;
        Ok(Reader::open_postgres(&address, &self.group)?)
    }
}

/// `windrow status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The run, or the beginning of its name. Without it, all of them.
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) kept: Kept,
}

/// `windrow watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The run, or the beginning of its name. Without it, the newest.
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Write events to standard output, one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) kept: Kept,
}

/// `windrow failures`.
#[derive(Debug, Args)]
pub(crate) struct FailuresArgs {
    /// The run, or the beginning of its name. Without it, the newest.
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: usize,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) kept: Kept,
}

/// `windrow report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The run, or the beginning of its name. Without it, the newest.
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) kept: Kept,
}

/// `windrow pause`, `resume` and `cancel`.
#[derive(Debug, Args)]
#[command(after_help = "\
The command goes to the live `windrow run` or `windrow-collector` of the data folder, and is in its ledger when this
ends. Consumers hear of it at once; one that was started later, or was cut off, within 6 s.")]
pub(crate) struct ControlArgs {
    /// The run, or the beginning of its name.
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) kept: Kept,
}

/// `windrow prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Runs that ended longer ago than this, such as `30d` or `P30D`.
    #[arg(long, value_name = "AGE", value_parser = windrow_common::job::parse_duration)]
    pub(crate) older_than: Duration,
    /// Only say which runs those are.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) data: DataDir,
}

/// `windrow limits`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windrow limits crm --rate 50/s
  windrow limits crm --rate 10/s --rate 100000/d
  windrow limits crm --reset

The command goes to the live `windrow run` or `windrow-collector` of the data folder. It takes effect within 2 s, and
stays until it is changed again; job files must give the destination a `rate` at all.")]
pub(crate) struct LimitsArgs {
    /// The destination, as in [destination.NAME].
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: String,
    /// Calls and a unit of time: s, m, h or d. Several for several windows.
    #[arg(long = "rate", value_name = "RATE", required_unless_present = "reset")]
    pub(crate) rates: Vec<Rate>,
    /// Go back to the rates of the job files.
    #[arg(long, conflicts_with = "rates")]
    pub(crate) reset: bool,
    #[command(flatten)]
    pub(crate) data: DataDir,
}

/// `windrow topology`.
#[derive(Debug, Args)]
pub(crate) struct TopologyArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) action: TopologyAction,
}

/// What to do with the topology.
#[derive(Debug, Subcommand)]
pub(crate) enum TopologyAction {
    /// Declare what the job files need. Doing it again changes nothing.
    Apply(TopologyTarget),
    /// Show how many messages each queue of the job files holds.
    Show(TopologyTarget),
    /// Compare what is at the broker with what the job files need, changing nothing; exit code 1 if it differs.
    Check(TopologyTarget),
}

/// Whose topology, and where.
#[derive(Debug, Args)]
pub(crate) struct TopologyTarget {
    /// The broker: `amqp[s]://user:password@host:port/vhost`.
    #[arg(long, value_name = "URL", env = "WINDROW_BROKER", hide_env_values = true)]
    pub(crate) broker: String,
    /// The folder of job files.
    #[arg(long, value_name = "DIR")]
    pub(crate) jobs: PathBuf,
    /// The collector group.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) group: Group,
}
