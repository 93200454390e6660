//! What a run was begun with, and what of it has changed since.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use windrow_common::ids::{JobHash, JobName, RunId, SourceName};
use windrow_common::job::{FieldType, SourceKind};
use windrow_common::ranges::Ranges;

use crate::chunker::ChunkLimits;
use crate::files::SourceFile;

/// Some items of each source.
pub(crate) type Items = BTreeMap<SourceName, Ranges>;

/// What a run was begun with: the first record of its journal, on disk before anything is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The run.
    pub(crate) run: RunId,
    /// The root of its chain of retries; itself otherwise.
    pub(crate) root_run: RunId,
    /// The job.
    pub(crate) job: JobName,
    /// The hash of its stages.
    pub(crate) hash: JobHash,
    /// Of everything that decides what the items are.
    pub(crate) fingerprint: String,
    /// How large chunks may become.
    pub(crate) chunk: ChunkLimits,
    /// The sources, in the order of the job file.
    pub(crate) sources: Vec<SourceManifest>,
    /// How many items are read at most.
    pub(crate) first: Option<u64>,
    /// The items a retry runs again, by source; None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) only: Option<Items>,
    /// Unix milliseconds.
    pub(crate) started_at: u64,
}

/// What a source was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceManifest {
    /// Its name.
    pub(crate) name: SourceName,
    /// How its rows are read, in words.
    pub(crate) format: String,
    /// Its files. None: it is standard input, and spooled.
    pub(crate) files: Option<Vec<FileManifest>>,
}

/// What a file was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileManifest {
    /// What the run calls it.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// BLAKE3 of its contents.
    pub(crate) hash: String,
}

impl From<&SourceFile> for FileManifest {
    fn from(file: &SourceFile) -> Self {
        Self { name: file.name.clone(), bytes: file.bytes, hash: file.hash.clone() }
    }
}

/// How the rows of a source are read, in words: part of what its items are.
pub(crate) fn describe(kind: &SourceKind) -> String {
    match kind {
        SourceKind::Jsonl => "jsonl".to_owned(),
        SourceKind::Json => "json".to_owned(),
        SourceKind::Csv { delimiter, types } => {
            let types: Vec<String> =
                types.iter().map(|(name, of)| format!("{name} = {}", type_word(*of))).collect();
            format!("csv, delimiter {:?}, types {{{}}}", char::from(*delimiter), types.join(", "))
        }
    }
}

fn type_word(field_type: FieldType) -> &'static str {
    match field_type {
        FieldType::Text => "string",
        FieldType::Int => "int",
        FieldType::Float => "float",
        FieldType::Bool => "bool",
        FieldType::Json => "json",
    }
}

/// A hash of everything that decides what the items of a run are: its sources' names, formats, file names
/// and contents, how many items are read at most, and which of them a retry runs again.
pub(crate) fn fingerprint(sources: &[SourceManifest], first: Option<u64>, only: Option<&Items>) -> String {
    let mut hasher = blake3::Hasher::new();
    // These types hold text, numbers and lists: writing them cannot fail.
    hasher.update(&serde_json::to_vec(&(sources, first)).unwrap_or_default());
    if let Some(only) = only {
        hasher.update(&serde_json::to_vec(only).unwrap_or_default());
    }
    let spooled = sources.iter().any(|source| source.files.is_none());
    format!("{}:{}", if spooled { "spool" } else { "blake3" }, hasher.finalize().to_hex())
}

impl Manifest {
    /// Whether a run can be resumed without being named: its sources can be read again.
    pub(crate) fn is_replayable(&self) -> bool {
        self.sources.iter().all(|source| source.files.is_some())
    }

    /// The items of a source that are part of the run; None: all.
    pub(crate) fn only_of(&self, source: &SourceName) -> Option<Ranges> {
        self.only.as_ref().map(|only| only.get(source).cloned().unwrap_or_default())
    }

    /// What is different in `now`, a line each. Run, start and root run may differ.
    pub(crate) fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let mut compare = |what: &str, old: String, new: String| {
            if old != new {
                changes.push(format!("{what}: was {old}, is {new}"));
            }
        };
        compare("job", self.job.to_string(), now.job.to_string());
        compare("hash of the stages", self.hash.to_string(), now.hash.to_string());
        compare("chunk.items", self.chunk.items.to_string(), now.chunk.items.to_string());
        compare("chunk.bytes", self.chunk.bytes.to_string(), now.chunk.bytes.to_string());
        compare("--first", or_none(self.first), or_none(now.first));
        changes.extend(self.source_changes(now));
        changes
    }

    /// What of the sources is different in `now`, a line each.
    pub(crate) fn source_changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let names = |manifest: &Self| {
            manifest.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let (old, new) = (names(self), names(now));
        if old != new {
            changes.push(format!("sources: was {old}, is {new}"));
        }
        for old in &self.sources {
            if let Some(new) = now.sources.iter().find(|new| new.name == old.name) {
                old.push_changes(new, &mut changes);
            }
        }
        changes
    }
}

impl SourceManifest {
    fn push_changes(&self, now: &Self, changes: &mut Vec<String>) {
        let name = &self.name;
        if self.format != now.format {
            changes.push(format!("source `{name}`: was {}, is {}", self.format, now.format));
        }
        match (&self.files, &now.files) {
            (Some(old), Some(new)) => push_file_changes(old, new, changes),
            (Some(_), None) => changes.push(format!("source `{name}`: was files, is standard input")),
            (None, Some(_)) => changes.push(format!("source `{name}`: was standard input, is files")),
            (None, None) => {}
        }
    }
}

fn push_file_changes(old: &[FileManifest], new: &[FileManifest], changes: &mut Vec<String>) {
    let by_name = |files: &[FileManifest]| -> BTreeMap<String, FileManifest> {
        files.iter().map(|file| (file.name.clone(), file.clone())).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    for (name, was) in &old {
        match new.get(name) {
            Some(is) if is == was => {}
            Some(is) => changes.push(format!("{name}: was {}, is {}", was.shown(), is.shown())),
            None => changes.push(format!("{name}: was {}, is gone", was.shown())),
        }
    }
    for (name, is) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
        changes.push(format!("{name}: was not there, is {}", is.shown()));
    }
}

impl FileManifest {
    fn shown(&self) -> String {
        format!("{} bytes with hash {:.16}", self.bytes, self.hash)
    }
}

fn or_none(number: Option<u64>) -> String {
    number.map_or("not given".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |name: &str| FileManifest { name: name.to_owned(), bytes: 10, hash: "a".repeat(64) };
        Manifest {
            run: "r".parse().unwrap(),
            root_run: "r".parse().unwrap(),
            job: "sync".parse().unwrap(),
            hash: "00".parse().unwrap(),
            fingerprint: String::new(),
            chunk: ChunkLimits { items: 100, bytes: 1000 },
            sources: vec![SourceManifest {
                name: SourceName::only(),
                format: "jsonl".to_owned(),
                files: Some(vec![file("a"), file("b")]),
            }],
            first: None,
            only: None,
            started_at: 0,
        }
    }

    #[test]
    fn a_change_report_names_each_file_and_parameter_that_differs() {
        let old = manifest();
        assert!(old.changes(&manifest()).is_empty());
        let mut new = manifest();
        new.chunk.items = 50;
        new.first = Some(3);
        let files = new.sources[0].files.as_mut().unwrap();
        files[0].hash = "b".repeat(64);
        files[1].name = "c".to_owned();
        let changes = old.changes(&new);
        assert_eq!(changes.len(), 5, "{changes:#?}");
        assert_eq!(changes[0], "chunk.items: was 100, is 50");
        assert_eq!(changes[1], "--first: was not given, is 3");
        assert!(
            changes[2].starts_with("a: was 10 bytes with hash aaaaaaaaaaaaaaaa, is 10 bytes with hash bbbb")
        );
        assert!(changes[3].starts_with("b: ") && changes[3].ends_with("is gone"));
        assert!(changes[4].starts_with("c: was not there"));
    }

    #[test]
    fn a_fingerprint_changes_with_whatever_decides_the_items() {
        let sources = manifest().sources;
        let same = fingerprint(&sources, None, None);
        assert_eq!(same, fingerprint(&sources.clone(), None, None));
        assert_ne!(same, fingerprint(&sources, Some(1), None));
        let only = Items::from([(SourceName::only(), Ranges::span(3, 2))]);
        assert_ne!(same, fingerprint(&sources, None, Some(&only)));
        let mut other = sources.clone();
        other[0].format = "csv".to_owned();
        assert_ne!(same, fingerprint(&other, None, None));
        other = sources.clone();
        other[0].files.as_mut().unwrap()[0].hash.replace_range(0..1, "b");
        assert_ne!(same, fingerprint(&other, None, None));
        other = sources;
        other[0].files = None;
        assert!(fingerprint(&other, None, None).starts_with("spool:"));
    }
}
