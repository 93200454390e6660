//! One try to connect, and what its failure means.

use std::io;
use std::time::Duration;

use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties, Error, ErrorKind};

use crate::broker::address::RabbitMqAddress;

/// How long one node may take to answer before the next is tried.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often both sides prove that they are there, unless the address says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Why a try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again will not help; the text says what will.
    Lasting(String),
    /// It may work later.
    Passing(String),
}

/// Connects to one node. `name` is shown in the broker's list of connections.
pub(super) async fn connect(
    address: &RabbitMqAddress,
    (host, port): &(String, u16),
    name: &str,
) -> Result<Connection, Failure> {
    let tls = OwnedTLSConfig { identity: None, cert_chain: read_authority(address)? };
    let properties = ConnectionProperties::default().with_connection_name(name.to_owned().into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| Failure::Lasting(error.to_string()))?;
    let connecting = Connection::connector(
        uri(address, host, *port),
        runtime,
        async move |uri, runtime| {
            let connected = AMQPUriTcpExt::connect_with_config_async(&uri, tls.as_ref(), &runtime);
            let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
            Ok(tokio::time::timeout(ANSWER_TIMEOUT, connected).await.map_err(|_| timed_out())??)
        },
        properties,
    );
    match tokio::time::timeout(ANSWER_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(meaning(&error, address, host, *port)),
        Err(_) => Err(Failure::Passing(format!("{host}:{port} does not answer"))),
    }
}

fn read_authority(address: &RabbitMqAddress) -> Result<Option<String>, Failure> {
    let Some(file) = &address.ca_file else { return Ok(None) };
    std::fs::read_to_string(file).map(Some).map_err(|error| {
        Failure::Lasting(format!("cannot read the authority's certificate {}: {error}", file.display()))
    })
}

fn uri(address: &RabbitMqAddress, host: &str, port: u16) -> AMQPUri {
    AMQPUri {
        scheme: if address.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: address.user.clone(), password: address.password.clone() },
            host: host.to_owned(),
            port,
        },
        vhost: address.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: u16::try_from(address.heartbeat.unwrap_or(HEARTBEAT).as_secs()).ok(),
            ..AMQPQueryString::default()
        },
    }
}

fn meaning(error: &Error, address: &RabbitMqAddress, host: &str, port: u16) -> Failure {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => refused(refusal, address),
        ErrorKind::IOError(cause) if address.tls && is_about_tls(cause) => Failure::Lasting(format!(
            "no TLS with {host}:{port}: {cause}; does that port speak TLS, is its certificate for that host, and \
             is the authority that signed it known here (?cacertfile=FILE)?"
        )),
        ErrorKind::IOError(cause) => Failure::Passing(format!("{host}:{port}: {cause}")),
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => {
            Failure::Lasting(format!("what listens on {host}:{port} speaks no AMQP 0-9-1"))
        }
        _ => Failure::Passing(format!("{host}:{port}: {error}")),
    }
}

fn refused(refusal: &AMQPError, address: &RabbitMqAddress) -> Failure {
    let RabbitMqAddress { user, vhost, .. } = address;
    match refusal.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Failure::Lasting(format!(
            "the broker refuses user `{user}` with that password; check both in {address}, and that the user \
             may connect from here (`guest` may only from the broker's own machine)"
        )),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Failure::Lasting(format!(
            "the broker refuses user `{user}` the virtual host `{vhost}`: {}; does it exist, and has the user \
             permissions there (`rabbitmqctl list_permissions -p {vhost}`)?",
            refusal.get_message()
        )),
        _ => Failure::Passing(refusal.get_message().to_string()),
    }
}

/// Handshake errors come as I/O errors of these kinds; refused or reset connections do not.
fn is_about_tls(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other)
}
