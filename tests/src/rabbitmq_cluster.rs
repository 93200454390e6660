//! Three RabbitMQ nodes that make one cluster, and what can befall them.
//!
//! Each node has an address of its own (127.0.1.1 and so on), from which it also speaks to the others: so the way
//! between two nodes can be cut. They find each other by the list of nodes in their settings. When a node sees no
//! majority it pauses itself.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::process::wait_until;
use crate::rabbitmq_installation::Installation;
use crate::rabbitmq_place::{MEMORY, Place, PortMapper};
use crate::rabbitmq_server::{PASSWORD, RabbitMqServer, USER};

/// How many nodes there are.
pub const NODES: usize = 3;

/// How long a node may take to be one of the cluster again.
const RECOVERY: Duration = Duration::from_secs(120);

/// Has node `TO` lead every quorum queue that it has a copy of and does not lead; says how many those were.
const MOVE_LEADERS: &str = "length([1 || Q <- rabbit_amqqueue:list(), \
     amqqueue:get_type(Q) =:= rabbit_quorum_queue, \
     {Name, Leader} <- [amqqueue:get_pid(Q)], Leader =/= node(), \
     ok =:= ra:transfer_leadership({Name, Leader}, {Name, node()})]).";

/// A running cluster. Dropping it ends its nodes.
#[derive(Debug)]
pub struct RabbitMqCluster {
    nodes: [Mutex<RabbitMqServer>; NODES],
    addresses: [(Ipv4Addr, u16); NODES],
}

impl RabbitMqCluster {
    /// Starts the nodes and waits until they are one cluster. Fails as [`RabbitMqServer::start`] does.
    pub fn start() -> Result<Self> {
        let installation = Installation::find()?;
        let mapper = Arc::new(PortMapper::start(&installation)?);
        let places = Place::three()?;
        let addresses = places.each_ref().map(|place| (place.address, place.port));
        let starting = places.map(|place| {
            let (mapper, installation) = (Arc::clone(&mapper), installation.clone());
            std::thread::spawn(move || {
                runtime().block_on(RabbitMqServer::start_at(place, mapper, installation))
            })
        });
        let mut nodes = Vec::with_capacity(NODES);
        for node in starting {
            nodes.push(Mutex::new(node.join().expect("starting a node panics")?));
        }
        let nodes = nodes.try_into().expect("as many nodes as places");
        let cluster = Self { nodes, addresses };
        cluster.rabbitmqctl(0, &["await_online_nodes", "3", "--timeout", "60"])?;
        Ok(cluster)
    }

    /// The address of the cluster: all of its hosts. `options` is what follows the `?`.
    pub fn uri(&self, options: &str) -> String {
        let hosts = self.addresses.map(|(address, port)| format!("{address}:{port}")).join(",");
        format!("amqp://{USER}:{PASSWORD}@{hosts}/%2f?{options}")
    }

    /// The address of a node, from which it speaks to the others too.
    pub fn address(&self, number: usize) -> Ipv4Addr {
        self.addresses[number].0
    }

    /// Kills a node as a power cut would.
    pub fn kill(&self, number: usize) {
        self.node(number).kill9().unwrap();
    }

    /// Has a node end the orderly way.
    pub fn terminate(&self, number: usize) {
        self.node(number).terminate().unwrap();
    }

    /// Starts a node that has ended, and waits until it answers.
    pub fn start_again(&self, number: usize) {
        runtime().block_on(self.node(number).restart()).unwrap();
    }

    /// Stops a node in the middle of whatever it does, until [`RabbitMqCluster::go_on`].
    pub fn freeze(&self, number: usize) {
        self.node(number).signal(Signal::STOP).unwrap();
    }

    /// Lets a frozen node go on.
    pub fn go_on(&self, number: usize) {
        self.node(number).signal(Signal::CONT).unwrap();
    }

    /// Raises the memory alarm of a node, which blocks publishing at all of them, or ends it.
    pub fn set_alarm(&self, number: usize, is_raised: bool) {
        let watermark: &[&str] = if is_raised { &["0.0000001"] } else { &["absolute", MEMORY] };
        let arguments = [&["set_vm_memory_high_watermark"], watermark].concat();
        self.rabbitmqctl(number, &arguments).unwrap();
    }

    /// Has a node lead every queue; returns how many leaders moved.
    pub fn move_leaders(&self, to: usize) -> usize {
        self.rabbitmqctl(to, &["eval", MOVE_LEADERS]).unwrap().trim().parse().unwrap()
    }

    /// Waits until every node answers, which one that sees no majority does not, and is one of the cluster.
    pub fn await_whole(&self) {
        wait_until("the cluster is whole again", RECOVERY, || {
            (0..NODES).all(|number| runtime().block_on(self.node(number).answers()))
                && self.rabbitmqctl(0, &["await_online_nodes", "3", "--timeout", "5"]).is_ok()
        });
    }

    /// How many messages each queue has, ready or with a consumer, but for the processes' own.
    pub fn messages(&self) -> Result<BTreeMap<String, u64>> {
        let listed = self.rabbitmqctl(0, &["list_queues", "--no-table-headers", "name", "messages"])?;
        let queue = |line: &str| {
            let (name, count) = line.split_once('\t')?;
            Some((name.to_owned(), count.trim().parse().ok()?))
        };
        Ok(listed.lines().filter_map(queue).filter(|(name, _)| !name.contains(".process.")).collect())
    }

    /// What the nodes have logged.
    pub fn log(&self, number: usize) -> String {
        self.node(number).log()
    }

    fn rabbitmqctl(&self, number: usize, arguments: &[&str]) -> Result<String> {
        runtime().block_on(self.node(number).rabbitmqctl(arguments))
    }

    fn node(&self, number: usize) -> MutexGuard<'_, RabbitMqServer> {
        self.nodes[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
