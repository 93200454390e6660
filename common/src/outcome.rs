//! The one end state of an item.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The one end state of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The work was done; the output is the processor's.
    Succeeded,
    /// The work was tried and given up, or could not be tried.
    Failed,
    /// The stage's `skip_when` held.
    Skipped,
    /// The item's time ran out before it was tried.
    Expired,
    /// The run was cancelled or stopped before the item was tried.
    Cancelled,
    /// The work may or may not have been done, and must not be done twice.
    Unknown,
}

impl Outcome {
    /// Every outcome, in the order reports list them.
    pub const ALL: [Self; 6] =
        [Self::Succeeded, Self::Failed, Self::Skipped, Self::Expired, Self::Cancelled, Self::Unknown];

    /// The outcome's word, as the wire, the ledger and the sinks write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an outcome")]
pub struct OutcomeError;

impl FromStr for Outcome {
    type Err = OutcomeError;

    fn from_str(text: &str) -> Result<Self, OutcomeError> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text).ok_or(OutcomeError)
    }
}

/// How many items ended how; the left side of the balance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeCounts {
    /// Items that succeeded.
    pub succeeded: u64,
    /// Items that failed.
    pub failed: u64,
    /// Items skipped.
    pub skipped: u64,
    /// Items expired.
    pub expired: u64,
    /// Items cancelled.
    pub cancelled: u64,
    /// Items whose end is not known.
    pub unknown: u64,
}

impl OutcomeCounts {
    /// Counts `count` more items that ended as `outcome`.
    pub fn add(&mut self, outcome: Outcome, count: u64) {
        *self.of_mut(outcome) += count;
    }

    /// How many items ended as `outcome`.
    pub fn of(&self, outcome: Outcome) -> u64 {
        let mut copy = *self;
        *copy.of_mut(outcome)
    }

    /// How many items have settled.
    pub fn settled(&self) -> u64 {
        Outcome::ALL.into_iter().map(|outcome| self.of(outcome)).sum()
    }

    fn of_mut(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Succeeded => &mut self.succeeded,
            Outcome::Failed => &mut self.failed,
            Outcome::Skipped => &mut self.skipped,
            Outcome::Expired => &mut self.expired,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Unknown => &mut self.unknown,
        }
    }
}
