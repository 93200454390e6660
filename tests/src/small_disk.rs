//! A disk of a few MiB that can be full or read-only: root ignores file modes, but not these.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own in memory, at a path. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Makes the folder and mounts the file system there, which takes root.
    pub fn mount(path: &Path, mebibytes: u32) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={mebibytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path));
        Self { path: path.to_path_buf() }
    }

    /// Lets nobody write to it any more.
    pub fn make_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path));
    }

    /// Fills it up, but for `bytes_left`.
    pub fn fill(&self, bytes_left: u64) {
        let status = rustix::fs::statvfs(&self.path).unwrap();
        let bytes = (status.f_bavail * status.f_frsize).saturating_sub(bytes_left);
        fs::write(self.filler(), vec![1; usize::try_from(bytes).unwrap()]).unwrap();
    }

    /// Frees what was filled.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process of the test may be about to end.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        drop(unmounted);
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?} failed; mounting a file system takes root");
}
