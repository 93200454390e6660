//! From the bytes an outside system gives back to an output: one JSON value in one line.

use bytes::Bytes;
use serde_json::value::RawValue;

/// The output of work that gives nothing back.
pub(super) const NULL: Bytes = Bytes::from_static(b"null");

/// `body` as one line if it is one JSON value: without what surrounds it, line breaks between tokens turned to
/// spaces, and otherwise verbatim. None if it is not JSON. Copies only when there are line breaks.
pub(super) fn json_line(body: &Bytes) -> Option<Bytes> {
    let text = std::str::from_utf8(body).ok()?;
    let value: &RawValue = serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text)).ok()?;
    let value = value.get().as_bytes();
    // Inside a JSON string a line break is always escaped, so any that is there is between tokens.
    let is_break = |byte: u8| byte == b'\n' || byte == b'\r';
    if !value.iter().copied().any(is_break) {
        return Some(body.slice_ref(value));
    }
    Some(value.iter().map(|&byte| if is_break(byte) { b' ' } else { byte }).collect())
}

/// `text` as a JSON string.
pub(super) fn text_line(text: &str) -> Bytes {
    Bytes::from(serde_json::Value::from(text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(body: &str) -> Option<String> {
        json_line(&Bytes::copy_from_slice(body.as_bytes()))
            .map(|line| String::from_utf8(line.to_vec()).unwrap())
    }

    #[test]
    fn json_becomes_one_line_and_is_otherwise_verbatim() {
        assert_eq!(
            line("{\r\n  \"a\": 1.50,\n  \"b\": \"x\\ny\"\n}\n").unwrap(),
            r#"{    "a": 1.50,   "b": "x\ny" }"#
        );
        assert_eq!(line(" 12345678901234567890.10 ").unwrap(), "12345678901234567890.10");
        assert_eq!(line("\u{feff}true").unwrap(), "true");
    }

    #[test]
    fn what_is_not_one_json_value_is_no_json_line() {
        for body in ["", "  ", "{}{}", "hello", "\"a\nb\"", "[1,]"] {
            assert_eq!(line(body), None, "{body:?}");
        }
        assert_eq!(json_line(&Bytes::from_static(b"\"\xff\"")), None);
    }

    #[test]
    fn text_is_quoted() {
        assert_eq!(text_line("a\"\nb\u{0}"), r#""a\"\nb\u0000""#);
    }
}
