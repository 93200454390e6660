//! Filling in a stage's templates for one item.

use windrow_common::job::template::{Template, TemplateContext, TemplateError, TemplateItem};
use windrow_common::job::{EnvLookup, EnvText, Redactor};

use super::{Attempt, BuildFault, Item, Retry};

/// Compiles the template under `key` with the values of its environment variables.
pub(super) fn compile(key: &str, text: &EnvText, env: &EnvLookup<'_>) -> Result<Template, BuildFault> {
    Template::compile_env(text, env).map_err(|error| BuildFault::Template { key: key.to_owned(), error })
}

/// What takes the values of the environment variables in `texts` out of a message.
pub(super) fn redactor<'t>(texts: impl IntoIterator<Item = &'t EnvText>, env: &EnvLookup<'_>) -> Redactor {
    let names = texts.into_iter().flat_map(EnvText::names);
    Redactor::new(names.filter_map(|name| Some((name.to_owned(), env(name)?))))
}

/// One item as its templates see it, parsed once for all of them.
#[derive(Debug)]
pub(super) struct Rendering<'i> {
    item: &'i Item,
    value: TemplateItem,
    idempotency_key: String,
}

impl<'i> Rendering<'i> {
    pub(super) fn of(item: &'i Item) -> Result<Self, Attempt> {
        let value: serde_json::Value = serde_json::from_slice(&item.raw).map_err(|error| {
            Attempt::failed("item", format!("the item is not JSON: {error}"), Retry::Never).nothing_done()
        })?;
        Ok(Self { item, value: TemplateItem::from_json(&value), idempotency_key: item.idempotency_key() })
    }

    pub(super) fn idempotency_key(&self) -> &str {
        &self.idempotency_key
    }

    /// The text of the template under `key` for this item. An item it does not fit fails, and would again.
    pub(super) fn fill(&self, key: &str, template: &Template) -> Result<String, Attempt> {
        let context = &self.item.context;
        let context = TemplateContext {
            item: self.value.clone(),
            index: self.item.index,
            run: context.run.as_str(),
            root_run: context.root_run.as_str(),
            job: context.job.as_str(),
            stage: context.stage.as_str(),
            source: context.source.as_str(),
            attempt: self.item.attempt,
            idempotency_key: &self.idempotency_key,
        };
        template.render(&context).map_err(|error: TemplateError| {
            Attempt::failed("template", format!("`{key}`: {error}"), Retry::Never).nothing_done()
        })
    }
}
