//! The chunk envelope: what a work queue carries.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{DecodeError, Headers, Lines, Message, WIRE_VERSION, decode_body, encode_body};
use crate::ids::{ChunkId, JobHash, JobName, RunId, StageKey, StageName};
use crate::ranges::{Ranges, Runs};

/// The AMQP `type` of a chunk.
pub const KIND: &str = "chunk";

/// The most items a chunk may span.
pub const MAX_CHUNK_ITEMS: u64 = 100_000;

/// The span of a whole chunk: what it covered when it was cut, however little of it a remainder carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The index of the first item.
    pub first: u64,
    /// How many items.
    pub count: u64,
}

impl Span {
    /// The span as a set of indexes.
    pub fn to_ranges(self) -> Ranges {
        Ranges::span(self.first, self.count)
    }

    pub(super) fn parse(headers: &Headers) -> Result<Self, DecodeError> {
        let ranges: Ranges = headers.parse("span")?;
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Err(DecodeError::Invalid("span", "is empty".to_owned()));
        };
        let count = last - first + 1;
        if ranges.len() != count || count > MAX_CHUNK_ITEMS {
            return Err(DecodeError::Invalid("span", format!("must be one range of 1 to {MAX_CHUNK_ITEMS}")));
        }
        Ok(Self { first, count })
    }
}

/// The envelope of a chunk, or of a remainder of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The chunk's identity.
    pub id: ChunkId,
    /// The run at the root of a chain of `windrow retry`; the run itself otherwise.
    pub root_run: RunId,
    /// The job.
    pub job: JobName,
    /// The hash of the job's stages.
    pub hash: JobHash,
    /// What the whole chunk covers.
    pub span: Span,
    /// The items this message carries, one line of the body each.
    pub items: Ranges,
    /// How often each item was tried before, in the order of `items`.
    pub attempts: Runs<u32>,
    /// How often each item's call was refused by a limit.
    pub throttles: Runs<u32>,
    /// How often each item waited without a call.
    pub holds: Runs<u32>,
    /// How often the chunk's rest was sent on: 0 as cut, then one more for each remainder.
    pub hop: u32,
    /// Milliseconds this chunk was held without being able to run (laws 4 and 9).
    pub held_ms: u64,
    /// Unix milliseconds before which the items are not to run.
    pub not_before: Option<u64>,
    /// Unix milliseconds after which the items are not to run.
    pub expires: Option<u64>,
    /// Whether this may be a second copy: re-sent after an unknown confirm or a crash.
    pub resent: bool,
    /// Whether it is to run with nothing else in its process, from [`crate::broker::Queue::Alone`].
    pub alone: bool,
    /// How often it was delivered without an answer before it was sent on as it is.
    pub returns: u32,
    /// The top-level field of an item that users call it by.
    pub id_field: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

impl ChunkHeader {
    /// The queue family the chunk belongs to.
    pub fn stage_key(&self) -> StageKey {
        StageKey { job: self.job.clone(), stage: self.id.stage.clone() }
    }

    /// Whether a copy of this message may have been worked on (law 4), apart from redelivery.
    pub fn may_be_copy(&self) -> bool {
        self.resent || self.hop > 0
    }

    /// `run/stage/source/ordinal/hop/ranges`.
    pub fn message_id(&self) -> String {
        format!("{}/{}/{}", self.id, self.hop, self.items)
    }

    /// The message: `body` has one line per item of `items`.
    pub fn to_message(&self, body: Bytes, compress: bool) -> Message {
        let (body, content_encoding) = encode_body(body, compress);
        Message {
            kind: KIND.to_owned(),
            message_id: self.message_id(),
            reply_to: String::new(),
            headers: self.headers(),
            content_encoding,
            body,
        }
    }

    fn headers(&self) -> Headers {
        let mut headers = Headers::new();
        headers.set_int("version", WIRE_VERSION.unsigned_abs());
        write_chunk_id(&mut headers, &self.id);
        headers.set_text("root_run", self.root_run.as_str());
        headers.set_text("job", self.job.as_str());
        headers.set_text("hash", self.hash.as_str());
        headers.set_text("span", self.span.to_ranges().to_string());
        headers.set_text("items", self.items.to_string());
        headers.set_int("hop", u64::from(self.hop));
        for (name, counts) in
            [("attempts", &self.attempts), ("throttles", &self.throttles), ("holds", &self.holds)]
        {
            if counts.iter().any(|count| count > 0) {
                headers.set_text(name, counts.to_string());
            }
        }
        if self.held_ms > 0 {
            headers.set_int("held_ms", self.held_ms);
        }
        for (name, is_so) in [("resent", self.resent), ("alone", self.alone)] {
            if is_so {
                headers.set_int(name, 1);
            }
        }
        if self.returns > 0 {
            headers.set_int("returns", u64::from(self.returns));
        }
        for (name, value) in [("not_before", self.not_before), ("expires", self.expires)] {
            if let Some(value) = value {
                headers.set_int(name, value);
            }
        }
        for (name, value) in [("id_field", &self.id_field), ("traceparent", &self.traceparent)] {
            if let Some(value) = value {
                headers.set_text(name, value);
            }
        }
        headers
    }

    /// Reads a chunk: its envelope, and one line per item in the order of `items`.
    pub fn from_message(message: &Message) -> Result<(Self, Vec<Bytes>), DecodeError> {
        if message.kind != KIND {
            return Err(DecodeError::Kind(message.kind.clone()));
        }
        message.headers.check_version()?;
        let header = Self::read(&message.headers)?;
        // A body of nothing but line breaks would cost far more as lines than as bytes.
        let most = usize::try_from(header.items.len()).unwrap_or(usize::MAX).saturating_add(1);
        let lines: Vec<Bytes> = Lines::new(decode_body(message)?).take(most).collect();
        if lines.len() as u64 != header.items.len() {
            let reason = format!("{} lines for {} items", lines.len(), header.items.len());
            return Err(DecodeError::Body(reason));
        }
        Ok((header, lines))
    }

    /// Reads the envelope alone, whatever its version: enough to tell which items of which run a chunk that cannot be
    /// handled is about.
    pub fn read(headers: &Headers) -> Result<Self, DecodeError> {
        let span = Span::parse(headers)?;
        let items: Ranges = headers.parse("items")?;
        check_within(&items, span)?;
        Ok(Self {
            id: read_chunk_id(headers)?,
            root_run: headers.parse("root_run")?,
            job: headers.parse("job")?,
            hash: headers.parse("hash")?,
            span,
            attempts: read_counts(headers, "attempts", items.len())?,
            throttles: read_counts(headers, "throttles", items.len())?,
            holds: read_counts(headers, "holds", items.len())?,
            items,
            hop: read_hop(headers)?,
            alone: headers.optional_int("alone")?.unwrap_or(0) != 0,
            returns: u32::try_from(headers.optional_int("returns")?.unwrap_or(0)).unwrap_or(u32::MAX),
            held_ms: headers.optional_int("held_ms")?.unwrap_or(0),
            not_before: headers.optional_int("not_before")?,
            expires: headers.optional_int("expires")?,
            resent: headers.optional_int("resent")?.unwrap_or(0) != 0,
            id_field: headers.parse_optional("id_field")?,
            traceparent: headers.parse_optional("traceparent")?,
        })
    }
}

/// The most characters of an id that are kept.
const MAX_ID_CHARS: usize = 200;

/// An item's id as a JSON string: its top-level `field`; `""` when that is not there or is neither text nor a number.
pub fn id_of(raw: &[u8], field: &str) -> String {
    let text = top_level(raw, field).map(|value| match serde_json::from_str::<String>(value) {
        Ok(text) => text,
        Err(_) if value.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => value.to_owned(),
        Err(_) => String::new(),
    });
    let text: String = text.unwrap_or_default().chars().take(MAX_ID_CHARS).collect();
    serde_json::Value::String(text).to_string()
}

/// The value of a top-level field, unparsed.
fn top_level<'a>(raw: &'a [u8], field: &str) -> Option<&'a str> {
    #[derive(Deserialize)]
    struct Fields<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);

    let fields: Fields<'a> = serde_json::from_slice(raw).ok()?;
    fields.0.get(field).map(|value| value.get())
}

pub(super) fn write_chunk_id(headers: &mut Headers, id: &ChunkId) {
    headers.set_text("run", id.run.as_str());
    headers.set_text("stage", id.stage.as_str());
    headers.set_text("source", id.source.as_str());
    headers.set_int("ordinal", id.ordinal);
}

pub(super) fn read_chunk_id(headers: &Headers) -> Result<ChunkId, DecodeError> {
    Ok(ChunkId {
        run: headers.parse("run")?,
        stage: headers.parse::<StageName>("stage")?,
        source: headers.parse("source")?,
        ordinal: headers.int("ordinal")?,
    })
}

pub(super) fn read_hop(headers: &Headers) -> Result<u32, DecodeError> {
    let hop = headers.optional_int("hop")?.unwrap_or(0);
    u32::try_from(hop).map_err(|_| DecodeError::Invalid("hop", "is too large".to_owned()))
}

pub(super) fn check_within(items: &Ranges, span: Span) -> Result<(), DecodeError> {
    let inside = |index: u64| index >= span.first && index - span.first < span.count;
    match (items.first(), items.last()) {
        (Some(first), Some(last)) if inside(first) && inside(last) => Ok(()),
        (None, None) => Err(DecodeError::Invalid("items", "is empty".to_owned())),
        _ => Err(DecodeError::Invalid("items", "reach outside the span".to_owned())),
    }
}

/// Counts that may be absent, which means all are 0.
pub(super) fn read_counts(
    headers: &Headers,
    name: &'static str,
    expected: u64,
) -> Result<Runs<u32>, DecodeError> {
    let counts = headers.parse_optional(name)?.unwrap_or_else(|| Runs::repeat(0u32, expected));
    if counts.len() == expected {
        Ok(counts)
    } else {
        Err(DecodeError::Invalid(name, format!("{} values for {expected} items", counts.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::HeaderValue::{self, Int, Text};
    use super::*;

    fn header() -> ChunkHeader {
        ChunkHeader {
            id: ChunkId {
                run: "r1".parse().unwrap(),
                stage: "push".parse().unwrap(),
                source: "main".parse().unwrap(),
                ordinal: 3,
            },
            root_run: "r0".parse().unwrap(),
            job: "sync".parse().unwrap(),
            hash: "00ff".parse().unwrap(),
            span: Span { first: 300, count: 100 },
            items: "317,320-321".parse().unwrap(),
            attempts: Runs::from_iter([1, 1, 2]),
            throttles: Runs::repeat(0, 3),
            holds: Runs::repeat(0, 3),
            hop: 1,
            held_ms: 0,
            not_before: Some(1_700_000_000_000),
            expires: None,
            resent: true,
            alone: true,
            returns: 2,
            id_field: Some("email".into()),
            traceparent: None,
        }
    }

    #[test]
    fn a_remainder_survives_the_wire() {
        let body = Bytes::from("{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n");
        let message = header().to_message(body, true);
        assert_eq!(message.message_id, "r1/push/main/3/1/317,320-321");
        let (read, lines) = ChunkHeader::from_message(&message).unwrap();
        assert_eq!(read, header());
        assert_eq!(lines[2], "{\"a\":3}");
    }

    #[test]
    fn hostile_envelopes_are_errors_not_panics() {
        let good = header().to_message(Bytes::from("1\n2\n3\n"), false);
        let spoil = |name: &str, value: HeaderValue| {
            let mut message = good.clone();
            message.headers.set(name, value);
            ChunkHeader::from_message(&message)
        };
        for (name, value) in [
            ("span", Text("0-99999999999".into())),
            ("span", Text("300-310,312".into())),
            ("items", Text("317,320-400".into())),
            ("items", Text(String::new())),
            ("items", Text("317".into())),
            ("attempts", Text("1*2".into())),
            ("version", Int(9)),
            ("hop", Int(-1)),
            ("hop", Int(i64::MAX)),
            ("run", Text("../x".into())),
            ("ordinal", Text("1".into())),
        ] {
            assert!(spoil(name, value.clone()).is_err(), "{name} = {value:?}");
        }
        let bare = Message { headers: Headers::new(), ..good };
        assert!(ChunkHeader::from_message(&bare).is_err());
    }
}
