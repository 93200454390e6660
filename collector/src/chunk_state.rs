//! The pure heart: what becomes of a chunk when outcomes arrive, and what a copy of it may still run.
//!
//! Law 3 lives in [`ChunkState::settle`] (the first outcome of an item wins), law 4 in
//! [`ChunkState::answer`], as do the claims of stages whose effect must not repeat.

use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::Claim;
use windrow_common::ids::Claimant;
use windrow_common::outcome::{Outcome, OutcomeCounts};
use windrow_common::ranges::{Ranges, Runs};

use crate::claims::Claims;

/// The digest of an item the collector settled itself, when it closed a run over open items. A message's
/// digest is never this.
pub const CLOSED_DIGEST: u32 = 0;

/// A 4-byte digest of an item's outcome and output: tells a second copy from a different result.
pub fn digest(outcome: Outcome, output: &[u8]) -> u32 {
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(output, outcome as u64);
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is kept")]
    let half = hash as u32;
    half.max(CLOSED_DIGEST + 1)
}

/// One item of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemEnd {
    /// Its index in the source.
    pub index: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Of outcome and output: [`digest`].
    pub digest: u32,
}

/// Everything known of one chunk: which items have settled, how, and how far the others were handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkState {
    /// What the whole chunk covers.
    pub span: Span,
    /// A bit per item, lowest first; None once all are set.
    pub settled: Option<Vec<u8>>,
    /// Four bytes per item, little-endian; 0 for an item not settled by a message.
    pub digests: Vec<u8>,
    /// How the settled items ended.
    pub counts: OutcomeCounts,
    /// The highest hop each item was handed to; None while all are 0.
    pub hops: Option<Vec<u32>>,
    /// Who may make the calls of which items, where the effect must not repeat.
    pub claims: Claims,
}

/// What a completion changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// For each item given, in order: whether it is new.
    pub new: Vec<bool>,
    /// How many are new, by outcome.
    pub counts: OutcomeCounts,
    /// Items that had settled before, with the same outcome and output or not.
    pub duplicates: u64,
    /// Of these, the ones with another outcome or output. A cancellation that came too late is none: it says that nothing
    /// was done.
    pub conflicts: u64,
    /// Items the collector had closed before their outcome came.
    pub late: u64,
    /// How many of the new ones had been waiting, handed to a higher hop.
    pub waited: u64,
    /// Whether the chunk has just become complete.
    pub completed: bool,
}

/// What a hand-over changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// Open items that wait for the first time.
    pub waiting: u64,
    /// Whether anything was handed further than was known.
    pub is_new: bool,
}

impl ChunkState {
    /// A chunk of which nothing is known but its span.
    pub fn new(span: Span) -> Self {
        let count = usize::try_from(span.count).unwrap_or(0);
        Self {
            span,
            settled: Some(vec![0; count.div_ceil(8)]),
            digests: vec![0; count * 4],
            counts: OutcomeCounts::default(),
            hops: None,
            claims: Claims::default(),
        }
    }

    /// Whether every item has settled.
    pub fn is_complete(&self) -> bool {
        self.settled.is_none()
    }

    /// Settles `items` that have no outcome yet. What has one keeps it.
    ///
    /// Items outside the span must have been refused before.
    pub fn settle(&mut self, items: &[ItemEnd]) -> Settled {
        let mut result = Settled { new: Vec::with_capacity(items.len()), ..Settled::default() };
        for item in items {
            let at = self.position(item.index);
            let is_new = !self.bit(at);
            result.new.push(is_new);
            if is_new {
                self.set_bit(at);
                self.claims.settle(item.index);
                self.digests[at * 4..at * 4 + 4].copy_from_slice(&item.digest.to_le_bytes());
                self.counts.add(item.outcome, 1);
                result.counts.add(item.outcome, 1);
                result.waited += u64::from(self.hop(at) > 0);
            } else {
                match self.digest_at(at) {
                    CLOSED_DIGEST => result.late += 1,
                    known => {
                        result.duplicates += 1;
                        let differs = known != item.digest && item.outcome != Outcome::Cancelled;
                        result.conflicts += u64::from(differs);
                    }
                }
            }
        }
        result.completed = self.drop_full_bitmap();
        result
    }

    /// Records that `items` were handed to `hop`.
    pub fn hand_over(&mut self, items: &Ranges, hop: u32) -> HandedOver {
        let mut result = HandedOver::default();
        if items.is_empty() || hop == 0 {
            return result;
        }
        let count = usize::try_from(self.span.count).unwrap_or(0);
        let mut hops = self.hops.take().unwrap_or_else(|| vec![0; count]);
        for index in items.iter() {
            let at = self.position(index);
            if hops[at] < hop {
                result.is_new = true;
                result.waiting += u64::from(hops[at] == 0 && !self.bit(at));
                hops[at] = hop;
            }
        }
        self.hops = Some(hops);
        result
    }

    /// Grants the claimant what is open of `items` to a copy at `hop`, and is nobody else's.
    pub fn claim(&mut self, claim: &Claim, items: &Ranges, hop: u32, now_ms: u64) {
        let is_free = |index| !self.claims.is_of_another(index, Some(&claim.claimant));
        let granted = self.open_to(items, hop).filter(is_free);
        self.claims.grant(claim, items, &granted, now_ms);
    }

    /// Of [`Self::open_to`], what to run and what somebody else has claimed. A claimant runs what is its own, a copy what is
    /// nobody's.
    pub fn answer(&self, items: &Ranges, hop: u32, claimant: Option<&Claimant>) -> (Ranges, Ranges) {
        let open = self.open_to(items, hop);
        let is_of_another = |index| self.claims.is_of_another(index, claimant);
        let is_to_run = |index| match claimant {
            Some(claimant) => self.claims.is_of(index, claimant),
            None => !is_of_another(index),
        };
        (open.filter(is_to_run), open.filter(is_of_another))
    }

    /// Of `items`, those a copy at `hop` is responsible for: neither settled nor handed to a higher hop.
    pub fn open_to(&self, items: &Ranges, hop: u32) -> Ranges {
        items.filter(|index| {
            let at = self.position(index);
            !self.bit(at) && self.hop(at) <= hop
        })
    }

    /// How many of `items` settled with this digest: as one outcome and output, so that a copy counts the same.
    pub fn count_with(&self, items: &Ranges, digest: u32) -> u64 {
        items.filter(|index| self.digest_at(self.position(index)) == digest).len()
    }

    /// Ends every open item as cancelled. Returns the items and how many of them had been waiting.
    pub fn close(&mut self) -> (Ranges, u64) {
        let open = self.span.to_ranges().filter(|index| !self.bit(self.position(index)));
        let waited = open.iter().filter(|index| self.hop(self.position(*index)) > 0).count() as u64;
        self.counts.add(Outcome::Cancelled, open.len());
        self.settled = None;
        self.claims = Claims::default();
        (open, waited)
    }

    /// The hops as the ledger keeps them.
    pub fn hops_text(&self) -> Option<String> {
        self.hops.as_ref().map(|hops| hops.iter().copied().collect::<Runs<u32>>().to_string())
    }

    fn position(&self, index: u64) -> usize {
        debug_assert!((self.span.first..self.span.first + self.span.count).contains(&index));
        usize::try_from(index - self.span.first).unwrap_or(usize::MAX)
    }

    fn bit(&self, at: usize) -> bool {
        self.settled.as_ref().is_none_or(|bits| bits[at / 8] & (1 << (at % 8)) != 0)
    }

    fn set_bit(&mut self, at: usize) {
        if let Some(bits) = &mut self.settled {
            bits[at / 8] |= 1 << (at % 8);
        }
    }

    fn hop(&self, at: usize) -> u32 {
        self.hops.as_ref().map_or(0, |hops| hops[at])
    }

    fn digest_at(&self, at: usize) -> u32 {
        // A chunk the collector closed unseen has no digests.
        let bytes = self.digests.get(at * 4..at * 4 + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(CLOSED_DIGEST, u32::from_le_bytes)
    }

    fn drop_full_bitmap(&mut self) -> bool {
        let full = self.settled.is_some() && self.counts.settled() == self.span.count;
        if full {
            self.settled = None;
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const FIRST: u64 = 40;
    const COUNT: u64 = 12;

    /// What may come to the collector about one chunk.
    #[derive(Debug, Clone)]
    enum Step {
        Outcomes { hop: u32, items: Vec<(u64, Outcome, u8)>, handed_over: Vec<u64> },
        Question { hop: u32, items: Vec<u64> },
        Claim { by: u8, hop: u32, items: Vec<u64> },
        Release { by: u8, items: Vec<u64> },
    }

    /// The laws, item by item and without any thought for speed.
    #[derive(Default)]
    struct Model {
        ends: BTreeMap<u64, (Outcome, u8)>,
        hops: BTreeMap<u64, u32>,
        claims: BTreeMap<u64, u8>,
        duplicates: u64,
        conflicts: u64,
    }

    impl Model {
        fn settle(&mut self, index: u64, end: (Outcome, u8)) -> bool {
            if let Some(known) = self.ends.get(&index) {
                self.duplicates += 1;
                self.conflicts += u64::from(*known != end && end.0 != Outcome::Cancelled);
                return false;
            }
            self.ends.insert(index, end);
            self.claims.remove(&index);
            true
        }

        fn hand_over(&mut self, index: u64, hop: u32) {
            let known = self.hops.entry(index).or_default();
            *known = (*known).max(hop);
        }

        fn waiting(&self) -> u64 {
            self.hops.iter().filter(|(index, hop)| **hop > 0 && !self.ends.contains_key(index)).count() as u64
        }

        /// Those to run, and those that somebody else has claimed.
        fn answer(&self, items: &[u64], hop: u32, by: Option<u8>) -> (Vec<u64>, Vec<u64>) {
            let is_open = |index: &u64| {
                !self.ends.contains_key(index) && self.hops.get(index).copied().unwrap_or(0) <= hop
            };
            let is_free = |index: &u64| self.claims.get(index).is_none_or(|holder| Some(*holder) == by);
            items.iter().copied().filter(is_open).partition(is_free)
        }
    }

    fn indexes() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::btree_set(FIRST..FIRST + COUNT, 1..6).prop_map(|set| set.into_iter().collect())
    }

    fn step() -> impl Strategy<Value = Step> {
        let outcome = prop::sample::select(Outcome::ALL.to_vec());
        let items = prop::collection::btree_map(FIRST..FIRST + COUNT, (outcome, 0u8..2), 0..8);
        let outcomes = (0u32..4, items, prop::option::of(indexes())).prop_map(|(hop, items, handed)| {
            let items: Vec<_> =
                items.into_iter().map(|(index, (end, output))| (index, end, output)).collect();
            Step::Outcomes { hop, items, handed_over: handed.unwrap_or_default() }
        });
        prop_oneof![
            3 => outcomes,
            1 => (0u32..5, indexes()).prop_map(|(hop, items)| Step::Question { hop, items }),
            2 => (0u8..3, 0u32..3, indexes()).prop_map(|(by, hop, items)| Step::Claim { by, hop, items }),
            1 => (0u8..3, indexes()).prop_map(|(by, items)| Step::Release { by, items }),
        ]
    }

    fn ends(items: &[(u64, Outcome, u8)]) -> Vec<ItemEnd> {
        items
            .iter()
            .map(|(index, outcome, output)| ItemEnd {
                index: *index,
                outcome: *outcome,
                digest: digest(*outcome, &[*output]),
            })
            .collect()
    }

    fn claimant(by: u8) -> Claimant {
        format!("c{by}").parse().unwrap()
    }

    /// Has it claim items; returns those to run, and those that somebody else has claimed.
    fn claim(chunk: &mut ChunkState, by: u8, hop: u32, asked: &Ranges) -> (Vec<u64>, Vec<u64>) {
        let claimant = claimant(by);
        let attempts = Runs::repeat(1, asked.len());
        chunk.claim(&Claim { claimant: claimant.clone(), holds_ms: 1, attempts, ids: None }, asked, hop, 0);
        let (granted, claimed) = chunk.answer(asked, hop, Some(&claimant));
        (granted.iter().collect(), claimed.iter().collect())
    }

    proptest! {
        #[test]
        fn any_order_of_completions_copies_and_questions_agrees_with_the_model(
            steps in prop::collection::vec(step(), 0..60),
            doubled in prop::collection::vec(any::<bool>(), 60),
        ) {
            let mut chunk = ChunkState::new(Span { first: FIRST, count: COUNT });
            let mut model = Model::default();
            let (mut duplicates, mut conflicts, mut waiting) = (0, 0, 0);
            let steps = steps.into_iter().zip(doubled).flat_map(|(step, twice)| {
                std::iter::repeat_n(step, if twice { 2 } else { 1 })
            });
            for step in steps {
                match step {
                    Step::Outcomes { hop, items, handed_over } => {
                        let settled = chunk.settle(&ends(&items));
                        let expected: Vec<bool> = items.iter()
                            .map(|(index, end, output)| model.settle(*index, (*end, *output))).collect();
                        prop_assert_eq!(&settled.new, &expected);
                        prop_assert_eq!(settled.late, 0);
                        duplicates += settled.duplicates;
                        conflicts += settled.conflicts;
                        waiting -= settled.waited;
                        waiting += chunk.hand_over(&Ranges::from_ascending(handed_over.iter().copied()), hop + 1).waiting;
                        for index in &handed_over {
                            model.hand_over(*index, hop + 1);
                        }
                    }
                    Step::Question { hop, items } => {
                        let asked = Ranges::from_ascending(items.iter().copied());
                        waiting += chunk.hand_over(&asked, hop).waiting;
                        for index in &items {
                            model.hand_over(*index, hop);
                        }
                        let (answer, claimed) = chunk.answer(&asked, hop, None);
                        let answer = (answer.iter().collect(), claimed.iter().collect());
                        prop_assert_eq!(answer, model.answer(&items, hop, None));
                    }
                    Step::Claim { by, hop, items } => {
                        let asked = Ranges::from_ascending(items.iter().copied());
                        waiting += chunk.hand_over(&asked, hop).waiting;
                        for index in &items {
                            model.hand_over(*index, hop);
                        }
                        let expected = model.answer(&items, hop, Some(by));
                        let granted = claim(&mut chunk, by, hop, &asked);
                        prop_assert_eq!(&granted, &expected);
                        for index in expected.0 {
                            prop_assert!(model.claims.insert(index, by).is_none_or(|holder| holder == by));
                        }
                    }
                    Step::Release { by, items } => {
                        let released = Ranges::from_ascending(items.iter().copied());
                        chunk.claims.release(&claimant(by), &released);
                        model.claims.retain(|index, holder| *holder != by || !released.contains(*index));
                    }
                }
                let held: Vec<u64> = chunk.claims.overdue(u64::MAX).into_keys().collect();
                prop_assert_eq!(held, model.claims.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!(chunk.is_complete(), model.ends.len() as u64 == COUNT);
                prop_assert_eq!(chunk.counts.settled(), model.ends.len() as u64);
                prop_assert_eq!(waiting, model.waiting());
            }
            prop_assert_eq!((duplicates, conflicts), (model.duplicates, model.conflicts));
            let mut counts = OutcomeCounts::default();
            model.ends.values().for_each(|(outcome, _)| counts.add(*outcome, 1));
            prop_assert_eq!(chunk.counts, counts);
        }
    }

    #[test]
    fn an_outcome_after_the_close_is_late_and_changes_nothing() {
        let mut chunk = ChunkState::new(Span { first: FIRST, count: 3 });
        chunk.settle(&ends(&[(FIRST, Outcome::Succeeded, 1)]));
        assert_eq!(chunk.close(), (Ranges::span(FIRST + 1, 2), 0));
        let settled = chunk.settle(&ends(&[(FIRST, Outcome::Failed, 1), (FIRST + 1, Outcome::Succeeded, 1)]));
        assert_eq!((settled.late, settled.duplicates, settled.conflicts), (1, 1, 1));
        assert_eq!((chunk.counts.succeeded, chunk.counts.cancelled), (1, 2));
    }
}
