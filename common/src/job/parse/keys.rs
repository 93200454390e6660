//! The keys each section has, and what to say about a key that it has not.

use super::section::{listed, suggestion};

/// The keys of a section.
pub(super) struct Keys {
    /// Whatever the `type`.
    common: &'static [&'static str],
    /// More, by `type`.
    by_type: &'static [(&'static str, &'static [&'static str])],
    /// Planned, and refused until they do what they say.
    later: &'static [&'static str],
}

/// What a section's `type` turned out to be.
pub(super) enum TypeKey<T> {
    /// A type by its word.
    Known(&'static str, T),
    /// One that this version does not have: nothing can be said about the section's keys.
    Later,
    /// Missing or wrong: a key of any type may be meant.
    Unclear,
}

impl<T> TypeKey<T> {
    /// The type, if this version has it.
    pub(super) fn known(self) -> Option<T> {
        match self {
            Self::Known(_, kind) => Some(kind),
            Self::Later | Self::Unclear => None,
        }
    }
}

/// For sections that have no `type`.
pub(super) const NO_TYPE: TypeKey<()> = TypeKey::Known("", ());

pub(super) const ROOT: Keys = Keys {
    common: &["name", "source", "chunk", "stage", "destination", "sink", "tolerate", "deadline", "notify"],
    by_type: &[],
    later: &[],
};
pub(super) const SOURCE: Keys = Keys {
    common: &["name", "type", "path", "id", "on_reject", "expires_after"],
    by_type: &[("csv", &["delimiter", "types"]), ("jsonl", &[]), ("json", &[])],
    later: &[],
};
pub(super) const CHUNK: Keys =
    Keys { common: &["items", "bytes", "budget", "outstanding", "compress"], by_type: &[], later: &[] };
pub(super) const STAGE: Keys = Keys {
    common: &[
        "name",
        "type",
        "destination",
        "concurrency",
        "timeout",
        "retry",
        "when",
        "skip_when",
        "effect",
    ],
    by_type: &[
        ("echo", &[]),
        ("jq", &["filter"]),
        ("http", &["method", "url", "headers", "body", "retry_statuses", "max_response_bytes"]),
        ("command", &["argv", "output", "max_output_bytes", "retry_exit_codes"]),
    ],
    later: &["fan_out", "barrier"],
};
pub(super) const CONCURRENCY: Keys = Keys { common: &["least", "most"], by_type: &[], later: &[] };
pub(super) const RETRY: Keys = Keys {
    common: &["count", "interval", "type", "max_interval", "in_place_below"],
    by_type: &[],
    later: &[],
};
pub(super) const DESTINATION: Keys = Keys {
    common: &["max_connections", "rate", "rate_floor", "throttle", "breaker"],
    by_type: &[],
    later: &[],
};
pub(super) const BREAKER: Keys = Keys {
    common: &["failures", "failure_rate", "window", "minimum_calls", "slow_call", "open", "probe_interval"],
    by_type: &[],
    later: &[],
};
pub(super) const SINK: Keys = Keys {
    common: &["type"],
    by_type: &[("jsonl", &["path", "order", "if_exists"]), ("none", &[])],
    later: &[],
};
pub(super) const TOLERATE: Keys = Keys { common: &["failed"], by_type: &[], later: &[] };
pub(super) const NOTIFY: Keys = Keys { common: &["on", "url", "command"], by_type: &[], later: &["email"] };

/// Where a key that stands in the wrong section may belong.
const SECTIONS: [(&str, &Keys); 9] = [
    ("[source]", &SOURCE),
    ("[chunk]", &CHUNK),
    ("[[stage]]", &STAGE),
    ("a stage's `retry`", &RETRY),
    ("[destination.NAME]", &DESTINATION),
    ("[sink]", &SINK),
    ("[tolerate]", &TOLERATE),
    ("[notify]", &NOTIFY),
    ("the top of the file", &ROOT),
];

impl Keys {
    /// What is wrong with `key` in the section called `title`, and what to do; None when nothing is.
    pub(super) fn judge<T>(&self, key: &str, kind: &TypeKey<T>, title: &str) -> Option<(String, String)> {
        let known: Vec<&str> = match kind {
            TypeKey::Later => return None,
            TypeKey::Known(word, _) => self.common.iter().chain(self.of_type(word)).copied().collect(),
            TypeKey::Unclear => self.all().collect(),
        };
        if known.contains(&key) {
            return None;
        }
        if self.later.contains(&key) {
            let message = format!("`{key}` of {title} is not in this version yet");
            return Some((message, "take it out: nothing would honour it".to_owned()));
        }
        let message = format!("unknown key `{key}` in {title}");
        let types: Vec<&str> =
            self.by_type.iter().filter(|(_, keys)| keys.contains(&key)).map(|(word, _)| *word).collect();
        if let (TypeKey::Known(word, _), false) = (kind, types.is_empty()) {
            return Some((
                message,
                format!("it belongs to type {}, and this one is `{word}`", listed(&types)),
            ));
        }
        Some((message, place_of(key).unwrap_or_else(|| suggestion(key, &known))))
    }

    fn of_type(&self, word: &str) -> &'static [&'static str] {
        self.by_type.iter().find(|(of, _)| *of == word).map_or(&[], |(_, keys)| keys)
    }

    fn all(&self) -> impl Iterator<Item = &'static str> {
        self.common.iter().chain(self.by_type.iter().flat_map(|(_, keys)| keys.iter())).copied()
    }
}

/// Where else a key of exactly this name is known.
fn place_of(key: &str) -> Option<String> {
    SECTIONS
        .iter()
        .find(|(_, keys)| keys.all().any(|known| known == key))
        .map(|(title, _)| format!("it belongs in {title}"))
}

/// The word nearest to `text`, if one is near enough to be what was meant: a third of it mistyped at most, or
/// the same first four letters (`retries` for `retry`).
pub(super) fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let reach = (text.chars().count() / 3).max(1);
    words
        .iter()
        .map(|word| (edit_distance(text, word), *word))
        .filter(|(distance, word)| *distance <= reach || same_beginning(text, word))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

fn same_beginning(a: &str, b: &str) -> bool {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count() >= 4
}

/// How many letters must be added, taken away, replaced or swapped with their neighbour to make `a` of `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_added_lost_replaced_and_swapped_letters() {
        for (a, b, distance) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "ab", 1),
            ("abc", "abd", 1),
            ("abc", "acb", 1),
            ("", "abc", 3),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        assert_eq!(nearest("retries", &["retry", "name"]), Some("retry"));
        assert_eq!(nearest("tiemout", &["timeout", "type"]), Some("timeout"));
        assert_eq!(nearest("colour", &["timeout", "type"]), None);
    }
}
