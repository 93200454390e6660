//! Where a RabbitMQ node is and how it is set up: its names, addresses, ports and files.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use windrow_common::ids::ProcessId;

use crate::rabbitmq_installation::Installation;
use crate::rabbitmq_server::{PASSWORD, USER};

/// Erlang's port mapper for some nodes. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct PortMapper {
    port: u16,
    child: Child,
}

impl PortMapper {
    /// Starts one on loopback.
    pub(crate) fn start(installation: &Installation) -> Result<Self> {
        let [port] = free_ports()?;
        let child = installation
            .command("epmd")
            .args(["-port", &port.to_string()])
            // Nodes of a cluster have addresses of their own.
            .args(["-address", "127.0.0.1,127.0.1.1,127.0.1.2,127.0.1.3"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start epmd, Erlang's port mapper")?;
        Ok(Self { port, child })
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        // Errors only mean that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The place of one node.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The node's name.
    pub(crate) node: String,
    /// Where it listens, and from where it speaks to other nodes.
    pub(crate) address: Ipv4Addr,
    /// The AMQP port.
    pub(crate) port: u16,
    dist_port: u16,
    cookie: String,
    /// The nodes of its cluster, by name and address; none when it is alone.
    peers: Vec<(String, Ipv4Addr)>,
}

/// After so many seconds without a word another node of the cluster counts as gone.
const TICK_SECONDS: u8 = 8;

impl Place {
    /// A node on its own.
    pub(crate) fn alone() -> Result<Self> {
        let [port, dist_port] = free_ports()?;
        let node = format!("windrow-{port}@localhost");
        let cookie = ProcessId::generate().to_string();
        Ok(Self { node, address: Ipv4Addr::LOCALHOST, port, dist_port, cookie, peers: Vec::new() })
    }

    /// Three nodes of one cluster, each with an address of its own.
    pub(crate) fn three() -> Result<[Self; 3]> {
        let ports: [u16; 6] = free_ports()?;
        let cookie = ProcessId::generate().to_string();
        let peers: Vec<(String, Ipv4Addr)> = (1..=3u8)
            .map(|number| (format!("windrow{number}@node{number}"), Ipv4Addr::new(127, 0, 1, number)))
            .collect();
        Ok([0, 1, 2].map(|number| {
            let (node, address) = peers[number].clone();
            let (port, dist_port) = (ports[number], ports[number + 3]);
            Self { node, address, port, dist_port, cookie: cookie.clone(), peers: peers.clone() }
        }))
    }

    /// Puts the node's files into `folder`.
    pub(crate) fn furnish(&self, folder: &Path) -> Result<()> {
        fs::write(folder.join("rabbitmq.conf"), self.settings())?;
        // A dead letter that got no answer is tried again after this long, not after three minutes.
        fs::write(
            folder.join("advanced.config"),
            "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 15000}]}].\n",
        )?;
        fs::write(folder.join("enabled_plugins"), "[].\n")?;
        fs::write(folder.join("rabbitmq-env.conf"), "")?;
        fs::write(folder.join("hosts.erlang"), self.hosts())?;
        let cookie = folder.join(".erlang.cookie");
        fs::write(&cookie, &self.cookie)?;
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))?;
        fs::create_dir(folder.join("data"))?;
        fs::create_dir(folder.join("log"))?;
        Ok(())
    }

    fn settings(&self) -> String {
        let mut settings = format!(
            "listeners.tcp.1 = {}:{}\n\
             default_user = {USER}\n\
             default_pass = {PASSWORD}\n\
             log.console = false\n\
             log.file.level = info\n\
             disk_free_limit.absolute = 500MB\n\
             max_message_size = 134217728\n\
             vm_memory_high_watermark.absolute = {MEMORY}\n",
            self.address, self.port
        );
        if !self.peers.is_empty() {
            settings += "cluster_partition_handling = pause_minority\n\
                         cluster_formation.peer_discovery_backend = classic_config\n\
                         cluster_formation.discovery_retry_limit = 2\n";
        }
        for (number, (node, _)) in self.peers.iter().enumerate() {
            writeln!(settings, "cluster_formation.classic_config.nodes.{} = {node}", number + 1)
                .expect("text takes text");
        }
        settings
    }

    /// Where the names of the nodes' hosts lead, for Erlang alone.
    fn hosts(&self) -> String {
        let mut hosts = String::new();
        for (node, address) in &self.peers {
            let host = node.split_once('@').map_or("", |(_, host)| host);
            let [a, b, c, d] = address.octets();
            writeln!(hosts, "{{host,{{{a},{b},{c},{d}}},[\"{host}\"]}}.").expect("text takes text");
        }
        hosts + "{lookup,[file,native]}.\n"
    }

    /// Tells `command`, a program of RabbitMQ, about the node in `folder`.
    pub(crate) fn tell(&self, command: &mut Command, folder: &Path, mapper: &PortMapper) {
        let [a, b, c, d] = self.address.octets();
        let own = format!("{{{a},{b},{c},{d}}}");
        command
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("rabbitmq-env.conf"))
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("node.pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                // Sharing two cores with everything else, busy waiting of schedulers only steals time.
                format!(
                    "-kernel inet_dist_use_interface {own} -kernel inet_dist_connect_options [{{ip,{own}}}] \
                     -kernel net_ticktime {TICK_SECONDS} +sbwt none +sbwtdcpu none +sbwtdio none"
                ),
            )
            .env("ERL_INETRC", folder.join("hosts.erlang"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", mapper.port.to_string())
            .env("HOME", folder)
            // The script then replaces itself with the Erlang machine: the child we hold is the node itself.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .stdin(Stdio::null());
    }
}

/// How much memory a node may use before it takes no more messages.
pub(crate) const MEMORY: &str = "4GB";

/// Ports nobody listens on now. They are asked for at once, so they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::with_capacity(N);
    for _ in 0..N {
        listeners.push(TcpListener::bind(("127.0.0.1", 0))?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
