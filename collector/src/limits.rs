//! Who may hold how many permits of a destination's limits (law 8). Pure: the shell is [`crate::fleet`].
//!
//! The permits of a window are never more than its rate allows: lent, cooling after a process that is gone, and free
//! ones together. Each live process gets what it wants as long as there is enough, and a fair share otherwise. Calls in
//! flight are a window of no length.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use windrow_common::envelope::control::{Demand, LEASE, Lease, Lent, Scope};
use windrow_common::ids::ProcessId;
use windrow_common::resilience::rate::Rate;

/// A new collector cannot know what its predecessor lent, so it lends nothing until that has run out and cooled. Of
/// windows longer than this, what processes that are gone since had used is forgotten.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Calls of a process that is gone may still be in flight: this long after its lease nobody else gets their places.
const CALLS_OF_THE_GONE: Duration = LEASE;

/// Where there is not enough for all, what cannot be divided goes round: it is somebody else's after this time.
const ROUND: Duration = Duration::from_secs(5);

/// The limits of all destinations.
#[derive(Debug)]
pub(crate) struct Limits {
    lent_before: LentBefore,
    begun: Instant,
    /// The limits this collector's job files state. They rule over what a process says.
    stated: BTreeMap<String, Stated>,
    windows: BTreeMap<(String, Scope), Vec<Window>>,
}

/// The limits of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stated {
    /// Its rates; it may have none.
    pub(crate) rates: Vec<Rate>,
    /// Calls in flight.
    pub(crate) connections: u32,
}

impl Stated {
    /// The limits of a scope.
    fn of(&self, scope: &Scope) -> Vec<Rate> {
        match scope {
            Scope::Rates => self.rates.clone(),
            Scope::Connections => vec![Rate::at_once(self.connections)],
        }
    }
}

/// Whether an earlier collector may have lent permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LentBefore {
    /// None did.
    Never,
    /// To processes that are gone.
    ToNobodyLeft,
    /// To processes that may still use them.
    Perhaps,
}

#[derive(Debug)]
struct Window {
    rate: Rate,
    /// From when on permits are lent.
    opens_at: Instant,
    begun: Instant,
    shares: BTreeMap<ProcessId, Share>,
    /// Permits of processes that are gone.
    cooling: BTreeMap<ProcessId, Cooling>,
}

/// What a process that is gone may have used of a window.
#[derive(Debug, Clone, Copy)]
struct Cooling {
    free_at: Instant,
    permits: u32,
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
    pub(crate) fn new(stated: BTreeMap<String, Stated>, lent_before: LentBefore, begun: Instant) -> Self {
        Self { lent_before, begun, stated, windows: BTreeMap::new() }
    }

    /// The limits have changed. Processes that have too much of a window give it up at their next demand.
    pub(crate) fn restate(&mut self, stated: BTreeMap<String, Stated>) {
        let (lent_before, begun) = (self.lent_before, self.begun);
        for ((destination, scope), windows) in &mut self.windows {
            let Some(limits) = stated.get(destination).map(|stated| stated.of(scope)) else { continue };
            let mut known = std::mem::take(windows);
            for rate in limits {
                let same = known.iter().position(|window| window.rate.window == rate.window);
                let window =
                    same.map_or_else(|| Window::new(rate, lent_before, begun), |at| known.swap_remove(at));
                windows.push(Window { rate, ..window });
            }
        }
        self.stated = stated;
    }

    /// What a process may have from now on, for [`LEASE`].
    pub(crate) fn grant(&mut self, demand: &Demand, now: Instant) -> Lease {
        let Demand { destination, scope, sequence, .. } = demand;
        let windows = self.windows.entry((destination.clone(), scope.clone())).or_insert_with(|| {
            let stated = self.stated.get(destination).map(|stated| stated.of(scope));
            let limits = stated.filter(|limits| !limits.is_empty()).unwrap_or_else(|| demand.rates.clone());
            limits.iter().map(|limit| Window::new(*limit, self.lent_before, self.begun)).collect()
        });
        let lent = windows.iter_mut().map(|window| {
            let has = demand.has.iter().find(|has| has.window == window.rate.window.as_secs());
            let (held, busy) = has.map_or((0, 0), |has| (has.held, has.busy));
            let wanted = busy.saturating_add(demand.need);
            let permits = window.grant(&demand.process, held, wanted, now);
            let is_all = now >= window.opens_at && permits < wanted;
            Lent { rate: window.rate, permits, is_all }
        });
        Lease {
            destination: destination.clone(),
            scope: scope.clone(),
            sequence: *sequence,
            lent: lent.collect(),
        }
    }
}

impl Window {
    fn new(rate: Rate, lent_before: LentBefore, begun: Instant) -> Self {
        let used_before = rate.window.min(LONGEST_WAIT);
        let opens_at = match lent_before {
            LentBefore::Never => begun,
            LentBefore::ToNobodyLeft => begun + used_before,
            LentBefore::Perhaps => begun + LEASE + used_before,
        };
        Self { rate, opens_at, begun, shares: BTreeMap::new(), cooling: BTreeMap::new() }
    }

    fn grant(&mut self, process: &ProcessId, held: u32, wanted: u32, now: Instant) -> u32 {
        self.settle(now);
        // One that comes back says itself what it has used.
        self.cooling.remove(process);
        let share = Share { may_hold: held, wanted, until: now + LEASE };
        self.shares.insert(process.clone(), share);
        let cooling: u32 = self.cooling.values().map(|cooling| cooling.permits).fold(0, u32::saturating_add);
        let capacity = self.rate.calls.saturating_sub(cooling);
        let others = self.shares.iter().filter(|(other, _)| *other != process);
        let with_others: u32 = others.map(|(_, share)| share.may_hold).fold(0, u32::saturating_add);
        let free = capacity.saturating_sub(with_others);
        let granted = if now >= self.opens_at {
            self.fair_share(capacity, process, now).min(free)
        } else if self.rate.window.is_zero() {
            // What an earlier collector lent it is in use; nothing more is lent yet.
            held.min(free)
        } else {
            0
        };
        if let Some(share) = self.shares.get_mut(process) {
            share.may_hold = held.max(granted);
        }
        granted
    }

    /// What a process gets of so many permits: all it wants if all can have that, and of connections some more; else as
    /// much as the others who want more.
    fn fair_share(&self, capacity: u32, process: &ProcessId, now: Instant) -> u32 {
        let wanted = self.shares.get(process).map_or(0, |share| share.wanted);
        let wants: Vec<u32> = self.shares.values().map(|share| share.wanted).collect();
        let Some(Level { each, left_over }) = water_level(capacity, &wants) else {
            return wanted.saturating_add(self.headroom(capacity, wanted));
        };
        if wanted <= each {
            return wanted;
        }
        let wanting = self.shares.iter().filter(|(_, share)| share.wanted > each);
        let place = wanting.clone().take_while(|(other, _)| *other != process).count() as u64;
        let round = now.saturating_duration_since(self.begun).as_secs() / ROUND.as_secs();
        let is_next = (place + round) % (wanting.count() as u64) < u64::from(left_over);
        each + u32::from(is_next)
    }

    /// Connections beyond what a process wants that has calls: half of those that nobody wants are divided among such
    /// processes, so that more calls at once wait for no lease; the other half is there for whoever comes.
    fn headroom(&self, capacity: u32, wanted: u32) -> u32 {
        if !self.rate.window.is_zero() || wanted == 0 {
            return 0;
        }
        let wants = self.shares.values().map(|share| share.wanted);
        let unwanted = capacity.saturating_sub(wants.clone().fold(0, u32::saturating_add));
        let sharers = u32::try_from(wants.filter(|want| *want > 0).count()).unwrap_or(u32::MAX);
        unwanted / 2 / sharers.max(1)
    }

    /// What a process that is gone may have used cools for one window.
    fn settle(&mut self, now: Instant) {
        self.cooling.retain(|_, cooling| cooling.free_at > now);
        let cools = if self.rate.window.is_zero() { CALLS_OF_THE_GONE } else { self.rate.window };
        let cooling = &mut self.cooling;
        self.shares.retain(|process, share| {
            let free_at = share.until + cools;
            if share.until <= now && free_at > now && share.may_hold > 0 {
                cooling.insert(process.clone(), Cooling { free_at, permits: share.may_hold });
            }
            share.until > now
        });
    }
}

/// Where there is not enough: whoever wants less gets all of it, the others get `each`, and `left_over` of them one more.
#[derive(Debug, PartialEq, Eq)]
struct Level {
    each: u32,
    left_over: u32,
}

/// The height up to which every want can be met at once. None: everybody can have what they want.
fn water_level(capacity: u32, wants: &[u32]) -> Option<Level> {
    let mut wants = wants.to_vec();
    wants.sort_unstable();
    let mut left = capacity;
    let count = wants.len();
    for (index, want) in wants.into_iter().enumerate() {
        let sharers = u32::try_from(count - index).unwrap_or(u32::MAX);
        let each = left / sharers;
        if want > each {
            return Some(Level { each, left_over: left % sharers });
        }
        left = left.saturating_sub(want);
    }
    None
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
            scope: Scope::Rates,
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
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
        assert_eq!(granted(&mut limits, &demand(1, 0, 0, 7), open(begun)), 7);
        assert_eq!(granted(&mut limits, &demand(1, 7, 7, 500), open(begun)), 100);
    }

    #[test]
    fn a_new_collector_lends_nothing_until_what_was_lent_before_has_run_out_and_cooled() {
        let begun = Instant::now();
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
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
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
        let mut is_all = |need, now| limits.grant(&demand(1, 0, 0, need), now).lent[0].is_all;
        assert!(!is_all(1_000, begun), "what is not lent yet is not used up");
        assert!(!is_all(100, open(begun)));
        assert!(is_all(101, open(begun)));
    }

    #[test]
    fn the_second_waits_for_what_the_first_gives_up() {
        let begun = Instant::now();
        let now = open(begun);
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
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
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
        assert_eq!(granted(&mut limits, &demand(1, 0, 0, 1_000), now), 100);
        let gone = now + LEASE;
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), gone), 0);
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), gone + Duration::from_millis(999)), 0);
        assert_eq!(granted(&mut limits, &demand(2, 0, 0, 1_000), gone + SECOND), 100);
    }

    #[test]
    fn the_collectors_own_job_file_rules() {
        let begun = Instant::now();
        let rates = vec!["5/s".parse().unwrap(), "1000/d".parse().unwrap()];
        let stated = BTreeMap::from([("crm".to_owned(), Stated { rates, connections: 10 })]);
        let mut limits = Limits::new(stated, LentBefore::Perhaps, begun);
        let lease = limits.grant(&demand(1, 0, 0, 50), begun + LEASE + LONGEST_WAIT);
        let lent: Vec<(String, u32)> =
            lease.lent.iter().map(|lent| (lent.rate.to_string(), lent.permits)).collect();
        assert_eq!(lent, [("5/s".to_owned(), 5), ("1000/d".to_owned(), 50)]);
    }

    #[test]
    fn a_changed_rate_holds_from_the_next_demand_and_what_is_lent_is_not_forgotten() {
        let begun = Instant::now();
        let now = open(begun);
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
        let set = |text: &str| {
            let stated = Stated { rates: vec![text.parse().unwrap()], connections: 10 };
            BTreeMap::from([("crm".to_owned(), stated)])
        };
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
        assert_eq!(water_level(100, &[10, 20, 30]), None);
        assert_eq!(water_level(100, &[10, 1_000, 1_000]), Some(Level { each: 45, left_over: 0 }));
        assert_eq!(water_level(10, &[9, 9, 9]), Some(Level { each: 3, left_over: 1 }));
        assert_eq!(water_level(0, &[1]), Some(Level { each: 0, left_over: 0 }));
    }

    fn connections(number: usize, held: u32, need: u32) -> Demand {
        Demand {
            scope: Scope::Connections,
            rates: vec![Rate::at_once(10)],
            has: vec![Has { window: 0, held, busy: held }],
            ..demand(number, 0, 0, need)
        }
    }

    #[test]
    fn where_there_are_fewer_connections_than_processes_each_has_its_turn() {
        let begun = Instant::now();
        let stated = BTreeMap::from([("crm".to_owned(), Stated { rates: Vec::new(), connections: 2 })]);
        let mut limits = Limits::new(stated, LentBefore::Never, begun);
        let mut has_had = [0_u32; 4];
        let mut held = [0_u32; 4];
        for tenth in 0..400_u32 {
            let now = begun + tenth * Duration::from_millis(100);
            for number in 0..4 {
                held[number] = granted(&mut limits, &connections(number, held[number], 5), now);
                has_had[number] += held[number];
            }
            assert!(held.iter().sum::<u32>() <= 2, "{held:?}");
        }
        assert!(has_had.iter().all(|had| (180..=220).contains(had)), "{has_had:?}");
    }

    #[test]
    fn connections_are_lent_at_once_by_the_first_collector_and_a_later_one_leaves_what_is_in_use() {
        let begun = Instant::now();
        let first = |lent_before| {
            let mut limits = Limits::new(BTreeMap::new(), lent_before, begun);
            granted(&mut limits, &connections(1, 0, 50), begun)
        };
        assert_eq!(
            [LentBefore::Never, LentBefore::ToNobodyLeft, LentBefore::Perhaps].map(first),
            [10, 10, 0]
        );
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
        assert_eq!(granted(&mut limits, &connections(1, 7, 50), begun), 7);
        assert_eq!(granted(&mut limits, &connections(2, 0, 50), begun), 0);
        assert_eq!(granted(&mut limits, &connections(1, 7, 50), begun + LEASE), 10);
    }

    #[test]
    fn calls_of_a_process_that_is_gone_keep_their_places_for_a_while_after_its_lease() {
        let begun = Instant::now();
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Never, begun);
        assert_eq!(granted(&mut limits, &connections(1, 0, 50), begun), 10);
        assert_eq!(granted(&mut limits, &connections(2, 0, 50), begun + LEASE), 0);
        let early = begun + LEASE + CALLS_OF_THE_GONE.mul_f32(0.9);
        assert_eq!(granted(&mut limits, &connections(2, 0, 50), early), 0);
        let late = begun + LEASE + CALLS_OF_THE_GONE;
        assert_eq!(granted(&mut limits, &connections(2, 0, 50), late), 10);
    }

    #[test]
    fn half_of_the_connections_nobody_wants_are_lent_to_those_that_have_calls() {
        let begun = Instant::now();
        let mut limits = Limits::new(BTreeMap::new(), LentBefore::Never, begun);
        assert_eq!(granted(&mut limits, &connections(1, 0, 2), begun), 6);
        assert_eq!(granted(&mut limits, &connections(2, 0, 0), begun), 0, "it has no calls");
        assert_eq!(granted(&mut limits, &connections(3, 0, 4), begun), 4, "all that is left");
        let held = |held| Demand { has: vec![Has { window: 0, held, busy: 0 }], ..connections(1, 0, 2) };
        assert_eq!(granted(&mut limits, &held(6), begun), 3, "4 are unwanted now");
        assert_eq!(granted(&mut limits, &held(3), begun), 3);
    }

    proptest! {
        /// However processes come, go, and ask: what they may hold together never exceeds the rate, and what a process
        /// holds is never more than it was granted.
        #[test]
        fn never_more_permits_are_out_than_the_rate_allows(
            steps in prop::collection::vec((0..5usize, 0..1_500u64, 0..200u32, any::<bool>()), 1..300),
        ) {
            let begun = Instant::now();
            let mut limits = Limits::new(BTreeMap::new(), LentBefore::Perhaps, begun);
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
