//! Chance that can be had again: the seed is printed, and read from `WINDROW_SEED`.

/// A repeatable stream of numbers (xorshift).
#[derive(Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// With the seed of `WINDROW_SEED`, or the usual one.
    pub fn from_environment() -> Self {
        let seed =
            std::env::var("WINDROW_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_124);
        println!("seed {seed}");
        Self::new(seed)
    }

    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        // Nothing but zeros would follow a zero.
        Self(seed.max(1))
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// One of `choices`, or, half of the time, none.
    pub fn pick<'a>(&mut self, choices: &[&'a str]) -> Option<&'a str> {
        let at = usize::try_from(self.below(choices.len() as u64 * 2)).unwrap();
        choices.get(at).copied()
    }

    /// Puts `list` into another order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            let other = usize::try_from(self.below(end as u64 + 1)).unwrap();
            list.swap(end, other);
        }
    }
}
