//! Running the items of one chunk: at once up to the stage's slots, each alone.

mod early;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use windrow_common::broker::{Delivery, Outgoing, Queue};
use windrow_common::clock;
use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::completion::Latencies;
use windrow_common::job::Effect;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Ranges;

use self::early::Published;
use super::attempts::{Became, Surroundings, run_item};
use super::claims::Claims;
use super::report::{self, Besides, Ended, SentOn};
use super::triage::{HOLD_STEP, run_stopped};
use crate::processor::{Item, StageContext};
use crate::questions::Told;
use crate::runs::Word;
use crate::slots::SlotGuard;
use crate::stage::{StageIntake, StageRunner};
use crate::verdict::{Counts, End, dropped_call};

/// Outcomes of a slow chunk are published at the latest this long after they settle.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// The same where the effect must not repeat: what is not told when the consumer dies is in doubt.
const CLAIMED_REPORT_INTERVAL: Duration = Duration::from_millis(10);

/// Items run in one go before other tasks get a turn.
const ITEMS_PER_TURN: usize = 64;

type Running<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = (usize, Became)> + Send + 'a>>>;
type Publishing<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Published> + Send + 'a>>>;

/// Where an item of the chunk stands.
#[derive(Debug)]
enum Standing {
    /// Not begun, or begun and dropped: ours to hand over.
    Open,
    /// Not ours to run: settled, or with a higher hop.
    NotOurs,
    /// Ended, not reported yet.
    Ended(End),
    /// Ended and reported.
    Reported,
    /// To be tried again.
    Later(Instant),
    /// The same, and its remainder is being published.
    Leaving(Instant),
}

#[derive(Debug)]
struct Slot {
    index: u64,
    raw: Bytes,
    counts: Counts,
    standing: Standing,
}

/// One chunk being worked on.
pub(crate) struct ChunkRun<'a> {
    intake: &'a StageIntake,
    version: &'a StageRunner,
    header: ChunkHeader,
    lost: CancellationToken,
    deadline: Instant,
    slots: Vec<Slot>,
    next: usize,
    /// Where the effect must not repeat.
    claims: Option<Arc<Claims>>,
    unasked: bool,
    is_answered_copy: bool,
    /// Whether nothing else is in this process: then there is nobody to make room for.
    is_alone: bool,
}

impl<'a> ChunkRun<'a> {
    /// A chunk to run: all its items, or those the collector `told`. What somebody else has claimed waits elsewhere.
    pub(crate) fn new(
        intake: &'a StageIntake,
        version: &'a StageRunner,
        delivery: &Delivery,
        header: ChunkHeader,
        lines: &[Bytes],
        told: Option<&Told>,
        unasked: bool,
    ) -> Self {
        let slot = |(index, raw, counts): (u64, Bytes, Counts)| {
            let is_claimed = |told: &Told| told.claimed.as_ref().is_some_and(|items| items.contains(index));
            let (counts, standing) = match told {
                Some(told) if is_claimed(told) => {
                    intake.metrics.holds.inc();
                    (counts.held(), Standing::Later(clock::now() + HOLD_STEP))
                }
                Some(told) if !told.run.contains(index) => (counts, Standing::NotOurs),
                _ => (counts, Standing::Open),
            };
            Slot { index, raw, counts, standing }
        };
        let is_claiming = version.effect == Effect::AtMostOnce;
        let claims = is_claiming.then(|| Arc::new(Claims::new(&header, version.timeout)));
        let slots = report::carried(&header, lines).map(slot).collect();
        let lost = delivery.lost.clone();
        let deadline = delivery.received_at + version.budget;
        let is_alone = matches!(delivery.queue, Queue::Alone(_));
        let is_answered_copy = told.is_some();
        Self {
            intake,
            version,
            header,
            lost,
            deadline,
            slots,
            next: 0,
            claims,
            unasked,
            is_answered_copy,
            is_alone,
        }
    }

    /// Runs the items and returns what is to be sent before the delivery is let go of.
    pub(crate) async fn run(mut self) -> Vec<Outgoing> {
        // A lost delivery starts no further item, from the very moment it is lost (law 4).
        let closing = self.lost.child_token();
        let latencies = Mutex::default();
        let claims = self.claims.clone();
        let surroundings = Surroundings {
            version: self.version,
            metrics: &self.intake.metrics,
            context: self.context(),
            deadline: self.deadline,
            closing: &closing,
            latencies: &latencies,
            claims: claims.as_deref(),
            is_answered_copy: self.is_answered_copy,
            expires: self.header.expires.map(|expires| {
                clock::now() + Duration::from_millis(expires.saturating_sub(clock::unix_ms()))
            }),
        };
        let mut publishing: Publishing<'_> = FuturesUnordered::new();
        self.work(&surroundings, &mut publishing).await;
        while let Some(published) = publishing.next().await {
            self.note_published(published);
        }
        self.last_words(&latencies)
    }

    /// Starts items as slots come free, until all have ended or none may start any more.
    async fn work(&mut self, surroundings: &Surroundings<'_>, publishing: &mut Publishing<'a>) {
        let version = self.version;
        let intake = self.intake;
        let (lost, run) = (self.lost.clone(), self.header.id.run.clone());
        let mut running: Running<'_> = FuturesUnordered::new();
        let interval = if self.claims.is_some() { CLAIMED_REPORT_INTERVAL } else { REPORT_INTERVAL };
        let mut report_at = tokio::time::Instant::now() + interval;
        let deadline = tokio::time::Instant::from_std(self.deadline);
        let asking = surroundings.ask_for_claims(intake);
        tokio::pin!(asking);
        let is_alone = self.is_alone;
        if self.makes_room() {
            surroundings.closing.cancel();
        }
        loop {
            self.halt_if_told(surroundings, publishing);
            self.hold_during_an_outage();
            self.start_while_free(surroundings, &mut running).await;
            let may_start = !surroundings.closing.is_cancelled() && self.next < self.slots.len();
            if running.is_empty() && !may_start {
                return;
            }
            let closing = surroundings.closing.is_cancelled();
            tokio::select! {
                biased;
                () = intake.abort.cancelled() => return,
                Some((position, became)) = running.next() => self.note(position, became),
                never = &mut asking => match never {},
                slot = version.slots.acquire(), if may_start => self.start(surroundings, slot, &mut running),
                _ = version.processor.outage(), if may_start => {}
                () = intake.runs.halted(&run), if !closing => {}
                () = lost.cancelled(), if !closing => {}
                () = intake.draining.cancelled(), if !closing => surroundings.closing.cancel(),
                () = intake.solitude.sought(), if !closing && !is_alone => surroundings.closing.cancel(),
                () = tokio::time::sleep_until(deadline), if !closing => surroundings.closing.cancel(),
                () = tokio::time::sleep_until(report_at) => {
                    self.report_early(publishing);
                    self.leave_early(publishing);
                    report_at = tokio::time::Instant::now() + interval;
                }
                Some(published) = publishing.next() => self.note_published(published),
            }
        }
    }

    /// Starts items as long as slots are free, giving other tasks a turn now and then.
    async fn start_while_free<'r>(&mut self, surroundings: &'r Surroundings<'_>, running: &mut Running<'r>)
    where
        'a: 'r,
    {
        let version = self.version;
        for started in 1.. {
            self.skip_what_is_not_to_start();
            if self.next >= self.slots.len() || surroundings.closing.is_cancelled() {
                return;
            }
            let Some(slot) = version.slots.try_acquire() else { return };
            self.start(surroundings, slot, running);
            if started % ITEMS_PER_TURN == 0 {
                tokio::task::yield_now().await;
                self.close_if_it_is_time(surroundings);
            }
        }
    }

    /// While the destination's breaker is open, what has not begun leaves as a remainder (law 5).
    fn hold_during_an_outage(&mut self) {
        let Some(outage) = self.version.processor.outage_now() else {
            return;
        };
        for slot in self.slots.iter_mut().skip(self.next) {
            if matches!(slot.standing, Standing::Open) {
                self.intake.metrics.holds.inc();
                slot.counts = slot.counts.held();
                slot.standing = Standing::Later(outage.until);
            }
        }
        self.next = self.slots.len();
    }

    /// Once the run is paused or stopped nothing starts any more, and what has not begun leaves at once: to the held
    /// queue, or as cancelled.
    fn halt_if_told(&mut self, surroundings: &Surroundings<'_>, publishing: &mut Publishing<'a>) {
        if surroundings.closing.is_cancelled() {
            return;
        }
        match self.intake.runs.word(&self.header.id.run) {
            None | Some(Word::Go) => return,
            Some(Word::Stop) => self.cancel_the_rest(),
            Some(Word::Pause) => self.hold_the_rest(publishing),
        }
        surroundings.closing.cancel();
    }

    fn cancel_the_rest(&mut self) {
        let end = End::without_success(Outcome::Cancelled, &run_stopped());
        for slot in self.slots.iter_mut().skip(self.next) {
            if matches!(slot.standing, Standing::Open) {
                slot.standing = Standing::Ended(end.clone());
            }
        }
        self.next = self.slots.len();
    }

    fn close_if_it_is_time(&self, surroundings: &Surroundings<'_>) {
        let is_halted = self.intake.runs.is_halted(&self.header.id.run);
        let over = is_halted || self.makes_room() || self.intake.draining.is_cancelled();
        if over || clock::now() >= self.deadline {
            surroundings.closing.cancel();
        }
    }

    /// Whether another chunk is to be alone in this process: what has not begun leaves.
    fn makes_room(&self) -> bool {
        !self.is_alone && self.intake.solitude.is_sought()
    }

    fn skip_what_is_not_to_start(&mut self) {
        while self.slots.get(self.next).is_some_and(|slot| !matches!(slot.standing, Standing::Open)) {
            self.next += 1;
        }
    }

    /// Starts the next item. One that ends at its first poll is never scheduled at all.
    fn start<'r>(
        &mut self,
        surroundings: &'r Surroundings<'_>,
        slot: SlotGuard<'r>,
        running: &mut Running<'r>,
    ) {
        self.skip_what_is_not_to_start();
        let position = self.next;
        let Some(begun) = self.slots.get(position) else { return };
        self.next += 1;
        let item = Item {
            raw: begun.raw.clone(),
            index: begun.index,
            attempt: begun.counts.attempts + 1,
            context: Arc::clone(&surroundings.context),
        };
        let counts = begun.counts;
        let mut attempts =
            Box::pin(async move { (position, run_item(surroundings, slot, item, counts).await) });
        match attempts.as_mut().now_or_never() {
            Some((position, became)) => self.note(position, became),
            None => running.push(attempts),
        }
    }

    fn note(&mut self, position: usize, became: Became) {
        let slot = &mut self.slots[position];
        (slot.counts, slot.standing) = match became {
            Became::Ended(counts, end) => (counts, Standing::Ended(end)),
            Became::Later(counts, due) => (counts, Standing::Later(due)),
            Became::NotOurs => (slot.counts, Standing::NotOurs),
        };
        if let (Some(claims), Standing::Ended(_)) = (&self.claims, &slot.standing) {
            claims.ended(slot.index);
        }
    }

    /// Publishes what has ended since the last time.
    fn report_early(&mut self, publishing: &mut Publishing<'a>) {
        let ended = self.take_ended();
        let completions = report::completions(&self.header, &ended, &self.besides());
        for completion in completions {
            let outgoing = report::to_collector(&completion, self.version.compress);
            publishing.push(Box::pin(early::publish(self.intake, vec![outgoing], Vec::new())));
        }
    }

    fn take_ended(&mut self) -> Vec<Ended> {
        let sent = &self.intake.metrics.outcomes_sent;
        let take = |slot: &mut Slot| match std::mem::replace(&mut slot.standing, Standing::Reported) {
            Standing::Ended(end) => {
                sent.of(end.outcome).inc();
                Some(Ended { index: slot.index, raw: slot.raw.clone(), counts: slot.counts, end })
            }
            other => {
                slot.standing = other;
                None
            }
        };
        self.slots.iter_mut().filter_map(take).collect()
    }

    /// Remainders first, then the completions; the last one names what was handed over (law 2). When the
    /// delivery is lost its copy has the open items, so none of them is sent on.
    fn last_words(mut self, latencies: &Mutex<Latencies>) -> Vec<Outgoing> {
        self.end_dropped_calls();
        let ended = self.take_ended();
        let sent_on: Vec<SentOn> = if self.lost.is_cancelled() {
            Vec::new()
        } else {
            self.slots.iter().filter_map(sent_on).collect()
        };
        let handed_over = Ranges::from_ascending(sent_on.iter().map(|item| item.index));
        let compress = self.version.compress;
        let mut outgoing =
            report::remainders(&self.header, &self.intake.key, &sent_on, clock::now(), compress);
        let latencies = std::mem::take(&mut *latencies.lock().unwrap_or_else(PoisonError::into_inner));
        let released = self.claims.as_ref().map_or_else(Ranges::new, |claims| claims.release_all());
        let unasked = self.unasked;
        let besides = Besides { handed_over, released, latencies, unasked, ..self.besides() };
        let completions = report::completions(&self.header, &ended, &besides);
        outgoing.extend(completions.iter().map(|completion| report::to_collector(completion, compress)));
        outgoing
    }

    /// Where the effect must not repeat, a call that was dropped before it came back is not made again.
    fn end_dropped_calls(&mut self) {
        let Some(claims) = &self.claims else { return };
        for slot in &mut self.slots {
            if matches!(slot.standing, Standing::Open) && claims.is_under_way(slot.index) {
                claims.ended(slot.index);
                slot.counts.attempts = slot.counts.attempts.saturating_add(1);
                slot.standing = Standing::Ended(dropped_call());
            }
        }
    }

    /// What each of its completions says.
    fn besides(&self) -> Besides {
        let claimant = self.claims.as_ref().map(|claims| claims.claimant.clone());
        Besides { claimant, ..Besides::default() }
    }

    fn context(&self) -> Arc<StageContext> {
        Arc::new(StageContext {
            run: self.header.id.run.clone(),
            root_run: self.header.root_run.clone(),
            job: self.header.job.clone(),
            stage: self.header.id.stage.clone(),
            source: self.header.id.source.clone(),
        })
    }
}

fn sent_on(slot: &Slot) -> Option<SentOn> {
    let due = match slot.standing {
        Standing::Open => None,
        Standing::Later(due) | Standing::Leaving(due) => Some(due),
        Standing::NotOurs | Standing::Ended(_) | Standing::Reported => return None,
    };
    Some(SentOn { index: slot.index, raw: slot.raw.clone(), counts: slot.counts, due })
}
