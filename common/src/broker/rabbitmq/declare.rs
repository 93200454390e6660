//! Making the topology, and asking about it, on channels of their own: a refusal closes its channel.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, ErrorKind, ExchangeKind};

use super::link::{Link, Live};
use super::topology::{Argument, Arguments, Declaration, Kind};
use crate::broker::BrokerError;

/// A connection that just failed gets a moment to be noticed before it is asked again.
pub(super) const MOMENT: Duration = Duration::from_millis(50);

/// A broker that is well answers within this time. One that does not may have lost what was asked, and is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What `asking` the broker leads to; None when it does not answer.
pub(super) async fn answered<T>(asking: impl Future<Output = T>) -> Option<T> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
    if answer.is_err() {
        tracing::warn!(timeout = ?ANSWER_TIMEOUT, "the broker is connected and does not answer; asking again");
    }
    answer.ok()
}

/// Makes all of `declarations`, in order. Waits while there is no connection. What we may not make but
/// is there already is fine.
pub(super) async fn declare(link: &Link, declarations: &[Declaration]) -> Result<(), BrokerError> {
    loop {
        let live = link.live().await.ok_or(BrokerError::Closed)?;
        if let Some(answer) = answered(declare_on(&live, declarations)).await.flatten() {
            return answer;
        }
        tokio::time::sleep(MOMENT).await;
    }
}

/// None when the connection failed.
async fn declare_on(live: &Live, declarations: &[Declaration]) -> Option<Result<(), BrokerError>> {
    let mut channel = live.channel().await.ok()?;
    for declaration in declarations {
        let Err(error) = make(&channel, declaration, false).await else { continue };
        if refusal(&error)? != AMQPSoftError::ACCESSREFUSED || !is_there(live, declaration).await {
            return Some(Err(refused(declaration, &error)));
        }
        channel = live.channel().await.ok()?;
    }
    close(&channel).await;
    Some(Ok(()))
}

/// Whether a queue or exchange exists. Bindings cannot be asked about: with the queue there, they are
/// taken to be there.
async fn is_there(live: &Live, declaration: &Declaration) -> bool {
    let Ok(channel) = live.channel().await else { return false };
    let there = make(&channel, declaration, true).await.is_ok();
    if there {
        close(&channel).await;
    }
    there
}

/// Messages ready in a queue; none in a queue that is not there.
pub(super) async fn depth(link: &Link, queue: &str) -> Result<u64, BrokerError> {
    loop {
        let live = link.live().await.ok_or(BrokerError::Closed)?;
        if let Some(answer) = answered(depth_on(&live, queue)).await.flatten() {
            return answer;
        }
        tokio::time::sleep(MOMENT).await;
    }
}

async fn depth_on(live: &Live, queue: &str) -> Option<Result<u64, BrokerError>> {
    let channel = live.channel().await.ok()?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
        Ok(found) => {
            close(&channel).await;
            Some(Ok(u64::from(found.message_count())))
        }
        Err(error) => Some(match refusal(&error)? {
            AMQPSoftError::NOTFOUND => Ok(0),
            _ => Err(BrokerError::Refused(error.to_string())),
        }),
    }
}

/// Declares one thing; `passive` only asks for it, and of bindings nothing.
pub(super) async fn make(channel: &Channel, declaration: &Declaration, passive: bool) -> lapin::Result<()> {
    match declaration {
        Declaration::Exchange { name, kind, alternate } => {
            let kind = match kind {
                Kind::Direct => ExchangeKind::Direct,
                Kind::Fanout => ExchangeKind::Fanout,
                Kind::Topic => ExchangeKind::Topic,
            };
            let options =
                ExchangeDeclareOptions { durable: true, passive, ..ExchangeDeclareOptions::default() };
            let alternate = alternate.map(|name| ("alternate-exchange", Argument::Text(name.to_owned())));
            let arguments = table(alternate.into_iter().collect());
            channel.exchange_declare(name.as_str().into(), kind, options, arguments).await
        }
        Declaration::Queue { name, arguments } => {
            let options = QueueDeclareOptions { durable: true, passive, ..QueueDeclareOptions::default() };
            channel.queue_declare(name.as_str().into(), options, table(arguments.clone())).await.map(|_| ())
        }
        Declaration::Binding { .. } if passive => Ok(()),
        Declaration::Binding { queue, exchange, key } => {
            let (queue, exchange) = (queue.as_str().into(), exchange.as_str().into());
            let options = QueueBindOptions::default();
            channel.queue_bind(queue, exchange, key.as_str().into(), options, FieldTable::default()).await
        }
    }
}

/// Arguments as lapin takes them.
pub(super) fn table(arguments: Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(
            name.into(),
            match value {
                Argument::Text(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
                Argument::Int(number) => AMQPValue::LongLongInt(number),
                Argument::Bool(yes) => AMQPValue::Boolean(yes),
            },
        );
    }
    table
}

/// What the broker refused on a channel; None when the connection failed.
pub(super) fn refusal(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => match refusal.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

fn refused(declaration: &Declaration, error: &lapin::Error) -> BrokerError {
    let name = match declaration {
        Declaration::Exchange { name, .. } | Declaration::Queue { name, .. } => name,
        Declaration::Binding { queue, .. } => queue,
    };
    let remedy = match refusal(error) {
        Some(AMQPSoftError::PRECONDITIONFAILED) => {
            "it was made by another version or with other arguments: delete it once it is empty, or use \
             another virtual host"
        }
        Some(AMQPSoftError::ACCESSREFUSED | AMQPSoftError::NOTFOUND) => {
            "give this user the right to configure it, or run `windrow topology apply` as one who may"
        }
        _ => "see the broker's log",
    };
    BrokerError::Refused(format!("the broker refuses `{name}`: {error}; {remedy}"))
}

/// Closes a channel without waiting for long.
pub(super) async fn close(channel: &Channel) {
    let closing = channel.close(200, "done".into());
    drop(tokio::time::timeout(Duration::from_secs(2), closing).await);
}
