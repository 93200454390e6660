//! Append-only files of checked records: `length, CRC-32, payload`, the numbers as 32 bits little-endian.
//! What a crash left half-written at the end is ignored.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

/// No payload is larger; a length above it is damage.
const MAX_PAYLOAD_BYTES: usize = 32 * 1024 * 1024;

const HEADER_BYTES: usize = 8;

/// An append-only file of records, open for writing. Any thread may append at any time.
#[derive(Debug)]
pub(crate) struct Framed {
    tail: Mutex<Tail>,
    /// The same file, to flush it without keeping others from appending.
    file: File,
}

#[derive(Debug)]
struct Tail {
    file: File,
    bytes: u64,
}

impl Framed {
    /// Opens a file, made if it is not there, behind its first `valid_bytes` bytes; what follows is cut off.
    pub(crate) fn open(path: &Path, valid_bytes: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.set_len(valid_bytes)?;
        file.seek(SeekFrom::Start(valid_bytes))?;
        Ok(Self { file: file.try_clone()?, tail: Mutex::new(Tail { file, bytes: valid_bytes }) })
    }

    /// Appends a record of the bytes of `parts`. It survives this process from then on, and the machine
    /// from the next [`Framed::sync`] on.
    pub(crate) fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        let payload_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(payload_bytes).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
        let mut crc = crc32fast::Hasher::new();
        for part in parts {
            crc.update(part);
        }
        let mut record = Vec::with_capacity(HEADER_BYTES + payload_bytes);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(&crc.finalize().to_le_bytes());
        for part in parts {
            record.extend_from_slice(part);
        }
        let mut tail = self.tail.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match tail.file.write_all(&record) {
            Ok(()) => {
                tail.bytes += record.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Take back what was written of it. If that fails too, reading stops before it.
                let bytes = tail.bytes;
                let _ = tail.file.set_len(bytes).and_then(|()| tail.file.seek(SeekFrom::Start(bytes)));
                Err(error)
            }
        }
    }

    /// How large the file is.
    pub(crate) fn bytes(&self) -> u64 {
        self.tail.lock().unwrap_or_else(std::sync::PoisonError::into_inner).bytes
    }

    /// Returns once everything appended before is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The records of a file, from the first to the last whole one.
#[derive(Debug)]
pub(crate) struct Records {
    reader: BufReader<File>,
    valid_bytes: u64,
    left_bytes: u64,
}

impl Records {
    /// Opens a file; none if it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let left_bytes = file.metadata()?.len();
        Ok(Some(Self { reader: BufReader::with_capacity(1 << 16, file), valid_bytes: 0, left_bytes }))
    }

    /// The next record's payload. None at the end, and at the first record that is not whole.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.left_bytes < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let (mut length, mut crc) = ([0; 4], [0; 4]);
        self.reader.read_exact(&mut length)?;
        self.reader.read_exact(&mut crc)?;
        let length = u32::from_le_bytes(length) as usize;
        let record_bytes = (HEADER_BYTES + length) as u64;
        if length > MAX_PAYLOAD_BYTES || record_bytes > self.left_bytes {
            self.left_bytes = 0;
            return Ok(None);
        }
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload)?;
        if crc32fast::hash(&payload) != u32::from_le_bytes(crc) {
            self.left_bytes = 0;
            return Ok(None);
        }
        self.left_bytes -= record_bytes;
        self.valid_bytes += record_bytes;
        Ok(Some(payload))
    }

    /// How many bytes the records read so far take up.
    pub(crate) fn valid_bytes(&self) -> u64 {
        self.valid_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(path: &Path) -> (Vec<Vec<u8>>, u64) {
        let mut records = Records::open(path).unwrap().unwrap();
        let mut payloads = Vec::new();
        while let Some(payload) = records.next().unwrap() {
            payloads.push(payload);
        }
        (payloads, records.valid_bytes())
    }

    #[test]
    fn a_file_cut_anywhere_gives_its_whole_records_and_can_be_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let framed = Framed::open(&path, 0).unwrap();
        framed.append(&[b"one"]).unwrap();
        framed.append(&[b"", b"tw", b"o"]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let first_bytes = HEADER_BYTES + 3;
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (payloads, valid_bytes) = read_all(&path);
            assert_eq!(payloads.len(), usize::from(cut >= first_bytes), "cut at {cut}");
            Framed::open(&path, valid_bytes).unwrap().append(&[b"three"]).unwrap();
            assert_eq!(read_all(&path).0.last().unwrap(), b"three");
        }
    }

    #[test]
    fn a_record_with_a_flipped_bit_ends_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let framed = Framed::open(&path, 0).unwrap();
        framed.append(&[b"one"]).unwrap();
        framed.append(&[b"two"]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEADER_BYTES] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read_all(&path), (vec![], 0));
    }
}
