//! The rows of one or several byte streams, one after another.

use std::fs;
use std::io::{self, Read};

use windrow_common::envelope::completion::Reject;
use windrow_common::ids::SourceName;
use windrow_common::job::SourceKind;

use super::csv::Csv;
use super::json::Json;
use super::jsonl::Jsonl;
use super::open::{BytesRead, StandardInput, open};
use super::{BLOCK_BYTES, Position, Row, Source, SourceError, Step, StreamError};
use crate::files::SourceFile;

/// The streams of a source.
#[derive(Debug)]
pub(crate) enum Inputs {
    /// Files, in order.
    Files(Vec<SourceFile>),
    /// Standard input, until it is opened.
    StandardInput(Option<StandardInput>),
}

/// A source made of byte streams.
pub(crate) struct Streams {
    name: SourceName,
    kind: SourceKind,
    inputs: Inputs,
    position: Position,
    rows: Option<Rows>,
    bytes_read: BytesRead,
    block_bytes: usize,
}

enum Rows {
    Jsonl(Jsonl),
    Csv(Box<Csv>),
    Json(Json),
}

impl Streams {
    /// The source's rows from `position` on.
    pub(crate) fn new(
        name: SourceName,
        kind: SourceKind,
        inputs: Inputs,
        position: Position,
        bytes_read: BytesRead,
    ) -> Self {
        Self { name, kind, inputs, position, rows: None, bytes_read, block_bytes: BLOCK_BYTES }
    }

    /// The same, read in blocks of another size.
    #[cfg(test)]
    pub(crate) fn with_block_bytes(mut self, block_bytes: usize) -> Self {
        self.block_bytes = block_bytes;
        self
    }

    fn files(&self) -> u64 {
        match &self.inputs {
            Inputs::Files(files) => files.len() as u64,
            Inputs::StandardInput(_) => 1,
        }
    }

    fn file(&self) -> Option<&SourceFile> {
        match &self.inputs {
            Inputs::Files(files) => files.get(usize::try_from(self.position.file).ok()?),
            Inputs::StandardInput(_) => None,
        }
    }

    fn file_name(&self) -> &str {
        self.file().map_or("-", |file| file.name.as_str())
    }

    fn open_rows(&mut self) -> Result<Rows, StreamError> {
        let Position { offset, line, .. } = self.position;
        let (block, bytes_read) = (self.block_bytes, self.bytes_read.clone());
        Ok(match self.kind.clone() {
            SourceKind::Jsonl => Rows::Jsonl(Jsonl::new(self.open(offset, bytes_read)?, offset, line, block)),
            SourceKind::Json => Rows::Json(Json::new(self.open(offset, bytes_read)?, offset, line, block)),
            SourceKind::Csv { delimiter, types } if offset == 0 => {
                Rows::Csv(Box::new(Csv::new(self.open(0, bytes_read)?, delimiter, &types, block)?))
            }
            SourceKind::Csv { delimiter, types } => {
                let header = Csv::new(self.open(0, BytesRead::default())?, delimiter, &types, block)?;
                Rows::Csv(Box::new(header.go_on(self.open(offset, bytes_read)?, offset, line, block)))
            }
        })
    }

    fn open(&mut self, offset: u64, bytes_read: BytesRead) -> io::Result<Box<dyn Read + Send>> {
        if let Inputs::StandardInput(input) = &mut self.inputs {
            let taken = input.take().map(StandardInput::into_reader);
            return taken.ok_or_else(|| io::Error::other("standard input can be read only once"));
        }
        let Some(file) = self.file() else { return Ok(Box::new(io::empty())) };
        file.check_unchanged(&fs::metadata(&file.path)?)?;
        open(&file.path, offset, bytes_read)
    }

    /// A file that was changed while it was read gave a mixture of both.
    fn close(&mut self) -> io::Result<()> {
        self.rows = None;
        match self.file() {
            Some(file) => file.check_unchanged(&fs::metadata(&file.path)?),
            None => Ok(()),
        }
    }

    fn step(&mut self, into: &mut Vec<u8>) -> Result<Row, StreamError> {
        if self.rows.is_none() {
            self.rows = Some(self.open_rows()?);
        }
        let Some(rows) = &mut self.rows else { return Ok(Row::End) };
        let row = rows.next(into)?;
        (self.position.offset, self.position.line) = rows.place();
        Ok(row)
    }

    fn error(&self, error: StreamError) -> SourceError {
        let (line, reason) = match error {
            StreamError::Io(error) => (None, format!("cannot be read: {error}")),
            StreamError::Malformed(line, reason) => (Some(line), reason),
        };
        SourceError { source_name: self.name.clone(), file: self.file_name().to_owned(), line, reason }
    }
}

impl Source for Streams {
    fn next(&mut self, into: &mut Vec<u8>) -> Result<Step, SourceError> {
        while self.position.file < self.files() {
            match self.step(into).map_err(|error| self.error(error))? {
                Row::Item => return Ok(Step::Item),
                Row::Bad(line, reason) => {
                    let (source, file) = (self.name.clone(), self.file_name().to_owned());
                    return Ok(Step::Rejected(Reject { source, file, line, reason }));
                }
                Row::End => {
                    self.close().map_err(|error| self.error(error.into()))?;
                    self.position = Position::start_of(self.position.file + 1);
                }
            }
        }
        Ok(Step::End)
    }

    fn position(&self) -> Position {
        self.position
    }
}

impl Rows {
    fn next(&mut self, into: &mut Vec<u8>) -> Result<Row, StreamError> {
        match self {
            Self::Jsonl(rows) => rows.next(into),
            Self::Csv(rows) => rows.next(into),
            Self::Json(rows) => rows.next(into),
        }
    }

    fn place(&self) -> (u64, u64) {
        match self {
            Self::Jsonl(rows) => rows.place(),
            Self::Csv(rows) => rows.place(),
            Self::Json(rows) => rows.place(),
        }
    }
}
