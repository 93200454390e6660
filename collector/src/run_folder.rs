//! The run folder `DATA_DIR/runs/RUN/`: what a person, or a script, looks at without any tool.
//!
//! A thread of its own writes it from the ledger, so a long list of failures delays no outcome.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use windrow_common::crash;
use windrow_common::ids::RunId;

use crate::ledger::{LedgerPlace, ReadError, Reader};

/// Failures are read from the ledger in pages of this many.
const PAGE: usize = 10_000;

/// Writing takes at most one part in this many of the time.
const IDLE_SHARE: u32 = 20;

/// Why a run folder could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The ledger could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The folder could not be written.
    #[error("{0}")]
    Write(#[from] std::io::Error),
}

/// Writes run folders.
#[derive(Debug)]
pub(crate) struct RunFolders {
    requests: mpsc::Sender<Request>,
    /// When an unhurried write is welcome again.
    welcome_at: Arc<Mutex<Instant>>,
}

#[derive(Debug)]
struct Request {
    run: RunId,
    done: oneshot::Sender<bool>,
}

impl RunFolders {
    /// Starts the thread. It ends when this is dropped and the last request is served.
    pub(crate) fn start(ledger: LedgerPlace, data_dir: PathBuf) -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let welcome_at = Arc::new(Mutex::new(Instant::now()));
        let welcome = Arc::clone(&welcome_at);
        std::thread::Builder::new().name("run-folders".into()).spawn(move || {
            while let Ok(request) = inbox.recv() {
                let began = Instant::now();
                let written = write(&ledger, &data_dir, &request.run);
                if let Err(error) = &written {
                    tracing::error!(run = %request.run, "the run folder could not be written: {error}");
                }
                let pause = (began.elapsed() * IDLE_SHARE).max(Duration::from_secs(1));
                *welcome.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + pause;
                // Nobody waits for an unhurried write.
                let _ = request.done.send(written.is_ok());
            }
        })?;
        Ok(Self { requests, welcome_at })
    }

    /// Asks for a run's folder to be written, unless the last write was too recent. Returns whether it was.
    pub(crate) fn offer(&self, run: &RunId, now: Instant) -> bool {
        let mut welcome_at = self.welcome_at.lock().unwrap_or_else(PoisonError::into_inner);
        if now < *welcome_at {
            return false;
        }
        // No second offer before this one is served.
        *welcome_at = now + Duration::from_secs(3600);
        let (done, _) = oneshot::channel();
        self.requests.send(Request { run: run.clone(), done }).is_ok()
    }

    /// Writes a run's folder and waits for it. Returns whether it was written.
    pub(crate) async fn write(&self, run: &RunId) -> bool {
        let (done, served) = oneshot::channel();
        self.requests.send(Request { run: run.clone(), done }).is_ok() && served.await.unwrap_or(false)
    }
}

/// The folder of a run.
pub fn folder(data_dir: &Path, run: &RunId) -> PathBuf {
    data_dir.join("runs").join(run.as_str())
}

fn write(ledger: &LedgerPlace, data_dir: &Path, run: &RunId) -> Result<(), FolderError> {
    let reader = ledger.read(data_dir)?;
    let folder = folder(data_dir, run);
    fs::create_dir_all(&folder)?;
    replace(&folder, "failures.jsonl", |file| write_failures(&reader, run, file))?;
    replace(&folder, "rejected.jsonl", |file| {
        let mut failed = None;
        reader.rejects(run, |reject| {
            failed = failed.take().or_else(|| write_line(file, reject).err());
            Ok(())
        })?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    })?;
    replace(&folder, "report.json", |file| {
        serde_json::to_writer_pretty(&mut *file, &reader.report(run)?).map_err(std::io::Error::from)?;
        Ok(file.write_all(b"\n")?)
    })
}

fn write_failures(reader: &Reader, run: &RunId, file: &mut impl Write) -> Result<(), FolderError> {
    let mut after = None;
    loop {
        let page = reader.failures(run, after.as_ref().map(|(source, index)| (source, *index)), PAGE)?;
        for row in &page {
            write_line(file, row)?;
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some((last.source.clone(), last.index)),
            _ => return Ok(()),
        }
    }
}

fn write_line(file: &mut impl Write, row: &impl serde::Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *file, row)?;
    file.write_all(b"\n")
}

/// Writes a file beside the old one and puts it in its place.
fn replace(
    folder: &Path,
    name: &str,
    content: impl FnOnce(&mut BufWriter<File>) -> Result<(), FolderError>,
) -> Result<(), FolderError> {
    let temporary = folder.join(format!(".{name}.new"));
    let mut file = BufWriter::new(File::create(&temporary)?);
    content(&mut file)?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_data()?;
    crash::point("collector.report_renaming");
    Ok(fs::rename(temporary, folder.join(name))?)
}
