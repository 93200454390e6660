//! A RabbitMQ node of one's own: on free ports of loopback, with its files in a temporary folder, a name,
//! a cookie and a port mapper nobody else has, and ended with the value that holds it.
//!
//! The machine's RabbitMQ, or the one in the folder that [`VARIABLE`](crate::rabbitmq_installation::VARIABLE) names.

use std::fs;
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::wait_until;
use crate::rabbitmq_installation::Installation;
use crate::rabbitmq_place::{Place, PortMapper};

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
    place: Place,
    mapper: Arc<PortMapper>,
    node: Option<Child>,
}

impl RabbitMqServer {
    /// Starts a node and waits until it answers. Fails when RabbitMQ is not installed
    /// (`scripts/install-test-tools.sh`) or does not come up within 90 s.
    pub async fn start() -> Result<Self> {
        let installation = Installation::find()?;
        let mapper = Arc::new(PortMapper::start(&installation)?);
        Self::start_at(Place::alone()?, mapper, installation).await
    }

    /// Starts a node in this place, and waits until it answers.
    pub(crate) async fn start_at(
        place: Place,
        mapper: Arc<PortMapper>,
        installation: Installation,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("windrow-rabbitmq-").tempdir()?;
        place.furnish(folder.path())?;
        let mut server = Self { installation, folder, place, mapper, node: None };
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
        format!("amqp://{user}:{password}@{}:{}/%2f", self.place.address, self.place.port)
    }

    /// The AMQP port.
    pub fn port(&self) -> u16 {
        self.place.port
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

    /// Sends the node's process a signal. [`Signal::STOP`] freezes it until [`Signal::CONT`].
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let node = self.node.as_ref().context("the node is not running")?;
        Ok(kill_process(Pid::from_child(node), signal)?)
    }

    /// Has the node end the orderly way, as its service manager would, and waits for that.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let mut node = self.node.take().context("the node is not running")?;
        wait_until("a node ends when asked to", START_TIMEOUT, || {
            node.try_wait().is_ok_and(|end| end.is_some())
        });
        Ok(())
    }

    /// Runs `rabbitmqctl` against this node; what it wrote to standard output.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("rabbitmqctl");
        command.args(["--quiet", "-n", &self.place.node]).args(arguments);
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

    fn command(&self, program: &str) -> Command {
        let mut command = self.installation.command(&format!("{BIN}/{program}"));
        self.place.tell(&mut command, self.folder.path(), &self.mapper);
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
    pub(crate) async fn answers(&self) -> bool {
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
        if let Some(mut node) = self.node.take() {
            // Errors only mean that it is gone already.
            let _ = node.kill();
            let _ = node.wait();
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

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
