//! The spool: an append-only log per run of rendered lines that are not yet safe in the sink.
//!
//! `DATA_DIR/spool/RUN/NNNNNN`. A batch's lines are gathered in memory, flushed once (written and synced)
//! before the ledger names their place, and read back when their turn in the sink comes. A segment is
//! deleted when nothing in it is needed. Each start of a collector begins segments of its own, so one that
//! slept through being replaced writes into nobody's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use windrow_common::ids::RunId;

/// A new segment is begun once one is this long.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// A place in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The segment's number.
    pub segment: u32,
    /// Bytes from its beginning.
    pub at: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Extent {
    /// This extent and the one right behind it as one, if `next` is that.
    pub fn joined(self, next: Self) -> Option<Self> {
        (self.segment == next.segment && self.at + self.bytes == next.at)
            .then_some(Self { bytes: self.bytes + next.bytes, ..self })
    }
}

/// The spool of one run.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    /// Bytes still needed, by segment.
    needed: BTreeMap<u32, u64>,
    writing: Option<Segment>,
    next_segment: u32,
    reading: Option<(u32, File)>,
}

/// The segment that is written to.
#[derive(Debug)]
struct Segment {
    number: u32,
    file: File,
    /// Where `buffer` goes.
    buffer_at: u64,
    /// The lines of the latest batch; kept after the flush, since most are read back at once.
    buffer: Vec<u8>,
}

impl Spool {
    /// The spool of `run` below `data_dir`; `needed` are the bytes the ledger still names, by segment.
    /// Segments nobody needs are deleted.
    pub fn open(data_dir: &Path, run: &RunId, needed: BTreeMap<u32, u64>) -> io::Result<Self> {
        let folder = data_dir.join("spool").join(run.as_str());
        let mut next_segment = needed.last_key_value().map_or(0, |(last, _)| last + 1);
        for number in segments(&folder)? {
            next_segment = next_segment.max(number + 1);
            if needed.get(&number).is_none_or(|bytes| *bytes == 0) {
                fs::remove_file(folder.join(file_name(number)))?;
            }
        }
        Ok(Self { folder, needed, writing: None, next_segment, reading: None })
    }

    /// Makes room for a batch of lines. Call it before the first `push` of each batch.
    pub fn begin_batch(&mut self) -> io::Result<()> {
        if self.writing.as_ref().is_none_or(|segment| segment.end() >= SEGMENT_BYTES) {
            self.writing = Some(self.begin_segment()?);
        }
        if let Some(segment) = &mut self.writing {
            segment.buffer_at = segment.end();
            segment.buffer.clear();
        }
        Ok(())
    }

    /// Puts lines behind what is there, in memory until `flush`, and says where they will be. None without
    /// a `begin_batch` that went well.
    pub fn push(&mut self, lines: &[u8]) -> Option<Extent> {
        let segment = self.writing.as_mut()?;
        let extent = Extent { segment: segment.number, at: segment.end(), bytes: lines.len() as u64 };
        segment.buffer.extend_from_slice(lines);
        *self.needed.entry(extent.segment).or_default() += extent.bytes;
        Some(extent)
    }

    /// Brings everything pushed to disk. After an error it may be called again.
    pub fn flush(&mut self) -> io::Result<()> {
        match &self.writing {
            Some(segment) if !segment.buffer.is_empty() => {
                segment.file.write_all_at(&segment.buffer, segment.buffer_at)?;
                segment.file.sync_data()
            }
            _ => Ok(()),
        }
    }

    /// Calls `write` with the bytes at `extent`, in blocks of at most `block` bytes.
    pub fn read(
        &mut self,
        extent: Extent,
        block: usize,
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(bytes) = self.writing.as_ref().and_then(|segment| segment.in_memory(extent)) {
            let mut at = 0;
            for part in bytes.chunks(block) {
                write(at, part)?;
                at += part.len() as u64;
            }
            return Ok(());
        }
        let file = self.segment_to_read(extent.segment)?;
        let mut buffer = vec![0; usize::try_from(extent.bytes).unwrap_or(block).min(block)];
        let mut done = 0;
        while done < extent.bytes {
            let want = usize::try_from(extent.bytes - done).unwrap_or(block).min(block);
            file.read_exact_at(&mut buffer[..want], extent.at + done)?;
            write(done, &buffer[..want])?;
            done += want as u64;
        }
        Ok(())
    }

    /// How many bytes are still needed.
    pub fn bytes(&self) -> u64 {
        self.needed.values().sum()
    }

    /// Lets go of bytes that are safe elsewhere, and deletes segments nobody needs.
    pub fn release(&mut self, extents: impl IntoIterator<Item = Extent>) -> io::Result<()> {
        for extent in extents {
            if let Some(bytes) = self.needed.get_mut(&extent.segment) {
                *bytes = bytes.saturating_sub(extent.bytes);
            }
        }
        let current = self.writing.as_ref().map(|segment| segment.number);
        let free: Vec<u32> = self
            .needed
            .iter()
            .filter(|(number, bytes)| **bytes == 0 && Some(**number) != current)
            .map(|(number, _)| *number)
            .collect();
        for number in free {
            remove_if_there(&self.folder.join(file_name(number)))?;
            self.needed.remove(&number);
            self.reading.take_if(|(open, _)| *open == number);
        }
        Ok(())
    }

    /// Deletes the whole spool.
    pub fn delete(&mut self) -> io::Result<()> {
        self.writing = None;
        self.needed.clear();
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn begin_segment(&mut self) -> io::Result<Segment> {
        fs::create_dir_all(&self.folder)?;
        loop {
            let number = self.next_segment;
            self.next_segment += 1;
            match File::create_new(self.folder.join(file_name(number))) {
                Ok(file) => {
                    File::open(&self.folder)?.sync_all()?;
                    return Ok(Segment { number, file, buffer_at: 0, buffer: Vec::new() });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn segment_to_read(&mut self, number: u32) -> io::Result<&File> {
        if self.reading.as_ref().is_none_or(|(open, _)| *open != number) {
            self.reading = Some((number, File::open(self.folder.join(file_name(number)))?));
        }
        self.reading.as_ref().map(|(_, file)| file).ok_or_else(|| io::Error::other("no segment"))
    }
}

impl Segment {
    fn end(&self) -> u64 {
        self.buffer_at + self.buffer.len() as u64
    }

    fn in_memory(&self, extent: Extent) -> Option<&[u8]> {
        if self.number != extent.segment {
            return None;
        }
        let from = usize::try_from(extent.at.checked_sub(self.buffer_at)?).ok()?;
        let to = from.checked_add(usize::try_from(extent.bytes).ok()?)?;
        self.buffer.get(from..to)
    }
}

fn file_name(number: u32) -> String {
    format!("{number:06}")
}

fn segments(folder: &Path) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
