//! The files of a source: which they are, in which order, and what is in them.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::ProducerError;

/// A file of a source, as it was when the run was planned.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What the run calls it: its path below the job file's folder, or as given.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// BLAKE3 of its contents, in hexadecimal.
    pub(crate) hash: String,
    modified: Option<SystemTime>,
}

impl SourceFile {
    /// Reads a file through, to know it again.
    pub(crate) fn fingerprint(path: PathBuf, folder: &Path) -> Result<Self, ProducerError> {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let read = |path: &Path| -> io::Result<(Metadata, String)> {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            let mut hasher = blake3::Hasher::new();
            io::copy(&mut io::BufReader::with_capacity(1 << 20, file), &mut hasher)?;
            Ok((metadata, hasher.finalize().to_hex().to_string()))
        };
        let (metadata, hash) = read(&path).map_err(|error| ProducerError::Unreadable(name.clone(), error))?;
        Ok(Self { bytes: metadata.len(), modified: metadata.modified().ok(), path, name, hash })
    }

    /// Refuses a file that is not what it was when the run was planned.
    pub(crate) fn check_unchanged(&self, now: &Metadata) -> io::Result<()> {
        if now.len() == self.bytes && now.modified().ok() == self.modified {
            return Ok(());
        }
        Err(io::Error::other(
            "it was changed after the run began; leave source files alone while they are read",
        ))
    }
}

/// The files that `pattern` stands for, in bytewise order of their paths: the file of that very name, or
/// those the glob matches. Finding none is an error. What is in `folder`'s own name is never a glob.
pub(crate) fn expand(pattern: &Path, folder: &Path) -> Result<Vec<PathBuf>, ProducerError> {
    let shown = || pattern.display().to_string();
    match fs::metadata(pattern) {
        Ok(metadata) if metadata.is_file() => return Ok(vec![pattern.to_owned()]),
        Ok(metadata) if metadata.is_dir() => {
            let reason = format!("it is a folder; name its files, such as `{}/*.jsonl`", pattern.display());
            return Err(ProducerError::NoFiles(shown(), reason));
        }
        // A pipe or device can be read but once, and the fingerprint would be that once.
        Ok(_) => {
            let reason = "it is no regular file; pipe it in and use path = \"-\"".to_owned();
            return Err(ProducerError::NoFiles(shown(), reason));
        }
        Err(_) => {}
    }
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let matches = glob::glob_with(&escape_folder(pattern, folder), options)
        .map_err(|error| ProducerError::NoFiles(shown(), format!("it is no valid glob: {}", error.msg)))?;
    let mut paths = Vec::new();
    for found in matches {
        let path = found.map_err(|error| {
            let name = error.path().display().to_string();
            ProducerError::Unreadable(name, error.into())
        })?;
        if path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(ProducerError::NoFiles(
            shown(),
            "there is no such file, and none it matches as a glob; a relative path is relative to the job file"
                .to_owned(),
        ));
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(paths)
}

fn escape_folder(pattern: &Path, folder: &Path) -> String {
    match pattern.strip_prefix(folder) {
        Ok(rest) if folder != Path::new("") => {
            let folder = glob::Pattern::escape(&folder.to_string_lossy());
            Path::new(&folder).join(rest).to_string_lossy().into_owned()
        }
        _ => pattern.to_string_lossy().into_owned(),
    }
}
