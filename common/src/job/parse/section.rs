//! Typed access to the keys of one table of a job file. Whatever is wrong is noted with its place and
//! reading goes on, so that one look at a file finds everything.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Keys, TypeKey, nearest};
use crate::job::{Problem, format_bytes, parse_bytes, parse_duration};

/// The problems found so far.
pub(super) struct Faults<'t> {
    text: &'t str,
    list: RefCell<Vec<Problem>>,
}

impl<'t> Faults<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, list: RefCell::default() }
    }

    /// Notes a problem and, when there is one, what to do about it. Line breaks become spaces, so that a
    /// problem is always one line.
    pub(super) fn add(&self, span: &Range<usize>, message: impl Display, help: Option<String>) {
        let start = span.start.min(self.text.len());
        let line = memchr::memchr_iter(b'\n', &self.text.as_bytes()[..start]).count() + 1;
        let one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.list.borrow_mut().push(Problem {
            line,
            span: start..span.end.min(self.text.len()),
            message: one_line(message.to_string()),
            help: help.map(one_line),
        });
    }

    pub(super) fn into_list(self) -> Vec<Problem> {
        self.list.into_inner()
    }
}

/// A string of the file and where it is.
#[derive(Clone)]
pub(super) struct Text<'t> {
    pub(super) text: &'t str,
    pub(super) span: Range<usize>,
}

/// One table, by the name messages give it (`[source]`).
pub(super) struct Section<'t> {
    pub(super) title: String,
    pub(super) span: Range<usize>,
    table: &'t DeTable<'t>,
    faults: &'t Faults<'t>,
}

impl<'t> Section<'t> {
    pub(super) fn new(title: String, root: &'t Spanned<DeTable<'t>>, faults: &'t Faults<'t>) -> Self {
        Self { title, span: root.span(), table: root.get_ref(), faults }
    }

    /// The table that `value` is.
    pub(super) fn of(title: String, value: &'t Spanned<DeValue<'t>>, faults: &'t Faults<'t>) -> Option<Self> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Self { title, span: value.span(), table, faults }),
            other => {
                faults.add(&value.span(), format!("{title} must be a table, not {}", name_of(other)), None);
                None
            }
        }
    }

    /// Notes a problem of this section.
    pub(super) fn fault(&self, span: &Range<usize>, message: impl Display) {
        self.faults.add(span, message, None);
    }

    /// Notes a problem of this section and what to do about it.
    pub(super) fn fault_with_help(&self, span: &Range<usize>, message: impl Display, help: String) {
        self.faults.add(span, message, Some(help));
    }

    pub(super) fn raw(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    /// Where `key`'s value is, or this section when it has none.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.raw(key).map_or_else(|| self.span.clone(), Spanned::span)
    }

    /// The keys of this table with their places and values.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Text<'t>, &'t Spanned<DeValue<'t>>)> {
        self.table.iter().map(|(key, value)| (Text { text: key.get_ref(), span: key.span() }, value))
    }

    /// Notes that `key` must be there; `example` is its line as it could be written.
    pub(super) fn require(&self, key: &str, example: &str) {
        if self.raw(key).is_none() {
            let message = format!("{} needs `{key}`", self.title);
            self.fault_with_help(&self.span, message, format!("for example `{example}`"));
        }
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        self.fault(&value.span(), format!("`{key}` must be {wanted}, not {}", name_of(value.get_ref())));
    }

    pub(super) fn text(&self, key: &str) -> Option<Text<'t>> {
        self.text_of(key, self.raw(key)?)
    }

    /// `value` as a string; `key` is what messages call it.
    pub(super) fn text_of(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Option<Text<'t>> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a string");
        }
        text.map(|text| Text { text, span: value.span() })
    }

    /// Whether `path` can name a file; what it can't be is noted.
    pub(super) fn is_path(&self, path: &Text<'_>) -> bool {
        let problem = if path.text.is_empty() || path.text.contains('\0') {
            "`path` must name a file"
        } else if path.text.contains("${") {
            "`path` can't have `${NAME}` in it: the environment is read in url, headers, body and argv only"
        } else {
            return true;
        };
        self.fault(&path.span, problem);
        false
    }

    /// A string that `read` makes something of.
    pub(super) fn parsed<T, E: Display>(&self, key: &str, read: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text(key)?;
        read(text.text).map_err(|error| self.fault(&text.span, format!("`{key}`: {error}"))).ok()
    }

    pub(super) fn duration(&self, key: &str, least: Duration) -> Option<Duration> {
        let value = self.raw(key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, value, "a duration such as \"30s\" or \"PT30S\"");
            return None;
        };
        match parse_duration(text) {
            Ok(duration) if duration < least => {
                let least = crate::job::format_duration(least);
                self.fault(&value.span(), format!("`{key}` must be at least {least}"));
                None
            }
            Ok(duration) => Some(duration),
            Err(error) => {
                self.fault(&value.span(), format!("`{key}`: {error}"));
                None
            }
        }
    }

    /// A size in bytes, as text with a unit or as an integer.
    pub(super) fn bytes(&self, key: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let value = self.raw(key)?;
        let bytes = match value.get_ref() {
            DeValue::String(text) => parse_bytes(text),
            DeValue::Integer(_) => integer(value.get_ref()).ok_or_else(|| "not a size".to_owned()),
            _ => {
                self.wrong_type(key, value, "a size such as \"256 KiB\" or a number of bytes");
                return None;
            }
        };
        match bytes {
            Ok(bytes) if bounds.contains(&bytes) => Some(bytes),
            Ok(_) => {
                let (least, most) = (format_bytes(*bounds.start()), format_bytes(*bounds.end()));
                self.fault(&value.span(), format!("`{key}` must be from {least} to {most}"));
                None
            }
            Err(error) => {
                self.fault(&value.span(), format!("`{key}`: {error}"));
                None
            }
        }
    }

    pub(super) fn integer(&self, key: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let value = self.raw(key)?;
        let wanted = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        if !value.get_ref().is_integer() {
            self.wrong_type(key, value, &wanted);
            return None;
        }
        let number = integer(value.get_ref()).filter(|number| bounds.contains(number));
        if number.is_none() {
            self.fault(&value.span(), format!("`{key}` must be {wanted}"));
        }
        number
    }

    /// As [`Self::integer`], for what fits 32 bits.
    pub(super) fn small_integer(&self, key: &str, bounds: RangeInclusive<u32>) -> Option<u32> {
        let bounds = u64::from(*bounds.start())..=u64::from(*bounds.end());
        self.integer(key, bounds).and_then(|number| u32::try_from(number).ok())
    }

    /// A share of a whole, above 0 and at most 1: `0.5` or `"50%"`.
    pub(super) fn share(&self, key: &str) -> Option<f64> {
        let value = self.raw(key)?;
        let share = match value.get_ref() {
            DeValue::String(text) => percent(text),
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        let share = share.filter(|share| *share > 0.0 && *share <= 1.0);
        if share.is_none() {
            self.fault(
                &value.span(),
                format!("`{key}` must be a share above 0 and at most 1, such as 0.5 or \"50%\""),
            );
        }
        share
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        let value = self.raw(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(key, value, "true or false");
        }
        flag
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(key)?;
        self.word(key, &text, choices)
    }

    /// `text` as one of a few words; `key` is what messages call it.
    pub(super) fn word<T: Copy>(
        &self,
        key: &str,
        text: &Text<'_>,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let found = choices.iter().find(|(word, _)| *word == text.text).map(|(_, choice)| *choice);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let message = format!("`{key}` can't be \"{}\"", text.text);
            self.fault_with_help(&text.span, message, suggestion(text.text, &words));
        }
        found
    }

    /// The `type` of this section; `later` are types that this version does not have yet.
    pub(super) fn type_key<T: Copy>(&self, types: &[(&'static str, T)], later: &[&str]) -> TypeKey<T> {
        self.require("type", &format!("type = \"{}\"", types[0].0));
        let Some(text) = self.text("type") else {
            return TypeKey::Unclear;
        };
        if later.contains(&text.text) {
            let words: Vec<&str> = types.iter().map(|(word, _)| *word).collect();
            let message = format!("type \"{}\" of {} is not in this version yet", text.text, self.title);
            self.fault_with_help(&text.span, message, format!("it has {}", listed(&words)));
            return TypeKey::Later;
        }
        match self.word("type", &text, types) {
            Some(kind) => types
                .iter()
                .find(|(word, _)| *word == text.text)
                .map_or(TypeKey::Unclear, |(word, _)| TypeKey::Known(word, kind)),
            None => TypeKey::Unclear,
        }
    }

    /// The values of an array.
    pub(super) fn list(&self, key: &str, wanted: &str) -> Option<Vec<&'t Spanned<DeValue<'t>>>> {
        let value = self.raw(key)?;
        let array = value.get_ref().as_array();
        if array.is_none() {
            self.wrong_type(key, value, wanted);
        }
        array.map(|array| array.iter().collect())
    }

    /// The table under `key`, called `title` in messages.
    pub(super) fn table(&self, key: &str, title: String) -> Option<Section<'t>> {
        Section::of(title, self.raw(key)?, self.faults)
    }

    /// The tables under `key`: one (`[key]`) or an array of them (`[[key]]`). The flag says which.
    pub(super) fn tables(&self, key: &str) -> Option<(Vec<Section<'t>>, bool)> {
        match self.raw(key)?.get_ref() {
            DeValue::Array(array) => {
                let title = format!("[[{key}]]");
                let sections =
                    array.iter().filter_map(|value| Section::of(title.clone(), value, self.faults));
                Some((sections.collect(), true))
            }
            _ => Some((self.table(key, format!("[{key}]")).into_iter().collect(), false)),
        }
    }

    /// Notes every key that this section does not have.
    pub(super) fn refuse_unknown_keys<T>(&self, keys: &Keys, kind: &TypeKey<T>) {
        for (key, _) in self.entries() {
            if let Some((message, help)) = keys.judge(key.text, kind, &self.title) {
                self.fault_with_help(&key.span, message, help);
            }
        }
    }
}

/// An integer of the file, when it is not negative and fits.
pub(super) fn integer(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// `5%` as 0.05.
pub(super) fn percent(text: &str) -> Option<f64> {
    let number = text.strip_suffix('%')?.trim_end();
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percent: f64 = number.parse().ok().filter(|_| plain)?;
    (percent <= 100.0).then_some(percent / 100.0)
}

/// "did you mean" one of `words`, or all of them when none is near.
pub(super) fn suggestion(text: &str, words: &[&str]) -> String {
    match nearest(text, words) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("it has {}", listed(words)),
    }
}

/// `a`, `b` and `c`.
pub(super) fn listed(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

fn name_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
