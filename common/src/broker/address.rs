//! Where a broker is: what `--broker` takes, read without ever showing the password again.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::embedded::EmbeddedBroker;
use super::rabbitmq::RabbitMq;
use super::{Broker, BrokerError};
use crate::ids::Group;

/// The address of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerAddress {
    /// `amqp[s]://user:password@host:port/vhost`: a RabbitMQ node or cluster.
    RabbitMq(RabbitMqAddress),
    /// `embedded:DIR`: the embedded broker with its file in this folder.
    Embedded(PathBuf),
}

/// The nodes of a RabbitMQ cluster, and who we are to them. `Display` and `Debug` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct RabbitMqAddress {
    /// Whether the connection is encrypted (`amqps`).
    pub tls: bool,
    /// Host and port of each node, in the order given; they are tried in random order.
    pub hosts: Vec<(String, u16)>,
    /// The user; `guest` when none is given.
    pub user: String,
    /// The virtual host; `/` when none is given.
    pub vhost: String,
    /// How often both sides prove that they are there (`?heartbeat=SECONDS`), if the address says so.
    pub heartbeat: Option<Duration>,
    /// How long the first connection is tried for (`?connect_timeout=SECONDS`, 30 unless given).
    pub connect_timeout: Duration,
    /// A PEM file with the authority that signed the nodes' certificates (`?cacertfile=FILE`).
    pub ca_file: Option<PathBuf>,
    pub(super) password: String,
}

/// An address cannot be read. The messages never repeat any part of it that could be a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither scheme fits.
    #[error("a broker is `amqp://user:password@host:port/vhost`, the same with `amqps`, or `embedded:DIR`")]
    Scheme,
    /// No folder after `embedded:`.
    #[error("`embedded:` needs a folder: `embedded:DIR`")]
    Folder,
    /// A host is empty.
    #[error("the broker address names no host: `amqp://user:password@host:port/vhost`")]
    Host,
    /// A port is no number, often for want of percent-encoding.
    #[error(
        "the port in the broker address must be a number from 1 to 65535; `/`, `@`, `:` and `%` in a user or \
         password are written `%2F`, `%40`, `%3A` and `%25`"
    )]
    Port,
    /// A `%` is not followed by two hexadecimal digits, or they make no UTF-8.
    #[error("a `%` in the broker address must begin a percent-encoded UTF-8 character; `%` itself is `%25`")]
    Encoding,
    /// An unknown option after `?`, or one without a usable value.
    #[error(
        "the broker address takes the options heartbeat=SECONDS, connect_timeout=SECONDS and cacertfile=FILE"
    )]
    Option,
    /// Several URIs that differ in more than the host.
    #[error("the URIs in a broker address may differ in host and port only")]
    Several,
}

impl FromStr for BrokerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(folder) = text.strip_prefix("embedded:") {
            return if folder.is_empty() {
                Err(AddressError::Folder)
            } else {
                Ok(Self::Embedded(PathBuf::from(folder)))
            };
        }
        let mut uris = split_uris(text).into_iter().map(parse_uri);
        let mut first = uris.next().ok_or(AddressError::Scheme)??;
        for next in uris {
            let next = next?;
            let same = RabbitMqAddress { hosts: first.hosts.clone(), ..next.clone() };
            if same != first {
                return Err(AddressError::Several);
            }
            first.hosts.extend(next.hosts);
        }
        Ok(Self::RabbitMq(first))
    }
}

impl BrokerAddress {
    /// The same broker, with this heartbeat unless the address says otherwise.
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat: Duration) -> Self {
        if let Self::RabbitMq(address) = &mut self {
            address.heartbeat.get_or_insert(heartbeat);
        }
        self
    }
}

/// Splits at commas that a new scheme follows; other commas separate hosts.
fn split_uris(text: &str) -> Vec<&str> {
    let mut starts = vec![0];
    starts.extend(text.match_indices(",amqp").map(|(at, _)| at + 1).filter(|at| {
        let rest = &text[*at..];
        rest.starts_with("amqp://") || rest.starts_with("amqps://")
    }));
    starts.push(text.len() + 1);
    starts.windows(2).map(|pair| &text[pair[0]..pair[1] - 1]).collect()
}

fn parse_uri(uri: &str) -> Result<RabbitMqAddress, AddressError> {
    let (scheme, rest) = uri.split_once("://").ok_or(AddressError::Scheme)?;
    let tls = match scheme {
        "amqp" => false,
        "amqps" => true,
        _ => return Err(AddressError::Scheme),
    };
    let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let or_guest = |text: &str| if login.is_empty() { Ok("guest".to_owned()) } else { percent_decode(text) };
    let mut address = RabbitMqAddress {
        tls,
        hosts: hosts.split(',').map(|host| parse_host(host, tls)).collect::<Result<_, _>>()?,
        user: or_guest(user)?,
        password: or_guest(password)?,
        vhost: if vhost.is_empty() { "/".to_owned() } else { percent_decode(vhost)? },
        heartbeat: None,
        connect_timeout: Duration::from_secs(30),
        ca_file: None,
    };
    for option in options.split('&').filter(|option| !option.is_empty()) {
        address.set_option(option)?;
    }
    Ok(address)
}

fn parse_host(text: &str, tls: bool) -> Result<(String, u16), AddressError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip6, rest)) => (ip6, rest.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(AddressError::Host);
    }
    let port = match port {
        None => {
            if tls {
                5671
            } else {
                5672
            }
        }
        Some(digits) => digits.parse().ok().filter(|port| *port != 0).ok_or(AddressError::Port)?,
    };
    Ok((percent_decode(host)?, port))
}

fn percent_decode(text: &str) -> Result<String, AddressError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte.unwrap_or(b'%')).to_digit(16);
            let (high, low) = (digit(rest.next()), digit(rest.next()));
            let value = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
            bytes.push(value.ok_or(AddressError::Encoding)?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| AddressError::Encoding)
}

impl RabbitMqAddress {
    fn set_option(&mut self, option: &str) -> Result<(), AddressError> {
        let (name, value) = option.split_once('=').ok_or(AddressError::Option)?;
        let seconds = || value.parse::<u16>().map(u64::from).map_err(|_| AddressError::Option);
        match name {
            "heartbeat" => self.heartbeat = Some(Duration::from_secs(seconds()?.max(1))),
            "connect_timeout" => self.connect_timeout = Duration::from_secs(seconds()?),
            "cacertfile" => self.ca_file = Some(PathBuf::from(percent_decode(value)?)),
            _ => return Err(AddressError::Option),
        }
        Ok(())
    }
}

impl fmt::Display for RabbitMqAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}@", self.user)?;
        for (at, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if host.contains(':') {
                write!(f, "{comma}[{host}]:{port}")?;
            } else {
                write!(f, "{comma}{host}:{port}")?;
            }
        }
        write!(f, "/{}", if self.vhost == "/" { "" } else { &self.vhost })
    }
}

impl fmt::Debug for RabbitMqAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RabbitMqAddress({self})")
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RabbitMq(address) => address.fmt(f),
            Self::Embedded(folder) => write!(f, "embedded:{}", folder.display()),
        }
    }
}

/// Connects to the broker at `address` for a collector group. Fails at once when the broker refuses us,
/// and after the address's `connect_timeout` when it cannot be reached.
pub async fn connect(address: &BrokerAddress, group: &Group) -> Result<Arc<dyn Broker>, BrokerError> {
    match address {
        BrokerAddress::RabbitMq(address) => Ok(Arc::new(RabbitMq::connect(address, group).await?)),
        BrokerAddress::Embedded(folder) => Ok(Arc::new(EmbeddedBroker::open(folder, group)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rabbit(text: &str) -> RabbitMqAddress {
        match text.parse() {
            Ok(BrokerAddress::RabbitMq(address)) => address,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_address_is_read_part_by_part() {
        let address = rabbit("amqps://ann:p%40ss@one:1,[::1]:2,three/prod%2Fa?heartbeat=5&connect_timeout=7");
        assert!(address.tls);
        assert_eq!(address.hosts, [("one".into(), 1), ("::1".into(), 2), ("three".into(), 5671)]);
        assert_eq!((address.user.as_str(), address.password.as_str()), ("ann", "p@ss"));
        assert_eq!(address.vhost, "prod/a");
        assert_eq!(address.heartbeat, Some(Duration::from_secs(5)));
        assert_eq!(address.connect_timeout, Duration::from_secs(7));
        assert_eq!("embedded:a/b".parse(), Ok(BrokerAddress::Embedded("a/b".into())));
    }

    #[test]
    fn what_is_left_out_has_the_broker_s_own_defaults() {
        let address = rabbit("amqp://h");
        assert_eq!(address.hosts, [("h".into(), 5672)]);
        assert_eq!((address.user.as_str(), address.password.as_str()), ("guest", "guest"));
        assert_eq!(address.vhost, "/");
        assert_eq!(address.heartbeat, None);
        assert_eq!(rabbit("amqp://h/").vhost, "/");
        assert_eq!(rabbit("amqp://h/%2f").vhost, "/");
    }

    #[test]
    fn an_address_that_names_a_heartbeat_keeps_it() {
        for (text, seconds) in [("amqp://h", 3), ("amqp://h?heartbeat=5", 5)] {
            let address = text.parse::<BrokerAddress>().unwrap().with_heartbeat(Duration::from_secs(3));
            let BrokerAddress::RabbitMq(address) = address else { panic!("{address}") };
            assert_eq!(address.heartbeat, Some(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn several_uris_make_one_list_of_hosts() {
        let address = rabbit("amqp://u:p@one:1/v,amqp://u:p@two:2/v");
        assert_eq!(address.hosts, [("one".into(), 1), ("two".into(), 2)]);
        assert_eq!("amqp://u:p@one/v,amqp://u:q@two/v".parse::<BrokerAddress>(), Err(AddressError::Several));
    }

    #[test]
    fn no_printed_form_and_no_error_shows_the_password() {
        let address = rabbit("amqp://ann:s3cret@h:1/v");
        assert_eq!(address.to_string(), "amqp://ann@h:1/v");
        assert!(!format!("{address:?} {:?}", BrokerAddress::RabbitMq(address.clone())).contains("s3cret"));
        for broken in [
            "amqp://ann:s3cret/x@h",
            "amqp://ann:s3cret@h:port",
            "amqp://ann:s3cret%@h",
            "amqp://ann:s3cret@h?x=1",
            "amqp://ann:s3cret@",
            "http://ann:s3cret@h",
        ] {
            let error = broken.parse::<BrokerAddress>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }
}
