//! Where an effect must not repeat, the right to make each call is asked of the collector just before it. What waits for
//! its claim at the same time is asked for with one question.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use windrow_common::clock;
use windrow_common::envelope::chunk::{ChunkHeader, Span, id_of};
use windrow_common::envelope::completion::Claim;
use windrow_common::ids::{ChunkId, Claimant};
use windrow_common::ranges::{Ranges, Runs};

use crate::processor::Item;
use crate::questions::Told;
use crate::stage::StageIntake;

/// A claim holds for the call's timeout and this much more: the time to say how it ended.
const MARGIN: Duration = Duration::from_secs(30);

/// Items in one question, at most: their ranges and attempts travel in headers.
const MAX_ITEMS: usize = 1_000;

/// The answer to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The call may be made, once.
    Granted,
    /// Somebody else has claimed the item.
    ByAnother,
    /// The item has settled, or is with a higher hop.
    Over,
    /// Nobody answered.
    Unanswered,
}

/// The claims of one delivery.
#[derive(Debug)]
pub(super) struct Claims {
    /// Who claims: this delivery.
    pub(super) claimant: Claimant,
    id: ChunkId,
    span: Span,
    hop: u32,
    id_field: Option<String>,
    holds_ms: u64,
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that wait for their claim, by item.
    waiting: BTreeMap<u64, Waiting>,
    /// Items that were asked for and have not ended, and whether a call is under way.
    held: BTreeMap<u64, bool>,
}

#[derive(Debug)]
struct Waiting {
    attempt: u32,
    id: Option<String>,
    told: oneshot::Sender<Claimed>,
}

impl Claims {
    /// No claims yet of the delivery of this chunk, whose calls take `timeout` at most.
    pub(super) fn new(header: &ChunkHeader, timeout: Duration) -> Self {
        Self {
            claimant: Claimant::generate(),
            id: header.id.clone(),
            span: header.span,
            hop: header.hop,
            id_field: header.id_field.clone(),
            holds_ms: u64::try_from(timeout.saturating_add(MARGIN).as_millis()).unwrap_or(u64::MAX),
            state: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// Waits for the right to make one call for the item. Needs [`Self::ask_as_wanted`] to run beside it.
    pub(super) async fn claim(&self, item: &Item) -> Claimed {
        let (told, answer) = oneshot::channel();
        // An id is a JSON string.
        let id = self.id_field.as_ref().map(|field| id_of(&item.raw, field));
        let id = id.and_then(|id| serde_json::from_str(&id).ok());
        {
            let mut state = self.state();
            state.waiting.insert(item.index, Waiting { attempt: item.attempt, id, told });
            state.held.insert(item.index, false);
        }
        let asked_at = clock::now();
        self.wanted.notify_one();
        let claimed = answer.await.unwrap_or(Claimed::Unanswered);
        // Its call could outlast the claim: this process stood still meanwhile.
        if clock::now().saturating_duration_since(asked_at) < MARGIN { claimed } else { Claimed::Unanswered }
    }

    /// Asks for what is wanted, one question after another, for ever.
    pub(super) async fn ask_as_wanted(&self, intake: &StageIntake) -> Infallible {
        loop {
            let batch = self.take_waiting();
            if batch.is_empty() {
                self.wanted.notified().await;
                continue;
            }
            let items = Ranges::from_ascending(batch.keys().copied());
            let claim = Claim {
                claimant: self.claimant.clone(),
                holds_ms: self.holds_ms,
                attempts: batch.values().map(|waiting| waiting.attempt).collect::<Runs<u32>>(),
                ids: self
                    .id_field
                    .as_ref()
                    .map(|_| batch.values().map(|waiting| waiting.id.clone().unwrap_or_default()).collect()),
            };
            intake.metrics.questions_asked.inc();
            let told = intake.questions.ask(&self.id, self.span, self.hop, items, Some(claim)).await;
            let told = told.unwrap_or_else(|error| {
                tracing::error!(chunk = %self.id, %error, "items could not be claimed");
                None
            });
            intake.metrics.questions_answered.inc_by(u64::from(told.is_some()));
            for (index, waiting) in batch {
                let claimed = read(told.as_ref(), index);
                if claimed == Claimed::ByAnother {
                    self.ended(index);
                }
                // Whoever wanted it may have to stop.
                let _ = waiting.told.send(claimed);
            }
        }
    }

    /// A call for the item begins, or has come back with its end known.
    pub(super) fn set_under_way(&self, index: u64, is_under_way: bool) {
        self.state().held.insert(index, is_under_way);
    }

    /// Whether a call for the item has begun and not come back.
    pub(super) fn is_under_way(&self, index: u64) -> bool {
        self.state().held.get(&index) == Some(&true)
    }

    /// There is no claim to be given up: the item's outcome will end it, or somebody else has it.
    pub(super) fn ended(&self, index: u64) {
        self.state().held.remove(&index);
    }

    /// Gives up the claims on these of `items`: nothing was sent for them.
    pub(super) fn release(&self, items: &Ranges) -> Ranges {
        let mut state = self.state();
        items.filter(|index| state.held.remove(&index).is_some())
    }

    /// Gives up every claim that is left.
    pub(super) fn release_all(&self) -> Ranges {
        Ranges::from_ascending(std::mem::take(&mut self.state().held).into_keys())
    }

    fn take_waiting(&self) -> BTreeMap<u64, Waiting> {
        let mut state = self.state();
        match state.waiting.keys().nth(MAX_ITEMS).copied() {
            None => std::mem::take(&mut state.waiting),
            Some(beyond) => {
                let rest = state.waiting.split_off(&beyond);
                std::mem::replace(&mut state.waiting, rest)
            }
        }
    }

    /// What is behind the lock is whole after every statement, so a panic elsewhere spoils nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the collector said of an item. One that says nothing of claims knows none, so its word grants nothing.
fn read(told: Option<&Told>, index: u64) -> Claimed {
    match told {
        Some(Told { run, claimed: Some(claimed), .. }) => {
            if run.contains(index) {
                Claimed::Granted
            } else if claimed.contains(index) {
                Claimed::ByAnother
            } else {
                Claimed::Over
            }
        }
        Some(Told { claimed: None, .. }) | None => Claimed::Unanswered,
    }
}
