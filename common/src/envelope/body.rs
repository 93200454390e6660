//! Bodies: one JSON value a line, optionally compressed.

use std::io::Read;

use bytes::Bytes;

use super::{DecodeError, Message};

/// No body, compressed or not, is larger than this.
pub const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// Bodies below this are not worth compressing.
const COMPRESS_FROM_BYTES: usize = 4 * 1024;

/// The body of a message, decompressed if need be. Refuses bodies over [`MAX_BODY_BYTES`], also those
/// that only become so when decompressed.
pub fn decode_body(message: &Message) -> Result<Bytes, DecodeError> {
    if message.body.len() > MAX_BODY_BYTES {
        return Err(DecodeError::Body(format!("over {MAX_BODY_BYTES} bytes")));
    }
    match message.content_encoding.as_str() {
        "" | "identity" => Ok(message.body.clone()),
        "zstd" => decompress(&message.body).map(Bytes::from),
        other => Err(DecodeError::Body(format!("content encoding `{other}` is not zstd"))),
    }
}

fn decompress(body: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let broken = |error: std::io::Error| DecodeError::Body(format!("zstd: {error}"));
    let limit = MAX_BODY_BYTES as u64 + 1;
    let mut plain = Vec::new();
    zstd::Decoder::new(body).map_err(broken)?.take(limit).read_to_end(&mut plain).map_err(broken)?;
    if plain.len() > MAX_BODY_BYTES {
        return Err(DecodeError::Body(format!("over {MAX_BODY_BYTES} bytes when decompressed")));
    }
    Ok(plain)
}

/// The body and its content encoding: compressed when asked and when it becomes smaller.
pub fn encode_body(body: Bytes, compress: bool) -> (Bytes, String) {
    if compress && body.len() >= COMPRESS_FROM_BYTES {
        // Compressing from memory to memory fails only for want of memory; plain is right then too.
        if let Ok(small) = zstd::bulk::compress(&body, 1)
            && small.len() < body.len()
        {
            return (Bytes::from(small), "zstd".to_owned());
        }
    }
    (body, String::new())
}

/// The lines of a body, each without its line break. A last line needs no break.
#[derive(Debug, Clone)]
pub struct Lines {
    body: Bytes,
    at: usize,
}

impl Lines {
    /// The lines of `body`; they share its memory.
    pub fn new(body: Bytes) -> Self {
        Self { body, at: 0 }
    }
}

impl Iterator for Lines {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.at >= self.body.len() {
            return None;
        }
        let start = self.at;
        let end = memchr::memchr(b'\n', &self.body[start..]).map_or(self.body.len(), |found| start + found);
        self.at = end + 1;
        Some(self.body.slice(start..end))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Headers;
    use super::*;

    fn message(body: impl Into<Bytes>, encoding: &str) -> Message {
        Message {
            kind: "chunk".into(),
            message_id: "m".into(),
            reply_to: String::new(),
            headers: Headers::new(),
            content_encoding: encoding.into(),
            body: body.into(),
        }
    }

    #[test]
    fn bodies_survive_compression() {
        let plain = Bytes::from("{\"a\":1}\n".repeat(1000));
        let (small, encoding) = encode_body(plain.clone(), true);
        assert_eq!(encoding, "zstd");
        assert!(small.len() < plain.len() / 10);
        assert_eq!(decode_body(&message(small, "zstd")).unwrap(), plain);
    }

    #[test]
    fn a_compression_bomb_is_refused_without_inflating_it_whole() {
        let bomb = zstd::bulk::compress(&vec![b' '; MAX_BODY_BYTES * 4], 3).unwrap();
        assert!(bomb.len() < 100_000);
        assert!(matches!(decode_body(&message(bomb, "zstd")), Err(DecodeError::Body(_))));
    }

    #[test]
    fn lines_need_no_last_break() {
        let lines: Vec<_> = Lines::new(Bytes::from("1\n22\n\n4")).collect();
        assert_eq!(lines, ["1", "22", "", "4"]);
        assert_eq!(Lines::new(Bytes::from("1\n")).count(), 1);
        assert_eq!(Lines::new(Bytes::new()).count(), 0);
    }
}
