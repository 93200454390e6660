//! Chance that does not depend on who asks first: the same question under the same seed has the same answer.

use std::hash::{DefaultHasher, Hash, Hasher};

/// What chance decides, under one seed.
#[derive(Debug, Clone, Copy)]
pub struct Whims(u64);

impl Whims {
    /// Under this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`, for `question`.
    pub fn below(self, limit: u64, question: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.0, question).hash(&mut hasher);
        hasher.finish() % limit
    }

    /// True for one question in `many`; for none when that is 0.
    pub fn one_in(self, many: u64, question: impl Hash) -> bool {
        many > 0 && self.below(many, question) == 0
    }

    /// One of `choices`, for `question`.
    pub fn pick<T: Copy>(self, choices: &[T], question: impl Hash) -> T {
        let at = self.below(choices.len() as u64, question);
        choices[usize::try_from(at).unwrap_or(0)]
    }
}
