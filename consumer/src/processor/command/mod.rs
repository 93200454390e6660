//! `type = "command"`: one run of a program for each item.
//!
//! The program runs in the consumer's working directory, in a process group that ends with it. Of the consumer's
//! environment it gets `PATH`, `HOME`, `LANG` and `TZ`, besides the `WINDROW_` variables that describe the item;
//! anything else, secrets above all, it gets only where `argv` names it: `${NAME}`.

mod child;
mod ending;
mod environment;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::process;
use windrow_common::envelope::completion::ItemError;
use windrow_common::job::template::Template;
use windrow_common::job::{CommandOutput, CommandSpec, EnvLookup, Redactor};

use environment::Environment;

use super::rendering::{Rendering, compile, redactor};
use super::{Attempt, BuildFault, Item, Processor};

/// Runs a program for each item, which comes on its standard input, and takes its standard output as the output.
#[derive(Debug)]
pub(super) struct Command {
    argv: Vec<Template>,
    output: CommandOutput,
    max_output_bytes: u64,
    retry_exit_codes: Option<Vec<i32>>,
    environment: Environment,
    redactor: Redactor,
}

impl Command {
    pub(super) fn new(spec: &CommandSpec, env: &EnvLookup<'_>) -> Result<Self, BuildFault> {
        if spec.argv.is_empty() {
            return Err(BuildFault::NoProgram);
        }
        let compile_at = |(at, text)| compile(&format!("argv[{at}]"), text, env);
        Ok(Self {
            argv: spec.argv.iter().enumerate().map(compile_at).collect::<Result<_, _>>()?,
            output: spec.output,
            max_output_bytes: spec.max_output_bytes,
            retry_exit_codes: spec.retry_exit_codes.clone(),
            environment: Environment::new(env),
            redactor: redactor(&spec.argv, env),
        })
    }

    async fn run(&self, item: &Item) -> Result<Attempt, Attempt> {
        let argv = self.argv(item)?;
        let mut input = Vec::with_capacity(item.raw.len() + 1);
        input.extend_from_slice(&item.raw);
        input.push(b'\n');
        let finished = child::run(self.command(&argv, item)?, &input, self.max_output_bytes)
            .await
            .map_err(|error| ending::run_error(&error, &argv[0], self.max_output_bytes))?;
        if finished.status.success() {
            return Ok(ending::output(finished.stdout, self.output));
        }
        let retry_exit_codes = self.retry_exit_codes.as_deref();
        Err(ending::failure(finished.status, &finished.stderr, retry_exit_codes, &self.redactor))
    }

    fn argv(&self, item: &Item) -> Result<Vec<String>, Attempt> {
        let rendering = Rendering::of(item)?;
        let fill = |(at, template)| rendering.fill(&format!("argv[{at}]"), template);
        self.argv.iter().enumerate().map(fill).collect()
    }

    fn command(&self, argv: &[String], item: &Item) -> Result<process::Command, Attempt> {
        let program = self.environment.find(&argv[0]).ok_or_else(|| ending::not_found(&argv[0]))?;
        let mut command = process::Command::new(program);
        command.args(&argv[1..]);
        self.environment.give(&mut command, item);
        Ok(command)
    }
}

impl Processor for Command {
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
        async move { self.run(item).await.unwrap_or_else(|failed| failed).redacted(&self.redactor) }.boxed()
    }

    fn describe(&self, item: &Item) -> Result<String, ItemError> {
        let argv = self.argv(item).map_err(Attempt::into_error)?;
        let text = format!("run {argv:?} with standard input {}", String::from_utf8_lossy(&item.raw));
        Ok(self.redactor.redact(&text).into_owned())
    }
}

#[cfg(test)]
mod tests;
