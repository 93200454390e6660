//! The loop: take what has come, let the engine settle it, let go of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{Broker, Delivery, Subscription};
use windrow_common::clock;
use windrow_common::envelope::control::RunState;
use windrow_common::envelope::{Headers, Message};
use windrow_common::ids::{ProcessId, RunId};
use windrow_common::job::{JobSet, Rate};
use windrow_common::shutdown::Drained;

use crate::engine::{Engine, Now};
use crate::ledger::Changes;
use crate::notify;
use crate::report::Report;
use crate::run_state::{CommandError, RunCommand};
use crate::settling::Settling;
use crate::turn::Turn;
use crate::{CollectorError, Options, control, fleet};

/// A batch has at most this many messages ...
const BATCH_MESSAGES: usize = 512;

/// ... and about this much of bodies.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// After a batch of at least this many the next one waits for more of them ...
const BUSY_MESSAGES: usize = 8;

/// ... for this long: two syncs of the disk are then shared by more.
const LINGER: Duration = Duration::from_millis(10);

/// With nothing to do, the ledger is asked this often whether it is still ours.
const IDLE: Duration = Duration::from_secs(5);

/// At a shutdown, deliveries already here are still settled for this long.
const LAST_DELIVERIES: Duration = Duration::from_secs(5);

/// The lock in the data folder.
const LOCK_FILE: &str = "collector.lock";

/// A collector that holds its data folder and its ledger.
#[derive(Debug)]
pub struct Collector {
    broker: Arc<dyn Broker>,
    engine: Engine,
    process: ProcessId,
    commands: mpsc::Receiver<Asked>,
    controller: Controller,
    snapshots: watch::Receiver<Arc<BTreeMap<RunId, Report>>>,
    give_up: CancellationToken,
    /// Whose turn it is was settled at the start, where others stand by.
    turn: Option<Turn>,
    /// Held as long as we live.
    _lock: File,
}

/// Pauses, resumes and cancels runs of a live collector, and sets rates.
#[derive(Debug, Clone)]
pub struct Controller(mpsc::Sender<Asked>);

#[derive(Debug)]
enum Asked {
    Run {
        run: RunId,
        command: RunCommand,
        done: oneshot::Sender<Result<RunState, CommandError>>,
    },
    Limit {
        destination: String,
        rates: Option<Vec<Rate>>,
        done: oneshot::Sender<Result<Vec<Rate>, CommandError>>,
    },
    Keep(Box<Changes>),
}

impl Controller {
    /// Pauses, resumes or cancels a run. Returns its state once that is durable.
    pub async fn command(&self, run: RunId, command: RunCommand) -> Result<RunState, CommandError> {
        let (done, answer) = oneshot::channel();
        self.0.send(Asked::Run { run, command, done }).await.map_err(|_| CommandError::NoCollector)?;
        answer.await.unwrap_or(Err(CommandError::NoCollector))
    }

    /// Sets the rates of a destination; None: those of the job files again. Returns the rates that hold from now on,
    /// once they are durable.
    pub async fn limit(
        &self,
        destination: String,
        rates: Option<Vec<Rate>>,
    ) -> Result<Vec<Rate>, CommandError> {
        let (done, answer) = oneshot::channel();
        let asked = Asked::Limit { destination, rates, done };
        self.0.send(asked).await.map_err(|_| CommandError::NoCollector)?;
        answer.await.unwrap_or(Err(CommandError::NoCollector))
    }
}

impl Controller {
    /// Has the ledger keep what holds for destinations. Waits for nothing: while the ledger is stuck this is not kept,
    /// which costs a few calls after a restart at most.
    pub(crate) fn keep(&self, changes: Changes) {
        if self.0.try_send(Asked::Keep(Box::new(changes))).is_err() {
            tracing::debug!("what holds for a destination is not kept in the ledger, which is busy");
        }
    }
}

impl Collector {
    /// Takes the data folder, opens its ledger under the next epoch, and takes up the runs it holds.
    pub async fn start(
        jobs: Arc<JobSet>,
        broker: Arc<dyn Broker>,
        options: Options,
    ) -> Result<Self, CollectorError> {
        let lock = lock(&options)?;
        Self::begin(jobs, broker, options, lock, None).await
    }

    /// Like `start`; but where the ledger is shared, it first stands by until its turn has come. None when `shutdown`
    /// came before that.
    pub async fn start_in_turn(
        jobs: Arc<JobSet>,
        broker: Arc<dyn Broker>,
        options: Options,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, CollectorError> {
        let lock = lock(&options)?;
        let mut turn = None;
        if options.ledger.is_shared() {
            // What is wrong with it is to be known now, not when it is needed.
            options.ledger.check().await.map_err(CollectorError::Ledger)?;
            tracing::info!("standing by");
            turn = Turn::wait(&broker, shutdown).await?;
            if turn.is_none() {
                return Ok(None);
            }
        }
        Self::begin(jobs, broker, options, lock, turn).await.map(Some)
    }

    async fn begin(
        jobs: Arc<JobSet>,
        broker: Arc<dyn Broker>,
        options: Options,
        lock: File,
        turn: Option<Turn>,
    ) -> Result<Self, CollectorError> {
        jobs.iter().for_each(|job| notify::complain_of_missing_variables(job));
        let give_up = CancellationToken::new();
        let until_give_up = give_up.clone();
        let engine = on_thread(move || async move {
            let ledger = options.ledger.open(&options.data_dir).await.map_err(CollectorError::Ledger)?;
            Engine::open(ledger, jobs, options, until_give_up, now()).await
        })
        .await??;
        let snapshots = engine.snapshots();
        let (sender, commands) = mpsc::channel(16);
        let controller = Controller(sender);
        let process = ProcessId::generate();
        Ok(Self { broker, engine, process, commands, controller, snapshots, give_up, turn, _lock: lock })
    }

    /// The account of every run at hand, brought up to date at each change, at most every 50 ms.
    pub fn snapshots(&self) -> watch::Receiver<Arc<BTreeMap<RunId, Report>>> {
        self.snapshots.clone()
    }

    /// This process, as demands find it.
    pub fn process(&self) -> &ProcessId {
        &self.process
    }

    /// Commands for this collector.
    pub fn controller(&self) -> Controller {
        self.controller.clone()
    }

    /// Collects until `shutdown`, or until the broker is closed.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Drained, CollectorError> {
        let Self { broker, mut engine, process, mut commands, controller, give_up, turn, _lock, .. } = self;
        let mut turn = match turn {
            Some(turn) => turn,
            None => Turn::take(&broker).await?,
        };
        let _stuck_no_longer = give_up_after(shutdown.clone(), give_up);
        let ruling = fleet::Ruling::of(&engine);
        let kept = fleet::Kept::of(&mut engine);
        let long_work = Arc::clone(&engine.long_work);
        let _fleet =
            fleet::serve(Arc::clone(&broker), process, ruling, kept, long_work, controller.clone()).await?;
        let mut settling = Settling::start(broker);
        // Let go of before the lock: the next collector of this folder puts its own socket there.
        let _control = control::serve(&engine.options.data_dir, controller);
        let mut wake_in = Duration::ZERO;
        let mut linger = Duration::ZERO;
        loop {
            let batch = tokio::select! {
                () = shutdown.cancelled() => break,
                first = turn.next() => match first {
                    Some(first) => gather(first, &mut turn.subscription, linger).await,
                    None => break,
                },
                Some(asked) = commands.recv() => {
                    engine = obey(engine, asked).await?;
                    Vec::new()
                }
                told = settling.told() => {
                    engine = note_told(engine, vec![told]).await?;
                    Vec::new()
                }
                () = tokio::time::sleep(wake_in) => Vec::new(),
            };
            linger = if batch.len() < BUSY_MESSAGES { Duration::ZERO } else { LINGER };
            (engine, wake_in) = settle(engine, batch, &mut settling).await?;
        }
        turn.subscription.stop();
        let last = tokio::time::timeout(LAST_DELIVERIES, turn.next());
        if let Ok(Some(first)) = last.await {
            let batch = gather(first, &mut turn.subscription, Duration::ZERO).await;
            (engine, _) = settle(engine, batch, &mut settling).await?;
        }
        let told = settling.finish().await?;
        engine = note_told(engine, told).await?;
        on_thread(move || async move { engine.finish(now()).await }).await??;
        Ok(Drained::clean())
    }
}

/// What is here already and what comes within `linger`, up to a batch.
async fn gather(first: Delivery, subscription: &mut Subscription, linger: Duration) -> Vec<Delivery> {
    let until = tokio::time::Instant::now() + linger;
    let mut bytes = first.message.body.len();
    let mut batch = vec![first];
    while batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
        let next = match subscription.try_next() {
            Some(delivery) => Some(delivery),
            None if linger.is_zero() => None,
            None => tokio::time::timeout_at(until, subscription.next()).await.ok().flatten(),
        };
        let Some(delivery) = next else { break };
        bytes += delivery.message.body.len();
        batch.push(delivery);
    }
    batch
}

/// One step of the engine and what follows from it. Returns when the next is due without a message.
async fn settle(
    mut engine: Engine,
    mut batch: Vec<Delivery>,
    settling: &mut Settling,
) -> Result<(Engine, Duration), CollectorError> {
    let messages: Vec<Message> =
        batch.iter_mut().map(|delivery| std::mem::replace(&mut delivery.message, no_message())).collect();
    let (engine, messages, effects) = on_thread(move || async move {
        let effects = engine.step(&messages, now()).await?;
        Ok::<_, CollectorError>((engine, messages, effects))
    })
    .await??;
    for (delivery, message) in batch.iter_mut().zip(messages) {
        delivery.message = message;
    }
    let wake_in = effects.wake_in.unwrap_or(IDLE);
    settling.follow(batch, effects).await?;
    Ok((engine, wake_in))
}

async fn note_told(mut engine: Engine, runs: Vec<RunId>) -> Result<Engine, CollectorError> {
    on_thread(move || async move {
        engine.told(&runs).await?;
        Ok::<_, CollectorError>(engine)
    })
    .await?
}

async fn obey(mut engine: Engine, asked: Asked) -> Result<Engine, CollectorError> {
    on_thread(move || async move {
        // Whoever asked may have gone.
        match asked {
            Asked::Run { run, command, done } => drop(done.send(engine.command(&run, command).await?)),
            Asked::Limit { destination, rates, done } => {
                drop(done.send(engine.limit(&destination, rates).await?));
            }
            Asked::Keep(changes) => engine.commit(*changes).await?,
        }
        Ok::<_, CollectorError>(engine)
    })
    .await?
}

/// Runs work that waits for disks away from the threads that serve sockets.
async fn on_thread<T, F, W>(work: W) -> Result<T, CollectorError>
where
    T: Send + 'static,
    F: Future<Output = T>,
    W: FnOnce() -> F + Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || runtime.block_on(work())).await;
    done.map_err(|error| CollectorError::Thread(std::io::Error::other(error)))
}

/// What is told to stop does not wait for a full disk any more.
fn give_up_after(shutdown: CancellationToken, give_up: CancellationToken) -> AbortOnDrop {
    AbortOnDrop(tokio::spawn(async move {
        shutdown.cancelled().await;
        give_up.cancel();
    }))
}

/// A task that ends with its owner.
pub(crate) struct AbortOnDrop(pub(crate) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn now() -> Now {
    Now { instant: clock::now(), unix_ms: clock::unix_ms() }
}

fn no_message() -> Message {
    Message {
        kind: String::new(),
        message_id: String::new(),
        reply_to: String::new(),
        headers: Headers::new(),
        content_encoding: String::new(),
        body: Bytes::new(),
    }
}

/// Locks the data folder for this process, or, where the ledger is shared, for collectors that take turns.
fn lock(options: &Options) -> Result<File, CollectorError> {
    lock_folder(&options.data_dir, options.ledger.is_shared())
}

/// Locks a data folder, together with others where they share a ledger.
pub(crate) fn lock_folder(data_dir: &Path, is_shared: bool) -> Result<File, CollectorError> {
    let unusable = |error| CollectorError::DataDir(data_dir.to_owned(), error);
    std::fs::create_dir_all(data_dir).map_err(unusable)?;
    let path = data_dir.join(LOCK_FILE);
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(unusable)?;
    let locked = if is_shared { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CollectorError::DataDirTaken(data_dir.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(unusable(error)),
    }
}
