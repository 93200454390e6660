//! The outside system, and what a consumer does with an item: calls it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use windrow_common::envelope::completion::ItemError;
use windrow_consumer::processor::{Attempt, Done, Item, Processor, Retry};

use super::judge::Judge;
use super::plan::{Plan, Script};

/// The outside system.
pub(crate) struct Outside {
    plan: Arc<Plan>,
    judge: Arc<Judge>,
    began: Instant,
    refused: Mutex<BTreeMap<u64, u64>>,
}

impl Outside {
    pub(crate) fn new(plan: Arc<Plan>, judge: Arc<Judge>) -> Arc<Self> {
        Arc::new(Self { plan, judge, began: Instant::now(), refused: Mutex::default() })
    }

    fn is_down(&self) -> bool {
        let at = self.began.elapsed();
        self.plan.outage.is_some_and(|(from, until)| (from..until).contains(&at))
    }

    /// Whether a limit refuses this call.
    fn refuses(&self, index: u64, times: u64) -> bool {
        let mut refused = self.refused.lock().unwrap();
        let so_far = refused.entry(index).or_default();
        *so_far += 1;
        *so_far <= times
    }
}

/// What one process does with an item.
pub(crate) struct Call {
    pub(crate) process: String,
    pub(crate) outside: Arc<Outside>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Call")
    }
}

impl Processor for Call {
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
        async move {
            let outside = &self.outside;
            outside.judge.call(&self.process, item.index, item.attempt);
            if outside.is_down() {
                return Attempt::failed("connect", "refused", Retry::Later);
            }
            let output = || Attempt::Succeeded(Bytes::from(format!("{{\"n\":{}}}", item.index)));
            let wrong = |retry| Attempt::Failed {
                error: ItemError { class: "http_status".into(), message: "422".into(), status: Some(422) },
                retry,
                done: Done::Maybe,
            };
            match outside.plan.scripts[usize::try_from(item.index).unwrap()] {
                Script::Succeeds(0) => output(),
                Script::Succeeds(milliseconds) => {
                    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                    output()
                }
                Script::SucceedsAfter(times) if u64::from(item.attempt) <= times => wrong(Retry::Later),
                Script::SucceedsUnthrottled(times) if outside.refuses(item.index, times) => {
                    Attempt::Throttled {
                        error: ItemError::default(),
                        after: Some(Duration::from_secs(times)),
                    }
                }
                Script::SucceedsAfter(_) | Script::SucceedsUnthrottled(_) => output(),
                Script::IsWrong => wrong(Retry::Never),
                Script::Fails => wrong(Retry::Later),
            }
        }
        .boxed()
    }
}
