//! The producer binary: reads a job's sources and publishes a run of it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windrow_common::daemon::{Daemon, DaemonArgs, fail};
use windrow_common::envelope::control::{RunNews, RunState};
use windrow_common::ids::RunId;
use windrow_common::job::Job;
use windrow_common::shutdown::INTERRUPTED;
use windrow_producer::{End, Options, Plan, Produced, ProducerProgress, Wiring, follow_news, plan, produce};

const PROGRAM: &str = "windrow-producer";

/// How long the broker is given to take leave.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Reads the sources of a job file and publishes them as one run; the run's id goes to standard output. The
/// same command after a crash goes on where the last one stopped.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    version,
    about,
    max_term_width = 110,
    after_help = "\
Examples:
  windrow-producer contacts.toml --broker amqp://windrow:secret@rabbit:5672/%2f
  WINDROW_BROKER=embedded:/var/lib/windrow windrow-producer contacts.toml --run 2026-03-nightly --wait
  zcat events.jsonl.gz | windrow-producer events.toml --run events-7 --broker embedded:broker

SIGTERM or Ctrl-C interrupts the run; the same command resumes it (standard input only with --run and the same data
piped in again). Exit codes: 0 all published, with --wait all succeeded; 1 error; 2 usage or bad job file; 3 some
rows were rejected, with --wait some items did not succeed; 4 the run failed; 5 it was cancelled; 130 interrupted."
)]
struct Arguments {
    /// The job file.
    #[arg(value_name = "JOB.toml")]
    job: PathBuf,
    /// The run's name. Without it, an unfinished run over the same sources is resumed, else a new one begun.
    #[arg(long, value_name = "NAME")]
    run: Option<RunId>,
    /// Where the producer keeps its place. Default: `.windrow` beside the job file.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Publish the first N items only, to try a job out.
    #[arg(long, value_name = "N")]
    first: Option<u64>,
    /// Publish the whole run once more, after its ledger was restored from a backup: only what has not settled there is
    /// run again.
    #[arg(long, requires = "run")]
    resend: bool,
    /// Wait until the run has ended, and exit by how it did.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let job = match Job::load(&arguments.job) {
        Ok(job) => Arc::new(job),
        Err(problems) => return fail(PROGRAM, problems, 2),
    };
    match publish(&arguments, job).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(PROGRAM, error, 1),
    }
}

async fn publish(arguments: &Arguments, job: Arc<Job>) -> anyhow::Result<u8> {
    let daemon = Daemon::begin(&arguments.daemon, "producer").await?;
    let planning = plan_run(arguments, Arc::clone(&job));
    let Some(plan) = daemon.shutdown.run_until_cancelled(planning).await else {
        // Nothing is published yet, and the sources need not be read through for nothing.
        std::process::exit(i32::from(INTERRUPTED));
    };
    let plan = plan?;
    // Whoever reads this may have gone; the run goes on.
    drop(writeln!(std::io::stdout().lock(), "{}", plan.run()));
    let news = follow_news(&daemon.broker, plan.producer(), plan.run().clone()).await?;
    let wiring = Wiring {
        broker: Arc::clone(&daemon.broker),
        news: news.clone(),
        progress: watch::channel(ProducerProgress::default()).0,
        metrics: daemon.metrics.producer(&job.name),
        shutdown: daemon.shutdown.clone(),
    };
    let produced = produce(plan, job, wiring).await?;
    let code = match &produced.end {
        End::Interrupted => INTERRUPTED,
        _ if arguments.wait => exit_code(wait(news, &daemon.shutdown).await),
        end => {
            if let End::Failed(reason) = end {
                drop(writeln!(std::io::stderr().lock(), "{PROGRAM}: {reason}"));
            }
            exit_code_unwaited(&produced, news.borrow().as_ref())
        }
    };
    daemon.broker.close(CLOSE_GRACE).await;
    Ok(code)
}

/// Planning reads all source files through; the signals are heard meanwhile.
async fn plan_run(arguments: &Arguments, job: Arc<Job>) -> anyhow::Result<Plan> {
    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let options = Options {
        run: arguments.run.clone(),
        root_run: None,
        retry: None,
        data_dir: arguments.data_dir.clone().unwrap_or_else(|| job.folder().join(".windrow")),
        first: arguments.first,
        // Higher than any remainder's hop, and than that of any earlier time.
        resend: arguments.resend.then(|| u32::try_from(started_at.as_secs())).transpose()?,
        started_at: u64::try_from(started_at.as_millis())?,
        states: std::collections::BTreeMap::new(),
    };
    Ok(tokio::task::spawn_blocking(move || plan(&job, &options)).await??)
}

/// The state the run ended in. None when shutdown came first.
async fn wait(mut news: watch::Receiver<Option<RunNews>>, shutdown: &CancellationToken) -> Option<RunState> {
    let ended = news.wait_for(|news| news.as_ref().is_some_and(|news| news.state.is_ended()));
    let ended = shutdown.run_until_cancelled(ended).await?;
    ended.ok()?.as_ref().map(|news| news.state)
}

fn exit_code(ended: Option<RunState>) -> u8 {
    match ended {
        Some(RunState::Completed) => 0,
        Some(RunState::CompletedWithFailures) => 3,
        Some(RunState::Failed) => 4,
        Some(RunState::Cancelled) => 5,
        Some(RunState::Running | RunState::Paused | RunState::Cancelling) | None => INTERRUPTED,
    }
}

/// By what the producer knows alone.
fn exit_code_unwaited(produced: &Produced, news: Option<&RunNews>) -> u8 {
    let cancelled = [RunState::Cancelling, RunState::Cancelled];
    match &produced.end {
        End::Sealed if produced.sources.values().any(|source| source.rejected > 0) => 3,
        End::Sealed => 0,
        End::Stopped if news.is_some_and(|news| cancelled.contains(&news.state)) => 5,
        End::Stopped | End::Failed(_) => 4,
        End::Interrupted => INTERRUPTED,
    }
}

#[cfg(test)]
mod tests {
    use windrow_common::envelope::completion::SourceProgress;
    use windrow_common::ids::SourceName;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_exit_code_says_how_the_run_ended() {
        let codes =
            [RunState::Completed, RunState::CompletedWithFailures, RunState::Failed, RunState::Cancelled]
                .map(|state| exit_code(Some(state)));
        assert_eq!(codes, [0, 3, 4, 5]);
        assert_eq!(exit_code(None), 130);
        let produced = |end, rejected| Produced {
            run: RunId::generate(),
            end,
            sources: [(SourceName::only(), SourceProgress { rejected, ..Default::default() })].into(),
        };
        for (end, rejected, code) in [
            (End::Sealed, 0, 0),
            (End::Sealed, 1, 3),
            (End::Failed(String::new()), 0, 4),
            (End::Stopped, 0, 4),
            (End::Interrupted, 1, 130),
        ] {
            assert_eq!(exit_code_unwaited(&produced(end, rejected), None), code);
        }
    }
}
