//! What a delivery asks the collector: which of its items to run (law 4), and to let it claim them.

use bytes::{BufMut, Bytes, BytesMut};

use super::chunk::{Span, check_within, read_chunk_id, read_counts, read_hop, write_chunk_id};
use super::completion::versioned;
use super::{DecodeError, Lines, Message, decode_body};
use crate::ids::{ChunkId, Claimant, ProcessId};
use crate::ranges::{Ranges, Runs};

/// A copy asks which of its items to run; where the effect must not repeat, a delivery asks for each call it is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The chunk.
    pub id: ChunkId,
    /// What the whole chunk covers.
    pub span: Span,
    /// The hop of the asking delivery.
    pub hop: u32,
    /// The items it carries, or claims.
    pub items: Ranges,
    /// The asking process; the answer goes to its own queue.
    pub reply_to: ProcessId,
    /// Drawn by the asker, returned in the answer.
    pub token: String,
    /// The items that the answer names are the claimant's alone from then on.
    pub claim: Option<Claim>,
}

/// The terms of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Who claims.
    pub claimant: Claimant,
    /// How long from the answer on nobody else may have the items; then they end as unknown. In milliseconds.
    pub holds_ms: u64,
    /// For each item, which attempt is to be made, counted from 1.
    pub attempts: Runs<u32>,
    /// What users call each item, where the source says so; empty for one without an id.
    pub ids: Option<Vec<String>>,
}

impl Question {
    pub(super) fn to_message(&self) -> Message {
        let mut headers = versioned();
        write_chunk_id(&mut headers, &self.id);
        headers.set_text("span", self.span.to_ranges().to_string());
        headers.set_int("hop", u64::from(self.hop));
        headers.set_text("items", self.items.to_string());
        headers.set_text("token", self.token.as_str());
        let mut body = Bytes::new();
        if let Some(claim) = &self.claim {
            headers.set_text("claimant", claim.claimant.as_str());
            headers.set_int("claim_ms", claim.holds_ms);
            headers.set_text("attempts", claim.attempts.to_string());
            if let Some(ids) = &claim.ids {
                headers.set_int("ids", 1);
                body = id_lines(ids);
            }
        }
        Message {
            kind: "question".into(),
            message_id: format!("{}/{}/{}/{}", self.id, self.hop, self.items, self.token),
            reply_to: self.reply_to.to_string(),
            headers,
            content_encoding: String::new(),
            body,
        }
    }

    pub(super) fn from_message(message: &Message) -> Result<Self, DecodeError> {
        let headers = &message.headers;
        let span = Span::parse(headers)?;
        let items: Ranges = headers.parse("items")?;
        check_within(&items, span)?;
        let reply_to = message.reply_to.parse();
        Ok(Self {
            id: read_chunk_id(headers)?,
            span,
            hop: read_hop(headers)?,
            reply_to: reply_to.map_err(|_| DecodeError::Invalid("reply_to", "is no process".to_owned()))?,
            token: headers.parse("token")?,
            claim: Claim::from_message(message, items.len())?,
            items,
        })
    }
}

impl Claim {
    fn from_message(message: &Message, items: u64) -> Result<Option<Self>, DecodeError> {
        let headers = &message.headers;
        let Some(claimant) = headers.parse_optional("claimant")? else { return Ok(None) };
        let has_ids = headers.optional_int("ids")?.unwrap_or(0) != 0;
        let ids = has_ids.then(|| read_ids(message, items)).transpose()?;
        let attempts = read_counts(headers, "attempts", items)?;
        Ok(Some(Self { claimant, holds_ms: headers.int("claim_ms")?, attempts, ids }))
    }
}

fn id_lines(ids: &[String]) -> Bytes {
    let mut body = BytesMut::new();
    for id in ids {
        body.put_slice(serde_json::Value::from(id.as_str()).to_string().as_bytes());
        body.put_u8(b'\n');
    }
    body.freeze()
}

fn read_ids(message: &Message, items: u64) -> Result<Vec<String>, DecodeError> {
    let read =
        |line: Bytes| serde_json::from_slice(&line).map_err(|error| DecodeError::Body(error.to_string()));
    let ids = Lines::new(decode_body(message)?).map(read).collect::<Result<Vec<String>, _>>()?;
    if ids.len() as u64 == items {
        Ok(ids)
    } else {
        Err(DecodeError::Body(format!("{} ids for {items} items", ids.len())))
    }
}
