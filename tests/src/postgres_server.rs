//! A PostgreSQL server of a test's own: in a folder that goes with it, on a free port of loopback.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::wait_until;

/// The password of its one user.
pub const PASSWORD: &str = "s3cret-of-the-ledger";

/// Who runs it when the test is root, which PostgreSQL refuses to be run by.
const UNPRIVILEGED: &str = "postgres";

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct PostgresServer {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl PostgresServer {
    /// Makes a database cluster and serves it.
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        if is_root() {
            let owner = format!("{UNPRIVILEGED}:{UNPRIVILEGED}");
            let done = Command::new("chown").arg("-R").arg(owner).arg(folder.path()).status();
            assert!(done.unwrap().success());
        }
        let mut initdb = command("initdb", folder.path());
        initdb.args([
            "--username=windrow",
            "--auth=scram-sha-256",
            "--no-sync",
            "--encoding=UTF8",
            "--no-locale",
        ]);
        initdb.arg("--pwfile").arg(&password).arg("--pgdata").arg(folder.path().join("data"));
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let child = serve(folder.path(), port);
        Self { folder, port, child }
    }

    /// Where it is, for its user.
    pub fn url(&self) -> String {
        format!("postgres://windrow:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    /// Kills every process of it, as a power cut would, and starts it again.
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Kills every process of it, as a power cut would.
    pub fn kill(&mut self) {
        self.end(Signal::QUIT);
    }

    /// Starts a killed one again.
    pub fn start_again(&mut self) {
        self.child = serve(self.folder.path(), self.port);
    }

    /// Runs a client program such as `psql` with the database's address; returns what it prints.
    pub fn client(&self, program: &str, arguments: &[&str]) -> String {
        let mut client = command(program, self.folder.path());
        let output = client.arg("--dbname").arg(self.url()).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn end(&mut self, signal: Signal) {
        // It may have ended.
        let _ = kill_process(Pid::from_child(&self.child), signal);
        self.child.wait().unwrap();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.end(Signal::QUIT);
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The newest server's program of this name, run by who may.
fn command(name: &str, folder: &Path) -> Command {
    let mut found: Vec<PathBuf> = glob(name);
    found.sort();
    let program = found.pop().unwrap_or_else(|| panic!("no {name}: run scripts/install-test-tools.sh"));
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", UNPRIVILEGED, "--regid", UNPRIVILEGED, "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(folder).stdin(Stdio::null());
    command
}

fn glob(name: &str) -> Vec<PathBuf> {
    let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    versions
        .map(|version| version.unwrap().path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect()
}

fn serve(folder: &Path, port: u16) -> Child {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut command = command("postgres", folder);
    command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", "fsync=on"]);
    let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    wait_until("PostgreSQL serves", Duration::from_secs(60), || answers(folder, port));
    child
}

fn answers(folder: &Path, port: u16) -> bool {
    let mut asking = command("pg_isready", folder);
    asking.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
    asking.status().unwrap().success()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
