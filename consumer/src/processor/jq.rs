//! `type = "jq"`: the one output of a filter.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use windrow_common::envelope::completion::ItemError;
use windrow_common::job::jq::JqFilter;

use super::{Attempt, BuildFault, Item, Processor, Retry};

/// Runs a filter over each item. It only computes, so it answers at its first poll; because nothing can interrupt
/// it then, it keeps the stage's timeout itself.
#[derive(Debug)]
pub(super) struct Jq {
    filter: JqFilter,
    timeout: Duration,
}

impl Jq {
    pub(super) fn new(filter: &str, timeout: Duration) -> Result<Self, BuildFault> {
        let compiled = JqFilter::compile(filter);
        let filter = compiled.map_err(|error| BuildFault::Filter { key: "filter", error })?;
        Ok(Self { filter, timeout })
    }

    fn run(&self, item: &Item) -> Attempt {
        let deadline = Instant::now().checked_add(self.timeout);
        match self.filter.run_one(&item.raw, deadline) {
            Ok(output) => Attempt::Succeeded(output.into()),
            Err(error) => Attempt::failed("jq", error.to_string(), Retry::Never).nothing_done(),
        }
    }
}

impl Processor for Jq {
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
        async move { self.run(item) }.boxed()
    }

    fn describe(&self, item: &Item) -> Result<String, ItemError> {
        match self.run(item) {
            Attempt::Succeeded(output) => Ok(format!("give {}", String::from_utf8_lossy(&output))),
            other => Err(other.into_error()),
        }
    }
}
