//! A dead letter as people see it, and as it was before it died. Whatever it says came from anyone: it is cut and
//! cleaned before it reaches a terminal.

use std::io::IsTerminal;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use windrow_common::broker::parking::{Death, unmarked};
use windrow_common::broker::{Outgoing, Queue, Target};
use windrow_common::envelope::{HeaderValue, Headers, Message, chunk, decode_body};

/// The longest text shown of one header.
const SHOWN_CHARS: usize = 200;

/// Hexadecimal digits of an id.
const ID_DIGITS: usize = 11;

/// A dead letter.
pub(super) struct Letter {
    position: u64,
    id: String,
    death: Death,
    message: Message,
}

impl Letter {
    /// The letter at `position`, counted from 1.
    pub(super) fn of(position: u64, message: &Message) -> Self {
        let death = Death::of(message).unwrap_or_else(|| Death {
            reason: "unknown: it was sent to the parking queue as it is".to_owned(),
            ..Death::default()
        });
        let message = Message { headers: unmarked(&message.headers), ..message.clone() };
        Self { position, id: id(&message), death, message }
    }

    /// What it is known by: equal messages have the same. Begins with a letter, so it is never a position.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// How many items ended as failed when it was parked, if any did.
    pub(super) fn failed_items(&self) -> Option<u64> {
        self.death.failed_items.filter(|items| *items > 0)
    }

    /// The message that died, on its way back to where it was. A chunk is marked so that it asks before it runs
    /// (law 4), and what it was held for is forgotten.
    pub(super) fn original(&self) -> Result<Outgoing, String> {
        let Some(queue) = &self.death.from else {
            return Err("it is not known where it came from; drop it".to_owned());
        };
        if self.death.headers_left_out > 0 {
            return Err("its headers were too large to be kept whole; drop it".to_owned());
        }
        let mut message = self.message.clone();
        if message.kind == chunk::KIND {
            let mut headers = Headers::new();
            for (name, value) in message.headers.iter().filter(|(name, _)| *name != "held_ms") {
                headers.set(name, value.clone());
            }
            headers.set_int("resent", 1);
            message.headers = headers;
        }
        Ok(Outgoing { target: Target::Queue(queue.clone()), message })
    }

    /// The body, decompressed where it can be; as it is, unless a terminal would act on it.
    pub(super) fn body(&self) -> Bytes {
        let body = decode_body(&self.message).unwrap_or_else(|_| self.message.body.clone());
        if !std::io::stdout().is_terminal() {
            return body;
        }
        let lines: Vec<String> = String::from_utf8_lossy(&body).lines().map(clean).collect();
        Bytes::from(lines.join("\n") + "\n")
    }

    /// What stands above [`Letter::line`]s.
    pub(super) fn heading() -> String {
        format!(
            "{:>4}  {:<12}  {:<20}  {:<10}  {:>9}  {:<36}  REASON",
            "N", "ID", "PARKED", "FROM", "BYTES", "RUN"
        )
    }

    /// One line.
    pub(super) fn line(&self) -> String {
        format!(
            "{:>4}  {:<12}  {:<20}  {:<10}  {:>9}  {:<36}  {}",
            self.position,
            self.id,
            self.parked_at().unwrap_or_else(|| "-".to_owned()),
            self.death.from.as_ref().map_or("-", Queue::kind),
            self.message.body.len(),
            self.header("run").unwrap_or_else(|| "-".to_owned()),
            clean(&self.death.reason),
        )
    }

    /// All but the body, a line for each thing known.
    pub(super) fn shown(&self) -> String {
        let mut lines = vec![
            format!("id          {}", self.id),
            format!("position    {}", self.position),
            format!("reason      {}", clean(&self.death.reason)),
        ];
        let from = self.death.from.as_ref().map(|queue| match queue.stage() {
            Some(key) => format!("{} of {key}", queue.kind()),
            None => queue.kind().to_owned(),
        });
        let failed = self.death.failed_items.map(|items| items.to_string());
        let left_out = Some(self.death.headers_left_out).filter(|count| *count > 0);
        for (name, value) in [
            ("from", from),
            ("parked", self.parked_at()),
            ("failed", failed),
            ("left out", left_out.map(|count| format!("{count} headers: it is not whole"))),
            ("kind", some(&self.message.kind)),
            ("message id", some(&self.message.message_id)),
        ] {
            lines.extend(value.map(|value| format!("{name:<12}{value}")));
        }
        lines.push(format!("{:<12}{} bytes", "body", self.message.body.len()));
        for (name, _) in self.message.headers.iter() {
            let value = self.header(name).unwrap_or_default();
            lines.push(format!("{:<12}{} = {value}", "header", clean(name)));
        }
        lines.join("\n")
    }

    /// All but the body, for programs.
    pub(super) fn json(&self) -> Value {
        let headers = self.message.headers.iter().map(|(name, value)| {
            let value = match value {
                HeaderValue::Text(text) => json!(text),
                HeaderValue::Int(number) => json!(number),
            };
            (name.to_owned(), value)
        });
        let key = self.death.from.as_ref().and_then(Queue::stage);
        json!({
            "position": self.position,
            "id": self.id,
            "reason": self.death.reason,
            "from": self.death.from.as_ref().map(Queue::kind),
            "job": key.map(|key| &key.job),
            "stage": key.map(|key| &key.stage),
            "parked_at": self.parked_at(),
            "failed_items": self.death.failed_items,
            "headers_left_out": self.death.headers_left_out,
            "kind": self.message.kind,
            "message_id": self.message.message_id,
            "bytes": self.message.body.len(),
            "headers": headers.collect::<serde_json::Map<_, _>>(),
        })
    }

    fn parked_at(&self) -> Option<String> {
        let at = Timestamp::from_millisecond(i64::try_from(self.death.at_ms?).ok()?).ok()?;
        Some(format!("{at:.0}"))
    }

    fn header(&self, name: &str) -> Option<String> {
        Some(match self.message.headers.get(name)? {
            HeaderValue::Text(text) => clean(text),
            HeaderValue::Int(number) => number.to_string(),
        })
    }
}

/// Over all that was sent, and nothing that was added since.
fn id(message: &Message) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for text in [&message.kind, &message.message_id, &message.reply_to, &message.content_encoding] {
        add(text.as_bytes());
    }
    // A broker gives the headers back in an order of its own.
    let mut headers: Vec<_> = message.headers.iter().filter(|(name, _)| *name != "resent").collect();
    headers.sort_unstable_by_key(|(name, _)| *name);
    for (name, value) in headers {
        add(name.as_bytes());
        match value {
            HeaderValue::Text(text) => add(text.as_bytes()),
            HeaderValue::Int(number) => add(&number.to_le_bytes()),
        }
    }
    add(&message.body);
    format!("d{}", &hasher.finalize().to_hex()[..ID_DIGITS])
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| clean(text))
}

/// What a terminal may be given of a text: no control characters, and not too much.
fn clean(text: &str) -> String {
    let mut clean = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == SHOWN_CHARS {
            clean.push('…');
            break;
        }
        if character.is_control() { clean.extend(character.escape_default()) } else { clean.push(character) }
    }
    clean
}

#[cfg(test)]
mod tests {
    use windrow_common::ids::StageKey;

    use super::*;

    fn work() -> Queue {
        Queue::Work(StageKey { job: "sync".parse().unwrap(), stage: "push".parse().unwrap() })
    }

    fn message(kind: &str) -> Message {
        let mut headers = Headers::new();
        headers.set_text("run", "r1\u{1b}[2J");
        headers.set_int("held_ms", 600_000);
        Message {
            kind: kind.to_owned(),
            message_id: "m".to_owned(),
            reply_to: String::new(),
            headers,
            content_encoding: String::new(),
            body: Bytes::from_static(b"{}\n"),
        }
    }

    #[test]
    fn what_is_sent_back_is_what_died_and_a_chunk_asks() {
        let letter = |kind| Letter::of(1, &Death::new("why", &work(), 5).mark(&message(kind)));
        let back = letter("outcomes").original().unwrap();
        assert_eq!(back, Outgoing { target: Target::Queue(work()), message: message("outcomes") });
        let back = letter("chunk").original().unwrap().message;
        assert_eq!((back.headers.int("resent"), back.headers.get("held_ms")), (Ok(1), None));
        assert_eq!(back.headers.get("parked_reason"), None);
    }

    #[test]
    fn what_is_not_whole_or_came_from_nowhere_is_not_sent_back() {
        assert!(Letter::of(1, &message("chunk")).original().unwrap_err().contains("not known"));
        let death = Death { headers_left_out: 1, ..Death::new("why", &work(), 5) };
        assert!(Letter::of(1, &death.mark(&message("chunk"))).original().unwrap_err().contains("whole"));
    }

    #[test]
    fn an_id_is_of_the_message_alone() {
        let id = |message: &Message| Letter::of(1, message).id().to_owned();
        let parked = Death::new("why", &work(), 5).mark(&message("chunk"));
        let parked_again = Death::new("other", &Queue::Completion, 9).mark(&parked);
        assert_eq!((id(&parked), id(&parked_again)), (id(&message("chunk")), id(&message("chunk"))));
        assert_ne!(id(&message("chunk")), id(&message("outcomes")));
        assert!(id(&message("")).starts_with('d'));
        assert_eq!(id(&message("")).len(), 1 + ID_DIGITS);
    }

    #[test]
    fn nothing_a_terminal_would_act_on_is_shown() {
        let letter = Letter::of(1, &Death::new("no\u{7}\nroom", &work(), 5).mark(&message("chunk")));
        for text in [letter.line(), letter.shown().replace('\n', "")] {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
        assert!(clean(&"x".repeat(10_000)).chars().count() <= SHOWN_CHARS + 1);
    }
}
