//! Which destinations have asked to be left alone, and until when (law 8). Pure: the shell is [`crate::fleet`], and the
//! ledger keeps the long ones.

use std::collections::BTreeMap;

use windrow_common::envelope::control::Throttle;
use windrow_common::resilience::pause::LONGEST_PAUSE;

/// Pauses that are to last at least this long outlive a collector: shorter ones are over before another has begun.
const KEPT_FROM_MS: u64 = 5_000;

/// The destinations that are left alone.
#[derive(Debug)]
pub(crate) struct Pauses(BTreeMap<String, Paused>);

#[derive(Debug, Clone, Copy)]
struct Paused {
    until_ms: u64,
    is_kept: bool,
}

/// What is to be kept of a destination: until when it is left alone, in Unix milliseconds; None: it is not any more.
pub(crate) type Kept = (String, Option<u64>);

impl Pauses {
    /// As the ledger has kept them.
    pub(crate) fn new(kept: BTreeMap<String, u64>) -> Self {
        Self(kept.into_iter().map(|(name, until_ms)| (name, Paused { until_ms, is_kept: true })).collect())
    }

    /// Takes in that a destination refused a call at `now_ms`. Returns what is to be told, unless all know it, and what
    /// is to be kept.
    pub(crate) fn hear(&mut self, throttled: &Throttle, now_ms: u64) -> (Option<Throttle>, Option<Kept>) {
        let longest_ms = u64::try_from(LONGEST_PAUSE.as_millis()).unwrap_or(u64::MAX);
        let pause_ms = throttled.pause_ms.min(longest_ms);
        let until_ms = now_ms.saturating_add(pause_ms);
        let name = &throttled.destination;
        let known = self.0.entry(name.clone()).or_insert(Paused { until_ms: 0, is_kept: false });
        if known.until_ms >= until_ms {
            return (None, None);
        }
        *known = Paused { until_ms, is_kept: known.is_kept || pause_ms >= KEPT_FROM_MS };
        let kept = known.is_kept.then(|| (name.clone(), Some(until_ms)));
        (Some(Throttle { destination: name.clone(), pause_ms }), kept)
    }

    /// What is to be told again, for those who have not heard of it, and what need not be kept any more.
    pub(crate) fn told_again(&mut self, now_ms: u64) -> (Vec<Throttle>, Vec<Kept>) {
        let over: Vec<Kept> = self
            .0
            .iter()
            .filter(|(_, paused)| paused.until_ms <= now_ms && paused.is_kept)
            .map(|(name, _)| (name.clone(), None))
            .collect();
        self.0.retain(|_, paused| paused.until_ms > now_ms);
        let told = |(name, paused): (&String, &Paused)| Throttle {
            destination: name.clone(),
            pause_ms: paused.until_ms - now_ms,
        };
        (self.0.iter().map(told).collect(), over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(pause_ms: u64) -> Throttle {
        Throttle { destination: "crm".to_owned(), pause_ms }
    }

    fn crm(until_ms: Option<u64>) -> Kept {
        ("crm".to_owned(), until_ms)
    }

    #[test]
    fn a_pause_is_told_once_and_again_until_it_is_over() {
        let mut pauses = Pauses::new(BTreeMap::new());
        assert_eq!(pauses.hear(&throttle(3_000), 1_000), (Some(throttle(3_000)), None));
        assert_eq!(pauses.hear(&throttle(2_000), 1_500), (None, None), "it ends before the known one");
        assert_eq!(pauses.told_again(2_000), (vec![throttle(2_000)], vec![]));
        assert_eq!(pauses.told_again(4_000), (vec![], vec![]));
        assert_eq!(pauses.hear(&throttle(1_000), 5_000), (Some(throttle(1_000)), None));
    }

    #[test]
    fn a_long_pause_is_kept_until_it_is_over_and_none_is_longer_than_an_hour() {
        let mut pauses = Pauses::new(BTreeMap::new());
        let (_, kept) = pauses.hear(&throttle(60_000), 1_000);
        assert_eq!(kept, Some(crm(Some(61_000))));
        let mut pauses = Pauses::new(BTreeMap::from([("crm".to_owned(), 61_000)]));
        assert_eq!(pauses.told_again(2_000), (vec![throttle(59_000)], vec![]));
        let (told, kept) = pauses.hear(&throttle(86_400_000), 2_000);
        assert_eq!((told, kept), (Some(throttle(3_600_000)), Some(crm(Some(3_602_000)))));
        assert_eq!(pauses.told_again(3_602_000), (vec![], vec![crm(None)]));
    }
}
