//! Loading a job file, and telling a person what is wrong with it.

use std::io::IsTerminal;
use std::path::Path;

use windrow_common::job::{Job, Problems};

use crate::Failure;

/// Columns of an excerpt on a terminal.
const WIDTH: usize = 110;

/// Loads a job file; every problem is told at once: with excerpts on a terminal, one a line elsewhere.
pub(crate) fn load(path: &Path) -> Result<Job, Failure> {
    Job::load(path).map_err(|problems| Failure::usage(told(&problems)))
}

fn told(problems: &Problems) -> String {
    let count = problems.problems.len();
    let heading = format!("{count} problem{} in the job file", if count == 1 { "" } else { "s" });
    if std::io::stderr().is_terminal() {
        format!("{heading}\n{}", problems.render(WIDTH, true))
    } else {
        let lines: Vec<String> = problems.lines().collect();
        format!("{heading}\n{}", lines.join("\n"))
    }
}

/// Refuses a job whose stages name variables that the environment does not have.
pub(crate) fn refuse_missing_variables(job: &Job) -> Result<(), Failure> {
    let missing = job.missing_variables(&|name| std::env::var(name).ok());
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = missing
        .into_iter()
        .map(|(stage, variable)| format!("stage `{stage}`: {variable}; set it and run again"))
        .collect();
    Err(Failure::usage(lines.join("\n")))
}
