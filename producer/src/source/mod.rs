//! Sources: where items come from.
//!
//! [`Source`] is the seam. [`Streams`] is the one source there is so far: rows of one or several byte
//! streams (files, or standard input), in the formats `jsonl`, `csv` and `json`.

mod blocks;
mod csv;
mod item;
mod json;
mod jsonl;
mod open;
mod streams;

pub(crate) use open::{BytesRead, StandardInput};
pub(crate) use streams::{Inputs, Streams};

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};
use windrow_common::envelope::completion::Reject;
use windrow_common::ids::SourceName;

/// No item is larger than this; a larger one is a reject.
pub(crate) const MAX_ITEM_BYTES: usize = 8 * 1024 * 1024;

/// How much is asked of a stream at once.
pub(crate) const BLOCK_BYTES: usize = 512 * 1024;

/// Where reading goes on: a file, and a byte in it once it is decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The file, counted from 0 in the order they are read.
    pub(crate) file: u64,
    /// The byte in it, decompressed.
    pub(crate) offset: u64,
    /// The number of the line that byte is on, counted from 1.
    pub(crate) line: u64,
}

impl Position {
    /// The beginning of a file.
    pub(crate) fn start_of(file: u64) -> Self {
        Self { file, offset: 0, line: 1 }
    }
}

/// What a source came upon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// An item; it was appended.
    Item,
    /// A row that is no item.
    Rejected(Reject),
    /// The end.
    End,
}

/// A source of items, read from front to back by one thread.
pub(crate) trait Source: Send {
    /// Goes on to the next row. An item is appended to `into`: one JSON value in UTF-8 of at most
    /// [`MAX_ITEM_BYTES`], with no line break in it or after it. Otherwise `into` is left as it was. The
    /// same source always gives the same steps. After `End` or an error it is not called again: an error
    /// means that what follows cannot be known, so it is never taken for an end.
    fn next(&mut self, into: &mut Vec<u8>) -> Result<Step, SourceError>;

    /// Where a source opened anew goes on with the row after the last step's.
    fn position(&self) -> Position;
}

/// A source cannot be read on. The run ends as failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct SourceError {
    source_name: SourceName,
    file: String,
    line: Option<u64>,
    reason: String,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source `{}`, {}", self.source_name, self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What the rows of one stream come to.
#[derive(Debug, PartialEq, Eq)]
enum Row {
    /// An item; it was appended.
    Item,
    /// A row that is no item: the line it begins on, and why.
    Bad(u64, String),
    /// The end of the stream.
    End,
}

/// Why a stream cannot be read on.
#[derive(Debug)]
enum StreamError {
    /// Reading or decompressing failed.
    Io(std::io::Error),
    /// The line from which on nothing can be made out, and why.
    Malformed(u64, String),
}

impl From<std::io::Error> for StreamError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}
