//! command stages with real programs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use windrow_common::job::{EnvText, ProcessorSpec};

use super::super::tests::{build, env, failure, item, output, stage_spec};
use super::super::{Attempt, Destinations, Retry, Stage};
use super::*;

fn spec(argv: &[&str]) -> CommandSpec {
    CommandSpec {
        argv: argv.iter().map(|&argument| EnvText::new(argument)).collect(),
        output: CommandOutput::Text,
        max_output_bytes: 1024 * 1024,
        retry_exit_codes: None,
    }
}

fn stage(spec: CommandSpec) -> Stage {
    build(&stage_spec(ProcessorSpec::Command(spec)))
}

async fn run(spec: CommandSpec, raw: &str) -> Attempt {
    stage(spec).processor().process(&item(raw)).await
}

fn shell(script: &str) -> CommandSpec {
    spec(&["sh", "-c", script])
}

/// Waits until `happened` gives something; what it waits for is another process's doing.
async fn until<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(seen) = happened() {
            return seen;
        }
        assert!(Instant::now() < give_up, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The state letter of a process, None if there is none.
fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Whether a process has ended; a zombie that is not ours to reap has.
fn has_ended(pid: &str) -> Option<()> {
    matches!(state(pid), None | Some('Z')).then_some(())
}

/// What a file holds once it ends in a line break.
fn whole_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.strip_suffix('\n')?.to_owned())
}

#[tokio::test]
async fn the_item_comes_on_standard_input_and_output_goes_out_as_text() {
    assert_eq!(output(run(shell("cat; echo again"), r#"{"a":1}"#).await), r#""{\"a\":1}\nagain""#);
    assert_eq!(output(run(spec(&["true"]), "1").await), r#""""#);
    assert_eq!(output(run(shell("printf 'a\\r\\n'"), "1").await), r#""a""#);
    let (error, retry) = failure(run(shell("printf '\\377'"), "1").await);
    assert_eq!((error.message.as_str(), retry), ("output is not UTF-8", Retry::Never));
}

#[tokio::test]
async fn output_may_be_json() {
    let json = |script| CommandSpec { output: CommandOutput::Json, ..shell(script) };
    assert_eq!(output(run(json("printf '{\"a\":\\n1}\\n'"), "1").await), r#"{"a": 1}"#);
    assert_eq!(output(run(json("echo"), "1").await), "null");
    assert_eq!(failure(run(json("echo '{} {}'"), "1").await).1, Retry::Never);
}

#[tokio::test]
async fn arguments_are_filled_in_and_never_read_by_a_shell() {
    let argv = ["printf", "%s|%s|%s", "{{ item.name }}", "{{ idempotency_key }}", "${TOKEN}"];
    let attempt = run(spec(&argv), r#"{"name":"$(id) `id`; 'x' \"y\""}"#).await;
    assert_eq!(output(attempt), r#""$(id) `id`; 'x' \"y\"|r0/push/main/17|s3cret-t0ken""#);
    let (error, retry) = failure(run(spec(&["echo", "{{ item.nothing }}"]), "{}").await);
    assert_eq!((error.class.as_str(), retry), ("template", Retry::Never));
    assert!(error.message.contains("`argv[1]`"), "{}", error.message);
}

#[tokio::test]
async fn the_environment_is_what_is_documented_and_nothing_else() {
    let text = output(run(spec(&["env"]), "1").await);
    let text: String = serde_json::from_str(&text).unwrap();
    let path = format!("PATH={}", env("PATH").unwrap());
    let expected: BTreeSet<&str> = [
        path.as_str(),
        "HOME=/nonexistent",
        "WINDROW_RUN=r1",
        "WINDROW_ROOT_RUN=r0",
        "WINDROW_JOB=sync",
        "WINDROW_STAGE=push",
        "WINDROW_SOURCE=main",
        "WINDROW_INDEX=17",
        "WINDROW_ATTEMPT=1",
        "WINDROW_IDEMPOTENCY_KEY=r0/push/main/17",
    ]
    .into();
    assert_eq!(text.lines().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn exit_codes_decide_whether_there_is_another_attempt() {
    let (error, retry) = failure(run(shell("echo first >&2; echo '  no luck' >&2; exit 7"), "1").await);
    assert_eq!((error.class.as_str(), error.status, retry), ("exit_code", Some(7), Retry::Later));
    assert_eq!(error.message, "exit code 7:   no luck");
    let listed = |code| CommandSpec { retry_exit_codes: Some(vec![75]), ..shell(&format!("exit {code}")) };
    assert_eq!(failure(run(listed(75), "1").await).1, Retry::Later);
    assert_eq!(failure(run(listed(1), "1").await).1, Retry::Never);
    let (error, retry) = failure(run(shell("kill -9 $$"), "1").await);
    assert_eq!((error.message.as_str(), error.status, retry), ("killed by signal 9", None, Retry::Later));
}

#[tokio::test]
async fn a_program_that_cannot_be_started_says_what_to_do_and_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str, mode| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let programs = [
        ("no-such-program-7f3a".to_owned(), "not in PATH"),
        ("/nowhere/program".to_owned(), "install it"),
        (path("plain", "#!/bin/sh\n", 0o644), "make it executable"),
        (path("script", "#!/nowhere/interpreter\n", 0o755), "first line"),
    ];
    for (program, remedy) in programs {
        let (error, retry) = failure(run(spec(&[&program]), "1").await);
        assert_eq!((error.class.as_str(), retry), ("not_started", Retry::Never));
        assert!(error.message.contains(remedy) && error.message.contains(&program), "{}", error.message);
    }
    let (error, retry) = failure(run(spec(&["echo", "{{ item }}"]), r#""a\u0000b""#).await);
    assert_eq!((error.class.as_str(), retry), ("not_started", Retry::Never));
}

#[tokio::test]
async fn more_output_than_allowed_ends_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("echo $$ > {}; exec yes", pid.display());
    let (error, retry) = failure(run(CommandSpec { max_output_bytes: 100_000, ..shell(&script) }, "1").await);
    assert_eq!((error.class.as_str(), retry), ("output_too_large", Retry::Never));
    assert_eq!(state(&whole_line(&pid).unwrap()), None);
    let exactly = CommandSpec { max_output_bytes: 10, ..shell("printf 0123456789") };
    assert_eq!(output(run(exactly, "1").await), r#""0123456789""#);
}

#[tokio::test]
async fn standard_error_is_bounded_and_its_last_line_kept() {
    let script = "yes nonsense | head -c 4500000 >&2; printf '\\033[31m%0500d' 7 >&2; exit 1";
    let (error, _) = failure(run(shell(script), "1").await);
    assert_eq!(error.message, format!("exit code 1:  [31m{}", "0".repeat(295)));
}

#[tokio::test]
async fn a_program_need_not_read_its_input() {
    let large = format!("\"{}\"", "x".repeat(4 * 1024 * 1024));
    assert_eq!(output(run(spec(&["true"]), &large).await), r#""""#);
    assert_eq!(output(run(shell("exec <&-; echo done"), &large).await), r#""done""#);
    assert_eq!(output(run(spec(&["head", "-c", "3"]), &large).await), r#""\"xx""#);
}

#[tokio::test]
async fn a_large_item_passes_through_both_pipes_at_once() {
    let large = format!("\"{}\"", "x".repeat(4 * 1024 * 1024));
    let cat =
        CommandSpec { output: CommandOutput::Json, max_output_bytes: 8 * 1024 * 1024, ..spec(&["cat"]) };
    assert_eq!(output(run(cat, &large).await), large);
}

#[tokio::test]
async fn a_dropped_attempt_leaves_no_process_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (own, grandchild) = (folder.path().join("own"), folder.path().join("grandchild"));
    let script = "echo $$ > \"$0\"; (trap '' TERM HUP INT; sleep 1000) & echo $! > \"$1\"; wait";
    let argv = ["sh", "-c", script, own.to_str().unwrap(), grandchild.to_str().unwrap()];
    let (stage, item) = (stage(spec(&argv)), item("1"));
    let pids = tokio::select! {
        attempt = stage.processor().process(&item) => panic!("{attempt:?}"),
        pid = until("the start", || whole_line(&grandchild)) => [whole_line(&own).unwrap(), pid],
    };
    for pid in &pids {
        until("the end", || has_ended(pid)).await;
    }
    until("the reaping", || state(&pids[0]).is_none().then_some(())).await;
}

#[tokio::test]
async fn what_a_program_leaves_running_ends_with_it_and_holds_nothing_up() {
    let attempt = run(shell("sleep 1000 & echo $!"), "1").await;
    let pid: String = serde_json::from_str(&output(attempt)).unwrap();
    until("the end", || has_ended(&pid)).await;
}

#[tokio::test]
async fn a_program_that_left_the_group_does_not_hold_the_item_up() {
    let begun = Instant::now();
    let in_own_group = "until [ \"$(cut -d' ' -f5 /proc/$!/stat)\" = $! ]; do :; done; echo $!";
    let attempt = run(shell(&format!("setsid sleep 20 & {in_own_group}")), "1").await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let pid: i32 = serde_json::from_str::<String>(&output(attempt)).unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[tokio::test]
async fn a_program_that_closes_its_outputs_is_waited_for() {
    let (error, _) = failure(run(shell("exec >&- 2>&-; sleep 0.2; exit 3"), "1").await);
    assert_eq!(error.status, Some(3));
}

#[tokio::test]
async fn errors_hold_no_secret() {
    let argv = ["sh", "-c", "echo \"token $1 is bad\" >&2; exit 1", "sh", "${TOKEN}"];
    let (error, _) = failure(run(spec(&argv), "1").await);
    assert_eq!(error.message, "exit code 1: token ${TOKEN} is bad");
    let (error, _) = failure(run(spec(&["/nowhere/${TOKEN}"]), "1").await);
    assert!(!error.message.contains("s3cret"), "{}", error.message);
    assert!(!format!("{:?}", stage(spec(&argv))).contains("s3cret"));
    let missing = stage_spec(ProcessorSpec::Command(spec(&["echo", "${NOT_SET}"])));
    let error = Stage::build(&missing, &Destinations::default(), &env).unwrap_err().to_string();
    assert!(error.contains("`argv[1]`") && error.contains("NOT_SET"), "{error}");
}

#[tokio::test]
async fn programs_at_once_see_nothing_of_each_other() {
    let stage = stage(spec(&["sh", "-c", "read line; echo \"$1 $line $WINDROW_INDEX\"", "sh", "{{ item }}"]));
    let check = |n: u64| {
        let stage = &stage;
        async move {
            let item = Item { index: n, ..item(&n.to_string()) };
            assert_eq!(output(stage.processor().process(&item).await), format!("\"{n} {n} {n}\""));
        }
    };
    for first in (0..1_000).step_by(20) {
        join_all((first..first + 20).map(check)).await;
    }
}
