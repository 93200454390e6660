//! Named places at which a test makes this process die, as a power cut would: law 2 is proved there.
//!
//! `WINDROW_CRASH=after_commit` aborts the process the first time it comes to [`point`]`("after_commit")`,
//! `WINDROW_CRASH=after_commit:3` the third time. Nothing is flushed and no destructor runs. Without the
//! variable a point costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that names the point.
pub const VARIABLE: &str = "WINDROW_CRASH";

#[derive(Debug)]
struct Plan {
    point: String,
    passes_left: AtomicU64,
}

static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

/// A place where the process may be told to die.
pub fn point(name: &str) {
    if let Some(plan) = PLAN.get_or_init(|| Plan::read(std::env::var(VARIABLE).ok().as_deref()))
        && plan.strikes(name)
    {
        std::process::abort();
    }
}

impl Plan {
    /// Reads `point` or `point:nth`; a count that is no number is taken as 1.
    fn read(text: Option<&str>) -> Option<Self> {
        let text = text.filter(|text| !text.is_empty())?;
        let (point, nth) = text.split_once(':').unwrap_or((text, "1"));
        let nth: u64 = nth.parse().unwrap_or(1);
        Some(Self { point: point.to_owned(), passes_left: AtomicU64::new(nth.max(1)) })
    }

    /// Whether this pass of `name` is the one to die at.
    fn strikes(&self, name: &str) -> bool {
        self.point == name && self.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_strikes_at_its_point_the_nth_time_and_only_then() {
        let plan = Plan::read(Some("after_commit:2")).unwrap();
        assert!(!plan.strikes("after_commit"));
        assert!(!plan.strikes("before_ack"));
        assert!(plan.strikes("after_commit"));
        assert!(!plan.strikes("after_commit"));
    }

    #[test]
    fn without_the_variable_nothing_is_planned() {
        assert!(Plan::read(None).is_none());
        assert!(Plan::read(Some("")).is_none());
        assert!(Plan::read(Some("x")).unwrap().strikes("x"));
    }
}
