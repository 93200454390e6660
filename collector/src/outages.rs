//! Which destinations are down, by what consumers found, and who probes them (law 8). Pure: the shell is
//! [`crate::fleet`], and the ledger keeps it.

use std::collections::BTreeMap;
use std::time::Duration;

use windrow_common::envelope::control::{Found, Outage};
use windrow_common::ids::ProcessId;

/// An outage of which nobody has said anything for this long after its time is over: whoever still has work for the
/// destination finds out by itself.
const SILENCE: Duration = Duration::from_secs(60);

/// The destinations that are down.
#[derive(Debug)]
pub(crate) struct Outages(BTreeMap<String, Down>);

#[derive(Debug)]
struct Down {
    until_ms: u64,
    prober: Option<ProcessId>,
}

impl Outages {
    /// As the ledger has kept them: until when, in Unix milliseconds. Who was to probe may be gone, so everybody is.
    pub(crate) fn new(kept: BTreeMap<String, u64>) -> Self {
        let down = |(name, until_ms)| (name, Down { until_ms, prober: None });
        Self(kept.into_iter().map(down).collect())
    }

    /// Takes in what a consumer found at `now_ms`. Returns what is to be told, and until when it is to be kept.
    pub(crate) fn hear(&mut self, found: &Found, now_ms: u64) -> (Outage, Option<u64>) {
        let Some(down_ms) = found.down_ms else {
            self.0.remove(&found.destination);
            return (up(&found.destination), None);
        };
        let until_ms = now_ms.saturating_add(down_ms);
        let down = self.0.entry(found.destination.clone()).or_insert(Down { until_ms: 0, prober: None });
        // The first to find it probes. Who finds it down later only makes it last longer, unless it was the probe.
        if down.prober.is_none() || down.until_ms <= now_ms {
            down.prober = Some(found.process.clone());
        }
        down.until_ms = down.until_ms.max(until_ms);
        (down.told(&found.destination, now_ms), Some(down.until_ms))
    }

    /// What is to be told again, for those who have not heard of it.
    pub(crate) fn told_again(&self, now_ms: u64) -> Vec<Outage> {
        self.0.iter().map(|(name, down)| down.told(name, now_ms)).collect()
    }

    /// Forgets the outages nobody speaks of any more. Returns which.
    pub(crate) fn forget(&mut self, now_ms: u64) -> Vec<String> {
        let silence_ms = u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX);
        let over = |down: &Down| down.until_ms.saturating_add(silence_ms) <= now_ms;
        let names: Vec<String> =
            self.0.iter().filter(|(_, down)| over(down)).map(|(name, _)| name.clone()).collect();
        self.0.retain(|_, down| !over(down));
        names
    }
}

impl Down {
    fn told(&self, destination: &str, now_ms: u64) -> Outage {
        Outage {
            destination: destination.to_owned(),
            down_ms: Some(self.until_ms.saturating_sub(now_ms)),
            prober: self.prober.clone(),
        }
    }
}

fn up(destination: &str) -> Outage {
    Outage { destination: destination.to_owned(), down_ms: None, prober: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(process: &str, down_ms: Option<u64>) -> Found {
        Found { process: process.parse().unwrap(), destination: "crm".to_owned(), down_ms }
    }

    fn told(down_ms: u64, prober: Option<&str>) -> Outage {
        let prober = prober.map(|prober| prober.parse().unwrap());
        Outage { destination: "crm".to_owned(), down_ms: Some(down_ms), prober }
    }

    #[test]
    fn the_first_to_find_it_probes_and_later_ones_only_make_it_last() {
        let mut outages = Outages::new(BTreeMap::new());
        assert_eq!(outages.hear(&found("a", Some(3_000)), 1_000), (told(3_000, Some("a")), Some(4_000)));
        assert_eq!(outages.hear(&found("b", Some(3_000)), 1_500), (told(3_000, Some("a")), Some(4_500)));
        assert_eq!(outages.hear(&found("c", Some(1_000)), 2_000), (told(2_500, Some("a")), Some(4_500)));
        assert_eq!(outages.told_again(4_000), [told(500, Some("a"))]);
    }

    #[test]
    fn who_probed_probes_again_and_success_is_told_and_forgotten() {
        let mut outages = Outages::new(BTreeMap::new());
        outages.hear(&found("a", Some(3_000)), 1_000);
        assert_eq!(outages.hear(&found("b", Some(2_000)), 4_200), (told(2_000, Some("b")), Some(6_200)));
        assert_eq!(outages.hear(&found("b", None), 6_300), (up("crm"), None));
        assert_eq!(outages.told_again(6_400), []);
    }

    #[test]
    fn after_a_restart_everybody_probes_and_what_nobody_speaks_of_is_forgotten() {
        let mut outages = Outages::new(BTreeMap::from([("crm".to_owned(), 5_000)]));
        assert_eq!(outages.told_again(1_000), [told(4_000, None)]);
        assert_eq!(outages.told_again(9_000), [told(0, None)]);
        assert_eq!(outages.forget(64_999), Vec::<String>::new());
        assert_eq!(outages.forget(65_000), ["crm"]);
        assert_eq!(outages.told_again(65_000), []);
    }
}
