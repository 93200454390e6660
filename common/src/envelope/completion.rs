//! What the completion queue carries: the opening, progress and sealing of a run, rejects, outcomes with
//! hand-overs, and the questions of law 4. One queue for all of them, so that their order is their truth.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::chunk::{Span, check_within, read_chunk_id, read_counts, read_hop, write_chunk_id};
use super::{DecodeError, Headers, Message, WIRE_VERSION, decode_body, encode_body};
use crate::ids::{ChunkId, Claimant, JobHash, JobName, ProcessId, RunId, SourceName};
use crate::outcome::Outcome;
use crate::ranges::{Ranges, Runs};

pub use super::latencies::Latencies;
pub use super::question::{Claim, Question};

/// Completions are split so that no body exceeds this.
pub const MAX_COMPLETION_BYTES: usize = 4 * 1024 * 1024;

/// An output larger than this fails its item.
pub const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// A message on the completion queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Completion {
    /// A run begins (or its producer begins again).
    Opened(Opened),
    /// How far the producer has come; sent each second.
    Progress(Progress),
    /// The producer has read its sources to the end.
    Sealed(Sealed),
    /// Rows that were no items.
    Rejects(Rejects),
    /// Items of a chunk that ended, and items handed to the next hop.
    Outcomes(Outcomes),
    /// A copy asks which of its items to run.
    Question(Question),
    /// A collector stands by. Whoever is given this is the active one; there is nothing else to it.
    StandsBy(StandsBy),
    /// A collector's word to itself that claims are overdue.
    Overdue(Overdue),
}

/// A run begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The run.
    pub run: RunId,
    /// The root of its chain of retries; itself otherwise.
    pub root_run: RunId,
    /// The job.
    pub job: JobName,
    /// The hash of the job's stages.
    pub hash: JobHash,
    /// The sources, in the order of the job file.
    pub sources: Vec<SourceName>,
    /// What the sources' bytes hash to (or how they are spooled), to tell whether a run can be resumed.
    pub fingerprint: String,
    /// Unix milliseconds.
    pub started_at: u64,
    /// The producing process.
    pub producer: ProcessId,
}

/// How far a producer has come with one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProgress {
    /// Items accepted and published (confirmed).
    pub accepted: u64,
    /// Chunks published (confirmed).
    pub chunks: u64,
    /// Rows rejected.
    pub rejected: u64,
}

/// How far the producer has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The run.
    pub run: RunId,
    /// The producing process.
    pub producer: ProcessId,
    /// By source. Never runs ahead of what was confirmed.
    pub sources: BTreeMap<SourceName, SourceProgress>,
}

/// The producer has read its sources to the end, or was told to stop: these are the totals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The run.
    pub run: RunId,
    /// Totals by source.
    pub sources: BTreeMap<SourceName, SourceProgress>,
    /// The sources could not be read to the end: why. The run ends as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A row that is no item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The source.
    pub source: SourceName,
    /// The file, as the source names it; `-` for standard input.
    pub file: String,
    /// The line, counted from 1.
    pub line: u64,
    /// Why. Never the row itself.
    pub reason: String,
}

/// Rows that were no items. A reject is known by source, file and line, so a second copy counts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejects {
    /// The run.
    pub run: RunId,
    /// The rows.
    pub rejects: Vec<Reject>,
}

/// Why an item did not succeed: the line of a failed, skipped, expired, cancelled or unknown item.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemError {
    /// A short, bounded word to group by, such as `http_status`, `timeout` or `panic`.
    pub class: String,
    /// What happened, for a person.
    pub message: String,
    /// The HTTP status or the exit code, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<i64>,
}

/// Items of a chunk that ended, and items handed to the next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// The chunk.
    pub id: ChunkId,
    /// What the whole chunk covers.
    pub span: Span,
    /// The hop of the delivery these come from.
    pub hop: u32,
    /// The items that ended. Empty when there are only hand-overs.
    pub items: Ranges,
    /// How each ended, in the order of `items`.
    pub outcomes: Runs<Outcome>,
    /// How often each was tried in all.
    pub attempts: Runs<u32>,
    /// How often each was refused by a limit in all.
    pub throttles: Runs<u32>,
    /// How often each waited without a call in all.
    pub holds: Runs<u32>,
    /// Items that a remainder of `hop + 1`, already confirmed, carries on.
    pub handed_over: Ranges,
    /// How long the attempts took.
    pub latencies: Latencies,
    /// Who had claimed the items, where the effect must not repeat.
    pub claimant: Option<Claimant>,
    /// Claimed items of which the claimant says that nothing was sent.
    pub released: Ranges,
    /// Whether this delivery was run without an answer to its question (law 4).
    pub unasked: bool,
    /// Whether each line begins with the item's id, a JSON string, and a tab.
    pub ids: bool,
    /// One line per item of `items`: the output for one that succeeded, an [`ItemError`] otherwise.
    pub body: Bytes,
}

/// A collector stands by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandsBy {
    /// Which.
    pub process: ProcessId,
}

/// A collector's word to itself: claims whose time had run out at `at` are overdue. It goes through the queue behind
/// every outcome that was sent in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overdue {
    /// Unix milliseconds.
    pub at: u64,
}

impl Completion {
    /// The message. `compress` bodies when that makes them smaller.
    pub fn to_message(&self, compress: bool) -> Message {
        match self {
            Self::Opened(opened) => json_message("opened", format!("{}/opened", opened.run), opened),
            Self::Progress(progress) => {
                json_message("progress", format!("{}/progress", progress.run), progress)
            }
            Self::Sealed(sealed) => json_message("sealed", format!("{}/sealed", sealed.run), sealed),
            Self::Rejects(rejects) => {
                let first = rejects.rejects.first();
                let at = first.map_or(String::new(), |r| format!("{}/{}:{}", r.source, r.file, r.line));
                json_message("rejects", format!("{}/rejects/{at}", rejects.run), rejects)
            }
            Self::Outcomes(outcomes) => outcomes.to_message(compress),
            Self::Question(question) => question.to_message(),
            Self::StandsBy(standing) => {
                json_message("stands_by", format!("{}/stands_by", standing.process), standing)
            }
            Self::Overdue(overdue) => json_message("overdue", format!("overdue/{}", overdue.at), overdue),
        }
    }

    /// Reads a message of the completion queue.
    pub fn from_message(message: &Message) -> Result<Self, DecodeError> {
        message.headers.check_version()?;
        match message.kind.as_str() {
            "opened" => from_json(message).map(Self::Opened),
            "progress" => from_json(message).map(Self::Progress),
            "sealed" => from_json(message).map(Self::Sealed),
            "rejects" => from_json(message).map(Self::Rejects),
            "outcomes" => Outcomes::from_message(message).map(Self::Outcomes),
            "question" => Question::from_message(message).map(Self::Question),
            "stands_by" => from_json(message).map(Self::StandsBy),
            "overdue" => from_json(message).map(Self::Overdue),
            other => Err(DecodeError::Kind(other.to_owned())),
        }
    }
}

impl Outcomes {
    fn to_message(&self, compress: bool) -> Message {
        let mut headers = versioned();
        write_chunk_id(&mut headers, &self.id);
        headers.set_text("span", self.span.to_ranges().to_string());
        headers.set_int("hop", u64::from(self.hop));
        headers.set_text("items", self.items.to_string());
        headers.set_text("outcomes", self.outcomes.to_string());
        headers.set_text("attempts", self.attempts.to_string());
        for (name, counts) in [("throttles", &self.throttles), ("holds", &self.holds)] {
            if counts.iter().any(|count| count > 0) {
                headers.set_text(name, counts.to_string());
            }
        }
        for (name, items) in [("handed_over", &self.handed_over), ("released", &self.released)] {
            if !items.is_empty() {
                headers.set_text(name, items.to_string());
            }
        }
        if let Some(claimant) = &self.claimant {
            headers.set_text("claimant", claimant.as_str());
        }
        if !self.latencies.is_empty() {
            headers.set_text("latencies", self.latencies.to_string());
        }
        for (name, flag) in [("unasked", self.unasked), ("ids", self.ids)] {
            if flag {
                headers.set_int(name, 1);
            }
        }
        let (body, content_encoding) = encode_body(self.body.clone(), compress);
        let message_id = format!("{}/{}/{}", self.id, self.hop, self.items);
        Message {
            kind: "outcomes".into(),
            message_id,
            reply_to: String::new(),
            headers,
            content_encoding,
            body,
        }
    }

    fn from_message(message: &Message) -> Result<Self, DecodeError> {
        let headers = &message.headers;
        let span = Span::parse(headers)?;
        let items: Ranges = headers.parse("items")?;
        let handed_over: Ranges = headers.parse_optional("handed_over")?.unwrap_or_default();
        let released: Ranges = headers.parse_optional("released")?.unwrap_or_default();
        for set in [&items, &handed_over, &released] {
            if !set.is_empty() {
                check_within(set, span)?;
            }
        }
        let outcomes: Runs<Outcome> = headers.parse("outcomes")?;
        if outcomes.len() != items.len() {
            return Err(DecodeError::Invalid(
                "outcomes",
                format!("{} for {} items", outcomes.len(), items.len()),
            ));
        }
        Ok(Self {
            id: read_chunk_id(headers)?,
            span,
            hop: read_hop(headers)?,
            outcomes,
            attempts: read_counts(headers, "attempts", items.len())?,
            throttles: read_counts(headers, "throttles", items.len())?,
            holds: read_counts(headers, "holds", items.len())?,
            items,
            handed_over,
            claimant: headers.parse_optional("claimant")?,
            released,
            latencies: headers.parse_optional("latencies")?.unwrap_or_default(),
            unasked: headers.optional_int("unasked")?.unwrap_or(0) != 0,
            ids: headers.optional_int("ids")?.unwrap_or(0) != 0,
            body: decode_body(message)?,
        })
    }
}

pub(super) fn versioned() -> Headers {
    let mut headers = Headers::new();
    headers.set_int("version", WIRE_VERSION.unsigned_abs());
    headers
}

pub(super) fn json_message<T: Serialize>(kind: &str, message_id: String, body: &T) -> Message {
    // These types hold text, numbers and maps with text keys: writing them cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    Message {
        kind: kind.to_owned(),
        message_id,
        reply_to: String::new(),
        headers: versioned(),
        content_encoding: String::new(),
        body: Bytes::from(body),
    }
}

pub(super) fn from_json<T: DeserializeOwned>(message: &Message) -> Result<T, DecodeError> {
    serde_json::from_slice(&decode_body(message)?).map_err(|error| DecodeError::Body(error.to_string()))
}

#[cfg(test)]
mod tests {

    use super::*;

    fn outcomes() -> Outcomes {
        Outcomes {
            id: ChunkId {
                run: "r1".parse().unwrap(),
                stage: "push".parse().unwrap(),
                source: "main".parse().unwrap(),
                ordinal: 3,
            },
            span: Span { first: 300, count: 100 },
            hop: 1,
            items: "317,320".parse().unwrap(),
            outcomes: Runs::from_iter([Outcome::Succeeded, Outcome::Failed]),
            attempts: Runs::from_iter([1, 4]),
            throttles: Runs::repeat(0, 2),
            holds: Runs::repeat(0, 2),
            handed_over: "321".parse().unwrap(),
            claimant: Some(Claimant::generate()),
            released: "321-322".parse().unwrap(),
            latencies: Latencies::default(),
            unasked: false,
            ids: false,
            body: Bytes::from("{}\n{\"class\":\"http_status\",\"message\":\"503\",\"status\":503}\n"),
        }
    }

    #[test]
    fn completions_survive_the_wire() {
        let run: RunId = "r1".parse().unwrap();
        let progress = Progress {
            run: run.clone(),
            producer: ProcessId::generate(),
            sources: BTreeMap::from([(
                SourceName::only(),
                SourceProgress { accepted: 7, chunks: 1, rejected: 2 },
            )]),
        };
        let question = Question {
            id: outcomes().id,
            span: outcomes().span,
            hop: 0,
            items: "300-399".parse().unwrap(),
            reply_to: ProcessId::generate(),
            token: "t".into(),
            claim: None,
        };
        let claim = Claim {
            claimant: Claimant::generate(),
            holds_ms: 30_000,
            attempts: Runs::from_iter([2, 1, 1]),
            ids: Some(vec!["a\n\u{0}".into(), String::new(), "\u{1F980}".into()]),
        };
        let claiming =
            Question { items: "300,302-303".parse().unwrap(), claim: Some(claim), ..question.clone() };
        for completion in [
            Completion::Outcomes(outcomes()),
            Completion::Progress(progress),
            Completion::Question(question),
            Completion::Question(claiming),
            Completion::Overdue(Overdue { at: 7 }),
            Completion::Rejects(Rejects { run, rejects: vec![] }),
        ] {
            assert_eq!(Completion::from_message(&completion.to_message(true)).unwrap(), completion);
        }
    }
}
