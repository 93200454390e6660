//! Names and identities. Every identity that decides whether two things are the same is made here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name was empty, too long, or had a character that queue names, file names and metrics can't carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name: use 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit"
)]
pub struct NameError(pub String);

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_name(text) { Ok(Self(text.to_owned())) } else { Err(NameError(text.to_owned())) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                if is_name(&text) { Ok(Self(text)) } else { Err(NameError(text)) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )*};
}

names! {
    /// A run: one execution of a job over one reading of its sources. A UUIDv7 unless the user names one.
    RunId;
    /// The name of a job, from its file.
    JobName;
    /// The name of a stage, unique within its job.
    StageName;
    /// The name of a source, unique within its job.
    SourceName;
    /// The collector group: the collectors that share a completion queue and a ledger.
    Group;
    /// The hash of the meaning of a job's stages, 32 hexadecimal digits (see [`crate::job::hash`]).
    JobHash;
    /// One process of the fleet, drawn anew at each start (and at each reconnection of its own queue).
    ProcessId;
    /// One delivery of a chunk as who claims its items, drawn anew at each receipt.
    Claimant;
}

impl RunId {
    /// A new run id: a UUIDv7, so ids sort by the time they were made.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }
}

impl ProcessId {
    /// A new process id: a random UUID.
    pub fn generate() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

impl Claimant {
    /// A new claimant: a random UUID.
    pub fn generate() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }
}

impl SourceName {
    /// The name of a job's only source when its file gives it none.
    pub fn only() -> Self {
        Self("main".to_owned())
    }
}

impl Group {
    /// The group of binaries started without `--group`.
    pub fn main() -> Self {
        Self("main".to_owned())
    }
}

/// A job's stage: what a work queue belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageKey {
    /// The job.
    pub job: JobName,
    /// The stage in it.
    pub stage: StageName,
}

impl fmt::Display for StageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.stage)
    }
}

/// A chunk: a bounded, contiguous span of items moved as one message. Deterministic: the same source cut
/// again gives the same chunks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId {
    /// The run.
    pub run: RunId,
    /// The stage.
    pub stage: StageName,
    /// The source.
    pub source: SourceName,
    /// Counted from 0 per source.
    pub ordinal: u64,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.run, self.stage, self.source, self.ordinal)
    }
}

/// The key under which an outside system may recognise an item it has seen:
/// `root_run/stage/source/index`, the same for every attempt, copy and `windrow retry` of an item.
pub fn idempotency_key(root_run: &RunId, stage: &StageName, source: &SourceName, index: u64) -> String {
    format!("{root_run}/{stage}/{source}/{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_queues_and_files_cannot_carry() {
        for good in ["a", "contacts-sync", "0193.b_x", &"x".repeat(64)] {
            assert!(good.parse::<JobName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<JobName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_idempotency_key_names_the_root_run() {
        let key = idempotency_key(&"r0".parse().unwrap(), &"push".parse().unwrap(), &SourceName::only(), 17);
        assert_eq!(key, "r0/push/main/17");
    }
}
