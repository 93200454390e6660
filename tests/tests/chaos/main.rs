//! Everything goes wrong at once: a fleet of a producer, three consumers and two collectors, on a cluster of three RabbitMQ
//! nodes and a ledger in PostgreSQL, is killed, frozen, cut off and restarted, in an order drawn from a seed, and
//! every item still ends once.
//!
//! `WINDROW_SEED` takes another seed, `WINDROW_CHAOS_FAULTS` and `WINDROW_CHAOS_ITEMS` a longer form (`make chaos`).

mod battle;
mod judge;
mod schedule;
mod slot;

use std::fmt::Write as _;
use std::time::Instant;

use tempfile::TempDir;
use windrow_tests::own_network::{Network, OwnNetwork};
use windrow_tests::seeded::Seeded;

use battle::Battle;

/// The short form: each kind of fault once.
const FAULTS: usize = 14;
const ITEMS: u64 = 20_000;

fn size(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |size| size.parse().unwrap())
}

#[test]
fn whatever_befalls_the_fleet_and_its_cluster_every_item_ends_once() {
    let this = "whatever_befalls_the_fleet_and_its_cluster_every_item_ends_once";
    let Some(network) = OwnNetwork::enter(this) else { return };
    let items = size("WINDROW_CHAOS_ITEMS", ITEMS);
    let faults = usize::try_from(size("WINDROW_CHAOS_FAULTS", FAULTS as u64)).unwrap();
    let mut seeded = Seeded::from_environment();
    let faults = schedule::draw(&mut seeded, faults, matches!(network, Network::Own(_)));
    let folder = TempDir::new().unwrap();
    let mut input = String::new();
    for index in 0..items {
        // As a template writes it, so that each call has the very bytes of its item.
        writeln!(input, "{{\"n\": {index}}}").unwrap();
    }
    std::fs::write(folder.path().join("items.jsonl"), input).unwrap();

    let begun = Instant::now();
    let mut battle = Battle::begin(folder.path(), network);
    println!("started in {:.1?}", begun.elapsed());
    // Each fault at its share of the way, so that things go on between them; and some way is left for the last ones, which
    // may have to wait for each other.
    let share = items / (faults.len() as u64 + 6);
    for (fault, due) in faults.iter().zip((1..).map(|place| place * share)) {
        battle.wait("the next fault is due", |battle| {
            let is_due = battle.watch.count() as u64 >= due;
            battle.set_slow(is_due);
            is_due && battle.may_begin(*fault)
        });
        println!("{:5.1} s, {} settled: {fault:?}", begun.elapsed().as_secs_f64(), battle.watch.count());
        assert!((battle.watch.count() as u64) < items, "the run must outlast its faults");
        battle.strike(*fault);
    }
    battle.wait("every fault is over", Battle::is_calm);
    battle.set_slow(false);
    battle.wait("the producer sees the end of the run", |battle| battle.producer.is_done);
    println!("{:5.1} s: the run has ended", begun.elapsed().as_secs_f64());
    judge::judge(&battle, items);
    judge::check_queues(&battle);
    println!("{} faults, {items} items, {:.1?}", faults.len(), begun.elapsed());
}
