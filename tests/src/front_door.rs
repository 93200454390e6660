//! `windrow run` in a folder of its own: `job.toml`, `items.jsonl`, the sink `out.jsonl`, and `data/`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use windrow_common::crash;

use crate::process::{Process, binary};

/// A folder to give `windrow run` in, again and again.
#[derive(Debug, Clone)]
pub struct FrontDoor {
    folder: PathBuf,
}

impl FrontDoor {
    /// A folder with this job file, whose items are `{"n":0}`, `{"n":1}` and so on.
    pub fn new(folder: &Path, job: &str, items: u64) -> Self {
        std::fs::write(folder.join("job.toml"), job).unwrap();
        write_items(&folder.join("items.jsonl"), items);
        Self { folder: folder.to_path_buf() }
    }

    /// The source.
    pub fn items(&self) -> PathBuf {
        self.folder.join("items.jsonl")
    }

    /// The sink.
    pub fn sink(&self) -> PathBuf {
        self.folder.join("out.jsonl")
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Gives the command, with `more` arguments; it aborts at the crash point, if one is given.
    pub fn run(&self, crash: Option<&str>, more: &[&str]) -> Process {
        let mut command = Command::new(binary("windrow"));
        command.args(self.arguments()).args(more).env_remove(crash::VARIABLE);
        if let Some(point) = crash {
            command.env(crash::VARIABLE, point);
        }
        Process::start("windrow", &mut command, &self.folder)
    }

    /// What `windrow` is given.
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        let (job, data) = (self.folder.join("job.toml"), self.data());
        vec!["run".into(), job.into(), "--data-dir".into(), data.into(), "--consumers".into(), "2".into()]
    }

    /// The folders of the runs there are, with their reports.
    pub fn run_folders(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.data().join("runs"));
        entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    /// The folder of the only run.
    pub fn run_folder(&self) -> PathBuf {
        let folders = self.run_folders();
        assert_eq!(folders.len(), 1, "one run: {folders:?}");
        folders[0].clone()
    }
}

/// Writes a file of items.
pub fn write_items(path: &Path, items: u64) {
    let mut text = String::new();
    for index in 0..items {
        writeln!(text, "{{\"n\":{index}}}").unwrap();
    }
    std::fs::write(path, text).unwrap();
}
