//! Trying one item: an attempt after another, until it has ended or has to wait elsewhere.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use windrow_common::clock;
use windrow_common::envelope::completion::Latencies;
use windrow_common::outcome::Outcome;
use windrow_common::telemetry::metrics::{InFlight, StageMetrics};

use super::claims::{Claimed, Claims};
use super::triage::{HOLD_STEP, expired};
use crate::processor::{Attempt, Item, Outage, Permit, Retry, StageContext, seen};
use crate::slots::SlotGuard;
use crate::stage::{StageIntake, StageRunner};
use crate::verdict::{Counts, End, Verdict, decide, in_doubt};

/// A probe that fails ends its item only after so many attempts beyond its retries: an outage fails no item, and one
/// that is itself what the destination fails at does not probe for ever.
const MAX_PROBES: u32 = 10;

/// After a longer wait for a permit the collector's word about a copy is old: others may have ended the item meanwhile, so
/// it goes back and is asked about again.
const WORD_HOLDS: Duration = Duration::from_secs(3);

/// What became of an item here.
#[derive(Debug)]
pub(super) enum Became {
    /// It ended.
    Ended(Counts, End),
    /// It is to be tried again, not before `due`.
    Later(Counts, Instant),
    /// It has ended elsewhere, or was handed on.
    NotOurs,
}

/// What the items of a chunk share: nothing that one item can change for another.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    /// The version of the stage.
    pub(super) version: &'a StageRunner,
    /// Where it is counted.
    pub(super) metrics: &'a StageMetrics,
    /// What an item sees of its run.
    pub(super) context: Arc<StageContext>,
    /// The end of the chunk's budget.
    pub(super) deadline: Instant,
    /// Cancelled when no attempt may start any more.
    pub(super) closing: &'a CancellationToken,
    /// How long attempts took.
    pub(super) latencies: &'a Mutex<Latencies>,
    /// Where the effect must not repeat.
    pub(super) claims: Option<&'a Claims>,
    /// When the items' time runs out.
    pub(super) expires: Option<Instant>,
    /// Whether the collector was asked which items to run.
    pub(super) is_answered_copy: bool,
}

impl Surroundings<'_> {
    /// How an item ends whose time has run out before an attempt.
    fn expiry(&self) -> Option<End> {
        let has_expired = self.expires.is_some_and(|expires| expires <= clock::now());
        has_expired.then(|| End::without_success(Outcome::Expired, &expired()))
    }

    /// What becomes of an item whose attempt may not begin now.
    fn hindrance(&self, counts: Counts) -> Option<Became> {
        if self.closing.is_cancelled() {
            return Some(Became::Later(counts, clock::now()));
        }
        self.expiry().map(|end| Became::Ended(counts, end))
    }

    /// Asks for the claims that items wait for, for ever.
    pub(super) async fn ask_for_claims(&self, intake: &StageIntake) -> Infallible {
        match self.claims {
            Some(claims) => claims.ask_as_wanted(intake).await,
            None => std::future::pending().await,
        }
    }
}

/// Tries one item until it has ended or has to wait elsewhere. The permit is given back during pauses.
pub(super) async fn run_item(
    surroundings: &Surroundings<'_>,
    slot: SlotGuard<'_>,
    mut item: Item,
    mut counts: Counts,
) -> Became {
    let version = surroundings.version;
    let mut slot = Some(slot);
    loop {
        if let Some(end) = surroundings.expiry() {
            return Became::Ended(counts, end);
        }
        let verdict = if let Some(decided) = version.processor.decide(&item) {
            decide(&version.retry, decided, counts, || chance(&item, counts))
        } else {
            let mut permit = match admission(surroundings, &item, counts).await {
                Ok(permit) => permit,
                Err(became) => return became,
            };
            let attempt = attempt(surroundings, &item).await;
            count(surroundings.metrics, &attempt, &mut counts);
            let still_down = permit.as_mut().and_then(|permit| permit.note(&attempt));
            if let Some(end) = surroundings.claims.and_then(|_| in_doubt(&attempt)) {
                return Became::Ended(counts, end);
            }
            match still_down {
                Some(outage) if counts.attempts <= version.retry.count.saturating_add(MAX_PROBES) => {
                    return Became::Later(counts, outage.until);
                }
                _ => decide(&version.retry, attempt, counts, || chance(&item, counts)),
            }
        };
        let pause = match verdict {
            Verdict::End(end) => return Became::Ended(counts, end),
            Verdict::Again(pause) => pause,
        };
        let due = clock::now() + pause;
        if pause >= version.retry.in_place_below || due >= surroundings.deadline {
            return Became::Later(counts, due);
        }
        drop(slot.take());
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = surroundings.closing.cancelled() => return Became::Later(counts, due),
        }
        slot = tokio::select! {
            biased;
            slot = version.slots.acquire() => Some(slot),
            outage = version.processor.outage() => return held(surroundings.metrics, counts, outage),
        };
        if surroundings.closing.is_cancelled() {
            return Became::Later(counts, due);
        }
        item.attempt = counts.attempts + 1;
    }
}

/// Waits until an attempt may begin: for the destination's permit and, where the effect must not repeat, for the claim.
/// The other way round a claim would wait for permits, and what is claimed is in doubt when its consumer dies.
async fn admission(
    surroundings: &Surroundings<'_>,
    item: &Item,
    counts: Counts,
) -> Result<Option<Permit>, Became> {
    let since = clock::now();
    let admitted = tokio::select! {
        biased;
        admitted = surroundings.version.processor.permit() => admitted,
        () = surroundings.closing.cancelled() => return Err(Became::Later(counts, clock::now())),
    };
    let permit = admitted.map_err(|outage| held(surroundings.metrics, counts, outage))?;
    if surroundings.is_answered_copy && clock::now().saturating_duration_since(since) > WORD_HOLDS {
        if let Some(permit) = permit {
            permit.unused();
        }
        return Err(Became::Later(counts, clock::now()));
    }
    if let Some(became) = surroundings.hindrance(counts) {
        return Err(became);
    }
    let Some(claims) = surroundings.claims else { return Ok(permit) };
    let claimed = tokio::select! {
        biased;
        claimed = claims.claim(item) => claimed,
        // Whatever the answer will be, nothing begins any more.
        () = surroundings.closing.cancelled() => Claimed::Granted,
    };
    let hindrance = match claimed {
        Claimed::Granted => surroundings.hindrance(counts),
        Claimed::Over => Some(Became::NotOurs),
        Claimed::ByAnother | Claimed::Unanswered => {
            let until = clock::now() + HOLD_STEP;
            Some(held(surroundings.metrics, counts, Outage { until }))
        }
    };
    let Some(became) = hindrance else { return Ok(permit) };
    if let Some(permit) = permit {
        permit.unused();
    }
    Err(became)
}

/// An item that cannot be tried for now: its destination is down, or somebody else has claimed it.
fn held(metrics: &StageMetrics, counts: Counts, outage: Outage) -> Became {
    metrics.holds.inc();
    Became::Later(counts.held(), outage.until)
}

/// A call that a limit refused is no attempt.
fn count(metrics: &StageMetrics, attempt: &Attempt, counts: &mut Counts) {
    if matches!(attempt, Attempt::Throttled { .. }) {
        counts.throttles = counts.throttles.saturating_add(1);
        metrics.throttles.inc();
        return;
    }
    metrics.attempts.inc();
    if counts.attempts > 0 {
        metrics.retries.inc();
    }
    counts.attempts = counts.attempts.saturating_add(1);
}

/// One attempt: bounded by the timeout, and a panic is an outcome, not a death.
async fn attempt(surroundings: &Surroundings<'_>, item: &Item) -> Attempt {
    let version = surroundings.version;
    let started = clock::now();
    let _in_flight = InFlight::enter(&surroundings.metrics.items_in_flight);
    if let Some(claims) = surroundings.claims {
        claims.set_under_way(item.index, true);
    }
    let work = AssertUnwindSafe(version.processor.processor().process(item)).catch_unwind();
    let attempt = match tokio::time::timeout(version.timeout, work).await {
        Ok(Ok(attempt)) => attempt,
        Ok(Err(panic)) => panicked(item, panic.as_ref()),
        Err(_) => timed_out(item, version.timeout),
    };
    if let Some(claims) = surroundings.claims {
        claims.set_under_way(item.index, false);
    }
    let elapsed = clock::now().saturating_duration_since(started);
    if let Some(seen) = seen(&attempt) {
        version.slots.note(seen, elapsed, started + elapsed);
    }
    surroundings.metrics.attempt_seconds.observe(elapsed.as_secs_f64());
    surroundings.latencies.lock().unwrap_or_else(PoisonError::into_inner).record(elapsed);
    attempt
}

fn panicked(item: &Item, panic: &(dyn std::any::Any + Send)) -> Attempt {
    let context = &item.context;
    tracing::error!(run = %context.run, stage = %context.stage, item = item.index, attempt = item.attempt,
        "the processor panicked");
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let text: String = text.chars().take(200).collect();
    Attempt::failed("panic", format!("the processor panicked: {text}"), Retry::Never)
}

fn timed_out(item: &Item, timeout: Duration) -> Attempt {
    let context = &item.context;
    tracing::warn!(run = %context.run, stage = %context.stage, item = item.index, attempt = item.attempt,
        timeout_seconds = timeout.as_secs_f64(), "an attempt timed out and was cancelled");
    let message = format!("no answer within {}", windrow_common::job::format_duration(timeout));
    Attempt::failed("timeout", message, Retry::Later)
}

/// A number from 0 to 1, spread evenly over items, and over the tries of one. The same again for the same try: jitter
/// needs no secrets.
fn chance(item: &Item, counts: Counts) -> f64 {
    let mut hasher = DefaultHasher::new();
    let context = &item.context;
    (&context.run, &context.source, item.index, counts.attempts, counts.throttles).hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}
