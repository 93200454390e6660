//! The sink that is a file of JSON lines.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Sink;
use crate::ledger::record::FileRecord;

/// A file, written at fixed places and never cut.
#[derive(Debug)]
pub struct JsonlFile {
    path: PathBuf,
    file: File,
    base: u64,
}

impl JsonlFile {
    /// Opens, or makes, the file of `record`.
    pub fn open(record: &FileRecord) -> io::Result<Self> {
        if let Some(folder) = record.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&record.path)?;
        if record.break_before {
            file.write_all_at(b"\n", record.base - 1)?;
        }
        let safe = record.base + record.synced;
        let length = file.metadata()?.len();
        if length < safe {
            tracing::error!(
                file = %record.path.display(),
                "the sink's file was cut or replaced while its run went on: {} bytes of it are gone",
                safe - length
            );
        }
        Ok(Self { path: record.path.clone(), file, base: record.base })
    }
}

impl Sink for JsonlFile {
    fn write(&mut self, at: u64, lines: &[u8]) -> io::Result<()> {
        self.file.write_all_at(lines, self.base + at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn finish(&mut self, bytes: u64) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let expected = self.base + bytes;
        if length == expected {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "{} has {length} bytes where the ledger fixed {expected}; something else wrote to it",
            self.path.display()
        )))
    }
}
