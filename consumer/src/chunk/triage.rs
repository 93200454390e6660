//! What to do with a chunk before any item of it runs. Pure: the state of the world is passed in.

use std::time::Duration;

use windrow_common::broker::delay;
use windrow_common::clock;
use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::completion::ItemError;
use windrow_common::job::Effect;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Runs;

use crate::processor::Outage;
use crate::runs::Word;

/// How long a chunk that cannot run is put aside at a time.
pub(crate) const HOLD_STEP: Duration = Duration::from_secs(8);

/// How long a copy is put aside at a time while a live consumer is still working on its items.
pub(crate) const BUSY_STEP: Duration = Duration::from_secs(4);

/// After this long in holds an unanswered copy runs unasked (law 4), and an unknown job is parked (law 9).
pub(crate) const HOLD_LIMIT: Duration = Duration::from_secs(600);

/// Where the effect must not repeat, an unanswered copy goes on asking after that, this far apart: questions that nobody
/// reads are not to fill the broker.
const PATIENT_HOLD_STEP: Duration = Duration::from_secs(256);

/// What to do with a chunk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Triage {
    /// Run all of its items.
    Run,
    /// Ask the collector which items to run (law 4).
    Ask,
    /// Put the same chunk aside, as it is but for its counters.
    PutAside(Box<ChunkHeader>, Duration),
    /// Put the same chunk into the held queue, until its run is resumed.
    Hold(Box<ChunkHeader>),
    /// Put the same chunk into the alone queue: it is not to run beside others.
    Isolate(Box<ChunkHeader>),
    /// End every item so, without a call.
    EndAll(Outcome, ItemError),
    /// Park it, for this reason.
    Park(String),
}

/// What the triage knows beside the envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Circumstances {
    /// Whether the broker delivered it before.
    pub(crate) redelivered: bool,
    /// Whether it came from the alone queue, so that nothing else is in this process.
    pub(crate) is_alone: bool,
    /// Whether this process holds a job file of the chunk's name and hash with its stage.
    pub(crate) job_known: bool,
    /// What the collector said of the run.
    pub(crate) word: Option<Word>,
    /// Unix milliseconds.
    pub(crate) now_ms: u64,
}

/// Decides what to do with a chunk.
pub(crate) fn triage(header: &ChunkHeader, circumstances: Circumstances) -> Triage {
    let Circumstances { redelivered, is_alone, job_known, word, now_ms } = circumstances;
    let may_be_copy = redelivered || header.may_be_copy();
    match word {
        // Items of a copy may have ended otherwise: in a run that has ended all have.
        Some(Word::Stop) if may_be_copy && job_known => return Triage::Ask,
        Some(Word::Stop) => return Triage::EndAll(Outcome::Cancelled, run_stopped()),
        Some(Word::Pause) => return Triage::Hold(Box::new(held_by_pause(header))),
        Some(Word::Go) | None => {}
    }
    if !job_known {
        return match held(header) {
            Some(held) => Triage::PutAside(Box::new(held), HOLD_STEP),
            None => Triage::Park(format!(
                "no consumer of this queue holds job `{}` with hash {} and stage `{}`",
                header.job, header.hash, header.id.stage
            )),
        };
    }
    // A copy whose time has run out asks as well: some of its items may have ended, or run elsewhere.
    match (may_be_copy, has_expired(header, now_ms)) {
        (false, true) => return Triage::EndAll(Outcome::Expired, expired()),
        (true, true) => return Triage::Ask,
        (_, false) => {}
    }
    if let Some(not_before) = header.not_before.filter(|not_before| *not_before > now_ms) {
        let wait = not_before.min(header.expires.unwrap_or(u64::MAX)) - now_ms;
        let rest = delay::step(Duration::from_millis(wait));
        return Triage::PutAside(Box::new(header.clone()), rest.level);
    }
    if header.alone && !is_alone {
        return Triage::Isolate(Box::new(ChunkHeader { resent: true, ..header.clone() }));
    }
    if may_be_copy { Triage::Ask } else { Triage::Run }
}

/// Whether no item of the chunk is called, whatever the collector answers.
pub(crate) fn makes_no_call(header: &ChunkHeader, circumstances: Circumstances) -> bool {
    circumstances.word == Some(Word::Stop) || has_expired(header, circumstances.now_ms)
}

/// Whether no item of the chunk is to be tried any more.
fn has_expired(header: &ChunkHeader, now_ms: u64) -> bool {
    header.expires.is_some_and(|expires| expires <= now_ms)
}

/// Why an item was not tried, or not tried again.
pub(crate) fn expired() -> ItemError {
    reason("expired", "the item's time ran out (`expires_after`)")
}

/// The same chunk, one hold older; None when it has been held for as long as it may.
pub(crate) fn held(header: &ChunkHeader) -> Option<ChunkHeader> {
    let step_ms = u64::try_from(HOLD_STEP.as_millis()).unwrap_or(u64::MAX);
    if u128::from(header.held_ms) >= HOLD_LIMIT.as_millis() {
        return None;
    }
    let held_ms = header.held_ms.saturating_add(step_ms);
    Some(ChunkHeader { held_ms, holds: one_more(header), ..header.clone() })
}

/// A copy that got no answer: put aside with its hop and its mark as a copy, or run after all, unless its effect must
/// not repeat.
pub(crate) fn unanswered(header: &ChunkHeader, effect: Effect) -> Triage {
    let (held, delay) = match (held(header), effect) {
        (Some(held), _) => (held, HOLD_STEP),
        (None, Effect::AtLeastOnce) => return Triage::Run,
        (None, Effect::AtMostOnce) => {
            (ChunkHeader { holds: one_more(header), ..header.clone() }, PATIENT_HOLD_STEP)
        }
    };
    Triage::PutAside(Box::new(ChunkHeader { resent: true, ..held }), delay)
}

/// A copy of what a live consumer is still working on: put aside with its hop and its mark. What it waits does not count
/// towards [`HOLD_LIMIT`]: whoever works on it ends within the chunk's budget, or falls silent.
pub(crate) fn held_by_work(header: &ChunkHeader) -> Triage {
    let held = ChunkHeader { resent: true, holds: one_more(header), ..header.clone() };
    Triage::PutAside(Box::new(held), BUSY_STEP)
}

/// A chunk of a paused run: held with its counters, and with a mark, since what left the held queue twice is a copy.
/// What it waits does not count towards [`HOLD_LIMIT`].
fn held_by_pause(header: &ChunkHeader) -> ChunkHeader {
    ChunkHeader { resent: true, holds: one_more(header), ..header.clone() }
}

/// A copy whose destination is down: put aside unasked, so with its hop and its mark (law 4), until the destination
/// may be probed. What it waited does not count towards [`HOLD_LIMIT`].
pub(crate) fn held_by_outage(header: &ChunkHeader, outage: Outage, now_ms: u64) -> Triage {
    let lifetime = header.expires.map(|expires| Duration::from_millis(expires.saturating_sub(now_ms)));
    let wait = outage.until.saturating_duration_since(clock::now()).min(lifetime.unwrap_or(Duration::MAX));
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let step = delay::step(wait);
    let not_before = (!step.is_last).then(|| now_ms.saturating_add(wait_ms));
    let holds = one_more(header);
    Triage::PutAside(Box::new(ChunkHeader { resent: true, not_before, holds, ..header.clone() }), step.level)
}

/// The holds of a chunk's items after another one.
fn one_more(header: &ChunkHeader) -> Runs<u32> {
    header.holds.iter().map(|holds| holds.saturating_add(1)).collect()
}

/// Why an item of a stopped run was not tried.
pub(crate) fn run_stopped() -> ItemError {
    reason("run_stopped", "the run was stopped before this item")
}

fn reason(class: &str, message: &str) -> ItemError {
    ItemError { class: class.to_owned(), message: message.to_owned(), status: None }
}

#[cfg(test)]
pub(crate) mod tests {
    use windrow_common::envelope::chunk::Span;
    use windrow_common::ids::ChunkId;
    use windrow_common::ranges::Ranges;

    use super::*;

    pub(crate) fn header(count: u64) -> ChunkHeader {
        ChunkHeader {
            id: ChunkId {
                run: "r1".parse().unwrap(),
                stage: "push".parse().unwrap(),
                source: "main".parse().unwrap(),
                ordinal: 0,
            },
            root_run: "r1".parse().unwrap(),
            job: "sync".parse().unwrap(),
            hash: "00ff".parse().unwrap(),
            span: Span { first: 0, count },
            items: Ranges::span(0, count),
            attempts: Runs::repeat(0, count),
            throttles: Runs::repeat(0, count),
            holds: Runs::repeat(0, count),
            hop: 0,
            held_ms: 0,
            not_before: None,
            expires: None,
            resent: false,
            alone: false,
            returns: 0,
            id_field: None,
            traceparent: None,
        }
    }

    const FRESH: Circumstances =
        Circumstances { redelivered: false, is_alone: false, job_known: true, word: None, now_ms: 1_000_000 };

    #[test]
    fn a_first_delivery_runs_and_every_kind_of_copy_asks() {
        assert_eq!(triage(&header(3), FRESH), Triage::Run);
        assert_eq!(triage(&header(3), Circumstances { redelivered: true, ..FRESH }), Triage::Ask);
        assert_eq!(triage(&ChunkHeader { hop: 1, ..header(3) }, FRESH), Triage::Ask);
        assert_eq!(triage(&ChunkHeader { resent: true, ..header(3) }, FRESH), Triage::Ask);
    }

    #[test]
    fn an_unknown_job_is_held_for_ten_minutes_then_parked() {
        let unknown = Circumstances { job_known: false, ..FRESH };
        let mut current = header(3);
        let mut holds = 0;
        while let Triage::PutAside(next, delay) = triage(&current, unknown) {
            assert_eq!(delay, HOLD_STEP);
            assert_eq!((next.hop, next.resent), (0, false), "a hold makes no copy");
            current = *next;
            holds += 1;
        }
        assert_eq!(holds, 75);
        assert_eq!(current.holds.iter().next(), Some(75));
        assert!(matches!(triage(&current, unknown), Triage::Park(_)));
    }

    #[test]
    fn an_unanswered_copy_keeps_its_hop_and_mark_and_runs_after_ten_minutes() {
        let copy = ChunkHeader { hop: 2, ..header(3) };
        let Triage::PutAside(held, _) = unanswered(&copy, Effect::AtLeastOnce) else { panic!() };
        assert_eq!((held.hop, held.resent, held.held_ms), (2, true, 8_000));
        let old = ChunkHeader { held_ms: 600_000, ..copy };
        assert_eq!(unanswered(&old, Effect::AtLeastOnce), Triage::Run);
        let Triage::PutAside(held, PATIENT_HOLD_STEP) = unanswered(&old, Effect::AtMostOnce) else {
            panic!()
        };
        assert_eq!((held.held_ms, held.resent), (600_000, true), "it never runs unasked");
    }

    #[test]
    fn a_chunk_too_early_is_put_aside_and_one_too_late_expires() {
        let early = ChunkHeader { not_before: Some(1_003_000), ..header(1) };
        assert_eq!(triage(&early, FRESH), Triage::PutAside(Box::new(early.clone()), Duration::from_secs(3)));
        let late = ChunkHeader { expires: Some(1_000_000), ..header(1) };
        assert!(matches!(triage(&late, FRESH), Triage::EndAll(Outcome::Expired, _)));
        let copy = ChunkHeader { hop: 1, not_before: Some(9_000_000), ..late };
        assert_eq!(triage(&copy, FRESH), Triage::Ask, "some of its items may run elsewhere");
    }

    #[test]
    fn nothing_waits_beyond_its_time() {
        let early = ChunkHeader { not_before: Some(1_300_000), expires: Some(1_004_000), ..header(1) };
        assert_eq!(triage(&early, FRESH), Triage::PutAside(Box::new(early.clone()), Duration::from_secs(4)));
        let outage = Outage { until: clock::now() + Duration::from_secs(300) };
        let Triage::PutAside(held, level) = held_by_outage(&early, outage, 1_000_000) else { panic!() };
        assert_eq!((level, held.not_before), (Duration::from_secs(4), None));
    }

    #[test]
    fn an_outage_is_waited_out_in_steps_and_not_for_much_longer() {
        let outage = Outage { until: clock::now() + Duration::from_secs(300) };
        let Triage::PutAside(held, level) = held_by_outage(&header(2), outage, 1_000_000) else { panic!() };
        assert_eq!((level, held.holds.to_string().as_str()), (Duration::from_secs(256), "1*2"));
        let not_before = held.not_before.unwrap();
        assert!((1_299_000..=1_300_000).contains(&not_before), "{not_before}");
        let later = Circumstances { now_ms: not_before - 44_000, ..FRESH };
        assert_eq!(triage(&held, later), Triage::PutAside(held.clone(), Duration::from_secs(48)));
        assert_eq!(triage(&held, Circumstances { now_ms: not_before, ..FRESH }), Triage::Ask);
    }

    #[test]
    fn a_copy_of_what_is_worked_on_waits_with_its_hop_its_mark_and_its_returns() {
        let copy = ChunkHeader { hop: 2, returns: 1, held_ms: 8_000, ..header(3) };
        let Triage::PutAside(held, BUSY_STEP) = held_by_work(&copy) else { panic!() };
        assert_eq!(*held, ChunkHeader { resent: true, holds: Runs::repeat(1, 3), ..copy });
    }

    #[test]
    fn what_is_to_run_alone_runs_from_the_alone_queue_only() {
        let suspect = ChunkHeader { alone: true, hop: 1, returns: 2, ..header(2) };
        let Triage::Isolate(sent_on) = triage(&suspect, FRESH) else { panic!() };
        assert_eq!(*sent_on, ChunkHeader { resent: true, ..suspect.clone() });
        assert_eq!(triage(&suspect, Circumstances { is_alone: true, ..FRESH }), Triage::Ask);
        let early = ChunkHeader { not_before: Some(1_003_000), ..suspect };
        assert!(matches!(triage(&early, FRESH), Triage::PutAside(..)), "it waits first");
    }

    #[test]
    fn nothing_of_a_stopped_run_is_called_and_a_copy_asks_what_of_it_is_open() {
        let stopped = Circumstances { word: Some(Word::Stop), ..FRESH };
        assert!(matches!(triage(&header(1), stopped), Triage::EndAll(Outcome::Cancelled, _)));
        assert_eq!(triage(&header(1), Circumstances { redelivered: true, ..stopped }), Triage::Ask);
        assert_eq!(triage(&ChunkHeader { resent: true, ..header(1) }, stopped), Triage::Ask);
        let unknown = Circumstances { redelivered: true, job_known: false, ..stopped };
        assert!(matches!(triage(&header(1), unknown), Triage::EndAll(Outcome::Cancelled, _)));
    }

    #[test]
    fn a_chunk_of_a_paused_run_is_held_for_however_long_with_its_hop_and_a_mark() {
        let paused = Circumstances { word: Some(Word::Pause), job_known: false, ..FRESH };
        let chunk = ChunkHeader { hop: 2, held_ms: 600_000, expires: Some(1), ..header(3) };
        let Triage::Hold(held) = triage(&chunk, paused) else { panic!() };
        let holds = Runs::repeat(1, 3);
        assert_eq!(*held, ChunkHeader { resent: true, holds, ..chunk });
        assert_eq!(triage(&header(3), Circumstances { word: Some(Word::Go), ..FRESH }), Triage::Run);
    }
}
