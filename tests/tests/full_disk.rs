//! A full disk under each thing `windrow run` writes, in turn, then freed: the run waits, says why, and completes.
//!
//! The disk is a small file system in memory, in a mount namespace of the process's own: making one takes no root.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::front_door::FrontDoor;
use windrow_tests::process::{Process, binary, wait_until};

const ITEMS: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// Mounts a disk of 16 MiB at $1 with $2 KiB free, puts the folders named in $3 elsewhere, and becomes the rest.
const ON_A_SMALL_DISK: &str = r#"
    disk=$1 free=$2 elsewhere=$3
    shift 3
    mkdir -p "$disk" && mount -t tmpfs -o size=16m tmpfs "$disk" || exit 9
    for folder in $elsewhere; do
        mkdir -p "$HOME/elsewhere/$folder"
        ln -s "$HOME/elsewhere/$folder" "$disk/$folder"
    done
    head -c $((16 * 1024 * 1024 - free * 1024)) /dev/zero > "$disk/ballast"
    exec "$@"
"#;

fn job(url: &str) -> String {
    format!(
        r#"
name = "cramped"
[source]
type = "jsonl"
path = "items.jsonl"
[chunk]
items = 100
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 200
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
[destination.paced]
max_connections = 20
[sink]
type = "jsonl"
path = "out.jsonl"
order = "input"
"#
    )
}

/// A run, one of whose folders is on a small disk.
struct Cramped {
    folder: TempDir,
    door: FrontDoor,
    destination: Destination,
}

impl Cramped {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let destination = Destination::start(Behaviour { delay: Duration::from_millis(2), fail_every: 0 });
        let door = FrontDoor::new(folder.path(), &job(&destination.url()), ITEMS);
        let mut items = String::new();
        for index in 0..ITEMS {
            writeln!(items, "{{\"n\":{index},\"text\":\"{}\"}}", "x".repeat(300)).unwrap();
        }
        std::fs::write(door.items(), items).unwrap();
        Self { folder, door, destination }
    }

    /// Runs with `disk` on a small disk that has `free_kib` left, apart from the folders `elsewhere` in it, until
    /// the log says that it is full; then frees it and lets the run complete.
    fn completes_once_there_is_room(&self, disk: &Path, free_kib: u32, elsewhere: &str, complaint: &str) {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh"]);
        command.arg(disk).arg(free_kib.to_string()).arg(elsewhere);
        command.arg(binary("windrow")).args(self.door.arguments()).env("HOME", self.folder.path());
        let mut process = Process::start("windrow", &mut command, self.folder.path());
        wait_until("the disk is full", PATIENCE, || {
            let ended = process.ended();
            assert!(ended.is_none(), "{ended:?}\n{}", process.log());
            process.log().contains(complaint)
        });
        let calls = self.destination.call_count();
        assert!(calls < usize::try_from(ITEMS).unwrap(), "it is full in mid-run: {calls} calls");
        std::fs::remove_file(seen_by(&process, &disk.join("ballast"))).unwrap();
        // The small disk ends with the process: what is on it is kept by this.
        let root = std::fs::File::open(seen_by(&process, disk)).unwrap();
        assert!(process.wait(PATIENCE).success(), "{}", process.log());
        drop(root);
        println!("full at {calls} calls; {} in the end", self.destination.call_count());
        check_sink(&self.door.sink(), ITEMS, true);
    }
}

/// A file as the process sees it, in its own mount namespace.
fn seen_by(process: &Process, path: &Path) -> PathBuf {
    Path::new("/proc").join(process.id().to_string()).join("root").join(path.strip_prefix("/").unwrap())
}

#[test]
fn a_run_whose_ledger_is_on_a_full_disk_completes_once_there_is_room() {
    let cramped = Cramped::new();
    let data = cramped.door.data();
    cramped.completes_once_there_is_room(&data, 700, "spool queue producer runs", "the ledger");
    let runs = cramped.folder.path().join("elsewhere/runs");
    let run = runs.read_dir().unwrap().next().unwrap().unwrap().path();
    check_balance(&report(&run), ITEMS);
}

#[test]
fn a_run_whose_spool_is_on_a_full_disk_completes_once_there_is_room() {
    let cramped = Cramped::new();
    cramped.completes_once_there_is_room(&cramped.door.data().join("spool"), 400, "", "the spool");
    check_balance(&report(&cramped.door.run_folder()), ITEMS);
}

#[test]
fn a_run_whose_broker_is_on_a_full_disk_completes_once_there_is_room() {
    let cramped = Cramped::new();
    let queue = cramped.door.data().join("queue");
    cramped.completes_once_there_is_room(&queue, 2_000, "", "the queue file cannot be written");
    check_balance(&report(&cramped.door.run_folder()), ITEMS);
}
