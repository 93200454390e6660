//! Opening a stream: a file, decompressed by its ending, or standard input.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a source's files read so far, as they are on disk; shared with whoever shows progress.
pub(crate) type BytesRead = Arc<AtomicU64>;

/// What is read for `-`.
pub(crate) struct StandardInput(Box<dyn Read + Send>);

impl StandardInput {
    /// The process's own.
    pub(crate) fn of_process() -> Self {
        Self(Box::new(io::stdin()))
    }

    /// Another stream in its place.
    pub(crate) fn from_reader(reader: Box<dyn Read + Send>) -> Self {
        Self(reader)
    }

    pub(super) fn into_reader(self) -> Box<dyn Read + Send> {
        self.0
    }
}

impl fmt::Debug for StandardInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StandardInput")
    }
}

/// Opens a file at byte `offset` of its decompressed contents.
pub(super) fn open(path: &Path, offset: u64, read: BytesRead) -> io::Result<Box<dyn Read + Send>> {
    let file = File::open(path)?;
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if ending.eq_ignore_ascii_case("gz") {
        let counted = BufReader::with_capacity(super::BLOCK_BYTES, Counted { file, read });
        return passed(Box::new(flate2::bufread::MultiGzDecoder::new(counted)), offset);
    }
    if ending.eq_ignore_ascii_case("zst") {
        if file.metadata()?.len() == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "an empty file is not zstd data"));
        }
        return passed(Box::new(zstd::Decoder::new(Counted { file, read })?), offset);
    }
    let mut file = file;
    if file.metadata()?.len() < offset {
        return Err(ended_early(offset));
    }
    file.seek(SeekFrom::Start(offset))?;
    read.fetch_add(offset, Ordering::Relaxed);
    Ok(Box::new(Counted { file, read }))
}

/// The stream after its first `offset` bytes, which can only be come by through reading them.
fn passed(mut stream: Box<dyn Read + Send>, offset: u64) -> io::Result<Box<dyn Read + Send>> {
    let passed = io::copy(&mut stream.by_ref().take(offset), &mut io::sink())?;
    if passed < offset { Err(ended_early(offset)) } else { Ok(stream) }
}

fn ended_early(offset: u64) -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, format!("it has less than the {offset} bytes read of it before"))
}

struct Counted {
    file: File,
    read: BytesRead,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}
