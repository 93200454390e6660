//! What a program finds in its environment, and where it is looked for.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use tokio::process::Command;
use windrow_common::job::EnvLookup;

use super::super::Item;

/// What programs get of the consumer's own environment.
const PASSED_ON: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// Where programs are looked for when the consumer has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The variables of the consumer that programs get.
#[derive(Debug)]
pub(super) struct Environment {
    passed_on: Vec<(&'static str, String)>,
    path: String,
}

impl Environment {
    pub(super) fn new(env: &EnvLookup<'_>) -> Self {
        Self {
            passed_on: PASSED_ON.iter().filter_map(|&name| Some((name, env(name)?))).collect(),
            path: env("PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned()),
        }
    }

    /// `program` itself if it is a path, else the first executable file of that name in `PATH`. None if there is none.
    ///
    /// Starting a program by its path lets the standard library use `posix_spawn`, which costs the same
    /// however large this process is; a search of its own in a changed environment would make it fork.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        if program.contains('/') {
            return Some(PathBuf::from(program));
        }
        let is_program = |path: &PathBuf| access(path, Access::EXEC_OK).is_ok() && path.is_file();
        self.path.split(':').map(|folder| Path::new(folder).join(program)).find(is_program)
    }

    /// Gives `command` these variables and those that describe `item`, and no others.
    pub(super) fn give(&self, command: &mut Command, item: &Item) {
        let context = &item.context;
        command
            .env_clear()
            .envs(self.passed_on.iter().map(|(name, value)| (name, value)))
            .env("WINDROW_RUN", context.run.as_str())
            .env("WINDROW_ROOT_RUN", context.root_run.as_str())
            .env("WINDROW_JOB", context.job.as_str())
            .env("WINDROW_STAGE", context.stage.as_str())
            .env("WINDROW_SOURCE", context.source.as_str())
            .env("WINDROW_INDEX", item.index.to_string())
            .env("WINDROW_ATTEMPT", item.attempt.to_string())
            .env("WINDROW_IDEMPOTENCY_KEY", item.idempotency_key());
    }
}
