//! What the command lines of the three binaries have in common, and how each of them begins and ends.

use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::broker::address::{AddressError, BrokerAddress, connect};
use crate::broker::{Broker, BrokerError, Health};
use crate::ids::{Group, ProcessId};
use crate::shutdown;
use crate::telemetry::listen::{ListenError, Readiness, serve};
use crate::telemetry::logging::{self, LogFormat, LoggingError, standard_error};
use crate::telemetry::metrics::{BrokerMetrics, Metrics};

/// Flags that every binary has.
#[derive(Debug, Clone, clap::Args)]
pub struct DaemonArgs {
    /// The broker: `amqp[s]://user:password@host:port/vhost` (several hosts: host1,host2), or `embedded:DIR`
    /// for processes of one machine.
    #[arg(long, value_name = "URL", env = "WINDROW_BROKER", hide_env_values = true)]
    pub broker: String,
    /// The collector group: whose work this is, and who settles it.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub group: Group,
    /// Serve `/metrics`, `/healthz` and `/readyz` at this address, such as 127.0.0.1:9090.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// How the log on standard error is written: `text` or `json`. What is logged: `WINDROW_LOG`.
    #[arg(long, value_name = "FORMAT", env = logging::FORMAT_VARIABLE, default_value = "text")]
    pub log_format: LogFormat,
}

impl DaemonArgs {
    /// The broker's address.
    pub fn address(&self) -> Result<BrokerAddress, DaemonError> {
        Ok(self.broker.parse()?)
    }
}

/// A binary cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// `--broker` is no address.
    #[error("--broker: {0}")]
    Address(#[from] AddressError),
    /// The broker cannot be reached, or refuses us.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// `--listen` cannot be listened at.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Logging cannot begin.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// Signals cannot be heard.
    #[error("cannot listen for signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// A binary that has begun: connected, counting, and listening for signals.
#[derive(Debug)]
pub struct Daemon {
    /// The broker.
    pub broker: Arc<dyn Broker>,
    /// Where this process counts.
    pub metrics: Arc<Metrics>,
    /// This process.
    pub process: ProcessId,
    /// Cancelled at SIGTERM or Ctrl-C.
    pub shutdown: CancellationToken,
    /// For the room to say what keeps it from its work, such as a full disk; it is not ready then.
    pub trouble: watch::Sender<Option<String>>,
}

impl Daemon {
    /// Begins logging, hears signals, connects, and serves `--listen`.
    pub async fn begin(args: &DaemonArgs, role: &str) -> Result<Self, DaemonError> {
        Self::begin_at(&args.address()?, args, role).await
    }

    /// The same with an address that is that of `args`, or more than that.
    pub async fn begin_at(
        address: &BrokerAddress,
        args: &DaemonArgs,
        role: &str,
    ) -> Result<Self, DaemonError> {
        logging::init(args.log_format, false, standard_error())?;
        let shutdown = shutdown::on_signals()?;
        let metrics = Metrics::new(role);
        tracing::info!(broker = %address, group = %args.group, "connecting");
        let broker = connect(address, &args.group).await?;
        watch_health(broker.health(), metrics.broker());
        let trouble = watch::Sender::new(None);
        if let Some(listen) = args.listen {
            listen_at(listen, &broker, &metrics, trouble.subscribe(), &shutdown).await?;
        }
        Ok(Self { broker, metrics, process: ProcessId::generate(), shutdown, trouble })
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz` at `address`; ready while the broker is connected.
pub async fn listen_at(
    address: SocketAddr,
    broker: &Arc<dyn Broker>,
    metrics: &Arc<Metrics>,
    trouble: watch::Receiver<Option<String>>,
    shutdown: &CancellationToken,
) -> Result<(), ListenError> {
    let health = broker.health();
    let readiness = move || readiness(&health.borrow(), trouble.borrow().as_deref());
    let listening = serve(address, Arc::clone(metrics), readiness, shutdown.clone()).await?;
    tracing::info!(address = %listening.address, "serving /metrics, /healthz and /readyz");
    Ok(())
}

fn readiness(health: &Health, trouble: Option<&str>) -> Readiness {
    match health {
        Health::Connected => match trouble {
            None => Readiness::Ready,
            Some(trouble) => Readiness::NotReady(trouble.to_owned()),
        },
        Health::Blocked(reason) => Readiness::NotReady(format!("the broker takes no publishes: {reason}")),
        Health::Disconnected(reason) => Readiness::NotReady(format!("the broker is not connected: {reason}")),
        Health::Closed => Readiness::NotReady("shutting down".to_owned()),
    }
}

/// Keeps the broker's gauges true and logs each change, until the broker is closed.
pub fn watch_health(mut health: watch::Receiver<Health>, metrics: BrokerMetrics) {
    tokio::spawn(async move {
        let mut troubled = false;
        loop {
            let now = health.borrow_and_update().clone();
            metrics.connected.set(i64::from(matches!(now, Health::Connected | Health::Blocked(_))));
            metrics.blocked.set(i64::from(matches!(now, Health::Blocked(_))));
            match now {
                Health::Connected if troubled => tracing::info!("the broker is back"),
                Health::Connected => {}
                Health::Blocked(reason) => tracing::warn!(reason, "the broker takes no publishes; waiting"),
                Health::Disconnected(reason) => tracing::warn!(reason, "the broker is gone; trying again"),
                Health::Closed => return,
            }
            troubled = *health.borrow() != Health::Connected;
            if health.changed().await.is_err() {
                return;
            }
        }
    });
}

/// Says on standard error why `program` ends, and ends it with `code`.
pub fn fail(program: &str, error: impl Display, code: u8) -> ExitCode {
    drop(writeln!(std::io::stderr().lock(), "{program}: {error}"));
    ExitCode::from(code)
}
