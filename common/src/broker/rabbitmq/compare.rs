//! Comparing what is at the broker with what is needed, changing nothing.
//!
//! AMQP 0-9-1 has no question for it. A passive declare tells whether a thing is there. A plain one of what is
//! there changes nothing when all is equal, and is refused with the name of the argument when something is not.
//! Bindings cannot be asked about at all.

use std::fmt;

use lapin::ErrorKind;
use lapin::protocol::AMQPSoftError;

use super::declare::{MOMENT, close, make, refusal};
use super::link::{Link, Live};
use super::topology::Declaration;
use crate::broker::BrokerError;

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many queues and exchanges were looked at.
    pub compared: usize,
    /// Those that are not as they should be.
    pub differences: Vec<Difference>,
}

/// A queue or exchange that is not as it should be. `Display` says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Such as `` queue `windrow.v1.work.main.contacts.push` ``.
    pub what: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a queue or exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// It is not there.
    Missing,
    /// It is of another type or has other arguments: the broker's words.
    Differs(String),
    /// The broker does not let us compare it: its words.
    Unknown(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match &self.problem {
            Problem::Missing => write!(f, "missing  {what}: run `windrow topology apply`"),
            Problem::Differs(words) => write!(
                f,
                "differs  {what}: {words}; delete it once it is empty, then run `windrow topology apply`"
            ),
            Problem::Unknown(words) => {
                write!(f, "unknown  {what}: {words}; check as a user who may configure it")
            }
        }
    }
}

/// Compares queues and exchanges, one after another; bindings among `declarations` are passed over. Waits while
/// there is no connection.
pub(super) async fn compare(link: &Link, declarations: &[Declaration]) -> Result<Comparison, BrokerError> {
    let mut found = Comparison::default();
    for declaration in declarations {
        let what = match declaration {
            Declaration::Exchange { name, .. } => format!("exchange `{name}`"),
            Declaration::Queue { name, .. } => format!("queue `{name}`"),
            Declaration::Binding { .. } => continue,
        };
        found.compared += 1;
        let problem = loop {
            let live = link.live().await.ok_or(BrokerError::Closed)?;
            if let Some(problem) = problem_of(&live, declaration).await {
                break problem;
            }
            tokio::time::sleep(MOMENT).await;
        };
        found.differences.extend(problem.map(|problem| Difference { what, problem }));
    }
    Ok(found)
}

/// None when the connection failed, `Some(None)` when all is well. The plain declare is only made of what is there:
/// it would make what is not.
async fn problem_of(live: &Live, declaration: &Declaration) -> Option<Option<Problem>> {
    for passive in [true, false] {
        let channel = live.channel().await.ok()?;
        match make(&channel, declaration, passive).await {
            Ok(()) => close(&channel).await,
            Err(error) => return Some(Some(meaning(&refusal(&error)?, &words(&error)))),
        }
    }
    Some(None)
}

fn meaning(refusal: &AMQPSoftError, words: &str) -> Problem {
    match refusal {
        // A node that is down makes it `NOT_FOUND`, too, in other words.
        AMQPSoftError::NOTFOUND if words.starts_with("no queue ") || words.starts_with("no exchange ") => {
            Problem::Missing
        }
        AMQPSoftError::PRECONDITIONFAILED => Problem::Differs(words.to_owned()),
        _ => Problem::Unknown(words.to_owned()),
    }
}

/// The broker's text without its code in front.
fn words(error: &lapin::Error) -> String {
    let text = match error.kind() {
        ErrorKind::ProtocolError(refusal) => refusal.get_message().to_string(),
        _ => error.to_string(),
    };
    text.split_once(" - ").map_or(text.as_str(), |(_, words)| words).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_broker_does_not_have_is_missing() {
        let not_found = AMQPSoftError::NOTFOUND;
        assert_eq!(meaning(&not_found, "no queue 'q' in vhost '/'"), Problem::Missing);
        assert_eq!(meaning(&not_found, "no exchange 'e' in vhost '/'"), Problem::Missing);
        let down = "home node 'rabbit@a' of durable queue 'q' in vhost '/' is down or inaccessible";
        assert_eq!(meaning(&not_found, down), Problem::Unknown(down.to_owned()));
        let refused = "access to queue 'q' in vhost '/' refused for user 'u'";
        assert_eq!(meaning(&AMQPSoftError::ACCESSREFUSED, refused), Problem::Unknown(refused.to_owned()));
    }
}
