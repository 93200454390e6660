//! `type = "echo"`: gives the item back.

use futures::future::{self, BoxFuture};

use windrow_common::envelope::completion::ItemError;

use super::{Attempt, Item, Processor};

/// Gives the item back, untouched and unparsed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Echo;

impl Processor for Echo {
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
        Box::pin(future::ready(Attempt::Succeeded(item.raw.clone())))
    }

    fn describe(&self, item: &Item) -> Result<String, ItemError> {
        Ok(format!("give back {}", String::from_utf8_lossy(&item.raw)))
    }
}
