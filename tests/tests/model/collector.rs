//! A collector: the real engine over a real ledger, which may die at its transactions, and a loop that lets go of
//! deliveries once they are settled.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windrow_collector::chunk_state::ChunkState;
use windrow_collector::engine::{Effects, Engine, Now};
use windrow_collector::ledger::sqlite::SqliteLedger;
use windrow_collector::ledger::{
    Changes, ChunkKey, Held, Ledger, LedgerError, LedgerPlace, OpenItems, OpenRuns, Recount, RunKey,
    RunRecord,
};
use windrow_collector::sink::order::{Piece, Position};
use windrow_collector::{CollectorError, CommandError, Options, SinkBase};
use windrow_common::broker::{Broker, BrokerError, Delivery, Outgoing, Queue, Subscription, Target};
use windrow_common::clock;
use windrow_common::envelope::completion::{Completion, Question};
use windrow_common::envelope::control::{Control, RunNews};
use windrow_common::ids::RunId;
use windrow_tests::model_broker::ModelClient;

use super::judge::Judge;
use super::plan::End;
use super::world::{World, run_id};

/// A batch has at most this many messages.
const BATCH: usize = 16;

/// How long it waits when there is nothing to do: always the same, so that a seed is the same each time.
const TICK: Duration = Duration::from_secs(2);

/// How far its clock is behind the machine's, by which run folders are written now and then: so they are at changes of
/// state alone, and a seed does the same each time.
const BEHIND: Duration = Duration::from_secs(3_600);

/// The ledger of a collector that dies at one of its transactions.
#[derive(Debug)]
struct Mortal {
    ledger: SqliteLedger,
    judge: Arc<Judge>,
    /// Transactions about chunks until it dies, and whether it does after or before that one.
    dies: Option<(u64, bool)>,
}

/// Why it is dead.
fn dead() -> LedgerError {
    LedgerError::Broken("the process is dead".to_owned())
}

#[async_trait]
impl Ledger for Mortal {
    async fn open_runs(&mut self) -> Result<OpenRuns, LedgerError> {
        self.ledger.open_runs().await
    }

    async fn run(&mut self, run: &RunId) -> Result<Option<RunRecord>, LedgerError> {
        self.ledger.run(run).await
    }

    async fn chunks(&mut self, keys: &[ChunkKey]) -> Result<Vec<Option<ChunkState>>, LedgerError> {
        self.ledger.chunks(keys).await
    }

    async fn waiting(
        &mut self,
        run: RunKey,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Piece>, LedgerError> {
        self.ledger.waiting(run, from, limit).await
    }

    async fn held(&mut self, run: RunKey) -> Result<Held, LedgerError> {
        self.ledger.held(run).await
    }

    async fn open_items(&mut self, run: RunKey, stage: u32, source: u32) -> Result<OpenItems, LedgerError> {
        self.ledger.open_items(run, stage, source).await
    }

    async fn recount(&mut self, run: RunKey, stage: u32) -> Result<Recount, LedgerError> {
        self.ledger.recount(run, stage).await
    }

    async fn commit(&mut self, changes: &Changes) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
        if !changes.chunks.is_empty()
            && let Some((left, _)) = &mut self.dies
        {
            *left = left.saturating_sub(1);
        }
        if self.dies == Some((0, false)) {
            return Err(dead());
        }
        let done = self.ledger.commit(changes).await?;
        self.judge.commit(changes);
        if self.dies == Some((0, true)) { Err(dead()) } else { Ok(done) }
    }
}

/// One life of the collector.
pub(crate) struct Collector {
    world: Arc<World>,
    client: Arc<ModelClient>,
    engine: Engine,
    news: mpsc::UnboundedSender<RunNews>,
}

impl Collector {
    /// Takes up what the ledger holds.
    pub(crate) fn start(
        world: &Arc<World>,
        client: &Arc<ModelClient>,
        end: Option<End>,
    ) -> Result<Self, CollectorError> {
        let data_dir = world.folder.join("data");
        std::fs::create_dir_all(&data_dir).unwrap();
        let dies = match end {
            Some(End::AtCommit(nth, is_after)) => Some((nth, is_after)),
            _ => None,
        };
        let ledger = SqliteLedger::open(&data_dir).unwrap();
        let ledger = Box::new(Mortal { ledger, judge: Arc::clone(&world.judge), dies });
        let options = Options {
            data_dir,
            ledger: LedgerPlace::DataDir,
            sink_base: SinkBase::Folder(world.folder.clone()),
            is_alone: false,
            metrics: Arc::clone(&world.metrics),
            trouble: watch::Sender::new(None),
        };
        let engine = block_on(Engine::open(
            ledger,
            Arc::clone(&world.jobs),
            options,
            CancellationToken::new(),
            now(),
        ))?;
        let (news, inbox) = mpsc::unbounded_channel();
        tokio::spawn(tell(Arc::clone(client), inbox));
        Ok(Self { world: Arc::clone(world), client: Arc::clone(client), engine, news })
    }

    /// Collects until it dies.
    pub(crate) async fn collect(mut self) -> Result<(), CollectorError> {
        self.client.ensure(&Queue::Completion).await?;
        let mut completions = self.client.subscribe(vec![Queue::Completion], 64).await?;
        loop {
            let now = Instant::now();
            // One that is late waits for its run to be opened.
            let command_at = self.world.next_command().map(|(at, _)| at).filter(|at| *at > now);
            let wake_at = command_at.map_or(now + TICK, |at| at.min(now + TICK));
            let batch = tokio::select! {
                biased;
                first = completions.next() => match first {
                    Some(first) => gather(first, &mut completions),
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(wake_at) => Vec::new(),
            };
            self.settle(batch)?;
            self.obey()?;
        }
    }

    fn settle(&mut self, batch: Vec<Delivery>) -> Result<(), CollectorError> {
        let messages: Vec<_> = batch.iter().map(|delivery| delivery.message.clone()).collect();
        let effects = block_on(self.engine.step(&messages, now()))?;
        let questions = messages.iter().filter_map(|message| match Completion::from_message(message) {
            Ok(Completion::Question(question)) => Some(question),
            _ => None,
        });
        self.judge_answers(&questions.collect::<Vec<_>>(), &effects);
        for news in &effects.news {
            // Who tells them may be dead.
            let _ = self.news.send(news.clone());
        }
        tokio::spawn(let_go(Arc::clone(&self.world), Arc::clone(&self.client), batch, effects));
        Ok(())
    }

    fn judge_answers(&self, questions: &[Question], effects: &Effects) {
        for (process, answer) in &effects.answers {
            let asked = questions.iter().find(|question| question.token == answer.token);
            match (asked, answer.items()) {
                (Some(question), Ok(run)) if question.reply_to == *process => {
                    self.world.judge.answer(question, &run);
                }
                _ => self.world.judge.object(format_args!("an answer to no question: {answer:?}")),
            }
        }
    }

    /// Does what somebody asked for, if it is time.
    fn obey(&mut self) -> Result<(), CollectorError> {
        while let Some((at, command)) = self.world.next_command() {
            if at > Instant::now() {
                break;
            }
            let obeyed = block_on(self.engine.command(&run_id(), command))?;
            if matches!(obeyed, Err(CommandError::NoSuchRun { .. })) {
                break;
            }
            self.world.judge.note(format_args!("{command:?} is asked for: {obeyed:?}"));
            self.world.command_done();
        }
        Ok(())
    }
}

fn gather(first: Delivery, completions: &mut Subscription) -> Vec<Delivery> {
    let mut batch = vec![first];
    while batch.len() < BATCH
        && let Some(next) = completions.try_next()
    {
        batch.push(next);
    }
    batch
}

/// Tells news, one after another.
async fn tell(client: Arc<ModelClient>, mut inbox: mpsc::UnboundedReceiver<RunNews>) {
    while let Some(news) = inbox.recv().await {
        let message = Control::RunNews(news).to_message();
        if client.publish(Outgoing { target: Target::Everybody, message }).await.is_err() {
            return;
        }
    }
}

/// What follows a step: answers, then the end of the deliveries.
async fn let_go(world: Arc<World>, client: Arc<ModelClient>, batch: Vec<Delivery>, effects: Effects) {
    for (process, answer) in effects.answers {
        let message = Control::Answer(answer).to_message();
        // Whoever asked asks again.
        let _ = client.publish(Outgoing { target: Target::Process(process), message }).await;
    }
    let settle = |(delivery, died): (Delivery, Option<windrow_common::broker::parking::Death>)| {
        let outgoing: Vec<Outgoing> = died
            .into_iter()
            .map(|death| {
                world
                    .judge
                    .object(format_args!("{} is parked: {}", delivery.message.message_id, death.reason));
                Outgoing { target: Target::Queue(Queue::Parking), message: death.mark(&delivery.message) }
            })
            .collect();
        let client = &client;
        async move { client.settle(delivery, outgoing).await }
    };
    let settling: FuturesUnordered<_> = batch.into_iter().zip(effects.parked).map(settle).collect();
    let settled: Vec<Result<_, BrokerError>> = settling.collect().await;
    for error in settled.into_iter().filter_map(Result::err) {
        world.judge.note(format_args!("a completion could not be let go of: {error}"));
    }
}

fn now() -> Now {
    Now { instant: clock::now().checked_sub(BEHIND).unwrap(), unix_ms: clock::unix_ms() }
}

/// Waits for what only waits for disks and threads, while no time passes.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    // Nobody else is to have a turn meanwhile.
    let mut work = pin!(tokio::task::unconstrained(work));
    loop {
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::park(),
        }
    }
}
