//! A stream read in blocks, with what was not used yet kept in one piece.

use std::io::{self, ErrorKind, Read};

/// The unused bytes of a stream, as far as they were read.
pub(super) struct Blocks {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    ended: bool,
    block_bytes: usize,
}

impl Blocks {
    /// Blocks of `reader`, which stands at byte `offset` of the stream.
    pub(super) fn new(reader: Box<dyn Read + Send>, offset: u64, block_bytes: usize) -> Self {
        Self { reader, buffer: Vec::new(), start: 0, end: 0, offset, ended: false, block_bytes }
    }

    /// The bytes read and not consumed.
    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Where in the stream the first unread byte is.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Lets go of the first `bytes` unread bytes.
    pub(super) fn consume(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.end - self.start, "more consumed than was read");
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Adds at least one byte to the unread ones. False at the end of the stream.
    pub(super) fn more(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.make_room();
        loop {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(false);
                }
                Ok(bytes) => {
                    self.end += bytes;
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Unread bytes, reading some if there are none. Empty at the end of the stream.
    pub(super) fn peek(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.more()?;
        }
        Ok(self.unread())
    }

    /// Passes over a byte order mark at the beginning of the stream.
    pub(super) fn skip_byte_order_mark(&mut self) -> io::Result<()> {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        if self.offset > 0 {
            return Ok(());
        }
        while self.unread().len() < MARK.len() && MARK.starts_with(self.unread()) {
            if !self.more()? {
                return Ok(());
            }
        }
        if self.unread().starts_with(MARK) {
            self.consume(MARK.len());
        }
        Ok(())
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.end + self.block_bytes {
            self.buffer.resize(self.end + self.block_bytes, 0);
        }
    }
}
