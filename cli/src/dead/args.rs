//! The command line of `windrow dead`.

use clap::{ArgGroup, Args, Subcommand};
use windrow_common::ids::Group;

use crate::args::DataDir;

/// `windrow dead`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  windrow dead list                          of runs in ./.windrow
  windrow dead list --broker amqp://user:secret@localhost:5672/%2f
  windrow dead show 1
  windrow dead show d0123456789a --body > body.jsonl
  windrow dead replay d0123456789a
  windrow dead drop --all

What these letters are, and what sending one back does: docs/dead-letters.md.")]
pub(crate) struct DeadArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) action: DeadAction,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadAction {
    /// List them, oldest first. Changes nothing.
    List(DeadListArgs),
    /// Show one of them; its body, which may be private, only with --body. Changes nothing.
    Show(DeadShowArgs),
    /// Send them back to the queues they came from.
    Replay(DeadSelection),
    /// Delete them for good.
    Drop(DeadSelection),
}

/// Where dead letters are.
#[derive(Debug, Args)]
pub(crate) struct DeadPlace {
    /// The broker: `amqp[s]://user:password@host:port/vhost`. Without it, the embedded one in the data folder.
    #[arg(long, value_name = "URL", env = "WINDROW_BROKER", hide_env_values = true)]
    pub(crate) broker: Option<String>,
    /// The collector group; of `windrow run --broker`, what the file `group` in its data folder says.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) group: Group,
    #[command(flatten)]
    pub(crate) data: DataDir,
}

/// `windrow dead list`.
#[derive(Debug, Args)]
pub(crate) struct DeadListArgs {
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) place: DeadPlace,
}

/// `windrow dead show`.
#[derive(Debug, Args)]
pub(crate) struct DeadShowArgs {
    /// Its id, or its position in the list.
    #[arg(value_name = "N|ID")]
    pub(crate) letter: String,
    /// Print JSON.
    #[arg(long, conflicts_with = "body")]
    pub(crate) json: bool,
    /// Print the body and nothing else.
    #[arg(long)]
    pub(crate) body: bool,
    #[command(flatten)]
    pub(crate) place: DeadPlace,
}

/// `windrow dead replay` and `windrow dead drop`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["letters", "all"]))]
pub(crate) struct DeadSelection {
    /// Their ids, whole. Equal letters have the same id, and are all meant.
    #[arg(value_name = "ID")]
    pub(crate) letters: Vec<String>,
    /// All of them.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) place: DeadPlace,
}
