//! From the lines of a completion to the lines of a sink, without building a tree.
//!
//! What a message carries is never trusted: each value is checked to be one JSON value, so a hostile body
//! cannot break the file.

use memchr::{memchr, memchr_iter};
use serde::de::IgnoredAny;
use windrow_common::envelope::completion::{ItemError, Outcomes};
use windrow_common::ids::SourceName;
use windrow_common::outcome::Outcome;

/// One item of a completion, as its body has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// The id, a JSON string, where the completion carries ids.
    pub(crate) id: Option<&'a [u8]>,
    /// The output of an item that succeeded, an [`ItemError`] otherwise; one JSON value.
    pub(crate) value: &'a [u8],
}

/// Why a completion's body is not what its headers promise. Never quotes the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// The number of lines is wrong.
    #[error("body: {lines} lines for {items} items")]
    Lines {
        /// Lines there are.
        lines: u64,
        /// Items there should be.
        items: u64,
    },
    /// A line is not of its form.
    #[error("body: line {line} {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The text is no UTF-8.
    #[error("body: is not UTF-8")]
    Encoding,
}

/// The lines of a completion, one per item, each checked.
pub(crate) fn lines(outcomes: &Outcomes) -> Result<Vec<Line<'_>>, BodyError> {
    let body = std::str::from_utf8(&outcomes.body).map_err(|_| BodyError::Encoding)?.as_bytes();
    let mut lines = Vec::with_capacity(usize::try_from(outcomes.items.len()).unwrap_or(0).min(body.len()));
    let mut ends = outcomes.outcomes.iter();
    for text in split(body) {
        let count = lines.len() as u64 + 1;
        let outcome = ends.next().ok_or(BodyError::Lines { lines: count, items: outcomes.items.len() })?;
        let line = read_line(text, outcomes.ids, outcome);
        lines.push(line.map_err(|what| BodyError::Line { line: lines.len() + 1, what })?);
    }
    if lines.len() as u64 == outcomes.items.len() {
        Ok(lines)
    } else {
        Err(BodyError::Lines { lines: lines.len() as u64, items: outcomes.items.len() })
    }
}

fn split(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    let ended = memchr_iter(b'\n', body)
        .chain((body.last().is_some_and(|last| *last != b'\n')).then_some(body.len()));
    ended.map(move |end| {
        let line = &body[start..end];
        start = end + 1;
        line
    })
}

fn read_line(text: &[u8], has_id: bool, outcome: Outcome) -> Result<Line<'_>, &'static str> {
    let (id, value) = if has_id {
        let tab = memchr(b'\t', text).ok_or("has no id")?;
        let (id, value) = (&text[..tab], &text[tab + 1..]);
        if id.first() != Some(&b'"') || serde_json::from_slice::<IgnoredAny>(id).is_err() {
            return Err("has an id that is no JSON string");
        }
        // An item without an id has an empty one.
        ((id != b"\"\"").then_some(id), value)
    } else {
        (None, text)
    };
    let is_valid = match outcome {
        Outcome::Succeeded => serde_json::from_slice::<IgnoredAny>(value).is_ok(),
        _ => serde_json::from_slice::<ItemError>(value).is_ok(),
    };
    if is_valid { Ok(Line { id, value }) } else { Err("is not one JSON value of the expected form") }
}

/// What a sink's line says of an item besides its line in the completion.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ItemLine<'a> {
    /// The index.
    pub(crate) index: u64,
    /// The source, where the job has several.
    pub(crate) source: Option<&'a SourceName>,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How often it was tried.
    pub(crate) attempts: u32,
}

/// Writes the sink's line of an item behind what is in `out`.
pub(crate) fn render(item: ItemLine<'_>, line: &Line<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"item\":");
    push_number(out, item.index);
    if let Some(source) = item.source {
        out.extend_from_slice(b",\"source\":\"");
        // Names have no character that JSON would escape.
        out.extend_from_slice(source.as_str().as_bytes());
        out.push(b'"');
    }
    if let Some(id) = line.id {
        out.extend_from_slice(b",\"id\":");
        out.extend_from_slice(id);
    }
    out.extend_from_slice(b",\"outcome\":\"");
    out.extend_from_slice(item.outcome.as_str().as_bytes());
    let key: &[u8] = if item.outcome == Outcome::Succeeded { b"\",\"output\":" } else { b"\",\"error\":" };
    out.extend_from_slice(key);
    out.extend_from_slice(line.value);
    out.extend_from_slice(b",\"attempts\":");
    push_number(out, u64::from(item.attempts));
    out.extend_from_slice(b"}\n");
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        let digit = (number % 10) as u8;
        digits[at] = b'0' + digit;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The error of items the collector ends itself when it closes a run over them: an [`ItemError`].
pub(crate) fn closed_error(run_is_cancelled: bool) -> &'static str {
    if run_is_cancelled {
        r#"{"class":"cancelled","message":"the run was cancelled before this item ended"}"#
    } else {
        r#"{"class":"stopped","message":"the run was stopped before this item ended"}"#
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use windrow_common::envelope::chunk::Span;
    use windrow_common::envelope::completion::Latencies;
    use windrow_common::ids::ChunkId;
    use windrow_common::ranges::{Ranges, Runs};

    use super::*;

    fn outcomes(ends: &[Outcome], ids: bool, body: &[u8]) -> Outcomes {
        let count = ends.len() as u64;
        Outcomes {
            id: ChunkId {
                run: "r1".parse().unwrap(),
                stage: "echo".parse().unwrap(),
                source: "main".parse().unwrap(),
                ordinal: 0,
            },
            span: Span { first: 0, count },
            hop: 0,
            items: Ranges::span(0, count),
            outcomes: ends.iter().copied().collect(),
            attempts: Runs::repeat(1, count),
            throttles: Runs::repeat(0, count),
            holds: Runs::repeat(0, count),
            handed_over: Ranges::new(),
            claimant: None,
            released: Ranges::new(),
            latencies: Latencies::default(),
            unasked: false,
            ids,
            body: Bytes::copy_from_slice(body),
        }
    }

    #[test]
    fn a_line_of_a_sink_carries_the_output_verbatim() {
        let completion = outcomes(
            &[Outcome::Succeeded, Outcome::Failed],
            true,
            b"\"a\\t\"\t{\"x\": 1.50}\n\"\"\t{\"class\":\"timeout\",\"message\":\"5 s\"}",
        );
        let lines = lines(&completion).unwrap();
        let source: SourceName = "left".parse().unwrap();
        let mut out = Vec::new();
        let item = ItemLine { index: 10_200, source: None, outcome: Outcome::Succeeded, attempts: 1 };
        render(item, &lines[0], &mut out);
        let item = ItemLine { index: 0, source: Some(&source), outcome: Outcome::Failed, attempts: 4 };
        render(item, &lines[1], &mut out);
        let expected = concat!(
            r#"{"item":10200,"id":"a\t","outcome":"succeeded","output":{"x": 1.50},"attempts":1}"#,
            "\n",
            r#"{"item":0,"source":"left","outcome":"failed","#,
            r#""error":{"class":"timeout","message":"5 s"},"attempts":4}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_body_that_would_break_the_file_is_refused() {
        let one = [Outcome::Succeeded];
        for (ends, ids, body) in [
            (&one[..], false, &b"{\"a\":1"[..]),
            (&one, false, b"1 2"),
            (&one, false, b"1}\n"),
            (&one, false, b""),
            (&one, false, b"\n"),
            (&one, false, b"1\n2\n"),
            (&one, false, b"\"\xff\""),
            (&one, false, b"\"\x01\""),
            (&one, true, b"1"),
            (&one, true, b"7\t1"),
            (&one, true, b"\"a\t1"),
            (&[Outcome::Failed], false, b"1"),
            (&[Outcome::Failed], false, b"{\"class\":1}"),
            (&[Outcome::Succeeded, Outcome::Succeeded], false, b"1\n"),
        ] {
            assert!(lines(&outcomes(ends, ids, body)).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
        let empty = outcomes(&[], false, b"");
        assert_eq!(lines(&empty).unwrap(), []);
    }
}
