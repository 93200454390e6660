//! Who may make the calls of a chunk's items, where an effect must not repeat. Pure.
//!
//! A claim gives one delivery of the chunk, the claimant, the right to make one call for each of some items. It ends with
//! the item's outcome, or when the claimant says that nothing was sent. When neither comes in time, nobody knows whether
//! the call was made, and the items end as unknown.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use windrow_common::envelope::completion::Claim;
use windrow_common::ids::Claimant;
use windrow_common::ranges::Ranges;

use crate::chunk_state::ChunkState;
use crate::engine::Now;
use crate::ledger::ChunkKey;

/// No claim is for longer, whatever it says: a chunk and its last call end well before the broker takes a delivery back
/// after 30 minutes.
const LONGEST_MS: u64 = 60 * 60 * 1_000;

/// While claims are overdue the word that says so is sent again this often: it may be lost.
const WORD_INTERVAL: Duration = Duration::from_secs(5);

/// The claims on a chunk's items.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claims(BTreeMap<Claimant, Held>);

/// What one delivery has claimed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    /// Unix milliseconds. That of its latest claim: who claims more is there, and will say how the others ended.
    until: u64,
    /// By index.
    items: BTreeMap<u64, Claimed>,
}

/// An item that is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Which attempt is made, counted from 1.
    pub attempt: u32,
    /// What users call the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Claims {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether somebody other than `claimant` has claimed the item.
    pub fn is_of_another(&self, index: u64, claimant: Option<&Claimant>) -> bool {
        self.0.iter().any(|(holder, held)| Some(holder) != claimant && held.items.contains_key(&index))
    }

    /// Whether the claimant has claimed the item.
    pub fn is_of(&self, index: u64, claimant: &Claimant) -> bool {
        self.0.get(claimant).is_some_and(|held| held.items.contains_key(&index))
    }

    /// Gives the claimant those of the items `asked` for that are `granted`.
    pub fn grant(&mut self, claim: &Claim, asked: &Ranges, granted: &Ranges, now_ms: u64) {
        if granted.is_empty() {
            return;
        }
        let held = self.0.entry(claim.claimant.clone()).or_default();
        held.until = now_ms.saturating_add(claim.holds_ms.min(LONGEST_MS));
        for (position, (index, attempt)) in asked.iter().zip(claim.attempts.iter()).enumerate() {
            if granted.contains(index) {
                let id = claim.ids.as_ref().and_then(|ids| ids.get(position)).filter(|id| !id.is_empty());
                held.items.insert(index, Claimed { attempt, id: id.cloned() });
            }
        }
    }

    /// The claimant says that nothing was sent for these items. What others have claimed stays theirs.
    pub fn release(&mut self, claimant: &Claimant, items: &Ranges) {
        if let Some(held) = self.0.get_mut(claimant) {
            held.items.retain(|index, _| !items.contains(*index));
        }
        self.forget_empty();
    }

    /// The item has an outcome.
    pub fn settle(&mut self, index: u64) {
        for held in self.0.values_mut() {
            held.items.remove(&index);
        }
        self.forget_empty();
    }

    /// When the first of them runs out, in Unix milliseconds.
    pub fn earliest(&self) -> Option<u64> {
        self.0.values().map(|held| held.until).min()
    }

    /// The items whose time had run out at `at`, in Unix milliseconds, by index.
    pub fn overdue(&self, at: u64) -> BTreeMap<u64, Claimed> {
        let overdue = self.0.values().filter(|held| held.until <= at);
        overdue.flat_map(|held| held.items.clone()).collect()
    }

    fn forget_empty(&mut self) {
        self.0.retain(|_, held| !held.items.is_empty());
    }
}

/// When the first claim on each chunk that has some runs out.
#[derive(Debug, Default)]
pub(crate) struct ClaimTimes {
    by_chunk: BTreeMap<ChunkKey, u64>,
    /// When the word of overdue claims was sent last.
    said_at: Option<Instant>,
}

impl ClaimTimes {
    /// Takes in the state of a chunk.
    pub(crate) fn note(&mut self, key: ChunkKey, chunk: &ChunkState) {
        match chunk.claims.earliest() {
            Some(until) => drop(self.by_chunk.insert(key, until)),
            None => drop(self.by_chunk.remove(&key)),
        }
    }

    /// The chunks with claims whose time had run out at `at`, in Unix milliseconds.
    pub(crate) fn overdue(&self, at: u64) -> Vec<ChunkKey> {
        self.by_chunk.iter().filter(|(_, until)| **until <= at).map(|(key, _)| *key).collect()
    }

    /// The time to say that claims are overdue at, in Unix milliseconds, if that is to be said now.
    pub(crate) fn word(&mut self, now: Now) -> Option<u64> {
        if self.wake_in(now) != Some(Duration::ZERO) {
            return None;
        }
        self.said_at = Some(now.instant);
        Some(now.unix_ms)
    }

    /// When there will be something to say.
    pub(crate) fn wake_in(&self, now: Now) -> Option<Duration> {
        let until = *self.by_chunk.values().min()?;
        let due = Duration::from_millis(until.saturating_sub(now.unix_ms));
        let again = self.said_at.map(|at| (at + WORD_INTERVAL).saturating_duration_since(now.instant));
        Some(due.max(again.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use windrow_common::ranges::Runs;

    use super::*;

    fn claim(claimant: &str, items: u64) -> Claim {
        let claimant = claimant.parse().unwrap();
        Claim { claimant, holds_ms: 1_000, attempts: Runs::repeat(1, items), ids: None }
    }

    #[test]
    fn a_claim_ends_with_the_outcome_or_by_its_own_claimants_word() {
        let (asked, granted): (Ranges, Ranges) = ("3-5".parse().unwrap(), "3,5".parse().unwrap());
        let mut claims = Claims::default();
        let ids = Some(vec!["three".into(), "four".into(), String::new()]);
        claims.grant(&Claim { ids, ..claim("a", 3) }, &asked, &granted, 10);
        let (a, b): (Claimant, Claimant) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert!(claims.is_of_another(3, Some(&b)) && claims.is_of_another(3, None));
        assert!(!claims.is_of_another(3, Some(&a)) && !claims.is_of_another(4, Some(&b)));
        claims.release(&b, &asked);
        assert!(claims.is_of_another(5, None), "only the claimant knows whether something was sent");
        assert!(claims.overdue(1_009).is_empty());
        let overdue = claims.overdue(1_010);
        let ids: Vec<Option<&str>> = overdue.values().map(|item| item.id.as_deref()).collect();
        assert_eq!(ids, [Some("three"), None]);
        let kept: Claims = serde_json::from_str(&serde_json::to_string(&claims).unwrap()).unwrap();
        assert_eq!(kept, claims);
        claims.release(&a, &"5".parse().unwrap());
        claims.settle(3);
        assert!(claims.is_empty());
    }

    #[test]
    fn overdue_claims_are_said_again_and_again_until_they_are_gone() {
        let mut now = Now { instant: Instant::now(), unix_ms: 100 };
        let key = ChunkKey { run: 1, stage: 0, source: 0, ordinal: 0 };
        let mut chunk = ChunkState::new(windrow_common::envelope::chunk::Span { first: 0, count: 1 });
        let one = Ranges::span(0, 1);
        chunk.claims.grant(&claim("a", 1), &one, &one, now.unix_ms);
        let mut times = ClaimTimes::default();
        assert_eq!((times.wake_in(now), times.word(now)), (None, None));
        times.note(key, &chunk);
        assert_eq!((times.wake_in(now), times.word(now)), (Some(Duration::from_secs(1)), None));
        now = Now { unix_ms: 1_100, ..now };
        assert_eq!((times.word(now), times.word(now)), (Some(1_100), None));
        assert_eq!((times.wake_in(now), times.overdue(1_099)), (Some(WORD_INTERVAL), vec![]));
        assert_eq!(times.overdue(1_100), [key]);
        now = Now { instant: now.instant + WORD_INTERVAL, unix_ms: 6_100 };
        assert_eq!(times.word(now), Some(6_100));
        chunk.claims.settle(0);
        times.note(key, &chunk);
        assert_eq!(times.wake_in(now), None);
    }
}
