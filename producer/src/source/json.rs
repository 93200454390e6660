//! JSON: one array, read element by element. A splitter finds where each element ends by its strings and
//! brackets alone; the element is then checked like any item.

use std::io::Read;

use super::blocks::Blocks;
use super::{MAX_ITEM_BYTES, Row, StreamError, item};

/// The elements of an array.
pub(super) struct Json {
    blocks: Blocks,
    /// The number of the line the first unread byte is on.
    line: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the array's `[`.
    Before,
    /// After its `[`.
    Opened,
    /// After an element.
    AfterElement,
    /// After its `]`.
    Closed,
}

impl Json {
    /// Elements from `offset` on: 0, or the end of an element.
    pub(super) fn new(reader: Box<dyn Read + Send>, offset: u64, line: u64, block_bytes: usize) -> Self {
        let state = if offset == 0 { State::Before } else { State::AfterElement };
        Self { blocks: Blocks::new(reader, offset, block_bytes), line, state }
    }

    /// The next element.
    pub(super) fn next(&mut self, into: &mut Vec<u8>) -> Result<Row, StreamError> {
        if self.state == State::Before {
            self.blocks.skip_byte_order_mark()?;
            self.open()?;
        }
        match self.state {
            State::Closed => Ok(Row::End),
            State::AfterElement => match self.skip_space()? {
                Some(b',') => {
                    self.consume(1);
                    self.skip_space()?;
                    self.element(into)
                }
                Some(b']') => self.close(),
                Some(_) => Err(self.malformed("expected `,` or `]` after an element")),
                None => Err(self.malformed("the file ends before the array is closed with `]`")),
            },
            State::Before | State::Opened => match self.skip_space()? {
                Some(b']') => self.close(),
                _ => self.element(into),
            },
        }
    }

    /// Where the last element ends: offset and line.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.blocks.offset(), self.line)
    }

    fn open(&mut self) -> Result<(), StreamError> {
        if self.skip_space()? != Some(b'[') {
            return Err(self.malformed(
                "a source of type json must be one array; for a JSON value a line use type = \"jsonl\"",
            ));
        }
        self.consume(1);
        self.state = State::Opened;
        Ok(())
    }

    fn close(&mut self) -> Result<Row, StreamError> {
        self.consume(1);
        if self.skip_space()?.is_some() {
            return Err(self.malformed("there is more after the array's `]`"));
        }
        self.state = State::Closed;
        Ok(Row::End)
    }

    fn element(&mut self, into: &mut Vec<u8>) -> Result<Row, StreamError> {
        let line = self.line;
        let held = self.find_end(line)?;
        self.state = State::AfterElement;
        let Some(bytes) = held else { return Ok(Row::Bad(line, item::too_large())) };
        let text = self.blocks.unread()[..bytes].trim_ascii_end();
        let checked = match text {
            [] => Err("an element is missing".to_owned()),
            _ => item::check(text),
        };
        let row = match checked {
            Ok(()) => {
                item::append(into, text);
                Row::Item
            }
            Err(reason) => Row::Bad(line, reason),
        };
        self.consume(bytes);
        Ok(row)
    }

    /// How many bytes the element at the first unread byte has. None when they are too many: then they
    /// are consumed.
    fn find_end(&mut self, line: u64) -> Result<Option<usize>, StreamError> {
        let mut splitter = Splitter::default();
        let mut searched = 0;
        let mut too_long = false;
        loop {
            let found = splitter.find_end(&self.blocks.unread()[searched..]);
            searched = found.map_or(self.blocks.unread().len(), |at| searched + at);
            too_long |= searched > MAX_ITEM_BYTES;
            if too_long {
                self.consume(searched);
                searched = 0;
            }
            if found.is_some() {
                return Ok((!too_long).then_some(searched));
            }
            if !self.blocks.more()? {
                let reason = "the file ends within the element of the array that begins here";
                return Err(StreamError::Malformed(line, reason.to_owned()));
            }
        }
    }

    /// The next byte that is not white space, left unread. None at the end.
    fn skip_space(&mut self) -> Result<Option<u8>, StreamError> {
        loop {
            let unread = self.blocks.peek()?;
            let space = unread.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let next = unread.get(space).copied();
            if space == 0 {
                return Ok(next);
            }
            self.consume(space);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.line += memchr::memchr_iter(b'\n', &self.blocks.unread()[..bytes]).count() as u64;
        self.blocks.consume(bytes);
    }

    fn malformed(&self, reason: &str) -> StreamError {
        StreamError::Malformed(self.line, reason.to_owned())
    }
}

/// Where in the structure of an element the splitter stands.
#[derive(Default)]
struct Splitter {
    depth: u64,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// Where in `bytes` the `,`, `]` or `}` after the element stands; none when it is not among them.
    fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.in_string {
                at += self.pass_string(&bytes[at..]);
                continue;
            }
            match bytes[at] {
                b'"' => self.in_string = true,
                b'[' | b'{' => self.depth += 1,
                b',' | b']' | b'}' if self.depth == 0 => return Some(at),
                b']' | b'}' => self.depth -= 1,
                _ => {}
            }
            at += 1;
        }
        None
    }

    /// How many bytes belong to the string the splitter is in.
    fn pass_string(&mut self, bytes: &[u8]) -> usize {
        if self.escaped {
            self.escaped = false;
            return 1;
        }
        match memchr::memchr2(b'"', b'\\', bytes) {
            None => bytes.len(),
            Some(at) if bytes[at] == b'"' => {
                self.in_string = false;
                at + 1
            }
            Some(at) => {
                self.escaped = true;
                at + 1
            }
        }
    }
}
