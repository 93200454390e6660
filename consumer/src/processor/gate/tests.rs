use windrow_common::envelope::control::Lent;

use super::*;

const TEN: Rate = Rate { window: Duration::from_secs(1), calls: 10 };
const TWO: Rate = Rate { window: Duration::from_secs(1), calls: 2 };

fn takes(gate: &LimitGate, now: Instant) -> usize {
    let mut state = gate.state();
    std::iter::repeat_with(|| state.take(now))
        .take_while(|taken| matches!(taken, Taken::Permit { .. }))
        .count()
}

fn process() -> ProcessId {
    ProcessId::generate()
}

fn lease(sequence: u64, permits: u32) -> Lease {
    lease_of(sequence, vec![Lent { rate: TEN, permits, is_all: false }])
}

fn lease_of(sequence: u64, lent: Vec<Lent>) -> Lease {
    Lease { destination: "d".to_owned(), scope: Scope::Rates, sequence, lent }
}

#[test]
fn without_a_lease_no_call_is_made_and_after_one_none_either() {
    let now = Instant::now();
    let gate = LimitGate::of_rates("d", vec![TEN], None);
    assert_eq!(takes(&gate, now + 100 * LEASE), 0);
    let demand = gate.demand(&process(), now).unwrap();
    gate.lend(&lease(demand.sequence, 3), now);
    assert_eq!(takes(&gate, now + LEASE), 0, "the lease has run out");
    assert_eq!(takes(&gate, now), 3);
}

#[test]
fn an_answer_to_an_older_demand_lends_nothing() {
    let now = Instant::now();
    let gate = LimitGate::of_rates("d", vec![TEN], None);
    let old = gate.demand(&process(), now).unwrap();
    gate.demand(&process(), now + CALM_INTERVAL).unwrap();
    gate.lend(&lease(old.sequence, 3), now + CALM_INTERVAL);
    assert_eq!(takes(&gate, now + CALM_INTERVAL), 0);
}

/// What a call has to wait for at a gate with a rate of a second and one of a day, whose only permits were used
/// between a demand and its answer.
fn taken_after_a_late_answer(is_all: bool, now: Instant) -> Taken {
    let a_day = Rate { window: Duration::from_secs(86_400), calls: 1_000_000 };
    let gate = LimitGate::of_rates("d", vec![TEN, a_day], None);
    let lent = |rate| Lent { rate, permits: 1, is_all };
    for answered in [now, now + CALM_INTERVAL] {
        let demand = gate.demand(&process(), answered).unwrap();
        if takes(&gate, answered) > 0 {
            gate.state().lent.iter_mut().for_each(|share| share.permits.ended(answered));
        }
        gate.lend(&lease_of(demand.sequence, vec![lent(TEN), lent(a_day)]), answered);
    }
    gate.state().take(now + CALM_INTERVAL)
}

#[test]
fn permits_used_up_before_their_answer_came_are_no_used_up_rate() {
    let now = Instant::now();
    assert_eq!(taken_after_a_late_answer(false, now), Taken::Unknown);
}

#[test]
fn a_call_of_a_rate_that_is_used_up_is_put_aside_for_a_minute_at_most() {
    let now = Instant::now();
    let until = now + CALM_INTERVAL + LONGEST_ASIDE;
    assert_eq!(taken_after_a_late_answer(true, now), Taken::Elsewhere(until));
}

#[test]
fn a_floor_may_be_used_once_the_last_lease_has_been_over_for_as_long_as_it_lasted() {
    let now = Instant::now();
    let gate = LimitGate::of_rates("d", vec![TEN], Some(TWO));
    gate.hear_collector(Some(now));
    let demand = gate.demand(&process(), now).unwrap();
    gate.lend(&lease(demand.sequence, 0), now);
    assert_eq!(takes(&gate, now + LEASE), 0);
    assert_eq!(takes(&gate, now + 2 * LEASE), 2);
}

fn demand_of_waiting(gate: &LimitGate, waiting: u32, now: Instant) -> Demand {
    gate.waiting.store(waiting, Ordering::Relaxed);
    let demand = gate.demand(&process(), now).unwrap();
    gate.waiting.store(0, Ordering::Relaxed);
    demand
}

fn connections(sequence: u64, permits: u32) -> Lease {
    let lent = vec![Lent { rate: Rate::at_once(10), permits, is_all: false }];
    Lease { destination: "d".to_owned(), scope: Scope::Connections, sequence, lent }
}

#[test]
fn a_process_in_no_fleet_keeps_max_connections_by_itself_and_one_in_a_fleet_once_no_collector_is_heard_of() {
    let alone = LimitGate::of_connections("d", 10);
    let now = Instant::now();
    assert_eq!(takes(&alone, now), 10);
    let gate = LimitGate::of_connections("d", 10);
    gate.hear_collector(Some(now));
    assert_eq!(takes(&gate, now), 0, "no lease, no call");
    let demand = demand_of_waiting(&gate, 4, now);
    assert_eq!(demand.need, 4);
    gate.lend(&connections(demand.sequence, 3), now);
    assert_eq!(takes(&gate, now), 3);
    let later = now + 20 * LEASE;
    gate.hear_collector(Some(later));
    assert_eq!(takes(&gate, later + LEASE), 0, "there is a collector");
    assert_eq!(takes(&gate, later + CONNECTIONS_FLOOR_AFTER), 10);
    let gate = LimitGate::of_connections("d", 10);
    gate.hear_collector(None);
    assert_eq!(takes(&gate, clock::now()), 10, "a collector of an earlier build lends none");
}

#[test]
fn connections_are_demanded_by_what_was_in_flight_and_what_waits_and_not_when_idle() {
    let now = Instant::now();
    let gate = LimitGate::of_connections("d", 10);
    gate.hear_collector(Some(now));
    assert_eq!(gate.demand(&process(), now), None, "no call was ever wanted");
    let demand = demand_of_waiting(&gate, 8, now);
    gate.lend(&connections(demand.sequence, 8), now);
    assert_eq!(takes(&gate, now), 8);
    let pass = || drop(LimitPass { gate: Arc::clone(&gate), is_lent: true, is_used: true });
    (0..6).for_each(|_| pass());
    let second = |number: u32| now + number * CALM_INTERVAL;
    let demand = gate.demand(&process(), second(1)).unwrap();
    assert_eq!((demand.has[0].held, demand.has[0].busy, demand.need), (8, 2, 8), "the peak was 8");
    gate.lend(&connections(demand.sequence, 8), second(1));
    (0..2).for_each(|_| pass());
    let demand = gate.demand(&process(), second(2)).unwrap();
    assert_eq!((demand.has[0].busy, demand.need), (0, 10), "the peak was 8, three demands ago at most");
    gate.lend(&connections(demand.sequence, 8), second(2));
    let demand = gate.demand(&process(), second(3)).unwrap();
    assert_eq!((demand.has[0].held, demand.need), (8, 10));
    gate.lend(&connections(demand.sequence, 8), second(3));
    let demand = gate.demand(&process(), second(4)).unwrap();
    assert_eq!((demand.has[0].held, demand.need), (8, 3), "2 were in flight then");
    gate.lend(&connections(demand.sequence, 3), second(4));
    let demand = gate.demand(&process(), second(5)).unwrap();
    assert_eq!((demand.has[0].held, demand.need), (3, 0));
    gate.lend(&connections(demand.sequence, 0), second(5));
    assert_eq!(gate.demand(&process(), second(6)), None);
}

#[test]
fn what_was_lent_is_not_claimed_after_its_lease_but_for_calls_in_flight() {
    let now = Instant::now();
    let gate = LimitGate::of_connections("d", 10);
    gate.hear_collector(Some(now));
    let demand = demand_of_waiting(&gate, 8, now);
    gate.lend(&connections(demand.sequence, 8), now);
    let mut state = gate.state();
    assert!(matches!(state.take(now), Taken::Permit { .. }));
    drop(state);
    let demand = gate.demand(&process(), now + LEASE).unwrap();
    assert_eq!((demand.has[0].held, demand.has[0].busy), (1, 1));
}
