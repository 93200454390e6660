//! The rooms and their doors: which crate may know which, and which folder may name which library.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The workspace crates that each workspace crate depends on.
fn edges() -> Vec<(String, BTreeSet<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let ours = dependencies.iter().map(name).filter(|name| name.starts_with("windrow-")).collect();
            (name(package), ours)
        })
        .collect()
}

#[test]
fn dependencies_run_one_way() {
    let edges = edges();
    assert_eq!(edges.len(), 6);
    for (package, dependencies) in edges {
        let allowed: &[&str] = match package.as_str() {
            "windrow-common" => &[],
            "windrow-producer" | "windrow-consumer" | "windrow-collector" => &["windrow-common"],
            "windrow-cli" => &["windrow-common", "windrow-producer", "windrow-consumer", "windrow-collector"],
            "windrow-tests" => &[
                "windrow-common",
                "windrow-producer",
                "windrow-consumer",
                "windrow-collector",
                "windrow-cli",
            ],
            other => panic!("{other} is in no room"),
        };
        for dependency in &dependencies {
            assert!(allowed.contains(&dependency.as_str()), "{package} must not know {dependency}");
        }
    }
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn shipped_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for room in ["common", "producer", "consumer", "collector", "cli"] {
        rust_files(&workspace().join(room).join("src"), &mut files);
    }
    files
}

#[test]
fn each_library_of_storage_and_transport_is_named_in_its_own_folder_only() {
    let rooms = [
        ("lapin::", vec!["common/src/broker/rabbitmq"]),
        ("rusqlite::", vec!["common/src/broker/embedded", "collector/src/ledger"]),
        ("tokio_postgres::", vec!["collector/src/ledger/postgres"]),
    ];
    for path in shipped_files() {
        let text = std::fs::read_to_string(&path).unwrap();
        for (library, folders) in &rooms {
            // As code: not in a comment, nor in a text such as the name of a log target.
            let code = |line: &&str| !line.trim_start().starts_with("//") && !line.contains('"');
            let named = text.lines().filter(code).any(|line| line.contains(library));
            let inside = folders.iter().any(|folder| path.starts_with(workspace().join(folder)));
            assert!(!named || inside, "{} names {library}", path.display());
        }
    }
}

#[test]
fn no_module_is_a_drawer() {
    for path in shipped_files() {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let drawers = ["util", "utils", "helper", "helpers", "misc", "types", "manager"];
        assert!(!drawers.contains(&stem), "{} says nothing about what is in it", path.display());
    }
}
