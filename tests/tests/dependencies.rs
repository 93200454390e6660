//! Every dependency has a reason that is written down, and somebody who uses it.

use std::collections::BTreeSet;
use std::process::Command;

use windrow_tests::process::workspace;

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap()
}

/// The names under `[workspace.dependencies]`, without the workspace's own crates.
fn declared() -> BTreeSet<String> {
    let manifest = read("Cargo.toml");
    let table = manifest.split("[workspace.dependencies]\n").nth(1).unwrap();
    let table = table.split("\n[").next().unwrap();
    let names = table.lines().filter(|line| !line.starts_with('#'));
    let names = names.filter_map(|line| line.split_once(" = ").map(|(name, _)| name.to_owned()));
    names.filter(|name| !name.starts_with("windrow-")).collect()
}

#[test]
fn the_manual_says_why_each_dependency_is_here_and_of_no_other() {
    let manual = read("docs/dependencies.md");
    let rows = manual.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<String> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|names| names.split(','))
        .map(|name| name.trim().trim_matches('`').to_owned())
        .collect();
    assert_eq!(listed, declared());
}

#[test]
fn each_dependency_is_taken_by_a_crate() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let taken: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| package["dependencies"].as_array().unwrap())
        .map(|dependency| dependency["name"].as_str().unwrap())
        .collect();
    for name in declared() {
        assert!(taken.contains(name.as_str()), "no crate takes `{name}`: remove it from Cargo.toml");
    }
}
