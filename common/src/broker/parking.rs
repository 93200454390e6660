//! Dead letters: messages nobody can handle, marked with the reason and put where a person sees them.
//!
//! What cannot be read at all goes straight to the parking queue. A chunk whose envelope can be read belongs to a
//! run, which would wait for it for ever: it goes to the completion queue, marked, and the collector ends its open
//! items as failed before it parks the chunk. The broker does the same with a chunk it has delivered too often.

use super::{Outgoing, Queue, Target};
use crate::envelope::chunk::{ChunkHeader, KIND};
use crate::envelope::{Headers, Message};
use crate::ids::StageKey;

/// A marked message keeps this much of its headers, so that with the mark they still fit into one frame (128 KiB).
/// Every chunk of ours has less.
const KEPT_HEADER_BYTES: usize = 112 * 1024;

/// A reason is kept up to this length.
const REASON_CHARS: usize = 500;

/// The reason of what was delivered too often.
pub(crate) const DELIVERED_TOO_OFTEN: &str =
    "delivered too often: every consumer that had it went away without settling it";

const REASON: &str = "parked_reason";
const FROM: &str = "parked_from";
const JOB: &str = "parked_job";
const STAGE: &str = "parked_stage";
const AT: &str = "parked_at";
const FAILED: &str = "parked_failed";
const LEFT_OUT: &str = "parked_headers_left_out";

/// Why a message is dead, as its headers say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Death {
    /// Why nobody can handle it.
    pub reason: String,
    /// The queue it was in, where that is known.
    pub from: Option<Queue>,
    /// When it was given up, in Unix milliseconds.
    pub at_ms: Option<u64>,
    /// Of a chunk that came by the collector: how many of its items ended as failed for this reason.
    pub failed_items: Option<u64>,
    /// Headers that had to be left out when it was marked: the message is not whole.
    pub headers_left_out: u64,
}

impl Death {
    /// The death of a message that was in `from`.
    pub fn new(reason: impl Into<String>, from: &Queue, at_ms: u64) -> Self {
        Self { reason: reason.into(), from: Some(from.clone()), at_ms: Some(at_ms), ..Self::default() }
    }

    /// What a marked message says; None of one that is not marked. Whoever wrote the headers may lie: it is for
    /// people, and for sending the message back.
    pub fn of(message: &Message) -> Option<Self> {
        let headers = &message.headers;
        let reason = headers.text(REASON).ok()?.to_owned();
        let number = |name| headers.optional_int(name).ok().flatten();
        Some(Self {
            reason,
            from: origin(headers),
            at_ms: number(AT),
            failed_items: number(FAILED),
            headers_left_out: number(LEFT_OUT).unwrap_or(0),
        })
    }

    /// The message with this death in place of an earlier one, and without what the broker wrote on it. Headers
    /// beyond 112 KiB are left out and counted, so whatever was sent to us can be marked.
    #[must_use]
    pub fn mark(&self, message: &Message) -> Message {
        let mut room = KEPT_HEADER_BYTES;
        let mut headers = Headers::new();
        let mut left_out = self.headers_left_out;
        for (name, value) in unmarked(&message.headers).iter() {
            match room.checked_sub(name.len() + value.bytes()) {
                Some(left) => {
                    room = left;
                    headers.set(name, value.clone());
                }
                None => left_out += 1,
            }
        }
        headers.set_text(REASON, self.reason.chars().take(REASON_CHARS).collect::<String>());
        if let Some(from) = &self.from {
            headers.set_text(FROM, from.kind());
            if let Some(key) = from.stage() {
                headers.set_text(JOB, key.job.as_str());
                headers.set_text(STAGE, key.stage.as_str());
            }
        }
        let left_out = (left_out > 0).then_some(left_out);
        for (name, value) in [(AT, self.at_ms), (FAILED, self.failed_items), (LEFT_OUT, left_out)] {
            if let Some(value) = value {
                headers.set_int(name, value);
            }
        }
        Message { headers, ..message.clone() }
    }

    /// The message marked and on its way: a chunk that can be told to belong to a run goes to the collector, anything
    /// else to the parking queue.
    pub fn outgoing(&self, message: &Message) -> Outgoing {
        let is_of_a_run = message.kind == KIND && ChunkHeader::read(&message.headers).is_ok();
        let queue = if is_of_a_run { Queue::Completion } else { Queue::Parking };
        Outgoing { target: Target::Queue(queue), message: self.mark(message) }
    }
}

/// Whether a message is marked as dead. Such a one came from this broker, so the broker takes it however large it is.
pub(crate) fn is_marked(message: &Message) -> bool {
    message.headers.get(REASON).is_some()
}

/// A dead letter's headers as they were sent: without its mark, and without what brokers add (`x-...`), which must not be
/// sent again.
pub fn unmarked(headers: &Headers) -> Headers {
    let is_own = |name: &str| !name.starts_with("parked_") && !name.starts_with("x-");
    let mut own = Headers::new();
    for (name, value) in headers.iter().filter(|(name, _)| is_own(name)) {
        own.set(name, value.clone());
    }
    own
}

/// The queue a marked message was in. Clients that do not say whose queue it was leave it to the chunk's own headers.
fn origin(headers: &Headers) -> Option<Queue> {
    let key = || {
        let name = |marked, own| if headers.get(marked).is_some() { marked } else { own };
        Some(StageKey {
            job: headers.parse(name(JOB, "job")).ok()?,
            stage: headers.parse(name(STAGE, "stage")).ok()?,
        })
    };
    match headers.text(FROM).ok()? {
        "work" => key().map(Queue::Work),
        "due" => key().map(Queue::Due),
        "held" => key().map(Queue::Held),
        "alone" => key().map(Queue::Alone),
        "completion" => Some(Queue::Completion),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message() -> Message {
        let mut headers = Headers::new();
        headers.set_text("job", "sync");
        headers.set_text("stage", "push");
        headers.set_int("hop", 3);
        headers.set_int("x-delivery-count", 7);
        Message {
            kind: "chunk".into(),
            message_id: "m".into(),
            reply_to: String::new(),
            headers,
            content_encoding: String::new(),
            body: Bytes::from_static(b"{}"),
        }
    }

    fn push() -> StageKey {
        StageKey { job: "a.b".parse().unwrap(), stage: "push".parse().unwrap() }
    }

    #[test]
    fn a_mark_survives_and_comes_off_again() {
        let stage = [Queue::Work(push()), Queue::Due(push()), Queue::Held(push()), Queue::Alone(push())];
        for from in stage.into_iter().chain([Queue::Completion]) {
            let death = Death { failed_items: Some(9), ..Death::new("why", &from, 1_000) };
            let marked = death.mark(&message());
            assert_eq!(Death::of(&marked), Some(death.clone()), "{from:?}");
            assert!(is_marked(&marked) && marked.headers.get("x-delivery-count").is_none());
            // Marked again, it has the later mark alone.
            let again = Death { reason: "again".into(), ..death };
            assert_eq!(Death::of(&again.mark(&marked)), Some(again));
            let own = unmarked(&marked.headers);
            assert_eq!(own.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["job", "stage", "hop"]);
        }
        assert_eq!((Death::of(&message()), is_marked(&message())), (None, false));
    }

    #[test]
    fn a_client_need_not_say_whose_queue_it_was() {
        let mut theirs = message();
        theirs.headers.set_text("parked_reason", "no");
        theirs.headers.set_text("parked_from", "work");
        let key = StageKey { job: "sync".parse().unwrap(), ..push() };
        assert_eq!(Death::of(&theirs).unwrap().from, Some(Queue::Work(key)));
        theirs.headers.set_text("job", "../no name");
        assert_eq!(Death::of(&theirs).unwrap().from, None);
    }

    #[test]
    fn a_marked_message_fits_whatever_it_brought_and_says_what_is_missing() {
        let mut message = message();
        message.headers.set_text("big", "x".repeat(115_000));
        let death = Death::new("r".repeat(10_000), &Queue::Completion, 1);
        let marked = death.mark(&message);
        assert_eq!(marked.headers.text("parked_reason").unwrap().len(), REASON_CHARS);
        assert_eq!((marked.headers.int("hop"), marked.headers.get("big")), (Ok(3), None));
        let read = Death::of(&marked).unwrap();
        assert_eq!(read.headers_left_out, 1);
        assert_eq!(Death::of(&read.mark(&marked)).unwrap().headers_left_out, 1, "still not whole");
    }

    #[test]
    fn only_a_chunk_whose_items_can_be_told_goes_to_the_collector() {
        let death = Death::new("why", &Queue::Work(push()), 1);
        assert_eq!(death.outgoing(&message()).target, Target::Queue(Queue::Parking));
        let mut chunk = message();
        for (name, value) in [
            ("run", "r1"),
            ("root_run", "r1"),
            ("source", "main"),
            ("hash", "00ff"),
            ("span", "0-9"),
            ("items", "2,5-6"),
        ] {
            chunk.headers.set_text(name, value);
        }
        chunk.headers.set_int("ordinal", 0);
        assert_eq!(death.outgoing(&chunk).target, Target::Queue(Queue::Completion));
        chunk.kind = "outcomes".into();
        assert_eq!(death.outgoing(&chunk).target, Target::Queue(Queue::Parking));
    }
}
