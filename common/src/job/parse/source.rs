//! `[source]` and `[[source]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::keys::{self, TypeKey};
use super::section::{Section, Text};
use crate::ids::SourceName;
use crate::job::{FieldType, OnReject, SourceKind, SourcePath, SourceSpec};

#[derive(Clone, Copy)]
enum Kind {
    Csv,
    Jsonl,
    Json,
}

const TYPES: [(&str, Kind); 3] = [("csv", Kind::Csv), ("jsonl", Kind::Jsonl), ("json", Kind::Json)];
const LATER: [&str; 5] = ["parquet", "files", "http", "postgres", "sqlite"];
const FIELD_TYPES: [(&str, FieldType); 5] = [
    ("string", FieldType::Text),
    ("int", FieldType::Int),
    ("float", FieldType::Float),
    ("bool", FieldType::Bool),
    ("json", FieldType::Json),
];
const ON_REJECT: [(&str, OnReject); 2] = [("continue", OnReject::Continue), ("stop", OnReject::Stop)];

/// Every source; `folder` is the job file's.
pub(super) fn read_all(root: &Section<'_>, folder: &Path) -> Option<Vec<SourceSpec>> {
    let Some((sections, _)) = root.tables("source") else {
        root.fault_with_help(&root.span, "the job file needs a source", "add a `[source]`".to_owned());
        return None;
    };
    if sections.is_empty() {
        root.fault(&root.span_of("source"), "`source` has no table");
        return None;
    }
    let several = sections.len() > 1;
    let mut names = BTreeSet::new();
    let mut standard_input = false;
    let mut sources = Vec::new();
    for section in &sections {
        let source = read(section, folder, several);
        if let Some(source) = source {
            if !names.insert(source.name.clone()) {
                section.fault(&section.span_of("name"), format!("two sources are called `{}`", source.name));
            }
            if source.path == SourcePath::StandardInput && std::mem::replace(&mut standard_input, true) {
                section.fault(&section.span_of("path"), "two sources read standard input");
            }
            sources.push(source);
        }
    }
    (sources.len() == sections.len()).then_some(sources)
}

fn read(section: &Section<'_>, folder: &Path, several: bool) -> Option<SourceSpec> {
    let kind = section.type_key(&TYPES, &LATER);
    section.refuse_unknown_keys(&keys::SOURCE, &kind);
    if several {
        section.require("name", "name = \"europe\"");
    }
    let name = match section.raw("name") {
        Some(_) => section.parsed("name", str::parse),
        None => Some(SourceName::only()),
    };
    if !matches!(kind, TypeKey::Later) {
        section.require("path", "path = \"data/items.csv\"");
    }
    let path = section.text("path").and_then(|path| read_path(section, &path, folder));
    let id = section.text("id").map(|id| id.text.to_owned());
    let on_reject = section.choice("on_reject", &ON_REJECT).unwrap_or(OnReject::Continue);
    let expires_after = section.duration("expires_after", Duration::from_secs(1));
    let csv = (read_delimiter(section), read_types(section));
    let kind = match kind.known()? {
        Kind::Csv => SourceKind::Csv { delimiter: csv.0, types: csv.1 },
        Kind::Jsonl => SourceKind::Jsonl,
        Kind::Json => SourceKind::Json,
    };
    Some(SourceSpec { name: name?, kind, path: path?, id, on_reject, expires_after })
}

fn read_path(section: &Section<'_>, path: &Text<'_>, folder: &Path) -> Option<SourcePath> {
    if !section.is_path(path) {
        return None;
    }
    Some(if path.text == "-" { SourcePath::StandardInput } else { SourcePath::Files(folder.join(path.text)) })
}

fn read_delimiter(section: &Section<'_>) -> u8 {
    let Some(text) = section.text("delimiter") else {
        return b',';
    };
    match text.text.as_bytes() {
        [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => *byte,
        _ => {
            section.fault(&text.span, "`delimiter` must be one ASCII character, and no quote or line break");
            b','
        }
    }
}

fn read_types(section: &Section<'_>) -> BTreeMap<String, FieldType> {
    let mut types = BTreeMap::new();
    if let Some(table) = section.table("types", "`types`".to_owned()) {
        for (column, value) in table.entries() {
            let key = format!("types.{}", column.text);
            let word = table.text_of(&key, value).and_then(|text| table.word(&key, &text, &FIELD_TYPES));
            types.extend(word.map(|word| (column.text.to_owned(), word)));
        }
    }
    types
}
