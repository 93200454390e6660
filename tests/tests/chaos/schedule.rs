//! What befalls the fleet and its cluster, drawn from a seed. Pure: the same seed draws the same faults.

use std::time::Duration;

use windrow_tests::rabbitmq_cluster::NODES;
use windrow_tests::seeded::Seeded;

use crate::judge::SLACK;

/// How many consumers there are.
pub(crate) const CONSUMERS: usize = 3;

/// A process of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Producer,
    Consumer(usize),
    /// Whichever collector is active when its time has come.
    ActiveCollector,
    StandbyCollector,
}

/// One fault, with what it takes to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9; it starts again after `away`, to die once more at the crash point, if one is given.
    Kill {
        who: Who,
        away: Duration,
        then_at: Option<&'static str>,
    },
    /// SIGSTOP, and SIGCONT after `lasts`.
    Freeze {
        who: Who,
        lasts: Duration,
    },
    /// Every consumer is asked to end, one after another, and starts again.
    RollConsumers,
    /// kill -9 of a broker node, which starts again after `away`.
    KillNode {
        node: usize,
        away: Duration,
    },
    FreezeNode {
        node: usize,
        lasts: Duration,
    },
    /// Every node ends the orderly way and starts again, one after another.
    RollNodes,
    /// A node takes the lead of every queue.
    MoveLeaders {
        to: usize,
    },
    /// A node's memory alarm: nobody may publish.
    Alarm {
        node: usize,
        lasts: Duration,
    },
    /// Nothing passes between a node and the two others; clients still reach all three.
    Isolate {
        node: usize,
        lasts: Duration,
    },
    /// The destination answers every call with 503.
    Outage {
        lasts: Duration,
    },
}

/// Each of these happens once before any happens again. Partitions come last: not every machine allows them.
const KINDS: usize = 14;

/// Crash points, and which pass of them to die at.
const COLLECTOR_POINTS: [&str; 6] = [
    "collector.spooled:7",
    "collector.committed:9",
    "collector.writing:5",
    "collector.written:8",
    "collector.settling:60",
    "collector.report_renaming:2",
];
const CONSUMER_POINTS: [&str; 3] = ["settle.publishing:8", "settle.confirmed:6", "settle.settled:4"];
const PRODUCER_POINTS: [&str; 2] = ["producer.before_publish:8", "producer.after_confirm:3"];

/// Draws `count` faults.
pub(crate) fn draw(seeded: &mut Seeded, count: usize, can_isolate: bool) -> Vec<Fault> {
    let kinds = if can_isolate { KINDS } else { KINDS - 1 };
    let mut faults = Vec::with_capacity(count + kinds);
    while faults.len() < count {
        let mut round: Vec<usize> = (0..kinds).collect();
        seeded.shuffle(&mut round);
        faults.extend(round.into_iter().map(|kind| of_kind(kind, seeded)));
    }
    faults.truncate(count);
    faults
}

fn of_kind(kind: usize, seeded: &mut Seeded) -> Fault {
    let node = index(seeded, NODES);
    let consumer = Who::Consumer(index(seeded, CONSUMERS));
    let collector = if seeded.below(4) == 0 { Who::StandbyCollector } else { Who::ActiveCollector };
    let mut millis = |from: u64, to: u64| Duration::from_millis(from + seeded.below(to - from));
    let away = millis(0, 3_000);
    // Some end before anybody can have noticed, others after the last has.
    let lasts = millis(2_000, 12_000);
    let outage = millis(5_000, 8_000);
    match kind {
        0 => Fault::Kill {
            who: Who::Producer,
            away: away + SLACK + Duration::from_secs(1),
            then_at: seeded.pick(&PRODUCER_POINTS),
        },
        1 => Fault::Kill { who: consumer, away, then_at: seeded.pick(&CONSUMER_POINTS) },
        2 => Fault::Kill { who: collector, away, then_at: seeded.pick(&COLLECTOR_POINTS) },
        3 => Fault::Freeze { who: Who::Producer, lasts },
        4 => Fault::Freeze { who: consumer, lasts },
        5 => Fault::Freeze { who: collector, lasts },
        6 => Fault::RollConsumers,
        7 => Fault::KillNode { node, away },
        8 => Fault::FreezeNode { node, lasts },
        9 => Fault::RollNodes,
        10 => Fault::MoveLeaders { to: node },
        11 => Fault::Alarm { node, lasts: away },
        12 => Fault::Outage { lasts: outage },
        _ => Fault::Isolate { node, lasts },
    }
}

fn index(seeded: &mut Seeded, limit: usize) -> usize {
    usize::try_from(seeded.below(limit as u64)).unwrap_or(0)
}

impl Fault {
    /// Whether it is about the broker. Only one of these is under way at a time, so that most nodes always are well.
    pub(crate) fn is_of_the_broker(self) -> bool {
        match self {
            Self::KillNode { .. }
            | Self::FreezeNode { .. }
            | Self::RollNodes
            | Self::MoveLeaders { .. }
            | Self::Alarm { .. }
            | Self::Isolate { .. } => true,
            Self::Kill { .. } | Self::Freeze { .. } | Self::RollConsumers | Self::Outage { .. } => false,
        }
    }
}

#[test]
fn a_seed_draws_the_same_faults_again_and_each_kind_before_any_comes_twice() {
    let faults = draw(&mut Seeded::new(7), 200, true);
    assert_eq!(faults, draw(&mut Seeded::new(7), 200, true));
    assert_ne!(faults, draw(&mut Seeded::new(8), 200, true));
    for round in faults.chunks_exact(KINDS) {
        let count = |is_it: fn(&&Fault) -> bool| round.iter().filter(is_it).count();
        assert_eq!(count(|fault| matches!(fault, Fault::Kill { .. })), 3, "{round:?}");
        assert_eq!(count(|fault| matches!(fault, Fault::Freeze { .. })), 3, "{round:?}");
        assert_eq!(
            count(|fault| matches!(fault, Fault::RollConsumers | Fault::Outage { .. })),
            2,
            "{round:?}"
        );
        assert_eq!(count(|fault| fault.is_of_the_broker()), 6, "{round:?}");
    }
    let isolates = |fault: &Fault| matches!(fault, Fault::Isolate { .. });
    assert!(faults.iter().any(isolates) && !draw(&mut Seeded::new(7), 200, false).iter().any(isolates));
}
