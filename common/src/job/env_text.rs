//! Text of a job file that may name environment variables, and keeping their values out of what is written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use super::{CommandSpec, HttpSpec, Job, ProcessorSpec, StageSpec};
use crate::ids::StageName;

/// Where variables are read: `|name| std::env::var(name).ok()` in a process, a map in a test.
pub type EnvLookup<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// Values shorter than this are not taken out of texts: `1` or `dev` would be found everywhere.
const LEAST_SECRET_BYTES: usize = 4;

/// Text with `${NAME}` in it, as written: it names secrets and holds none. `$${` stands for `${`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EnvText(String);

/// A part of an [`EnvText`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'t> {
    /// Text as it is.
    Text(&'t str),
    /// `${NAME}`, by its name.
    Variable(&'t str),
    /// `${` with no name and brace behind it.
    Broken,
}

impl EnvText {
    /// Text as written in a job file.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text as written, `${NAME}` and all.
    pub fn as_written(&self) -> &str {
        &self.0
    }

    /// The variables it names, in order, each as often as it stands there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts().into_iter().filter_map(|part| match part {
            Part::Variable(name) => Some(name),
            Part::Text(_) | Part::Broken => None,
        })
    }

    /// Whether a `${` begins nothing.
    pub(super) fn is_broken(&self) -> bool {
        self.parts().contains(&Part::Broken)
    }

    /// The text with its variables filled in. Errors with the first one that `env` does not have.
    pub fn resolve(&self, env: &EnvLookup<'_>) -> Result<Resolved, MissingVariable> {
        let mut text = String::new();
        for part in self.parts() {
            match part {
                Part::Text(part) => text += part,
                Part::Variable(name) => text += &env(name).ok_or_else(|| MissingVariable(name.to_owned()))?,
                Part::Broken => text += "${",
            }
        }
        Ok(Resolved(text))
    }

    pub(super) fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        let mut rest = self.0.as_str();
        while let Some(at) = rest.find("${") {
            let (before, opened) = (&rest[..at], &rest[at + 2..]);
            if let Some(before) = before.strip_suffix('$') {
                parts.extend([Part::Text(before), Part::Text("${")]);
                rest = opened;
                continue;
            }
            parts.push(Part::Text(before));
            let (part, after) = match opened.split_once('}').filter(|(name, _)| is_variable(name)) {
                Some((name, after)) => (Part::Variable(name), after),
                None => (Part::Broken, opened),
            };
            parts.push(part);
            rest = after;
        }
        parts.push(Part::Text(rest));
        parts
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A variable that a job file names and the environment does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {0} is not set")]
pub struct MissingVariable(pub String);

/// Text with its variables filled in. It may hold secrets: it has no `Display`, and its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Resolved(String);

impl Resolved {
    /// The text, secrets and all.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolved(..)")
    }
}

impl StageSpec {
    /// Every text of this stage that may name environment variables.
    fn env_texts(&self) -> Vec<&EnvText> {
        match &self.processor {
            ProcessorSpec::Echo | ProcessorSpec::Jq { .. } => Vec::new(),
            ProcessorSpec::Http(http) => {
                let HttpSpec { url, headers, body, .. } = http.as_ref();
                std::iter::once(url).chain(headers.values()).chain(body).collect()
            }
            ProcessorSpec::Command(CommandSpec { argv, .. }) => argv.iter().collect(),
        }
    }
}

impl Job {
    /// The variables that stages name and `env` does not have, each once a stage.
    pub fn missing_variables(&self, env: &EnvLookup<'_>) -> Vec<(StageName, MissingVariable)> {
        let mut missing = Vec::new();
        for stage in &self.stages {
            for name in stage.env_texts().into_iter().flat_map(EnvText::names) {
                let entry = (stage.name.clone(), MissingVariable(name.to_owned()));
                if env(name).is_none() && !missing.contains(&entry) {
                    missing.push(entry);
                }
            }
        }
        missing
    }
}

/// Takes the values of environment variables out of text that leaves the process.
#[derive(Clone, Default)]
pub struct Redactor {
    /// What to look for and what to write there, the longest first so that no part of a value is left over.
    replacements: Vec<(String, String)>,
}

impl Redactor {
    /// Takes out these values, given with their variables' names. Each is found as it is and as JSON writes it
    /// inside a string. Values of less than 4 bytes stay: they would be found everywhere.
    pub fn new(values: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut forms = BTreeMap::new();
        for (name, value) in values {
            let shown = format!("${{{name}}}");
            let escaped = serde_json::Value::from(value.as_str()).to_string();
            for form in [escaped.trim_matches('"').to_owned(), value] {
                if form.len() >= LEAST_SECRET_BYTES {
                    forms.insert(form, shown.clone());
                }
            }
        }
        let mut replacements: Vec<_> = forms.into_iter().collect();
        replacements.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        Self { replacements }
    }

    /// Takes out the values of every variable that the job's stages name.
    pub fn for_job(job: &Job, env: &EnvLookup<'_>) -> Self {
        let texts = job.stages.iter().flat_map(StageSpec::env_texts);
        Self::new(texts.flat_map(EnvText::names).filter_map(|name| Some((name.to_owned(), env(name)?))))
    }

    /// The text with every value replaced by its `${NAME}`.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for (value, shown) in &self.replacements {
            if text.contains(value.as_str()) {
                text = Cow::Owned(text.replace(value.as_str(), shown));
            }
        }
        text
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} values)", self.replacements.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "TOKEN" => Some("s3cret\"${A}".to_owned()),
            "PART" => Some("s3cr".to_owned()),
            "A" => Some("abc".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_filled_in_once_and_escapes_are_kept() {
        let text = EnvText::new("Bearer ${TOKEN} $${TOKEN} $5 ${A}${A}$");
        assert_eq!(text.resolve(&env).unwrap().expose(), "Bearer s3cret\"${A} ${TOKEN} $5 abcabc$");
        assert_eq!(text.names().collect::<Vec<_>>(), ["TOKEN", "A", "A"]);
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = EnvText::new("${A} ${NOT_THERE}").resolve(&env).unwrap_err();
        assert_eq!(error.to_string(), "environment variable NOT_THERE is not set");
    }

    #[test]
    fn what_holds_secrets_does_not_show_them() {
        let resolved = EnvText::new("${TOKEN}").resolve(&env).unwrap();
        assert_eq!(format!("{resolved:?}"), "Resolved(..)");
        let redactor = Redactor::new([("TOKEN".to_owned(), "s3cret".to_owned())]);
        assert_eq!(format!("{redactor:?}"), "Redactor(1 values)");
    }

    #[test]
    fn values_are_taken_out_whole_as_they_are_and_as_json_writes_them() {
        let names = ["TOKEN", "PART", "A"];
        let redactor = Redactor::new(names.map(|name| (name.to_owned(), env(name).unwrap())));
        assert_eq!(
            redactor.redact("say s3cret\"${A} twice: \"s3cret\\\"${A}\""),
            "say ${TOKEN} twice: \"${TOKEN}\""
        );
        assert_eq!(redactor.redact("a part: s3cr."), "a part: ${PART}.");
        assert_eq!(redactor.redact("abc is too short"), "abc is too short");
        assert!(matches!(redactor.redact("nothing here"), Cow::Borrowed(_)));
    }
}
