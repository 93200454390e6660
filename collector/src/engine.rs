//! One step at a time: a batch of completions becomes one transaction, and its effects follow.
//!
//! The order within a step is the law: lines into the spool and synced, the ledger's transaction, bytes
//! into the sinks, answers; only then may the caller let go of the deliveries. Everything before the
//! transaction happens in memory or in files nobody reads yet; everything after it can be done again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::Queue;
use windrow_common::broker::parking::Death;
use windrow_common::crash;
use windrow_common::envelope::Message;
use windrow_common::envelope::completion::{Completion, Question};
use windrow_common::envelope::control::{Answer, RunNews, RunState};
use windrow_common::ids::{ProcessId, RunId};
use windrow_common::job::{JobSet, Rate};
use windrow_common::resilience::rate::check_windows;
use windrow_common::telemetry::metrics::LedgerMetrics;

use crate::answers::Asked;
use crate::chunks::Chunks;
use crate::claims::ClaimTimes;
use crate::incoming::{Group, Incoming, read_group, run_of};
use crate::ledger::{Changes, ChunkKey, Ledger, RunKey};
use crate::notify::Notice;
use crate::patience::{Patience, PatientLedger};
use crate::report::Report;
use crate::run::{Refusal, Run};
use crate::run_folder::RunFolders;
use crate::run_state::{CommandError, RunCommand, obey};
use crate::{CollectorError, Options, fleet, place};

/// The time of a step.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For pauses.
    pub instant: Instant,
    /// For the record, in Unix milliseconds.
    pub unix_ms: u64,
}

/// What is to follow a step.
#[derive(Debug, Default)]
pub struct Effects {
    /// For each message, in order: how it died, if it is to be parked.
    pub parked: Vec<Option<Death>>,
    /// Answers, and whose they are.
    pub answers: Vec<(ProcessId, Answer)>,
    /// To everybody.
    pub news: Vec<RunNews>,
    /// To people.
    pub(crate) notices: Vec<Notice>,
    /// To the completion queue: that claims were overdue at this time, in Unix milliseconds.
    pub overdue: Option<u64>,
    /// When there is something to do even if nothing comes.
    pub wake_in: Option<Duration>,
}

/// The collector without its broker.
#[derive(Debug)]
pub struct Engine {
    pub(crate) ledger: Box<dyn Ledger>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) options: Options,
    pub(crate) patience: Patience,
    pub(crate) folders: RunFolders,
    pub(crate) snapshots: watch::Sender<Arc<BTreeMap<RunId, Report>>>,
    pub(crate) jobs: Arc<JobSet>,
    pub(crate) next_key: RunKey,
    /// The rates an operator has set, by destination.
    pub(crate) limits: watch::Sender<BTreeMap<String, Vec<Rate>>>,
    /// The destinations that were down when the ledger was opened, and until when, in Unix milliseconds.
    pub(crate) outages: BTreeMap<String, u64>,
    pub(crate) claim_times: ClaimTimes,
    /// What consumers say that they are working on; told by [`fleet`].
    pub(crate) long_work: Arc<Mutex<crate::working::LongWork>>,
    /// The destinations that were to be left alone then, and until when, in Unix milliseconds.
    pub(crate) pauses: BTreeMap<String, u64>,
    /// Whether no collector had opened the ledger before.
    pub(crate) is_first: bool,
    ledger_metrics: LedgerMetrics,
}

impl Engine {
    /// Takes up what the ledger holds: open runs get their spool and sink back, and the last bytes of each
    /// sink are written again. After `give_up` nothing waits for a disk any more.
    pub async fn open(
        ledger: Box<dyn Ledger>,
        jobs: Arc<JobSet>,
        options: Options,
        give_up: CancellationToken,
        now: Now,
    ) -> Result<Self, CollectorError> {
        let patience = Patience::new(options.trouble.clone(), give_up);
        let mut ledger = Box::new(PatientLedger::new(ledger, patience.clone()));
        let open = ledger.open_runs().await?;
        let folders = RunFolders::start(options.ledger.clone(), options.data_dir.clone());
        let folders = folders.map_err(CollectorError::Thread)?;
        let ledger_metrics = options.metrics.ledger();
        let mut engine = Self {
            ledger,
            runs: BTreeMap::new(),
            options,
            patience,
            folders,
            snapshots: watch::Sender::new(Arc::default()),
            jobs,
            next_key: open.next_key,
            limits: watch::Sender::new(open.limits),
            outages: open.outages,
            claim_times: ClaimTimes::default(),
            long_work: Arc::default(),
            pauses: open.pauses,
            is_first: open.is_first,
            ledger_metrics,
        };
        engine.take_up_claims(&open.claimed).await?;
        for record in open.runs {
            let mut run = Run::new(record, now.instant);
            engine.bind_late(&mut run);
            place::take_up(engine.ledger.as_mut(), &engine.options.data_dir, &engine.patience, &mut run)
                .await?;
            let id = run.record.id().clone();
            engine.runs.insert(id.clone(), run);
            engine.let_go(&id).await?;
        }
        Ok(engine)
    }

    /// The account of every run at hand.
    pub fn snapshots(&self) -> watch::Receiver<Arc<BTreeMap<RunId, Report>>> {
        self.snapshots.subscribe()
    }

    /// Settles a batch, does what is due, and says what is to follow. Nothing follows, and nothing may be let go of,
    /// once another collector has taken over.
    pub async fn step(&mut self, messages: &[Message], now: Now) -> Result<Effects, CollectorError> {
        let mut effects = Effects::default();
        if messages.is_empty() {
            self.commit_or_check(Changes::default()).await?;
        }
        let mut answers = Vec::new();
        let mut rest = messages;
        while !rest.is_empty() {
            let (group, taken) = read_group(rest, now.unix_ms);
            rest = &rest[taken..];
            answers.extend(self.settle(group, now, &mut effects).await?);
        }
        let parked = effects.parked.iter().flatten().count() as u64;
        self.ledger_metrics.completions.inc_by(messages.len() as u64 - parked);
        self.ledger_metrics.completions_parked.inc_by(parked);
        self.ledger_metrics.answers_sent.inc_by(answers.len() as u64);
        self.do_duties(now).await?;
        effects.overdue = self.claim_times.word(now);
        effects.answers.extend(answers.into_iter().map(|answer| self.last_answer(answer)));
        self.tell(now, &mut effects).await?;
        Ok(effects)
    }

    /// Pauses, resumes or cancels a run. Returns its state then, which is durable.
    pub async fn command(
        &mut self,
        id: &RunId,
        command: RunCommand,
    ) -> Result<Result<RunState, CommandError>, CollectorError> {
        let Some(run) = self.runs.get_mut(id) else {
            let known = self.ledger.run(id).await?.map(|record| record.state);
            return Ok(match known {
                Some(state) => obey(id, state, command),
                None => Err(CommandError::NoSuchRun { run: id.clone() }),
            });
        };
        let state = match obey(id, run.record.state, command) {
            Ok(state) => state,
            Err(error) => return Ok(Err(error)),
        };
        if state != run.record.state {
            tracing::info!(run = %id, state = state.as_str(), "somebody changed the run's state");
            run.record.state = state;
            run.mark_changed();
            self.commit(Changes::default()).await?;
        }
        Ok(Ok(state))
    }

    /// Notes that people were told how these runs ended, or given up.
    pub(crate) async fn told(&mut self, runs: &[RunId]) -> Result<(), CollectorError> {
        for id in runs {
            if let Some(run) = self.runs.get_mut(id) {
                run.record.is_told = true;
                run.is_changed = true;
            }
        }
        self.commit(Changes::default()).await
    }

    /// Sets the rates of a destination; None: those of the job files again. Returns the rates that hold from now on,
    /// which are durable.
    pub async fn limit(
        &mut self,
        destination: &str,
        mut rates: Option<Vec<Rate>>,
    ) -> Result<Result<Vec<Rate>, CommandError>, CollectorError> {
        if let Some(rates) = &mut rates {
            if rates.is_empty() {
                return Ok(Err(CommandError::Unreadable { reason: "`rates` has none".to_owned() }));
            }
            if rates.iter().any(|rate| rate.window.is_zero()) {
                return Ok(Err(CommandError::Unreadable {
                    reason: "`rates` has one without a unit".to_owned(),
                }));
            }
            if let Err(error) = check_windows(rates) {
                return Ok(Err(CommandError::Unreadable { reason: error.to_string() }));
            }
            rates.sort_unstable();
        }
        let stated = fleet::stated(&self.jobs).remove(destination).map(|stated| stated.rates);
        let Some(stated) = stated.filter(|rates| !rates.is_empty()) else {
            return Ok(Err(CommandError::NoRate { destination: destination.to_owned() }));
        };
        let limits = vec![(destination.to_owned(), rates.clone())];
        self.commit(Changes { limits, ..Changes::default() }).await?;
        self.limits.send_modify(|limits| {
            limits.remove(destination);
            limits.extend(rates.clone().map(|rates| (destination.to_owned(), rates)));
        });
        Ok(Ok(rates.unwrap_or(stated)))
    }

    /// Before leaving: sinks to disk, run folders up to date.
    pub async fn finish(&mut self, now: Now) -> Result<(), CollectorError> {
        let mut changes = Changes::default();
        for run in self.runs.values_mut() {
            let synced = place::sync(&self.patience, run, now.instant).await?;
            changes.synced.extend(synced.map(|mark| (run.record.key, mark)));
        }
        self.commit(changes).await?;
        for id in self.runs.iter().filter(|(_, run)| run.folder_is_behind).map(|(id, _)| id) {
            self.folders.write(id).await;
        }
        Ok(())
    }

    async fn settle(
        &mut self,
        group: Group,
        now: Now,
        effects: &mut Effects,
    ) -> Result<Vec<Asked>, CollectorError> {
        let mut changes = Changes::default();
        let mut chunks = self.load_chunks(&group, now).await?;
        let mut questions = Vec::new();
        for incoming in group {
            let died = match incoming {
                Ok(Incoming::Completion(completion)) => {
                    let taken =
                        self.apply(completion, &mut chunks, &mut changes, now, &mut questions).await?;
                    taken.err().map(|refusal| Death::new(refusal.0, &Queue::Completion, now.unix_ms))
                }
                Ok(Incoming::Dead(dead)) => {
                    let run = dead.header.id.run.clone();
                    let death = self.bury(*dead, &mut chunks, &mut changes).await?;
                    effects.notices.extend(self.notice_of_death(&run, &death, now));
                    Some(death)
                }
                Err(death) => Some(death),
            };
            effects.parked.push(died);
        }
        let answers = self.answers(questions, &chunks, now.instant);
        changes.chunks = chunks.into_changed();
        self.commit_or_check(changes).await?;
        self.ledger_metrics.batches.inc();
        Ok(answers)
    }

    /// Loads the runs a group speaks of, and the chunks of those that are known.
    async fn load_chunks(
        &mut self,
        group: &[Result<Incoming, Death>],
        now: Now,
    ) -> Result<Chunks, CollectorError> {
        let mut keys: Vec<ChunkKey> = Vec::with_capacity(group.len());
        for incoming in group.iter().flatten() {
            if let Some(run) = incoming.run() {
                self.load_run(run, now).await?;
            }
            keys.extend(incoming.overdue_at().into_iter().flat_map(|at| self.claim_times.overdue(at)));
            let Some(id) = incoming.chunk() else { continue };
            // A refusal is met again, and told, when the completion is applied.
            keys.extend(self.runs.get_mut(&id.run).and_then(|run| run.chunk_key(id).ok()));
        }
        keys.sort_unstable();
        keys.dedup();
        let mut chunks = Chunks::default();
        let states = self.ledger.chunks(&keys).await?;
        for (key, state) in keys.into_iter().zip(states) {
            chunks.put_loaded(key, state);
        }
        Ok(chunks)
    }

    async fn load_run(&mut self, id: &RunId, now: Now) -> Result<(), CollectorError> {
        if !self.runs.contains_key(id)
            && let Some(record) = self.ledger.run(id).await?
        {
            self.runs.insert(id.clone(), Run::new(record, now.instant));
        }
        Ok(())
    }

    async fn apply(
        &mut self,
        completion: Completion,
        chunks: &mut Chunks,
        changes: &mut Changes,
        now: Now,
        questions: &mut Vec<Question>,
    ) -> Result<Result<(), Refusal>, CollectorError> {
        if let Completion::Overdue(overdue) = completion {
            return self.end_overdue(overdue.at, chunks, changes, now).await.map(Ok);
        }
        let Some(id) = run_of(&completion).cloned() else { return Ok(Ok(())) };
        if let Completion::Opened(opened) = completion {
            return Ok(self.open_run(opened, now));
        }
        let Some(run) = self.runs.get_mut(&id) else {
            return Ok(Err(Refusal(format!("the ledger knows no run `{id}`"))));
        };
        Ok(match completion {
            Completion::Progress(progress) => {
                run.progress(&progress, now.instant);
                Ok(())
            }
            Completion::Sealed(sealed) => run.seal(&sealed),
            Completion::Rejects(rejects) => run.rejects(rejects, changes),
            Completion::Outcomes(outcomes) => {
                place::make_ready(&self.options.data_dir, &self.patience, run).await?;
                run.chunk_key(&outcomes.id).and_then(|key| run.outcomes(&outcomes, key, chunks, changes))
            }
            Completion::Question(question) => {
                let key = run.chunk_key(&question.id);
                let taken = key.and_then(|key| run.question(&question, key, chunks, now.unix_ms));
                taken.map(|()| questions.push(question))
            }
            Completion::Opened(_) | Completion::StandsBy(_) | Completion::Overdue(_) => Ok(()),
        })
    }

    /// One transaction with `changes` and every run that is ahead of the ledger, and the sinks after it; none when
    /// there is nothing to write.
    pub(crate) async fn commit(&mut self, changes: Changes) -> Result<(), CollectorError> {
        let changes = self.gather(changes).await?;
        if changes.is_empty() { Ok(()) } else { self.write(changes).await }
    }

    /// The same, and a transaction in any case: it finds out whether the ledger is still ours.
    async fn commit_or_check(&mut self, changes: Changes) -> Result<(), CollectorError> {
        let changes = self.gather(changes).await?;
        self.write(changes).await
    }

    async fn gather(&mut self, mut changes: Changes) -> Result<Changes, CollectorError> {
        for run in self.runs.values_mut() {
            place::choose(self.ledger.as_mut(), run, &mut changes).await?;
        }
        changes.runs =
            self.runs.values().filter(|run| run.is_changed).map(|run| run.record.clone()).collect();
        Ok(changes)
    }

    async fn write(&mut self, changes: Changes) -> Result<(), CollectorError> {
        for run in self.runs.values_mut() {
            place::flush(&self.patience, run).await?;
        }
        crash::point("collector.spooled");
        let began = Instant::now();
        let new_rejects = self.ledger.commit(&changes).await?;
        self.ledger_metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
        crash::point("collector.committed");
        changes.chunks.iter().for_each(|(key, chunk)| self.claim_times.note(*key, chunk));
        for run in self.runs.values_mut() {
            run.is_changed = false;
            run.record.rejected += new_rejects.get(&run.record.key).copied().unwrap_or(0);
            place::write(&self.patience, run, &changes).await?;
            run.count(&self.options.metrics);
        }
        crash::point("collector.written");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
