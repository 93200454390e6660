//! What is due of a run besides its completions: stopping it, closing it, syncing its sink, telling of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use windrow_common::broker::parking::Death;
use windrow_common::crash;
use windrow_common::ids::RunId;
use windrow_common::job::NotifyEvent;
use windrow_common::outcome::Outcome;

use crate::CollectorError;
use crate::engine::{Effects, Engine, Now};
use crate::ledger::{Changes, Recount, RunRecord, SinkRecord};
use crate::notify::{self, Notice};
use crate::place;
use crate::report::Report;
use crate::run::Run;
use crate::run_state::{Ending, Event, transition};

/// A stopping run whose producer says nothing for this long is sealed at what it said last.
const PRODUCER_SILENCE: Duration = Duration::from_secs(10);

/// A sink is synced this often.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// News of a run that changes are at least this far apart ...
const NEWS_GAP: Duration = Duration::from_millis(50);

/// ... and at most this far.
const NEWS_INTERVAL: Duration = Duration::from_secs(5);

/// An ended run is kept at hand, and told of, this long.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What is to be done next with a run.
#[derive(Debug, PartialEq, Eq)]
enum Duty {
    /// Begin to stop it.
    Stop(String),
    /// Seal it in the place of its producer.
    Seal,
    /// End its open items as cancelled.
    Cut,
    /// Bring waiting lines to the sink.
    Place,
    /// End it.
    Close,
    /// Bring its sink to disk.
    Sync,
}

/// What the record calls for at `now_ms` (Unix milliseconds). Pure.
fn duty(run: &RunRecord, now_ms: u64, producer_is_silent: bool, sync_is_due: bool) -> Option<Duty> {
    if !run.state.is_ended() {
        if !run.is_stopping() {
            let total = (run.sealed && run.open() == 0).then(|| run.accepted());
            if let Some(reason) = run.tolerated.exceeded(&run.counts(), total) {
                return Some(Duty::Stop(reason));
            }
            if total.is_none() && run.deadline.is_some_and(|deadline| deadline <= now_ms) {
                return Some(Duty::Stop("its `deadline` has passed".to_owned()));
            }
        }
        let is_cut_short = run.is_stopping() && !run.is_retry();
        if is_cut_short && !run.sealed && producer_is_silent {
            return Some(Duty::Seal);
        }
        if is_cut_short && run.sealed && !run.cut && run.open() > 0 {
            return Some(Duty::Cut);
        }
        if run.sealed && run.open() == 0 {
            return Some(if run.has_lines_to_place() { Duty::Place } else { Duty::Close });
        }
    } else if run.has_lines_to_place() {
        return Some(Duty::Place);
    }
    let is_unsynced = matches!(&run.sink, SinkRecord::File(file) if file.synced < file.fixed);
    (is_unsynced && sync_is_due).then_some(Duty::Sync)
}

impl Engine {
    /// Does what is due, run by run.
    pub(crate) async fn do_duties(&mut self, now: Now) -> Result<(), CollectorError> {
        let ids: Vec<RunId> = self.runs.keys().cloned().collect();
        for id in ids {
            while let Some(run) = self.runs.get_mut(&id) {
                let is_silent = now.instant.duration_since(run.producer_heard_at) >= PRODUCER_SILENCE;
                let sync_is_due = now.instant.duration_since(run.synced_at) >= SYNC_INTERVAL;
                let Some(duty) = duty(&run.record, now.unix_ms, is_silent, sync_is_due) else { break };
                self.perform(&id, duty, now).await?;
            }
        }
        Ok(())
    }

    async fn perform(&mut self, id: &RunId, duty: Duty, now: Now) -> Result<(), CollectorError> {
        let Some(run) = self.runs.get_mut(id) else { return Ok(()) };
        let mut changes = Changes::default();
        match duty {
            Duty::Stop(reason) => {
                tracing::warn!(run = %id, "the run is stopped: {reason}");
                run.record.stop_reason = Some(reason);
                run.mark_changed();
            }
            Duty::Seal => seal_at_progress(run),
            Duty::Cut => self.cut(id, &mut changes).await?,
            Duty::Place => {}
            Duty::Close => return self.close(id, now).await,
            Duty::Sync => {
                let synced = place::sync(&self.patience, run, now.instant).await?;
                changes.synced.extend(synced.map(|mark| (run.record.key, mark)));
                self.commit(changes).await?;
                return self.let_go(id).await;
            }
        }
        self.commit(changes).await
    }

    /// Ends the run: its sink is complete and on disk, its sums are counted again.
    async fn close(&mut self, id: &RunId, now: Now) -> Result<(), CollectorError> {
        let Some(run) = self.runs.get_mut(id) else { return Ok(()) };
        let mut changes = Changes::default();
        let synced = place::sync(&self.patience, run, now.instant).await?;
        changes.synced.extend(synced.map(|mark| (run.record.key, mark)));
        if let (SinkRecord::File(file), Some(sink)) = (&mut run.record.sink, &mut run.sink) {
            file.error = sink.finish(file.fixed).err().map(|error| error.to_string());
        }
        let mut recount = Recount::default();
        if !run.record.stages.is_empty() {
            recount = self.ledger.recount(run.record.key, 0).await?;
        }
        run.record.balance_error = imbalance(&run.record, &recount);
        if let Some(error) = &run.record.balance_error {
            tracing::error!(run = %id, "THE RUN DOES NOT BALANCE: {error}");
        }
        let counts = run.record.counts();
        let ending = Ending {
            stopped: run.record.stop_reason.is_some() || run.record.seal_error.is_some(),
            spotless: counts.succeeded + counts.skipped == counts.settled() && run.record.rejected == 0,
        };
        run.record.state = transition(run.record.state, Event::Closed(ending));
        run.record.finished_at = Some(now.unix_ms);
        let job = self.jobs.get(&run.record.opened.job, &run.record.opened.hash);
        run.record.is_told = notify::wanted(job, notify::event_of(run.record.state)).is_none();
        run.ended_at = Some(now.instant);
        run.mark_changed();
        let state = run.record.state;
        crash::point("collector.closing");
        self.commit(changes).await?;
        tracing::info!(run = %id, state = state.as_str(), "run ended");
        self.let_go(id).await
    }

    /// An ended run whose lines are all in its sink, and safe there, needs neither sink nor spool.
    pub(crate) async fn let_go(&mut self, id: &RunId) -> Result<(), CollectorError> {
        let is_done = |record: &RunRecord| record.state.is_ended() && !record.keeps_spool();
        let Some(run) = self.runs.get_mut(id).filter(|run| is_done(&run.record)) else {
            return Ok(());
        };
        run.sink = None;
        run.unsynced.clear();
        if let Some(mut spool) = run.spool.take() {
            self.patience.insist(format!("the spool of run {id}"), || spool.delete()).await?;
        }
        run.count(&self.options.metrics);
        Ok(())
    }

    /// Collects what is to be broadcast, and brings run folders and snapshots up to date.
    pub(crate) async fn tell(&mut self, now: Now, effects: &mut Effects) -> Result<(), CollectorError> {
        for run in self.runs.values_mut() {
            let since = run.told_at.map(|at| now.instant.duration_since(at));
            let is_due =
                since.is_none_or(|since| since >= NEWS_INTERVAL || run.has_news && since >= NEWS_GAP);
            let has_just_ended = run.record.state.is_ended() && run.has_news;
            if is_due || has_just_ended {
                effects.news.push(run.news());
                run.told_at = Some(now.instant);
                run.has_news = false;
            }
        }
        effects.notices.extend(self.notices(now.unix_ms));
        self.write_folders(now.instant).await?;
        if !effects.news.is_empty() {
            let reports =
                self.runs.iter().map(|(id, run)| (id.clone(), Report::of(&run.record, now.unix_ms)));
            self.snapshots.send_replace(Arc::new(reports.collect()));
        }
        self.runs.retain(|_, run| {
            run.ended_at.is_none_or(|at| now.instant.duration_since(at) < REMEMBERED)
                || run.folder_is_behind
                || run.record.is_unfinished()
        });
        let of_claims = self.claim_times.wake_in(now);
        effects.wake_in = self.runs.values().map(|run| wake_in(run, now)).chain(of_claims).min();
        Ok(())
    }

    /// What is to be told of runs that have ended. Each is under way once in the life of this process.
    fn notices(&mut self, unix_ms: u64) -> Vec<Notice> {
        let mut notices = Vec::new();
        for run in self.runs.values_mut().filter(|run| !run.record.is_told && !run.is_being_told) {
            let job = self.jobs.get(&run.record.opened.job, &run.record.opened.hash);
            if let Some((event, spec)) = notify::wanted(job, notify::event_of(run.record.state)) {
                run.is_being_told = true;
                let report = Report::of(&run.record, unix_ms);
                notices.push(Notice { event, reason: None, spec: spec.clone(), report });
            } else {
                // The job file is gone, or wants it no more.
                run.record.is_told = true;
                run.is_changed = true;
            }
        }
        notices
    }

    /// What is to be told of a run's dead letter, unless people were told of another a while ago.
    pub(crate) fn notice_of_death(&mut self, run: &RunId, death: &Death, now: Now) -> Option<Notice> {
        let run = self.runs.get_mut(run)?;
        let job = self.jobs.get(&run.record.opened.job, &run.record.opened.hash);
        let (event, spec) = notify::wanted(job, Some(NotifyEvent::DeadLetter))?;
        if !notify::is_death_due(run.death_told_at, now.instant) {
            return None;
        }
        run.death_told_at = Some(now.instant);
        let report = Report::of(&run.record, now.unix_ms);
        Some(Notice { event, reason: Some(death.reason.clone()), spec: spec.clone(), report })
    }

    /// A changed state is written before anyone hears of it; the rest once a second at most.
    async fn write_folders(&mut self, now: Instant) -> Result<(), CollectorError> {
        for (id, run) in self.runs.iter_mut().filter(|(_, run)| run.folder_is_behind) {
            let state = Some(run.record.state);
            let written = if run.written_state == state {
                self.folders.offer(id, now)
            } else {
                self.folders.write(id).await
            };
            if written {
                run.folder_is_behind = false;
                run.written_state = state;
                if run.record.state.is_ended() && !run.record.is_reported {
                    run.record.is_reported = true;
                    run.is_changed = true;
                }
            }
        }
        self.commit(Changes::default()).await
    }
}

/// When a run wants a step without a message.
fn wake_in(run: &Run, now: Now) -> Duration {
    let until = |at: Instant, pause: Duration| (at + pause).saturating_duration_since(now.instant);
    let mut wait = run.told_at.map_or(Duration::ZERO, |at| until(at, NEWS_INTERVAL));
    if run.has_news {
        wait = wait.min(run.told_at.map_or(Duration::ZERO, |at| until(at, NEWS_GAP)));
    }
    if run.folder_is_behind || !run.unsynced.is_empty() {
        wait = wait.min(SYNC_INTERVAL);
    }
    if run.record.is_stopping() && !run.record.sealed && !run.record.is_retry() {
        wait = wait.min(until(run.producer_heard_at, PRODUCER_SILENCE));
    }
    // One that has passed was seen in this step.
    if let Some(deadline) = run.record.deadline.filter(|deadline| *deadline > now.unix_ms) {
        wait = wait.min(Duration::from_millis(deadline - now.unix_ms));
    }
    wait
}

fn seal_at_progress(run: &mut Run) {
    tracing::warn!(
        run = %run.record.id(),
        "nothing heard of the producer of a stopping run; it is sealed at what is known"
    );
    for source in &mut run.record.sources {
        source.accepted = source.accepted.max(source.seen_items);
        source.chunks = source.chunks.max(source.seen_chunks);
    }
    run.record.sealed = true;
    run.mark_changed();
}

/// What does not add up, if anything (law 1).
fn imbalance(run: &RunRecord, recount: &Recount) -> Option<String> {
    let counts = run.counts();
    let settled = counts.settled();
    let rows_agree = Outcome::ALL
        .into_iter()
        .all(|outcome| outcome == Outcome::Succeeded || recount.items.of(outcome) == counts.of(outcome));
    if run.accepted() == settled && recount.settled == settled && recount.chunks == counts && rows_agree {
        return None;
    }
    Some(format!(
        "accepted {}, totals {counts:?}, settled set {}, chunks {:?}, rows {:?}",
        run.accepted(),
        recount.settled,
        recount.chunks,
        recount.items
    ))
}
