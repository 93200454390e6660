//! JSON Lines: a JSON value a line. Empty lines are passed over.

use std::io::{self, Read};

use super::blocks::Blocks;
use super::{MAX_ITEM_BYTES, Row, StreamError, item};

/// The rows of a JSON Lines stream.
pub(super) struct Jsonl {
    blocks: Blocks,
    /// The number of the line that comes next.
    line: u64,
}

/// The line that begins at the first unread byte.
enum Line {
    /// It has this many bytes, and a break after them (or the stream's end).
    Held(usize),
    /// It was too long to be held and is consumed, but for its break.
    TooLong,
    /// There is none.
    End,
}

impl Jsonl {
    /// Rows from `offset` on, which is where line `line` begins.
    pub(super) fn new(reader: Box<dyn Read + Send>, offset: u64, line: u64, block_bytes: usize) -> Self {
        Self { blocks: Blocks::new(reader, offset, block_bytes), line }
    }

    /// The next row.
    pub(super) fn next(&mut self, into: &mut Vec<u8>) -> Result<Row, StreamError> {
        self.blocks.skip_byte_order_mark()?;
        loop {
            let line = self.line;
            let row = match self.find_line()? {
                Line::End => return Ok(Row::End),
                Line::TooLong => {
                    self.consume_line(0);
                    Some(Row::Bad(line, item::too_large()))
                }
                Line::Held(bytes) => {
                    let row = read(self.blocks.unread()[..bytes].trim_ascii(), line, into);
                    self.consume_line(bytes);
                    row
                }
            };
            if let Some(row) = row {
                return Ok(row);
            }
        }
    }

    /// Where the next line begins: offset and line.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.blocks.offset(), self.line)
    }

    fn find_line(&mut self) -> io::Result<Line> {
        let mut searched = 0;
        let mut too_long = false;
        loop {
            let unread = self.blocks.unread();
            if let Some(found) = memchr::memchr(b'\n', &unread[searched..]) {
                let bytes = searched + found;
                if !too_long && bytes <= MAX_ITEM_BYTES {
                    return Ok(Line::Held(bytes));
                }
                self.blocks.consume(bytes);
                return Ok(Line::TooLong);
            }
            searched = unread.len();
            if too_long || searched > MAX_ITEM_BYTES {
                too_long = true;
                self.blocks.consume(searched);
                searched = 0;
            }
            if !self.blocks.more()? {
                return Ok(match (too_long, searched) {
                    (true, _) => Line::TooLong,
                    (false, 0) => Line::End,
                    (false, bytes) => Line::Held(bytes),
                });
            }
        }
    }

    /// Consumes `bytes` and the line break after them, if there is one.
    fn consume_line(&mut self, bytes: usize) {
        let with_break = usize::from(self.blocks.unread().len() > bytes);
        self.blocks.consume(bytes + with_break);
        self.line += 1;
    }
}

/// What a line's text comes to; none when it is empty.
fn read(text: &[u8], line: u64, into: &mut Vec<u8>) -> Option<Row> {
    if text.is_empty() {
        return None;
    }
    Some(match item::check(text) {
        Ok(()) => {
            item::append(into, text);
            Row::Item
        }
        Err(reason) => Row::Bad(line, reason),
    })
}
