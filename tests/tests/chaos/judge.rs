//! The verdict, by what is outside of us: the input, the output, the destination's own log, and the broker's queues.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use windrow_tests::account::{LateCall, check_balance, check_sink, report};
use windrow_tests::destination::Call;
use windrow_tests::process::wait_until;
use windrow_tests::rabbitmq_server::PASSWORD;

use crate::battle::{Battle, RUN};

/// From an answer given to a copy to the last call it allowed: 3 s for its share of the connections, a slow call or two before
/// it, and a busy machine. A killed producer stays away for longer, so what it sends again is older than this.
pub(crate) const SLACK: Duration = Duration::from_secs(6);

/// Checks everything that can be checked once the producer has seen the end of its run.
pub(crate) fn judge(battle: &Battle, items: u64) {
    let outcomes = check_sink(&battle.sink(), items, false);
    assert_eq!(outcomes.get("succeeded"), Some(&items), "{outcomes:?}");
    let report = report(&battle.fleet.run_folder(RUN));
    check_balance(&report, items);
    assert_eq!(report["rejected"], 0, "{report}");
    let calls = battle.destination.calls();
    println!("{} calls for {items} items; {} duplicates", calls.len(), report["duplicates"]);
    assert!(report["duplicates"].as_u64().unwrap() > 0, "without a duplicate this tested nothing: {report}");
    let input = battle.fleet.data().parent().unwrap().join("items.jsonl");
    check_bodies(&input, &calls);
    check_outages(&battle.outages, &calls);
    check_settled_are_left_alone(battle, &calls);
    check_logs(battle);
}

fn index(call: &Call) -> usize {
    call.key.rsplit('/').next().unwrap().parse().unwrap()
}

/// Every item of the input was called, and each call had its own item's bytes.
fn check_bodies(input: &Path, calls: &[Call]) {
    let text = std::fs::read_to_string(input).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut called = vec![false; lines.len()];
    for call in calls {
        let index = index(call);
        assert_eq!(call.body, lines[index].as_bytes(), "item {index}");
        called[index] = true;
    }
    assert_eq!(called.iter().position(|called| !called), None, "an item was never called");
}

/// In an outage, once its breakers have heard of it, the fleet only probes.
fn check_outages(outages: &[(Instant, Instant)], calls: &[Call]) {
    /// Until every consumer has seen it by itself: calls under way, and what a frozen collector cannot pass on.
    const HEARD: Duration = Duration::from_secs(3);
    const PROBES: usize = 60;
    for (from, to) in outages {
        let probes = calls.iter().filter(|call| call.at > *from + HEARD && call.at < *to).count();
        println!("{probes} calls in an outage of {:.1?}, after {HEARD:?}", *to - *from);
        assert!(probes <= PROBES, "{probes} calls although the destination was down");
    }
}

/// No item that was in the output is called again, but by who had been told to before it was.
fn check_settled_are_left_alone(battle: &Battle, calls: &[Call]) {
    let again = battle.watch.called_after_settled(calls, SLACK);
    let was_frozen = |again: &&LateCall<'_>| {
        let name = format!("consumer-{}", again.call.caller);
        let caller = battle.consumers.iter().find(|slot| slot.name == name);
        let mut spans = caller.unwrap_or_else(|| panic!("a stranger calls: {again}")).frozen.iter();
        spans.any(|(from, to)| (*from..*to + SLACK).contains(&again.call.at))
    };
    let (excused, guilty): (Vec<_>, Vec<_>) = again.iter().partition(was_frozen);
    println!("{} calls for items in the output by consumers just thawed", excused.len());
    let told: Vec<String> = guilty.iter().take(20).map(ToString::to_string).collect();
    assert!(guilty.is_empty(), "{} settled items ran again, such as {told:#?}", guilty.len());
}

fn check_logs(battle: &Battle) {
    let folder = battle.fleet.data().parent().unwrap().to_path_buf();
    for slot in battle.consumers.iter().chain(&battle.collectors).chain([&battle.producer]) {
        let log = std::fs::read_to_string(folder.join(format!("{}.log", slot.name))).unwrap();
        assert!(!log.contains("panicked"), "{} panicked:\n{log}", slot.name);
        assert!(!log.contains(PASSWORD), "{} shows the broker's password", slot.name);
        println!("{}: {:?}", slot.name, slot.ends);
        for line in log.lines().filter(|line| line.contains("ERROR") || line.starts_with("error")) {
            println!("  {line}");
        }
    }
}

/// Nothing is left in any queue: what still waits there is a copy, which goes as soon as it is asked about.
pub(crate) fn check_queues(battle: &Battle) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let full = || -> BTreeMap<String, u64> {
        let queues = battle.cluster.messages().unwrap();
        assert!(queues.len() > 20, "every queue is there: {queues:?}");
        queues.into_iter().filter(|(_, messages)| *messages > 0).collect()
    };
    wait_until("every queue is empty", PATIENCE, || {
        let full = full();
        if !full.is_empty() {
            println!("not empty yet: {full:?}");
        }
        full.is_empty()
    });
}
