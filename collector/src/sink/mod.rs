//! Where a run's lines go, and in which order.
//!
//! [`Sink`] is the seam. A sink takes a stream of lines whose bytes were fixed, with their places, in the
//! ledger's transaction (law 14): writing the same bytes again at the same place is always right.

pub mod jsonl;
pub mod order;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use windrow_common::job::{FileSink, IfExists, Job, SinkSpec};

use crate::ledger::SinkRecord;
use crate::ledger::record::FileRecord;

/// A sink of one run, in the hands of the active collector.
pub trait Sink: Send + fmt::Debug {
    /// Puts `lines` at `at` of the run's stream. Doing it again changes nothing.
    fn write(&mut self, at: u64, lines: &[u8]) -> io::Result<()>;

    /// Returns once everything written before survives the loss of power.
    fn sync(&mut self) -> io::Result<()>;

    /// The stream is complete with `bytes`, all written and synced. An error says what is wrong with the
    /// result.
    fn finish(&mut self, bytes: u64) -> io::Result<()>;
}

/// Decides where a new run's lines go, before the run is in the ledger. An error is why the sink refuses
/// the run. Doing it again, after a crash, gives the same.
pub fn bind(job: &Job, base: &Path) -> Result<SinkRecord, String> {
    let (SinkSpec::Jsonl(spec), Some(path)) = (&job.sink, job.sink_path(base)) else {
        return Ok(SinkRecord::None);
    };
    bind_file(spec, path.clone())
        .map_err(|error| format!("sink {}: {error}; it is `path` in [sink] of the job file", path.display()))
}

fn bind_file(spec: &FileSink, path: PathBuf) -> io::Result<SinkRecord> {
    let path = std::path::absolute(path)?;
    if let Some(folder) = path.parent() {
        let unusable = |error| io::Error::other(format!("its folder cannot be made: {error}"));
        fs::create_dir_all(folder).map_err(unusable)?;
    }
    let file = match File::options().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        file => Some(file?),
    };
    let (base, break_before) = match (file, spec.if_exists) {
        (None, _) => (0, false),
        (Some(_), IfExists::Error) => {
            let advice = "it is there already; move it away, or set if_exists to \"replace\" or \"append\"";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, advice));
        }
        (Some(file), IfExists::Replace) => {
            // Before the run is known to anyone: no other collector can be writing to it.
            file.set_len(0)?;
            (0, false)
        }
        (Some(file), IfExists::Append) => end_of(file)?,
    };
    Ok(SinkRecord::File(FileRecord::new(path, spec.order, base, break_before)))
}

/// Where appended lines begin, and whether a line break must come first.
fn end_of(mut file: File) -> io::Result<(u64, bool)> {
    let length = file.seek(SeekFrom::End(0))?;
    if length == 0 {
        return Ok((0, false));
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(if last == *b"\n" { (length, false) } else { (length + 1, true) })
}
