//! `[sink]` and `[tolerate]`.

use std::path::PathBuf;

use toml::de::DeValue;

use super::keys::{self, NO_TYPE, TypeKey};
use super::section::{Section, integer, percent};
use crate::job::{FileSink, IfExists, SinkOrder, SinkSpec, Tolerance};

#[derive(Clone, Copy)]
enum Kind {
    Jsonl,
    None,
}

const TYPES: [(&str, Kind); 2] = [("jsonl", Kind::Jsonl), ("none", Kind::None)];
const LATER: [&str; 4] = ["csv", "parquet", "postgres", "http"];
const ORDERS: [(&str, SinkOrder); 2] = [("input", SinkOrder::Input), ("arrival", SinkOrder::Arrival)];
const IF_EXISTS: [(&str, IfExists); 3] =
    [("error", IfExists::Error), ("replace", IfExists::Replace), ("append", IfExists::Append)];

/// `[sink]`; a job without one has none.
pub(super) fn read(root: &Section<'_>) -> Option<SinkSpec> {
    if root.raw("sink").is_none() {
        return Some(SinkSpec::None);
    }
    let section = root.table("sink", "[sink]".to_owned())?;
    let kind = section.type_key(&TYPES, &LATER);
    section.refuse_unknown_keys(&keys::SINK, &kind);
    if matches!(kind, TypeKey::Known(_, Kind::Jsonl)) {
        section.require("path", "path = \"out/results.jsonl\"");
    }
    let path = section.text("path").filter(|path| section.is_path(path));
    let order = section.choice("order", &ORDERS).unwrap_or(SinkOrder::Input);
    let if_exists = section.choice("if_exists", &IF_EXISTS).unwrap_or(IfExists::Error);
    match kind.known()? {
        Kind::Jsonl => Some(SinkSpec::Jsonl(FileSink { path: PathBuf::from(path?.text), order, if_exists })),
        Kind::None => Some(SinkSpec::None),
    }
}

/// `[tolerate]`; None when there is none, or a wrong one that has been noted.
pub(super) fn read_tolerance(root: &Section<'_>) -> Option<Tolerance> {
    let section = root.table("tolerate", "[tolerate]".to_owned())?;
    section.refuse_unknown_keys(&keys::TOLERATE, &NO_TYPE);
    let value = section.raw("failed")?;
    let tolerance = match value.get_ref() {
        DeValue::Integer(_) => integer(value.get_ref()).map(Tolerance::Count),
        DeValue::String(text) => percent(text).map(Tolerance::Share),
        _ => None,
    };
    if tolerance.is_none() {
        section
            .fault(&value.span(), "`failed` must be a count such as 10 or a share from \"0%\" to \"100%\"");
    }
    tolerance
}
