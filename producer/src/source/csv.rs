//! CSV: a header line, then a row per item, which becomes a JSON object of one line.

use std::collections::BTreeMap;
use std::io::Read;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use windrow_common::job::FieldType;

use super::blocks::Blocks;
use super::item;
use super::{MAX_ITEM_BYTES, Row, StreamError};

/// The rows of a CSV stream.
pub(super) struct Csv {
    blocks: Blocks,
    reader: Reader,
    /// The number of the line the first unread byte is on.
    line: u64,
    columns: Vec<Column>,
    fields: Vec<u8>,
    ends: Vec<usize>,
}

struct Column {
    name: String,
    /// What stands before the field in the object: a bracket or comma, and the name.
    key: Vec<u8>,
    field_type: FieldType,
}

/// A row as it was split.
enum Split {
    /// It has this many fields.
    Fields(usize),
    /// It has more fields than there are columns.
    TooManyFields,
    /// It was too large to be held.
    TooLarge,
}

impl Csv {
    /// Reads the header; `types` says what columns hold other than text.
    pub(super) fn new(
        stream: Box<dyn Read + Send>,
        delimiter: u8,
        types: &BTreeMap<String, FieldType>,
        block_bytes: usize,
    ) -> Result<Self, StreamError> {
        let mut csv = Self {
            blocks: Blocks::new(stream, 0, block_bytes),
            reader: ReaderBuilder::new().delimiter(delimiter).build(),
            line: 1,
            columns: Vec::new(),
            fields: vec![0; 4096],
            ends: vec![0; 65_536],
        };
        csv.blocks.skip_byte_order_mark()?;
        csv.prime();
        csv.read_header(types)?;
        Ok(csv)
    }

    /// The same columns over `stream`, which stands at `offset` where a row begins on line `line`.
    pub(super) fn go_on(
        mut self,
        stream: Box<dyn Read + Send>,
        offset: u64,
        line: u64,
        block: usize,
    ) -> Self {
        self.blocks = Blocks::new(stream, offset, block);
        self.line = line;
        self.reader.reset();
        self.prime();
        self
    }

    /// The next row.
    pub(super) fn next(&mut self, into: &mut Vec<u8>) -> Result<Row, StreamError> {
        let Some(line) = self.find_row()? else { return Ok(Row::End) };
        let start = into.len();
        let made = match self.split(line)? {
            Split::Fields(count) if count == self.columns.len() => self.write_object(into),
            Split::Fields(count) => {
                Err(format!("fields: {count}; columns in the header: {}", self.columns.len()))
            }
            Split::TooManyFields => {
                Err(format!("more fields than the {} columns in the header", self.columns.len()))
            }
            Split::TooLarge => Err(item::too_large()),
        };
        let made = made
            .and_then(|()| if into.len() - start > MAX_ITEM_BYTES { Err(item::too_large()) } else { Ok(()) });
        Ok(match made {
            Ok(()) => Row::Item,
            Err(reason) => {
                into.truncate(start);
                Row::Bad(line, reason)
            }
        })
    }

    /// Where the next row begins: offset and line.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.blocks.offset(), self.line)
    }

    /// The splitter takes a byte order mark off the first bytes it sees. Ours is dealt with, and after
    /// going on the first bytes are a row's: give it an empty line to see first.
    fn prime(&mut self) {
        self.reader.read_record(b"\n", &mut self.fields, &mut self.ends);
    }

    fn read_header(&mut self, types: &BTreeMap<String, FieldType>) -> Result<(), StreamError> {
        let Some(line) = self.find_row()? else { return Ok(()) };
        let wrong = |reason: String| StreamError::Malformed(line, reason);
        let Split::Fields(count) = self.split(line)? else {
            return Err(wrong("the header has too many columns or is too large".to_owned()));
        };
        let mut types = types.clone();
        for at in 0..count {
            let name = self.field(at).map_err(|_| wrong("the header is not UTF-8".to_owned()))?.to_owned();
            if self.columns.iter().any(|column| column.name == name) {
                return Err(wrong(format!("the header has two columns named `{name}`")));
            }
            let mut key = vec![if at == 0 { b'{' } else { b',' }];
            write_text(&mut key, &name);
            key.push(b':');
            let field_type = types.remove(&name).unwrap_or(FieldType::Text);
            self.columns.push(Column { name, key, field_type });
        }
        if let Some(name) = types.keys().next() {
            return Err(wrong(format!("`types` names column `{name}`, which the header does not have")));
        }
        // One more than there may be, to tell when there are more.
        self.ends.truncate(count + 1);
        Ok(())
    }

    /// Passes over empty lines; the line of the row that comes next. None at the end.
    fn find_row(&mut self) -> Result<Option<u64>, StreamError> {
        loop {
            let unread = self.blocks.peek()?;
            match unread.first() {
                None => return Ok(None),
                Some(b'\n' | b'\r') => self.consume(1),
                Some(_) => return Ok(Some(self.line)),
            }
        }
    }

    /// Splits the row at the first unread byte, and consumes it.
    fn split(&mut self, line: u64) -> Result<Split, StreamError> {
        let (mut written, mut ended) = (0, 0);
        let (mut too_large, mut too_many) = (false, false);
        loop {
            let at_end = self.blocks.peek()?.is_empty();
            // A line break ends a last row without one; in quotes it doesn't, and so tells on them.
            let input = if at_end { b"\n" } else { self.blocks.unread() };
            let (result, used, wrote, new_ends) =
                self.reader.read_record(input, &mut self.fields[written..], &mut self.ends[ended..]);
            written += wrote;
            ended += new_ends;
            if !at_end {
                self.consume(used);
            }
            match result {
                ReadRecordResult::Record if too_large => return Ok(Split::TooLarge),
                ReadRecordResult::Record if too_many => return Ok(Split::TooManyFields),
                ReadRecordResult::Record => return Ok(Split::Fields(ended)),
                ReadRecordResult::OutputEndsFull => (too_many, ended) = (true, 0),
                ReadRecordResult::OutputFull if self.fields.len() > MAX_ITEM_BYTES => {
                    (too_large, written) = (true, 0);
                }
                ReadRecordResult::OutputFull => self.fields.resize(self.fields.len() * 2, 0),
                ReadRecordResult::InputEmpty if !at_end => {}
                ReadRecordResult::InputEmpty | ReadRecordResult::End => {
                    let reason = "a quote opened in the row that begins here is never closed";
                    return Err(StreamError::Malformed(line, reason.to_owned()));
                }
            }
        }
    }

    fn write_object(&self, into: &mut Vec<u8>) -> Result<(), String> {
        for (at, column) in self.columns.iter().enumerate() {
            let text = self.field(at).map_err(|_| format!("column `{}` is not UTF-8", column.name))?;
            into.extend_from_slice(&column.key);
            write_field(into, text, column.field_type)
                .map_err(|what| format!("column `{}` is not {what}", column.name))?;
        }
        into.push(b'}');
        Ok(())
    }

    fn field(&self, at: usize) -> Result<&str, std::str::Utf8Error> {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        std::str::from_utf8(&self.fields[start..self.ends[at]])
    }

    fn consume(&mut self, bytes: usize) {
        self.line += memchr::memchr_iter(b'\n', &self.blocks.unread()[..bytes]).count() as u64;
        self.blocks.consume(bytes);
    }
}

/// Appends a field as JSON. The error says what the field is not.
fn write_field(into: &mut Vec<u8>, text: &str, field_type: FieldType) -> Result<(), &'static str> {
    if field_type == FieldType::Text {
        write_text(into, text);
        return Ok(());
    }
    let text = text.trim();
    if text.is_empty() {
        into.extend_from_slice(b"null");
        return Ok(());
    }
    match field_type {
        FieldType::Text => write_text(into, text),
        FieldType::Int => into.extend_from_slice(int(text).ok_or("an int of 64 bits")?.as_bytes()),
        FieldType::Float => into.extend_from_slice(float(text).ok_or("a finite float")?.as_bytes()),
        FieldType::Bool => {
            let value = boolean(text).ok_or("a bool (true or false, yes or no, 1 or 0)")?;
            into.extend_from_slice(if value { b"true" } else { b"false" });
        }
        FieldType::Json => {
            item::check(text.as_bytes()).map_err(|_| "JSON")?;
            item::append(into, text.as_bytes());
        }
    }
    Ok(())
}

fn write_text(into: &mut Vec<u8>, text: &str) {
    // Writing text to memory cannot fail.
    let _ = serde_json::to_writer(into, text);
}

fn int(text: &str) -> Option<String> {
    text.parse::<i64>().map(|number| number.to_string()).ok().or_else(|| {
        let number: u64 = text.parse().ok()?;
        Some(number.to_string())
    })
}

/// The number as written where JSON writes it so, else as JSON does.
fn float(text: &str) -> Option<String> {
    if serde_json::from_str::<f64>(text).is_ok() {
        return Some(text.to_owned());
    }
    let number: f64 = text.parse().ok()?;
    serde_json::Number::from_f64(number).map(|number| number.to_string())
}

fn boolean(text: &str) -> Option<bool> {
    let is = |words: [&str; 3]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(["true", "yes", "1"]) {
        Some(true)
    } else if is(["false", "no", "0"]) {
        Some(false)
    } else {
        None
    }
}
