//! Messages as AMQP 0-9-1 carries them, both ways.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::broker::BrokerError;
use crate::envelope::{HeaderValue, Headers, MAX_BODY_BYTES, Message};

/// AMQP carries properties such as the message id in at most this many bytes.
const SHORT_TEXT_BYTES: usize = 255;

/// A message's headers travel in one frame. RabbitMQ's frames hold 128 KiB unless configured otherwise;
/// the rest is for the other properties.
const MAX_HEADER_BYTES: usize = 120 * 1024;

/// The header of a message that may be a second copy.
const RESENT: &str = "resent";

/// Refuses a message no reader would take, or that the broker would close the connection for. What is parked came from
/// this broker: however large its body is, the broker takes it.
pub(super) fn check(message: &Message, is_parked: bool) -> Result<(), BrokerError> {
    let too_large =
        |bytes, limit| Err(BrokerError::TooLarge { id: short(&message.message_id), bytes, limit });
    if message.body.len() > MAX_BODY_BYTES && !is_parked {
        return too_large(message.body.len(), MAX_BODY_BYTES);
    }
    // Per header: the name, its length, the value's type and its length.
    let header_bytes = message.headers.iter().map(|(name, value)| match value {
        HeaderValue::Text(text) => name.len() + text.len() + 6,
        HeaderValue::Int(_) => name.len() + 10,
    });
    let header_bytes = header_bytes.sum();
    if header_bytes > MAX_HEADER_BYTES {
        return too_large(header_bytes, MAX_HEADER_BYTES);
    }
    let shorts = [message.kind.as_str(), &message.reply_to, &message.content_encoding];
    let names = message.headers.iter().map(|(name, _)| name);
    match shorts.into_iter().chain(names).find(|text| text.len() > SHORT_TEXT_BYTES) {
        Some(text) => too_large(text.len(), SHORT_TEXT_BYTES),
        None => Ok(()),
    }
}

/// The properties of a message that passed [`check`]. `resent` marks it as a possible second copy.
pub(super) fn properties(message: &Message, lasting: bool, resent: bool) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in message.headers.iter() {
        table.insert(
            short_string(name),
            match value {
                HeaderValue::Text(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
                HeaderValue::Int(number) => AMQPValue::LongLongInt(*number),
            },
        );
    }
    if resent {
        table.insert(RESENT.into(), AMQPValue::LongLongInt(1));
    }
    let mut properties = BasicProperties::default()
        .with_type(short_string(&message.kind))
        .with_message_id(short(&message.message_id).into())
        .with_content_type("application/x-ndjson".into())
        .with_delivery_mode(if lasting { 2 } else { 1 })
        .with_headers(table);
    if !message.reply_to.is_empty() {
        properties = properties.with_reply_to(short_string(&message.reply_to));
    }
    if !message.content_encoding.is_empty() {
        properties = properties.with_content_encoding(short_string(&message.content_encoding));
    }
    properties
}

/// A message id as AMQP carries it: itself, or when it is too long its beginning and a digest of it, so
/// that equal ids stay equal and different ones different.
pub(super) fn short(id: &str) -> String {
    if id.len() <= SHORT_TEXT_BYTES {
        return id.to_owned();
    }
    let digest = blake3::hash(id.as_bytes()).to_hex();
    let room = SHORT_TEXT_BYTES - digest.len() - 1;
    let kept = (0..=room).rev().find(|at| id.is_char_boundary(*at)).unwrap_or(0);
    format!("{}~{digest}", &id[..kept])
}

fn short_string(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

/// A message as it came, from anyone. What has no place in [`Message`] is dropped, and so are the headers that brokers
/// write (`x-...`): sent on, they would be taken for this broker's. Nothing is refused here.
pub(super) fn message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut headers = Headers::new();
    if let Some(table) = properties.headers() {
        for (name, value) in table.into_iter().filter(|(name, _)| !name.as_str().starts_with("x-")) {
            if let Some(value) = header_value(value) {
                headers.set(name.as_str(), value);
            }
        }
    }
    Message {
        kind: text(properties.kind()),
        message_id: text(properties.message_id()),
        reply_to: text(properties.reply_to()),
        headers,
        content_encoding: text(properties.content_encoding()),
        body: Bytes::from(body),
    }
}

/// Whole numbers of any width, and text; other kinds of values no header of ours has.
fn header_value(value: &AMQPValue) -> Option<HeaderValue> {
    Some(match value {
        AMQPValue::LongString(text) => HeaderValue::Text(String::from_utf8(text.as_bytes().to_vec()).ok()?),
        AMQPValue::ShortString(text) => HeaderValue::Text(text.to_string()),
        AMQPValue::Boolean(yes) => HeaderValue::Int(i64::from(*yes)),
        AMQPValue::ShortShortInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongLongInt(number) => HeaderValue::Int(*number),
        _ => return None,
    })
}

/// How often the broker says it delivered a message before: absent on a first delivery from newer
/// brokers, 0 from older ones.
pub(super) fn delivery_count(properties: &BasicProperties) -> u32 {
    let count = properties.headers().as_ref().and_then(|table| table.inner().get("x-delivery-count"));
    match count.and_then(header_value) {
        Some(HeaderValue::Int(count)) => u32::try_from(count.max(0)).unwrap_or(u32::MAX),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message_with(id: &str, headers: Headers) -> Message {
        Message {
            kind: "chunk".into(),
            message_id: id.into(),
            reply_to: "p1".into(),
            headers,
            content_encoding: "zstd".into(),
            body: Bytes::from_static(b"1\n"),
        }
    }

    #[test]
    fn a_message_survives_the_way_to_amqp_and_back() {
        let mut headers = Headers::new();
        headers.set_text("job", "contacts");
        headers.set_int("hop", 3);
        let sent = message_with("m", headers);
        let got = message(&properties(&sent, true, false), sent.body.to_vec());
        assert_eq!(got.headers.int("hop"), Ok(3));
        assert_eq!(got.headers.text("job"), Ok("contacts"));
        assert_eq!(Message { headers: sent.headers.clone(), ..got }, sent);
        let resent = message(&properties(&sent, true, true), Vec::new());
        assert_eq!(resent.headers.int("resent"), Ok(1));
    }

    #[test]
    fn numbers_of_any_width_are_numbers_and_odd_values_are_left_out() {
        let mut table = FieldTable::default();
        table.insert("a".into(), AMQPValue::ShortShortUInt(200));
        table.insert("b".into(), AMQPValue::ShortInt(-2));
        table.insert("c".into(), AMQPValue::LongUInt(u32::MAX));
        table.insert("d".into(), AMQPValue::Boolean(true));
        table.insert("e".into(), AMQPValue::Double(0.5));
        table.insert("f".into(), AMQPValue::LongString(vec![0xff].into()));
        table.insert("g".into(), AMQPValue::FieldTable(FieldTable::default()));
        table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        let properties = BasicProperties::default().with_headers(table);
        let got = message(&properties, vec![0xff, 0]);
        assert_eq!(got.headers.int("a"), Ok(200));
        assert_eq!(got.headers.get("b"), Some(&HeaderValue::Int(-2)));
        assert_eq!(got.headers.int("c"), Ok(u64::from(u32::MAX)));
        assert_eq!(got.headers.int("d"), Ok(1));
        for absent in ["e", "f", "g", "x-delivery-count"] {
            assert_eq!(got.headers.get(absent), None);
        }
        assert_eq!(delivery_count(&properties), 7);
        assert_eq!(delivery_count(&BasicProperties::default()), 0);
    }

    #[test]
    fn long_ids_are_cut_to_255_bytes_and_stay_different() {
        let (one, two) = ("ü".repeat(200) + "1", "ü".repeat(200) + "2");
        assert!(short(&one).len() <= 255);
        assert_eq!(short(&one), short(&one));
        assert_ne!(short(&one), short(&two));
        assert_eq!(short("a/b"), "a/b");
    }

    #[test]
    fn what_no_frame_can_hold_is_refused_before_it_is_sent() {
        let mut headers = Headers::new();
        headers.set_text("items", "1,".repeat(100_000));
        assert!(matches!(check(&message_with("m", headers), true), Err(BrokerError::TooLarge { .. })));
        let mut big = message_with("m", Headers::new());
        big.body = vec![0; MAX_BODY_BYTES].into();
        assert!(check(&big, false).is_ok());
        big.body = vec![0; MAX_BODY_BYTES + 1].into();
        assert!(check(&big, true).is_ok());
        assert!(matches!(check(&big, false), Err(BrokerError::TooLarge { limit: MAX_BODY_BYTES, .. })));
    }
}
