//! `when` and `skip_when`: whether a stage has anything to do for an item.

use std::time::{Duration, Instant};

use windrow_common::envelope::completion::ItemError;
use windrow_common::job::StageSpec;
use windrow_common::job::jq::JqFilter;

use super::{Attempt, BuildFault, Item, Retry};

/// A stage's conditions. Most stages have none.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    when: Option<JqFilter>,
    skip_when: Option<JqFilter>,
    timeout: Duration,
}

impl Conditions {
    pub(super) fn new(spec: &StageSpec) -> Result<Self, BuildFault> {
        let compile = |key, filter: &Option<String>| {
            let compiled = filter.as_deref().map(JqFilter::compile).transpose();
            compiled.map_err(|error| BuildFault::Filter { key, error })
        };
        Ok(Self {
            when: compile("when", &spec.when)?,
            skip_when: compile("skip_when", &spec.skip_when)?,
            timeout: spec.timeout,
        })
    }

    /// `when` is asked first: an item that passes the stage by is not skipped by it. A condition that cannot be
    /// judged fails the item: guessing would call, or not call, without anybody having said so.
    pub(super) fn decide(&self, item: &Item) -> Option<Attempt> {
        if let Some(when) = &self.when {
            match self.judge("when", when, item) {
                Ok(true) => {}
                Ok(false) => return Some(Attempt::Succeeded(item.raw.clone())),
                Err(failed) => return Some(failed),
            }
        }
        match self.judge("skip_when", self.skip_when.as_ref()?, item) {
            Ok(true) => Some(skipped()),
            Ok(false) => None,
            Err(failed) => Some(failed),
        }
    }

    fn judge(&self, key: &str, filter: &JqFilter, item: &Item) -> Result<bool, Attempt> {
        let deadline = Instant::now().checked_add(self.timeout);
        filter
            .run_truthy(&item.raw, deadline)
            .map_err(|error| Attempt::failed(key, format!("`{key}`: {error}"), Retry::Never))
    }
}

fn skipped() -> Attempt {
    let (class, message) = ("skip_when".to_owned(), "`skip_when` is true for this item".to_owned());
    Attempt::Skipped(ItemError { class, message, status: None })
}
