//! `effect`: what becomes of an item whose call may or may not have been made.

/// `effect` of a stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effect {
    /// `at-least-once` (default): the call is made again, under the same idempotency key.
    #[default]
    AtLeastOnce,
    /// `at-most-once`: an item is claimed before each call, and one whose call may have been made ends as unknown.
    AtMostOnce,
}
