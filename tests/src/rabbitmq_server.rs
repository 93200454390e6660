//! A RabbitMQ node of one's own: on free ports of loopback, with its files in a temporary folder, a name,
//! a cookie and a port mapper nobody else has, and ended with the value that holds it.
//!
//! The machine's RabbitMQ, or the one in the folder that [`VARIABLE`](crate::rabbitmq_installation::VARIABLE) names.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::rabbitmq_installation::Installation;

/// The node's only user. Not `guest`, so that a password found in a log means something.
pub const USER: &str = "windrow-test";
/// Its password.
pub const PASSWORD: &str = "pw-7f3kq-never-print-me";

const BIN: &str = "/usr/lib/rabbitmq/bin";
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A running node. Dropping it ends the processes it started, and no others.
#[derive(Debug)]
pub struct RabbitMqServer {
    installation: Installation,
    folder: TempDir,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    epmd: Child,
    node: Option<Child>,
}

impl RabbitMqServer {
    /// Starts a node and waits until it answers. Fails when RabbitMQ is not installed
    /// (`scripts/install-test-tools.sh`) or does not come up within 90 s.
    pub async fn start() -> Result<Self> {
        let installation = Installation::find()?;
        let [port, dist_port, epmd_port] = free_ports()?;
        let folder = tempfile::Builder::new().prefix("windrow-rabbitmq-").tempdir()?;
        write_configuration(folder.path(), port)?;
        let epmd = installation
            .command("epmd")
            .args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start epmd, Erlang's port mapper")?;
        let mut server = Self { installation, folder, port, dist_port, epmd_port, epmd, node: None };
        server.start_node().await?;
        Ok(server)
    }

    /// [`RabbitMqServer::start`] for tests without a runtime. The server outlives the runtime made for it.
    pub fn start_blocking() -> Self {
        runtime().block_on(Self::start()).unwrap()
    }

    /// [`RabbitMqServer::restart`] for tests without a runtime.
    pub fn restart_blocking(&mut self) {
        runtime().block_on(self.restart()).unwrap();
    }

    /// `amqp://user:password@127.0.0.1:port/%2f`.
    pub fn uri(&self) -> String {
        self.uri_as(USER, PASSWORD)
    }

    /// The same for another user.
    pub fn uri_as(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.port)
    }

    /// The AMQP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The processor time the node has used, in seconds; 0 while it is down.
    pub fn cpu_seconds(&self) -> f64 {
        self.node.as_ref().map_or(0.0, |node| process_cpu_seconds(node.id()))
    }

    /// Kills the node as a power cut would, without a chance to say goodbye.
    pub fn kill9(&mut self) -> Result<()> {
        let mut node = self.node.take().context("the node is not running")?;
        node.kill()?;
        node.wait()?;
        Ok(())
    }

    /// Starts the node again on the same data, after [`RabbitMqServer::kill9`] or [`RabbitMqServer::stop`].
    pub async fn restart(&mut self) -> Result<()> {
        ensure!(self.node.is_none(), "the node is running");
        self.start_node().await
    }

    /// Stops the node the orderly way.
    pub async fn stop(&mut self) -> Result<()> {
        let mut node = self.node.take().context("the node is not running")?;
        self.rabbitmqctl(&["stop"]).await?;
        let ended = tokio::task::spawn_blocking(move || node.wait());
        ended.await??;
        Ok(())
    }

    /// Runs `rabbitmqctl` against this node; what it wrote to standard output.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("rabbitmqctl");
        command.args(["--quiet", "-n", &self.node_name()]).args(arguments);
        let output: Output = tokio::task::spawn_blocking(move || command.output()).await??;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "rabbitmqctl {arguments:?} failed: {out}{err}");
        Ok(out.into_owned())
    }

    /// Everything the node has logged.
    pub fn log(&self) -> String {
        let logs = fs::read_dir(self.folder.path().join("log")).into_iter().flatten().flatten();
        logs.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect()
    }

    fn node_name(&self) -> String {
        format!("windrow-{}@localhost", self.port)
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.folder.path();
        let mut command = self.installation.command(&format!("{BIN}/{program}"));
        command
            .env("RABBITMQ_NODENAME", self.node_name())
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
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
            )
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("HOME", folder)
            // The script then replaces itself with the Erlang machine: the child we hold is the node itself.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .stdin(Stdio::null());
        command
    }

    async fn start_node(&mut self) -> Result<()> {
        let console = fs::File::create(self.folder.path().join("console.txt"))?;
        let mut command = self.command("rabbitmq-server");
        command.stdout(console.try_clone()?).stderr(console);
        self.node = Some(command.spawn().context("cannot start rabbitmq-server")?);
        let give_up_at = Instant::now() + START_TIMEOUT;
        while !self.answers().await {
            let ended = self.node.as_mut().and_then(|node| node.try_wait().transpose()).is_some();
            if ended || Instant::now() > give_up_at {
                let console = fs::read_to_string(self.folder.path().join("console.txt"));
                bail!("the RabbitMQ node did not come up:\n{}\n{}", console.unwrap_or_default(), self.log());
            }
            // Nothing tells when the port opens; asking again is cheap.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Whether an AMQP connection can be made: the port opens before users and queues are there.
    async fn answers(&self) -> bool {
        let uri = self.uri();
        let connected = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default());
        let Ok(Ok(connection)) = tokio::time::timeout(Duration::from_secs(5), connected).await else {
            return false;
        };
        connection.close(200, "there".into()).await.is_ok()
    }
}

impl Drop for RabbitMqServer {
    fn drop(&mut self) {
        for child in self.node.iter_mut().chain([&mut self.epmd]) {
            // Errors only mean that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The processor time a process has used, in seconds; 0 when it is gone.
pub fn process_cpu_seconds(pid: u32) -> f64 {
    /// Linux tells processor time in hundredths of a second on every machine it runs on.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in brackets and may hold spaces; user and system time are 14th and 15th.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
    let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

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

fn write_configuration(folder: &Path, port: u16) -> Result<()> {
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    write(
        "rabbitmq.conf",
        format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\n\
             default_user = {USER}\n\
             default_pass = {PASSWORD}\n\
             log.console = false\n\
             log.file.level = info\n\
             disk_free_limit.absolute = 500MB\n\
             max_message_size = 134217728\n\
             vm_memory_high_watermark.absolute = 4GB\n"
        ),
    )?;
    // A dead letter that got no answer is tried again after this long, not after three minutes.
    write(
        "advanced.config",
        "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 15000}]}].\n".to_owned(),
    )?;
    write("enabled_plugins", "[].\n".to_owned())?;
    write("rabbitmq-env.conf", String::new())?;
    fs::create_dir(folder.join("data"))?;
    fs::create_dir(folder.join("log"))?;
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
