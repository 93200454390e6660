//! Every name and argument of the topology, in one place.
//!
//! | what | name | kind | what it does |
//! | --- | --- | --- | --- |
//! | exchange | `windrow.v1.group.G` | direct | takes everything for a queue of group `G`; the key is the queue's name |
//! | exchange | `windrow.v1.answer.G` | direct | answers; the key is the asking process |
//! | exchange | `windrow.v1.control.G` | fanout | what the collector tells every process |
//! | exchange | `windrow.v1.delay.S` | fanout | takes what waits `S` seconds; the key, `G.J.T`, is kept for the way back |
//! | exchange | `windrow.v1.due` | direct | what has waited goes by `G.J.T` to the stage's due queue |
//! | exchange | `windrow.v1.stray` | topic | alternate of `due`: keys no due queue is bound to, by `G.#` to the group's completion |
//! | queue | `windrow.v1.work.G.J.T` | quorum | new chunks of stage `T` of job `J` |
//! | queue | `windrow.v1.due.G.J.T` | quorum | chunks that come back |
//! | queue | `windrow.v1.held.G.J.T` | quorum | chunks of paused runs |
//! | queue | `windrow.v1.alone.G.J.T` | quorum | chunks that run with nothing else in their process |
//! | queue | `windrow.v1.completion.G` | quorum, single active consumer | what the collector reads; also chunks that are dead |
//! | queue | `windrow.v1.parking.G` | quorum | what nobody can handle |
//! | queue | `windrow.v1.delay.S` | quorum, TTL `S` seconds | dead-letters at least once to `due`, key unchanged |
//! | queue | `windrow.v1.process.G.P.N` | classic, exclusive | process `P`'s own, `N` drawn anew for each connection |
//!
//! A `.` within a name is written `~` here (no name has a `~`), so that `a.b` + `c` and `a` + `b.c` stay
//! two things and a topic key has a word per name. Only the delay levels, `due` and `stray` are shared
//! between groups. Work, due, held and alone queues dead-letter after 50 returns to the completion queue, so that the
//! collector ends the chunk's items, and the completion queue after 10,000 to the parking queue, at least once and
//! through `group`. Nothing goes through the broker's default exchange, so rights can be given by name.

use crate::broker::delay::{LEVELS, level};
use crate::broker::{Queue, Target};
use crate::ids::{Group, ProcessId, StageKey};

const DUE: &str = "windrow.v1.due";
const STRAY: &str = "windrow.v1.stray";

/// Returns of one chunk after which it is dead. High: every death of a consumer counts for each chunk it
/// holds, finished or not.
const CHUNK_DELIVERY_LIMIT: i64 = 50;
/// Returns of one completion after which it is parked: only a completion that kills each collector that
/// reads it comes near.
const COMPLETION_DELIVERY_LIMIT: i64 = 10_000;

/// An argument of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Argument {
    Text(String),
    Int(i64),
    Bool(bool),
}

pub(super) type Arguments = Vec<(&'static str, Argument)>;

/// What an exchange does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Direct,
    Fanout,
    Topic,
}

/// One thing to be made in the broker. Making it again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Declaration {
    Exchange { name: String, kind: Kind, alternate: Option<&'static str> },
    Queue { name: String, arguments: Arguments },
    Binding { queue: String, exchange: String, key: String },
}

/// Where a message is published.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) exchange: String,
    pub(super) key: String,
    /// Whether it must reach a queue, and be kept on disk there. Messages to processes need not.
    pub(super) lasting: bool,
}

/// The names of one collector group.
#[derive(Debug, Clone)]
pub(super) struct Topology {
    group: String,
}

/// A name as a part of a longer one.
fn part(name: &str) -> String {
    name.replace('.', "~")
}

impl Topology {
    pub(super) fn new(group: &Group) -> Self {
        Self { group: part(group.as_str()) }
    }

    fn group_exchange(&self) -> String {
        format!("windrow.v1.group.{}", self.group)
    }

    /// The fanout exchange every process's own queue is bound to.
    pub(super) fn control_exchange(&self) -> String {
        format!("windrow.v1.control.{}", self.group)
    }

    /// The direct exchange every process's own queue is bound to under [`Topology::answer_key`].
    pub(super) fn answer_exchange(&self) -> String {
        format!("windrow.v1.answer.{}", self.group)
    }

    /// The key of answers to a process.
    pub(super) fn answer_key(process: &ProcessId) -> String {
        part(process.as_str())
    }

    fn stage(&self, key: &StageKey) -> String {
        format!("{}.{}.{}", self.group, part(key.job.as_str()), part(key.stage.as_str()))
    }

    fn completion(&self) -> String {
        format!("windrow.v1.completion.{}", self.group)
    }

    fn parking(&self) -> String {
        format!("windrow.v1.parking.{}", self.group)
    }

    /// The name of a queue. A process's queue has a fresh `suffix` for each connection: the one of the
    /// connection before may not be gone yet.
    pub(super) fn queue(&self, queue: &Queue, suffix: &str) -> String {
        match queue {
            Queue::Work(key) => format!("windrow.v1.work.{}", self.stage(key)),
            Queue::Due(key) => format!("windrow.v1.due.{}", self.stage(key)),
            Queue::Held(key) => format!("windrow.v1.held.{}", self.stage(key)),
            Queue::Alone(key) => format!("windrow.v1.alone.{}", self.stage(key)),
            Queue::Completion => self.completion(),
            Queue::Parking => self.parking(),
            Queue::Process(process) => {
                format!("windrow.v1.process.{}.{}.{suffix}", self.group, part(process.as_str()))
            }
        }
    }

    /// The queue of this group with this name, if it is one of those messages wait in.
    pub(super) fn queue_named(&self, name: &str) -> Option<Queue> {
        if name == self.completion() {
            return Some(Queue::Completion);
        }
        let (kind, key) = name.strip_prefix("windrow.v1.")?.split_once('.')?;
        let key = self.stage_of(key)?;
        match kind {
            "work" => Some(Queue::Work(key)),
            "due" => Some(Queue::Due(key)),
            "held" => Some(Queue::Held(key)),
            "alone" => Some(Queue::Alone(key)),
            _ => None,
        }
    }

    /// The stage whose key this is, if it is one of this group.
    pub(super) fn stage_of(&self, key: &str) -> Option<StageKey> {
        let names: Vec<&str> = key.split('.').collect();
        let [group, job, stage] = names.as_slice() else { return None };
        let whole = |part: &str| part.replace('~', ".");
        let key = StageKey { job: whole(job).parse().ok()?, stage: whole(stage).parse().ok()? };
        (*group == self.group).then_some(key)
    }

    /// Where messages for `target` are published.
    pub(super) fn route(&self, target: &Target) -> Route {
        match target {
            Target::Queue(Queue::Process(process)) | Target::Process(process) => {
                Route { exchange: self.answer_exchange(), key: Self::answer_key(process), lasting: false }
            }
            Target::Queue(queue) => {
                Route { exchange: self.group_exchange(), key: self.queue(queue, ""), lasting: true }
            }
            Target::Delay { delay, stage } => {
                Route { exchange: delay_name(level(*delay).as_secs()), key: self.stage(stage), lasting: true }
            }
            Target::Everybody => {
                Route { exchange: self.control_exchange(), key: String::new(), lasting: false }
            }
        }
    }

    /// What every process of the group relies on.
    pub(super) fn base(&self) -> Vec<Declaration> {
        let exchange = |name: String, kind, alternate| Declaration::Exchange { name, kind, alternate };
        let (parking, completion) = (self.parking(), self.completion());
        let mut arguments = self.dead_after(COMPLETION_DELIVERY_LIMIT, &parking);
        arguments.push(("x-single-active-consumer", Argument::Bool(true)));
        vec![
            exchange(STRAY.to_owned(), Kind::Topic, None),
            exchange(DUE.to_owned(), Kind::Direct, Some(STRAY)),
            exchange(self.group_exchange(), Kind::Direct, None),
            exchange(self.answer_exchange(), Kind::Direct, None),
            exchange(self.control_exchange(), Kind::Fanout, None),
            Declaration::Queue { name: parking.clone(), arguments: quorum(None) },
            binding(&parking, self.group_exchange(), parking.clone()),
            Declaration::Queue { name: completion.clone(), arguments },
            binding(&completion, self.group_exchange(), completion.clone()),
            binding(&completion, STRAY.to_owned(), format!("{}.#", self.group)),
        ]
    }

    /// What one queue needs beyond [`Topology::base`]. Parking and completion are part of the base; a process's queue
    /// is made by its subscription.
    pub(super) fn of_queue(&self, queue: &Queue) -> Vec<Declaration> {
        let name = self.queue(queue, "");
        if matches!(queue, Queue::Completion | Queue::Parking | Queue::Process(_)) {
            return Vec::new();
        }
        let arguments = self.dead_after(CHUNK_DELIVERY_LIMIT, &self.completion());
        let mut declarations = vec![
            Declaration::Queue { name: name.clone(), arguments },
            binding(&name, self.group_exchange(), name.clone()),
        ];
        if let Queue::Due(key) = queue {
            declarations.push(binding(&name, DUE.to_owned(), self.stage(key)));
        }
        declarations
    }

    /// All that `ensure` would make for these queues, each once.
    pub(super) fn needed_by(&self, queues: &[Queue]) -> Vec<Declaration> {
        let mut declarations = self.base();
        if queues.iter().any(|queue| matches!(queue, Queue::Due(_))) {
            declarations.extend(delay_levels().into_iter().flatten());
        }
        for queue in queues {
            declarations.extend(self.of_queue(queue));
        }
        declarations
    }

    /// Beyond `delivery_limit` returns a message goes to the queue `to`.
    fn dead_after(&self, delivery_limit: i64, to: &str) -> Arguments {
        let mut arguments = quorum(Some(delivery_limit));
        arguments.extend(dead_letters(&self.group_exchange()));
        arguments.push(("x-dead-letter-routing-key", Argument::Text(to.to_owned())));
        arguments
    }
}

/// The delay levels, each with what it needs.
pub(super) fn delay_levels() -> Vec<Vec<Declaration>> {
    LEVELS.into_iter().map(delay_level).collect()
}

fn delay_level(seconds: u64) -> Vec<Declaration> {
    let name = delay_name(seconds);
    let mut arguments = quorum(None);
    arguments.extend(dead_letters(DUE));
    arguments.push(("x-message-ttl", Argument::Int(i64::try_from(seconds * 1000).unwrap_or(i64::MAX))));
    vec![
        Declaration::Exchange { name: name.clone(), kind: Kind::Fanout, alternate: None },
        Declaration::Queue { name: name.clone(), arguments },
        binding(&name, name.clone(), String::new()),
    ]
}

fn delay_name(seconds: u64) -> String {
    format!("windrow.v1.delay.{seconds}")
}

/// The arguments of a process's own queue: short, and forgetful of what is old.
pub(super) fn process_arguments() -> Arguments {
    vec![("x-max-length", Argument::Int(1000)), ("x-message-ttl", Argument::Int(10_000))]
}

fn quorum(delivery_limit: Option<i64>) -> Arguments {
    let mut arguments = vec![
        ("x-queue-type", Argument::Text("quorum".to_owned())),
        ("x-queue-leader-locator", Argument::Text("balanced".to_owned())),
    ];
    // Parking and the delay levels: nothing there may be dropped for coming back often, and the default
    // of newer brokers (20) would drop it.
    let limit = delivery_limit.unwrap_or(1_000_000_000);
    arguments.push(("x-delivery-limit", Argument::Int(limit)));
    arguments
}

/// At least once; without `reject-publish` the broker silently makes that at most once.
fn dead_letters(exchange: &str) -> Arguments {
    let text = |text: &str| Argument::Text(text.to_owned());
    vec![
        ("x-dead-letter-exchange", text(exchange)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
}

fn binding(queue: &str, exchange: String, key: String) -> Declaration {
    Declaration::Binding { queue: queue.to_owned(), exchange, key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(job: &str, stage: &str) -> StageKey {
        StageKey { job: job.parse().unwrap(), stage: stage.parse().unwrap() }
    }

    fn topology(group: &str) -> Topology {
        Topology::new(&group.parse().unwrap())
    }

    #[test]
    fn names_with_dots_never_meet() {
        let name = |group: &str, job: &str| topology(group).queue(&Queue::Work(key(job, "push")), "");
        assert_eq!(name("main", "contacts"), "windrow.v1.work.main.contacts.push");
        assert_ne!(name("a.b", "c"), name("a", "b.c"));
        let topology = topology("g.1");
        for queue in [
            Queue::Work(key("a.b", "c")),
            Queue::Due(key("a", "b.c")),
            Queue::Held(key("a", "b")),
            Queue::Alone(key("a", "b")),
            Queue::Completion,
        ] {
            assert_eq!(topology.queue_named(&topology.queue(&queue, "")), Some(queue));
        }
        for other in ["windrow.v1.work.main.a.b", "windrow.v1.delay.8", "windrow.v1.work.g~1.a", "amq.gen-1"]
        {
            assert_eq!(topology.queue_named(other), None, "{other}");
        }
        let long = "x".repeat(64);
        assert!(name(&long, &long).len() < 255);
    }

    #[test]
    fn a_delay_comes_back_under_the_key_its_due_queue_is_bound_to() {
        let topology = topology("main");
        let stage = key("contacts", "push");
        let route = topology.route(&Target::Delay { delay: Duration::from_secs(5), stage: stage.clone() });
        assert_eq!(route.exchange, "windrow.v1.delay.6");
        let due = topology.of_queue(&Queue::Due(stage));
        assert!(due.contains(&binding("windrow.v1.due.main.contacts.push", DUE.to_owned(), route.key)));
    }

    #[test]
    fn every_quorum_queue_states_a_limit_and_dead_letters_at_least_once_or_not_at_all() {
        let topology = topology("main");
        let mut all = topology.base();
        all.extend(delay_levels().into_iter().flatten());
        for queue in [Queue::Work(key("j", "s")), Queue::Due(key("j", "s")), Queue::Alone(key("j", "s"))] {
            all.extend(topology.of_queue(&queue));
        }
        let mut queues = 0;
        for declaration in all {
            let Declaration::Queue { name, arguments } = declaration else { continue };
            queues += 1;
            let get = |name: &str| arguments.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
            assert!(matches!(get("x-delivery-limit"), Some(Argument::Int(limit)) if *limit > 0), "{name}");
            if get("x-dead-letter-exchange").is_some() {
                assert_eq!(get("x-dead-letter-strategy"), Some(&Argument::Text("at-least-once".into())));
                assert_eq!(get("x-overflow"), Some(&Argument::Text("reject-publish".into())));
            }
        }
        assert_eq!(queues, 2 + LEVELS.len() + 3);
    }
}
