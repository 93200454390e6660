//! What a message says: properties and headers carry the envelope, the body carries data.
//!
//! `docs/wire.md` is the contract in words, enough to write a client in another language. [`chunk`] is
//! what work queues carry, [`completion`] what the completion queue carries, [`control`] what goes to
//! processes. Everything read here came over a network: it is checked, bounded, and never trusted.

mod body;
pub mod chunk;
pub mod completion;
pub mod control;
mod headers;
mod latencies;
mod question;

pub use body::{Lines, MAX_BODY_BYTES, decode_body, encode_body};
pub use headers::{DecodeError, HeaderValue, Headers};

use bytes::Bytes;

/// The version of the wire contract this build writes. It reads this one and the one before.
pub const WIRE_VERSION: i64 = 1;

/// A message as the broker seam moves it. `kind` is the AMQP `type` property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What the message is, such as `chunk` or `outcomes`.
    pub kind: String,
    /// Deterministic: the same message sent again has the same id.
    pub message_id: String,
    /// Where answers go: the name of a process, for questions; empty otherwise.
    pub reply_to: String,
    /// The envelope.
    pub headers: Headers,
    /// `""` or `"zstd"`.
    pub content_encoding: String,
    /// The data, verbatim.
    pub body: Bytes,
}
