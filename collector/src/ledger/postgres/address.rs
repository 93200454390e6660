//! Where a ledger on PostgreSQL is, and what it means that it cannot be opened.

use std::error::Error as _;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, Error};

use crate::ledger::LedgerError;

/// How long PostgreSQL may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection on which nothing is answered for this long is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// The address of a database: `postgres://user:password@host:port/database`. Shown without its password.
#[derive(Clone)]
pub struct PostgresAddress {
    config: Box<Config>,
}

/// A text is no address of a database.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--ledger: {0}; it is to look like postgres://user:password@host:5432/database")]
pub struct PostgresAddressError(String);

impl FromStr for PostgresAddress {
    type Err = PostgresAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason: &str| Err(PostgresAddressError(reason.to_owned()));
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return refuse("this is no address of a PostgreSQL database");
        }
        let Ok(mut config) = text.parse::<Config>() else {
            return refuse(
                "this address cannot be read (special characters of a password are written as %40)",
            );
        };
        if config.get_hosts().is_empty() || config.get_dbname().is_none() || config.get_user().is_none() {
            return refuse("user, host and database must be named");
        }
        if config.get_ssl_mode() == SslMode::Require {
            return refuse("sslmode=require: this build speaks to PostgreSQL without TLS; leave it out");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("windrow-collector");
        }
        config.tcp_user_timeout(SILENCE).keepalives_idle(SILENCE);
        Ok(Self { config: Box::new(config) })
    }
}

impl PostgresAddress {
    /// For the client library.
    pub(super) fn config(&self) -> Config {
        Config::clone(&self.config)
    }

    /// Why the ledger cannot be opened, and what to do.
    pub(super) fn explain(&self, error: &Error) -> LedgerError {
        let user = self.config.get_user().unwrap_or_default();
        let database = self.config.get_dbname().unwrap_or_default();
        let Some(refusal) = error.as_db_error() else {
            return LedgerError::Unwritable(format!(
                "{self} cannot be reached: {}; is PostgreSQL running there, and is --ledger right?",
                error.source().map_or_else(|| error.to_string(), ToString::to_string)
            ));
        };
        let remedy = match refusal.code() {
            code if *code == SqlState::INVALID_PASSWORD
                || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
            {
                "check user and password in --ledger, and the server's pg_hba.conf".to_owned()
            }
            code if *code == SqlState::INVALID_CATALOG_NAME => format!("make it: createdb {database}"),
            code if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                format!("allow it once: GRANT CREATE ON DATABASE \"{database}\" TO \"{user}\"")
            }
            _ => return super::errors::ledger_error(error),
        };
        LedgerError::Broken(format!("{self}: {}; {remedy}", refusal.message()))
    }
}

impl fmt::Display for PostgresAddress {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "postgres://{}@", self.config.get_user().unwrap_or_default())?;
        let ports = self.config.get_ports();
        for (number, host) in self.config.get_hosts().iter().enumerate() {
            let port = ports.get(number).or(ports.first()).copied().unwrap_or(5432);
            let separator = if number == 0 { "" } else { "," };
            match host {
                Host::Tcp(name) => write!(to, "{separator}{name}:{port}")?,
                Host::Unix(folder) => write!(to, "{separator}{}:{port}", folder.display())?,
            }
        }
        write!(to, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for PostgresAddress {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let address: PostgresAddress = "postgres://ann:s3cret@db:6000/windrow".parse().unwrap();
        assert_eq!(
            format!("{address} {address:?}"),
            "postgres://ann@db:6000/windrow postgres://ann@db:6000/windrow"
        );
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_shown() {
        let wrong = [
            "mysql://ann:s3cret@db/windrow",
            "host=db password=s3cret",
            "postgres://ann:s3cret@db:port/windrow",
            "postgres://ann:s3cret@db",
            "postgres://ann:s3cret@db/windrow?sslmode=require",
        ];
        for text in wrong {
            let error = text.parse::<PostgresAddress>().unwrap_err().to_string();
            assert!(error.contains("--ledger") && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
