//! W2 and W3: calls and commands, and how soon the first result is there.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use windrow_tests::process::binary;
use windrow_tests::rabbitmq_server::RabbitMqServer;

use super::measure::{Running, lines, printed, take_turns, timed, write_items};

const CALLS: u64 = 5_000;

fn job(stage: &str) -> String {
    format!(
        "name = \"work\"\n\
         [source]\ntype = \"jsonl\"\npath = \"../items.jsonl\"\n\
         {stage}\n\
         [sink]\ntype = \"jsonl\"\npath = \"out.jsonl\"\n"
    )
}

/// Writes `jobs/job.toml`.
fn write_job(folder: &Path, stage: &str) {
    let jobs = folder.join("jobs");
    std::fs::create_dir_all(&jobs).expect("the folder can be made");
    std::fs::write(jobs.join("job.toml"), job(stage)).expect("the job can be written");
}

/// 5,000 HTTP calls of 20 ms, 50 at once, through RabbitMQ.
pub(crate) fn http_calls() {
    let folder = TempDir::new().expect("a folder");
    let server = RabbitMqServer::start_blocking();
    let mut delay = Command::new(binary("delay-server"))
        .arg("20")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the delay server starts");
    let mut port = String::new();
    BufReader::new(delay.stdout.take().expect("piped")).read_line(&mut port).expect("it prints its port");
    let port = port.trim();
    write_items(&folder.path().join("items.jsonl"), CALLS);
    let job = job(&format!(
        "[[stage]]\nname = \"call\"\ntype = \"http\"\nconcurrency = 50\ndestination = \"delay\"\n\
             method = \"POST\"\nurl = \"http://127.0.0.1:{port}/\"\nbody = \"{{{{ item | tojson }}}}\"\n\
             [destination.delay]\nmax_connections = 50"
    ));
    let mut fleet = Running::start(folder.path(), &server.uri(), &job);
    let bare = || printed(Command::new(binary("bare-http")).args([port, &CALLS.to_string(), "50"]));
    take_turns(|| fleet.run(CALLS), bare).report("W2, HTTP", "bare hyper client", CALLS);
    delay.kill().expect("it was running");
    delay.wait().expect("it was started");
}

/// 5,000 commands running `true`, two at a time, on the embedded broker.
pub(crate) fn commands() {
    let folder = TempDir::new().expect("a folder");
    write_items(&folder.path().join("items.jsonl"), CALLS);
    write_job(
        folder.path(),
        "[[stage]]\nname = \"run\"\ntype = \"command\"\nargv = [\"true\"]\nconcurrency = 2",
    );
    let sink = folder.path().join("jobs").join("out.jsonl");
    let ours = || {
        let data = TempDir::new_in(folder.path()).expect("a folder");
        let mut command = Command::new(binary("windrow"));
        command.arg("run").arg(folder.path().join("jobs/job.toml"));
        let seconds = timed(command.arg("--quiet").arg("--data-dir").arg(data.path()));
        assert_eq!(lines(&sink), CALLS);
        std::fs::remove_file(&sink).expect("the sink is there");
        seconds
    };
    let shell = |text: &str| timed(Command::new("sh").args(["-c", text]));
    let xargs = format!("seq {CALLS} | xargs -P2 -n1 true");
    take_turns(ours, || shell(&xargs)).report("W3, commands", "xargs -P2 -n1 true", CALLS);
    if Command::new("parallel").arg("--version").output().is_ok() {
        let parallel = format!("seq {CALLS} | parallel -j2 true");
        take_turns(ours, || shell(&parallel)).report("W3, commands", "parallel -j2 true", CALLS);
    } else {
        println!("W3, commands: GNU parallel is not installed; not compared");
    }
}

/// A job of ten items on the embedded broker: the whole process, from start to exit.
pub(crate) fn start() {
    let folder = TempDir::new().expect("a folder");
    write_items(&folder.path().join("items.jsonl"), 10);
    write_job(folder.path(), "[[stage]]\nname = \"echo\"\ntype = \"echo\"");
    let sink = folder.path().join("jobs").join("out.jsonl");
    let ours = || {
        let data = TempDir::new_in(folder.path()).expect("a folder");
        let mut command = Command::new(binary("windrow"));
        command.arg("run").arg(folder.path().join("jobs/job.toml"));
        let seconds = timed(command.arg("--quiet").arg("--data-dir").arg(data.path()));
        std::fs::remove_file(&sink).expect("the sink is there");
        seconds
    };
    take_turns(ours, || timed(&mut Command::new("true"))).report("Start to exit, ten items", "true", 10);
}
