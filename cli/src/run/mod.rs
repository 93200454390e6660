//! `windrow run`: producer, consumers and collector of one job in this process, until its run ends.

pub(crate) mod progress;
mod roles;
pub(crate) mod summary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windrow_collector::{Collector, Reader, Report, SinkBase};
use windrow_common::broker::Broker;
use windrow_common::broker::address::{BrokerAddress, connect};
use windrow_common::daemon::{listen_at, watch_health};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{Group, RunId};
use windrow_common::job::{IfExists, Job, JobSet, SinkSpec};
use windrow_common::shutdown::{self, INTERRUPTED};
use windrow_common::telemetry::logging::{self, LogFormat, LogOutput, standard_error};
use windrow_common::telemetry::metrics::Metrics;
use windrow_producer::Plan;

use self::progress::{Display, Standing};
use self::roles::Roles;
use crate::args::RunArgs;
use crate::job_file::{load, refuse_missing_variables};
use crate::output::counted;
use crate::retry::Again;
use crate::{Failure, exit};

/// What every part of the command needs.
struct Setting {
    arguments: RunArgs,
    /// Set under `windrow retry`.
    again: Option<Again>,
    job: Arc<Job>,
    data_dir: PathBuf,
    broker: Arc<dyn Broker>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    trouble: watch::Sender<Option<String>>,
}

/// How the work came to an end.
enum Ending {
    /// The run has ended, with this account.
    Ended(Box<Report>),
    /// Ctrl-C or SIGTERM; the run can be resumed.
    Interrupted(Option<Box<Report>>),
}

/// Runs a job, or some items of a run of it again.
pub(crate) async fn run(
    arguments: RunArgs,
    again: Option<Again>,
    log_format: LogFormat,
) -> Result<(), Failure> {
    let mut job = load(&arguments.job)?;
    if let Some(again) = &again {
        again.fit(&mut job)?;
    }
    refuse_missing_variables(&job)?;
    let mut display = Display::new(arguments.here.quiet, arguments.here.json);
    logging::init(log_format, true, log_output(&display))?;
    let setting = set_up(arguments, again, job).await?;
    let jobs = Arc::new(JobSet::from_jobs([Job::clone(&setting.job)]));
    let options = windrow_collector::Options {
        is_alone: true,
        data_dir: setting.data_dir.clone(),
        ledger: windrow_collector::LedgerPlace::DataDir,
        sink_base: SinkBase::JobFile,
        metrics: Arc::clone(&setting.metrics),
        trouble: setting.trouble.clone(),
    };
    let collector = Collector::start(Arc::clone(&jobs), Arc::clone(&setting.broker), options).await?;
    let plan = plan(&setting).await?;
    refuse_existing_sink(&setting.job, &plan)?;
    let run = plan.run().clone();
    greet(&display, &setting, &plan);
    let snapshots = collector.snapshots();
    let roles = Roles::start(&setting, &jobs, collector, plan).await?;
    let ending = follow(&mut display, &setting, &run, snapshots, roles).await;
    display.end();
    setting.broker.close(roles::CLOSE_GRACE).await;
    match ending? {
        Ending::Ended(report) => {
            summary::ended(&display, &setting, &report);
            outcome(&report)
        }
        Ending::Interrupted(report) => {
            summary::interrupted(&display, &setting, &run, report.as_deref());
            Err(Failure::silent(INTERRUPTED))
        }
    }
}

/// Log lines go above the bar, where there is one.
fn log_output(display: &Display) -> LogOutput {
    match display.bar() {
        None => standard_error(),
        Some(bar) => Box::new(move |line| bar.suspend(|| standard_error()(line))),
    }
}

async fn set_up(arguments: RunArgs, again: Option<Again>, job: Job) -> Result<Setting, Failure> {
    let data_dir = arguments.data_dir.clone().unwrap_or_else(|| job.folder().join(".windrow"));
    std::fs::create_dir_all(&data_dir).map_err(|error| {
        format!(
            "the data folder {} cannot be made: {error}; choose another with --data-dir",
            data_dir.display()
        )
    })?;
    let shutdown = shutdown::on_signals()?;
    let metrics = Metrics::new("run");
    let broker = open_broker(&arguments, &data_dir).await?;
    watch_health(broker.health(), metrics.broker());
    let trouble = watch::Sender::new(None);
    if let Some(address) = arguments.here.listen {
        listen_at(address, &broker, &metrics, trouble.subscribe(), &shutdown).await?;
    }
    Ok(Setting { arguments, again, job: Arc::new(job), data_dir, broker, metrics, shutdown, trouble })
}

/// The embedded broker in the data folder, or the one asked for, with a group of this data folder's own.
async fn open_broker(arguments: &RunArgs, data_dir: &Path) -> Result<Arc<dyn Broker>, Failure> {
    let (address, group) = match &arguments.here.broker {
        None => (BrokerAddress::Embedded(data_dir.join("queue")), Group::main()),
        Some(url) => {
            let address = url.parse().map_err(|error| Failure::usage(format!("--broker: {error}")))?;
            (address, own_group(data_dir)?)
        }
    };
    Ok(connect(&address, &group).await?)
}

/// The collector group of this data folder: a run from a laptop never settles a fleet's runs.
fn own_group(data_dir: &Path) -> Result<Group, Failure> {
    let file = data_dir.join("group");
    if let Ok(text) = std::fs::read_to_string(&file) {
        return text.trim().parse().map_err(|_| {
            Failure::from(format!("{} does not hold the name of a group; remove it", file.display()))
        });
    }
    let text = format!("run-{}", uuid::Uuid::new_v4().simple());
    std::fs::write(&file, &text).map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    text.parse().map_err(Failure::from)
}

/// Which run this is: a new one, or one to go on with.
async fn plan(setting: &Setting) -> Result<Plan, Failure> {
    let reader = Reader::open(&setting.data_dir)?;
    let states: BTreeMap<RunId, RunState> =
        reader.runs()?.into_iter().map(|report| (report.run, report.state)).collect();
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let options = windrow_producer::Options {
        run: setting.arguments.run.clone(),
        root_run: setting.again.as_ref().map(|again| again.root_run.clone()),
        retry: setting.again.as_ref().map(|again| again.retry.clone()),
        data_dir: setting.data_dir.clone(),
        first: setting.arguments.first,
        resend: None,
        started_at: u64::try_from(since_epoch.as_millis()).unwrap_or(0),
        states,
    };
    let job = Arc::clone(&setting.job);
    let planned = tokio::task::spawn_blocking(move || windrow_producer::plan(&job, &options)).await?;
    Ok(planned?)
}

/// A file that is there is an error before anything runs, unless this run has made it.
fn refuse_existing_sink(job: &Job, plan: &Plan) -> Result<(), Failure> {
    let SinkSpec::Jsonl(file) = &job.sink else { return Ok(()) };
    match job.sink_path(job.folder()) {
        Some(path) if file.if_exists == IfExists::Error && !plan.is_resumed() && path.exists() => {
            Err(Failure::from(format!(
                "the sink {} exists; move it away, or set `if_exists` in [sink] to \"replace\" or \"append\"",
                path.display()
            )))
        }
        _ => Ok(()),
    }
}

fn greet(display: &Display, setting: &Setting, plan: &Plan) {
    let accepted: u64 = plan.confirmed().values().map(|source| source.accepted).sum();
    let text = if plan.is_resumed() {
        format!("resuming run {} of {} ({} items were published)", plan.run(), setting.job.name, accepted)
    } else {
        format!("run {} of {}", plan.run(), setting.job.name)
    };
    let text = match &setting.again {
        Some(again) => format!("{text}: {} of run {} again", counted(again.count(), "item"), again.retry.of),
        None => text,
    };
    let fields = json!({
        "run": plan.run(),
        "job": setting.job.name,
        "hash": setting.job.hash,
        "resumed": plan.is_resumed(),
        "data_dir": setting.data_dir,
    });
    display.say("started", &text, fields);
}

/// Shows how far the run is until it ends, something breaks, or somebody interrupts it.
async fn follow(
    display: &mut Display,
    setting: &Setting,
    run: &RunId,
    mut snapshots: watch::Receiver<Arc<BTreeMap<RunId, Report>>>,
    mut roles: Roles,
) -> Result<Ending, Failure> {
    let mut state = RunState::Running;
    loop {
        let report = snapshots.borrow_and_update().get(run).cloned();
        if let Some(report) = &report {
            display.update(standing(report));
            if report.state != state {
                state = report.state;
                summary::moved(display, setting, run, state);
            }
            if report.state.is_ended() {
                roles.leave().await?;
                let last = snapshots.borrow().get(run).cloned();
                return Ok(Ending::Ended(Box::new(last.unwrap_or_else(|| report.clone()))));
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() {
                roles.leave().await?;
                return Err(Failure::from("the collector stopped before the run ended"));
            },
            () = tokio::time::sleep(progress::BAR_INTERVAL) => {}
            broken = roles.broken() => {
                // The first failure is the one to tell; leaving may well fail for the same reason.
                drop(roles.leave().await);
                return Err(broken);
            }
            () = setting.shutdown.cancelled() => {
                display.say("interrupted", "stopping: items that run come to their end (Ctrl-C again to end now)", json!({}));
                tokio::select! {
                    left = roles.leave() => if let Err(failure) = left {
                        tracing::warn!("not everything in hand was settled: {}", failure.message.unwrap_or_default());
                    },
                    reason = roles::out_of_reach(setting.broker.health()) => {
                        tracing::warn!("what is in hand cannot be settled and comes again at the next start: {reason}");
                        roles.abandon();
                    }
                }
                let report = snapshots.borrow().get(run).cloned();
                return Ok(Ending::Interrupted(report.map(Box::new)));
            }
        }
    }
}

/// How far a run is, for a display.
pub(crate) fn standing(report: &Report) -> Standing {
    let called = report.outcomes.succeeded + report.outcomes.failed;
    Standing {
        accepted: report.accepted,
        sealed: report.sealed,
        settled: report.outcomes.settled(),
        failed: report.outcomes.failed,
        retries: report.attempts.saturating_sub(called),
        rejected: report.rejected,
    }
}

/// The exit code of an ended run.
pub(crate) fn outcome(report: &Report) -> Result<(), Failure> {
    match report.state {
        RunState::Completed => Ok(()),
        RunState::CompletedWithFailures => Err(Failure::silent(exit::COMPLETED_WITH_FAILURES)),
        RunState::Cancelled => Err(Failure::silent(exit::CANCELLED)),
        _ => Err(Failure::silent(exit::FAILED)),
    }
}
