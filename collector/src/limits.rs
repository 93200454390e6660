//! Who may hold how many permits of a destination's rates (law 8). Pure: the shell is [`crate::fleet`].
//!
//! The permits of a window are never more than its rate allows: lent, cooling after a process that is gone, and free
//! ones together. Each live process gets what it wants as long as there is enough, and a fair share otherwise.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use windrow_common::envelope::control::{Demand, LEASE, Lease, Lent};
use windrow_common::ids::ProcessId;
use windrow_common::resilience::rate::Rate;

/// A new collector cannot know what its predecessor lent, so it lends nothing until that has run out and cooled. Of
/// windows longer than this, what processes that are gone since had used is forgotten.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The rates of all destinations.
#[derive(Debug)]
pub(crate) struct Limits {
    begun: Instant,
    /// The limits this collector's job files state. They rule over what a process says.
    stated: BTreeMap<String, Vec<Rate>>,
    windows: BTreeMap<String, Vec<Window>>,
}

#[derive(Debug)]
struct Window {
    rate: Rate,
    opens_at: Instant,
    shares: BTreeMap<ProcessId, Share>,
    /// Permits of processes that are gone, by the time from which they are free.
    cooling: Vec<(Instant, u32)>,
}

/// What one process has of a window.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// It may have so many: what was granted or what it said it holds, whichever is more.
    may_hold: u32,
    wanted: u32,
    until: Instant,
}

impl Limits {
    /// Of a collector that began at `begun`.
    pub(crate) fn new(stated: BTreeMap<String, Vec<Rate>>, begun: Instant) -> Self {
        Self { begun, stated, windows: BTreeMap::new() }
    }

    /// The rates have changed. Processes that have too much of a window give it up at their next demand.
    pub(crate) fn restate(&mut self, stated: BTreeMap<String, Vec<Rate>>) {
        for (destination, rates) in &stated {
            let Some(windows) = self.windows.get_mut(destination) else { continue };
            let mut known = std::mem::take(windows);
            for rate in rates {
                let same = known.iter().position(|window| window.rate.window == rate.window);
                let window = same.map_or_else(|| Window::new(*rate, self.begun), |at| known.swap_remove(at));
                windows.push(Window { rate: *rate, ..window });
            }
        }
        self.stated = stated;
    }

    /// What a process may have from now on, for [`LEASE`].
    pub(crate) fn grant(&mut self, demand: &Demand, now: Instant) -> Lease {
        let begun = self.begun;
        let rates = self.stated.get(&demand.destination).unwrap_or(&demand.rates);
        let windows = self
            .windows
            .entry(demand.destination.clone())
            .or_insert_with(|| rates.iter().map(|rate| Window::new(*rate, begun)).collect());
        let lent = windows.iter_mut().map(|window| {
            let has = demand.has.iter().find(|has| has.window == window.rate.window.as_secs());
            let (held, busy) = has.map_or((0, 0), |has| (has.held, has.busy));
            let wanted = busy.saturating_add(demand.need);
            let permits = window.grant(&demand.process, held, wanted, now);
            let is_all = now >= window.opens_at && permits < wanted;
            Lent { rate: window.rate, permits, is_all }
        });
        Lease { destination: demand.destination.clone(), sequence: demand.sequence, lent: lent.collect() }
    }
}

impl Window {
    fn new(rate: Rate, begun: Instant) -> Self {
        let opens_at = begun + LEASE + rate.window.min(LONGEST_WAIT);
        Self { rate, opens_at, shares: BTreeMap::new(), cooling: Vec::new() }
    }

    fn grant(&mut self, process: &ProcessId, held: u32, wanted: u32, now: Instant) -> u32 {
        self.settle(now);
        let share = Share { may_hold: held, wanted, until: now + LEASE };
        self.shares.insert(process.clone(), share);
        if now < self.opens_at {
            return 0;
        }
        let cooling: u32 = self.cooling.iter().map(|(_, count)| count).sum();
        let capacity = self.rate.calls.saturating_sub(cooling);
        let wants: Vec<u32> = self.shares.values().map(|share| share.wanted).collect();
        let level = water_level(capacity, &wants);
        let others = self.shares.iter().filter(|(other, _)| *other != process);
        let with_others: u32 = others.map(|(_, share)| share.may_hold).fold(0, u32::saturating_add);
        let granted = wanted.min(level).min(capacity.saturating_sub(with_others));
        if let Some(share) = self.shares.get_mut(process) {
            share.may_hold = held.max(granted);
        }
        granted
    }

    /// What a process that is gone may have used cools for one window.
    fn settle(&mut self, now: Instant) {
        self.cooling.retain(|(free_at, _)| *free_at > now);
        let window = self.rate.window;
        let cooling = &mut self.cooling;
        self.shares.retain(|_, share| {
            let free_at = share.until + window;
            if share.until <= now && free_at > now && share.may_hold > 0 {
                cooling.push((free_at, share.may_hold));
            }
            share.until > now
        });
    }
}

/// The height up to which every want can be met at once: who wants less gets all of it, the others get this much.
/// Rounded up, so that no permit is left over; who asks last may get less.
fn water_level(capacity: u32, wants: &[u32]) -> u32 {
    let mut wants = wants.to_vec();
    wants.sort_unstable();
    let mut left = capacity;
    let count = wants.len();
    for (index, want) in wants.into_iter().enumerate() {
        let sharers = u32::try_from(count - index).unwrap_or(u32::MAX);
        let level = left.div_ceil(sharers);
        if want > level {
            return level;
        }
        left = left.saturating_sub(want);
    }
    // Everybody can have what they want.
    u32::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use windrow_common::envelope::control::Has;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn process(number: usize) -> ProcessId {
        format!("p{number}").parse().unwrap()
    }

    fn demand(number: usize, held: u32, busy: u32, need: u32) -> Demand {
        Demand {
            process: process(number),
            destination: "crm".to_owned(),
            sequence: 1,
            rates: vec!["100/s".parse().unwrap()],
            has: vec![Has { window: 1, held, busy }],
            need,
        }
    }

    fn open(begun: Instant) -> Instant {
        begun + LEASE + SECOND
    }

    fn granted(limits: &mut Limits, demand: &Demand, now: Instant) -> u32 {
        limits.grant(demand, now).lent[0].permits
    }

    #[test]
    fn one_process_gets_what_it_wants_up_to_the_rate() {
        let begun = Instant::now();
        let mut limits = Limits::new(BTreeMap::new(), begun);
        assert_eq!(granted(&mut limits, &demand(1, 0, 0, 7), open(begun)), 7);
        assert_eq!(granted(&mut limits, &demand(1, 7, 7, 500), open(begun)), 100);
    }

    #[test]
    fn a_new_collector_lends_nothing_until_what_was_lent_before_has_run_out_and_cooled() {
        let begun = Instant::now();
        let mut limits = Limits::new(BTreeMap::new(), begun);
        assert_eq!(
            granted(&mut limits, &demand(1, 40, 40, 10), begun + LEASE + Duration::from_millis(999)),
            0
        );
        // What it still holds of that is known by then.
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 100), open(begun)), 50);
    }

    #[test]
    fn a_lease_says_whether_there_is_more_to_wait_for() {
        let begun = Instant::now();
        let mut limits = Limits::new(BTreeMap::new(), begun);
        let mut is_all = |need, now| limits.grant(&demand(1, 0, 0, need), now).lent[0].is_all;
        assert!(!is_all(1_000, begun), "what is not lent yet is not used up");
        assert!(!is_all(100, open(begun)));
        assert!(is_all(101, open(begun)));
    }

    #[test]
    fn the_second_waits_for_what_the_first_gives_up() {
        let begun = Instant::now();
        let now = open(begun);
        let mut limits = Limits::new(BTreeMap::new(), begun);
        assert_eq!(granted(&mut limits, &demand(1, 0, 0, 1_000), now), 100);
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), now), 0);
        assert_eq!(granted(&mut limits, &demand(1, 100, 100, 1_000), now), 50, "it is to give up half");
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), now), 0, "not given up yet");
        assert_eq!(granted(&mut limits, &demand(1, 50, 50, 1_000), now), 50);
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), now), 50);
    }

    #[test]
    fn what_a_process_that_is_gone_had_cools_for_a_window_after_its_lease() {
        let begun = Instant::now();
        let now = open(begun);
        let mut limits = Limits::new(BTreeMap::new(), begun);
        assert_eq!(granted(&mut limits, &demand(1, 0, 0, 1_000), now), 100);
        let gone = now + LEASE;
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), gone), 0);
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), gone + Duration::from_millis(999)), 0);
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), gone + SECOND), 100);
    }

    #[test]
    fn the_collectors_own_job_file_rules() {
        let begun = Instant::now();
        let stated =
            BTreeMap::from([("crm".to_owned(), vec!["5/s".parse().unwrap(), "1000/d".parse().unwrap()])]);
        let mut limits = Limits::new(stated, begun);
        let lease = limits.grant(&demand(1, 0, 0, 50), begun + LEASE + LONGEST_WAIT);
        let lent: Vec<(String, u32)> =
            lease.lent.iter().map(|lent| (lent.rate.to_string(), lent.permits)).collect();
        assert_eq!(lent, [("5/s".to_owned(), 5), ("1000/d".to_owned(), 50)]);
    }

    #[test]
    fn a_changed_rate_holds_from_the_next_demand_and_what_is_lent_is_not_forgotten() {
        let begun = Instant::now();
        let now = open(begun);
        let mut limits = Limits::new(BTreeMap::new(), begun);
        let set = |text: &str| BTreeMap::from([("crm".to_owned(), vec![text.parse().unwrap()])]);
        assert_eq!(granted(&mut limits, &demand(1, 0, 0, 1_000), now), 100);
        limits.restate(set("150/s"));
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), now), 50, "the other has 100 of 150");
        limits.restate(set("10/s"));
        assert_eq!(granted(&mut limits, &demand(2, 50, 50, 1_000), now), 0);
        assert_eq!(granted(&mut limits, &demand(1, 100, 100, 1_000), now), 0, "both have too much");
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), now), 0);
        assert_eq!(granted(&mut limits, &demand(1, 0, 0, 1_000), now), 5);
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), now), 5);
    }

    #[test]
    fn the_water_level_meets_small_wants_and_shares_the_rest() {
        assert_eq!(water_level(100, &[10, 20, 30]), u32::MAX);
        assert_eq!(water_level(100, &[10, 1_000, 1_000]), 45);
        assert_eq!(water_level(10, &[9, 9, 9]), 4);
        assert_eq!(water_level(0, &[1]), 0);
    }

    proptest! {
        /// However processes come, go, and ask: what they may hold together never exceeds the rate, and what a process
        /// holds is never more than it was granted.
        #[test]
        fn never_more_permits_are_out_than_the_rate_allows(
            steps in prop::collection::vec((0..5usize, 0..1_500u64, 0..200u32, any::<bool>()), 1..300),
        ) {
            let begun = Instant::now();
            let mut limits = Limits::new(BTreeMap::new(), begun);
            let mut now = open(begun);
            // What each process holds, and until when it may use it.
            let mut holds: BTreeMap<usize, (u32, Instant)> = BTreeMap::new();
            for (number, pause, need, answer_arrives) in steps {
                now += Duration::from_millis(pause);
                holds.retain(|_, (_, until)| *until + SECOND > now);
                let held = holds.get(&number).map_or(0, |(held, _)| *held);
                let busy = held / 2;
                // A process gives up at once what is free above its last target; here it keeps all, the worst case.
                let granted = granted(&mut limits, &demand(number, held, busy, need), now);
                let held = if answer_arrives { held.max(granted) } else { held };
                holds.insert(number, (held, now + LEASE));
                let out: u32 = holds.values().map(|(held, _)| held).sum();
                prop_assert!(out <= 100, "{out} at once");
            }
        }
    }
}
