//! `[[stage]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toml::de::DeValue;

use super::keys::{self, NO_TYPE, TypeKey, nearest};
use super::processor::{self, Kind};
use super::section::{Section, suggestion};
use crate::ids::StageName;
use crate::job::jq::JqFilter;
use crate::job::{
    Bounds, ChunkSpec, Concurrency, DestinationSpec, Effect, RetrySpec, Schedule, StageSpec, format_duration,
};

const SCHEDULES: [(&str, Schedule); 3] =
    [("exponential", Schedule::Exponential), ("linear", Schedule::Linear), ("fixed", Schedule::Fixed)];

const EFFECTS: [(&str, Effect); 2] =
    [("at-least-once", Effect::AtLeastOnce), ("at-most-once", Effect::AtMostOnce)];

/// The bounds of `concurrency = "auto"` unless it names others.
const AUTO: Bounds = Bounds { least: 1, most: 64 };

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// A chunk and the attempt that its budget just lets start must end well before the broker takes the delivery
/// back: within 0.8 of its acknowledgement timeout of 30 minutes.
const MAX_CHUNK_TIME: Duration = Duration::from_secs(24 * 60);

/// Every stage, checked against the chunks it gets and the destinations it may name.
pub(super) fn read_all(
    root: &Section<'_>,
    chunk: &ChunkSpec,
    destinations: &BTreeMap<String, DestinationSpec>,
) -> Option<Vec<StageSpec>> {
    let Some((sections, is_array)) = root.tables("stage") else {
        root.fault_with_help(&root.span, "the job file needs a stage", "add a `[[stage]]`".to_owned());
        return None;
    };
    if !is_array && !sections.is_empty() {
        let help = "write `[[stage]]`".to_owned();
        root.fault_with_help(&root.span_of("stage"), "`stage` must be an array of tables", help);
    }
    if is_array && sections.is_empty() {
        root.fault(&root.span_of("stage"), "`stage` has no table");
    }
    if let Some(second) = sections.get(1) {
        let help = "keep one `[[stage]]`".to_owned();
        second.fault_with_help(&second.span, "several stages are not in this version yet", help);
    }
    let mut names = BTreeSet::new();
    let mut stages = Vec::new();
    for section in &sections {
        let stage = read(section);
        check_destination(section, destinations);
        if let Some(stage) = stage {
            check_chunk_time(section, &stage, chunk);
            if !names.insert(stage.name.clone()) {
                section.fault(&section.span_of("name"), format!("two stages are called `{}`", stage.name));
            }
            stages.push(stage);
        }
    }
    (!stages.is_empty() && stages.len() == sections.len()).then_some(stages)
}

fn read(section: &Section<'_>) -> Option<StageSpec> {
    let kind = section.type_key(&processor::TYPES, &processor::LATER);
    section.refuse_unknown_keys(&keys::STAGE, &kind);
    let name = match section.raw("name") {
        Some(_) => section.parsed("name", str::parse::<StageName>),
        None => match &kind {
            TypeKey::Known(word, _) => word.parse().ok(),
            TypeKey::Later | TypeKey::Unclear => None,
        },
    };
    let destination = section.text("destination").map(|text| text.text.to_owned());
    let concurrency = read_concurrency(section);
    let timeout = section.duration("timeout", Duration::from_millis(1)).unwrap_or(DEFAULT_TIMEOUT);
    let retry = read_retry(section);
    let when = read_condition(section, "when");
    let skip_when = read_condition(section, "skip_when");
    let effect = section.choice("effect", &EFFECTS).unwrap_or_default();
    let processor = kind.known().and_then(|kind: Kind| processor::read(section, kind));
    Some(StageSpec {
        name: name?,
        processor: processor?,
        destination,
        concurrency,
        timeout,
        retry,
        when,
        skip_when,
        effect,
    })
}

/// A number, or `"auto"`, or the bounds that keeps to.
fn read_concurrency(section: &Section<'_>) -> Concurrency {
    const NUMBERS: std::ops::RangeInclusive<u32> = 1..=10_000;
    let Some(value) = section.raw("concurrency") else { return Concurrency::Fixed(4) };
    match value.get_ref() {
        DeValue::String(text) if text == "auto" => Concurrency::Auto(AUTO),
        DeValue::Table(_) => {
            let table = section.table("concurrency", "`concurrency`".to_owned());
            let number = |key| table.as_ref().and_then(|table| table.small_integer(key, NUMBERS));
            let bounds = Bounds {
                least: number("least").unwrap_or(AUTO.least),
                most: number("most").unwrap_or(AUTO.most),
            };
            if let Some(table) = &table {
                table.refuse_unknown_keys(&keys::CONCURRENCY, &NO_TYPE);
            }
            if bounds.least > bounds.most {
                let Bounds { least, most } = bounds;
                section.fault(
                    &value.span(),
                    format!("`concurrency`: `least` ({least}) is over `most` ({most})"),
                );
            }
            Concurrency::Auto(bounds)
        }
        DeValue::String(text) => {
            let help = "write a number, \"auto\", or bounds such as { least = 1, most = 64 }".to_owned();
            section.fault_with_help(&value.span(), format!("`concurrency` can't be \"{text}\""), help);
            Concurrency::Fixed(4)
        }
        _ => Concurrency::Fixed(section.small_integer("concurrency", NUMBERS).unwrap_or(4)),
    }
}

fn read_condition(section: &Section<'_>, key: &str) -> Option<String> {
    let text = section.text(key)?;
    if let Err(error) = JqFilter::compile(text.text) {
        section.fault(&text.span, format!("`{key}`: {error}"));
    }
    Some(text.text.to_owned())
}

fn read_retry(section: &Section<'_>) -> RetrySpec {
    let retry = section.table("retry", "`retry`".to_owned());
    let retry = retry.as_ref();
    if let Some(retry) = retry {
        retry.refuse_unknown_keys(&keys::RETRY, &NO_TYPE);
    }
    let duration = |key, least| retry.and_then(|retry| retry.duration(key, least));
    let interval = duration("interval", Duration::from_millis(1)).unwrap_or(Duration::from_secs(30));
    let max_interval = duration("max_interval", Duration::from_millis(1));
    if let (Some(retry), Some(max_interval)) = (retry, max_interval.filter(|most| *most < interval)) {
        let (most, interval) = (format_duration(max_interval), format_duration(interval));
        retry.fault(
            &retry.span_of("max_interval"),
            format!("`max_interval` ({most}) must not be shorter than `interval` ({interval})"),
        );
    }
    RetrySpec {
        count: retry.and_then(|retry| retry.small_integer("count", 0..=1_000)).unwrap_or(3),
        interval,
        schedule: retry.and_then(|retry| retry.choice("type", &SCHEDULES)).unwrap_or(Schedule::Exponential),
        max_interval: max_interval.unwrap_or_else(|| interval.max(Duration::from_secs(15 * 60))),
        in_place_below: duration("in_place_below", Duration::ZERO).unwrap_or(Duration::from_secs(2)),
    }
}

/// The destination that a stage names is declared.
fn check_destination(section: &Section<'_>, destinations: &BTreeMap<String, DestinationSpec>) {
    let Some(value) = section.raw("destination") else {
        return;
    };
    let Some(name) = value.get_ref().as_str().filter(|name| !destinations.contains_key(*name)) else {
        return;
    };
    let known: Vec<&str> = destinations.keys().map(String::as_str).collect();
    let help = match nearest(name, &known) {
        Some(_) => suggestion(name, &known),
        None => format!("declare it as [destination.{name}]"),
    };
    section.fault_with_help(&value.span(), format!("unknown destination `{name}`"), help);
}

/// A chunk's budget and the longest attempt together stay below the broker's patience.
fn check_chunk_time(section: &Section<'_>, stage: &StageSpec, chunk: &ChunkSpec) {
    if chunk.budget.saturating_add(stage.timeout) <= MAX_CHUNK_TIME {
        return;
    }
    let message = format!(
        "[chunk] `budget` ({}) and `timeout` ({}) together are over {}, 0.8 of the broker's acknowledgement timeout",
        format_duration(chunk.budget),
        format_duration(stage.timeout),
        format_duration(MAX_CHUNK_TIME),
    );
    section.fault_with_help(&section.span_of("timeout"), message, "make one of them shorter".to_owned());
}
