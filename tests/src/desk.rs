//! `windrow` as a user meets it: a folder with a job file, commands given there, what they say, how they end.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::binary;
use crate::rabbitmq_server::PASSWORD;

/// No command of these tests takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with `job.toml`, where commands are given.
#[derive(Debug)]
pub struct Desk {
    folder: TempDir,
    given: AtomicUsize,
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// A command under way. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Desk {
    /// A folder with this job file.
    pub fn new(job: &str) -> Self {
        let desk = Self { folder: TempDir::new().unwrap(), given: AtomicUsize::new(0) };
        desk.write("job.toml", job);
        desk
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the folder.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// The JSON lines of a file in the folder.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        json_lines(&fs::read_to_string(self.path(name)).unwrap())
    }

    /// The folder of the only run of the default data folder.
    pub fn only_run(&self) -> PathBuf {
        only_run(&self.path(".windrow"))
    }

    /// `windrow` with these arguments, from its beginning to its end.
    pub fn windrow(&self, arguments: &[&str]) -> Said {
        self.start(arguments).wait()
    }

    /// The same, not waited for.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_with(arguments, |_| {})
    }

    /// The same, with more said about the process.
    pub fn start_with(&self, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Running {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (self.path(&format!("{number}.out")), self.path(&format!("{number}.err")));
        let mut command = Command::new(binary("windrow"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("WINDROW_BROKER")
            .env_remove("WINDROW_DATA_DIR")
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap());
        prepare(&mut command);
        Running { child: command.spawn().unwrap(), out, err }
    }
}

/// The folder of the only run of a data folder.
pub fn only_run(data_dir: &Path) -> PathBuf {
    let runs: Vec<PathBuf> =
        fs::read_dir(data_dir.join("runs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [run] = runs.as_slice() else { panic!("not one run: {runs:?}") };
    run.clone()
}

/// Text of a JSON value a line.
pub fn json_lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(parse).collect()
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives it bytes to read, and leaves its standard input open.
    pub fn feed(&mut self, bytes: &[u8]) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(bytes).and_then(|()| input.flush()).unwrap();
    }

    /// What it has written to standard error so far.
    pub fn err(&self) -> String {
        read(&self.err)
    }

    /// Waits until standard error has `text`.
    pub fn wait_for(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.err().contains(text) {
            assert!(Instant::now() < until, "{text:?} is not said:\n{}", self.err());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.unwrap(), Signal::INT).unwrap();
    }

    /// Kills it at once; it must not have ended by itself.
    pub fn kill(mut self) {
        assert!(self.is_running(), "it was to be killed in mid-run, but has ended:\n{}", self.err());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end. No command may panic, or show the broker's password.
    pub fn wait(self) -> Said {
        self.wait_at_most(PATIENCE)
    }

    /// The same, for a command that may take longer than usual.
    pub fn wait_at_most(mut self, patience: Duration) -> Said {
        drop(self.child.stdin.take());
        let until = Instant::now() + patience;
        while self.is_running() {
            assert!(Instant::now() < until, "the command does not end:\n{}{}", read(&self.out), self.err());
            std::thread::sleep(Duration::from_millis(20));
        }
        let code = self.child.wait().unwrap().code();
        let said = Said { code, out: read(&self.out), err: self.err() };
        for text in [&said.out, &said.err] {
            assert!(!text.contains("panicked"), "{said}");
            assert!(!text.contains(PASSWORD), "the broker's password is shown: {said}");
        }
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Said {
    /// Checks the exit code, and that standard error has all of these texts.
    #[track_caller]
    #[expect(clippy::return_self_not_must_use, reason = "checking is what it is called for")]
    pub fn ended(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is not said: {self}");
        }
        self
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {:?}\n--- out\n{}\n--- err\n{}", self.code, self.out, self.err)
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
