//! Header tables, and reading them without trust.

use std::str::FromStr;

/// A header's value. Clients in other languages send whole numbers of any width; they arrive as `Int`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// UTF-8 text.
    Text(String),
    /// A whole number.
    Int(i64),
}

impl HeaderValue {
    /// How much room it takes up, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Int(_) => size_of::<i64>(),
        }
    }
}

/// A message's headers, in the order they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, HeaderValue)>);

/// A message cannot be understood; it is parked with this as its reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A header that must be there is not.
    #[error("header `{0}` is missing")]
    Missing(&'static str),
    /// A header is there but its value is not of its form.
    #[error("header `{0}` is not valid: {1}")]
    Invalid(&'static str, String),
    /// The wire version is neither this build's nor the one before.
    #[error("wire version {0} is not understood (this build reads {min} to {max})", min = super::WIRE_VERSION - 1, max = super::WIRE_VERSION)]
    Version(i64),
    /// The kind (AMQP `type`) is none that belongs on this queue.
    #[error("kind `{0}` does not belong on this queue")]
    Kind(String),
    /// The body is not what the headers promise.
    #[error("body: {0}")]
    Body(String),
}

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a text header.
    pub fn set_text(&mut self, name: &str, value: impl Into<String>) {
        self.set(name, HeaderValue::Text(value.into()));
    }

    /// Sets a number header. Numbers above `i64::MAX` are written as `i64::MAX`.
    pub fn set_int(&mut self, name: &str, value: u64) {
        self.set(name, HeaderValue::Int(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    /// Sets a header, in place of one of that name.
    pub fn set(&mut self, name: &str, value: HeaderValue) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// A header's value.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// A text header that must be there.
    pub fn text(&self, name: &'static str) -> Result<&str, DecodeError> {
        match self.get(name) {
            Some(HeaderValue::Text(text)) => Ok(text),
            Some(HeaderValue::Int(_)) => Err(DecodeError::Invalid(name, "must be text".to_owned())),
            None => Err(DecodeError::Missing(name)),
        }
    }

    /// A number header that must be there and not be negative.
    pub fn int(&self, name: &'static str) -> Result<u64, DecodeError> {
        self.optional_int(name)?.ok_or(DecodeError::Missing(name))
    }

    /// A number header that may be absent.
    pub fn optional_int(&self, name: &'static str) -> Result<Option<u64>, DecodeError> {
        match self.get(name) {
            None => Ok(None),
            Some(HeaderValue::Int(number)) => u64::try_from(*number)
                .map(Some)
                .map_err(|_| DecodeError::Invalid(name, "must not be negative".to_owned())),
            Some(HeaderValue::Text(_)) => Err(DecodeError::Invalid(name, "must be a number".to_owned())),
        }
    }

    /// A text header that must be there, parsed.
    pub fn parse<T: FromStr<Err: std::fmt::Display>>(&self, name: &'static str) -> Result<T, DecodeError> {
        self.text(name)?.parse().map_err(|error: T::Err| DecodeError::Invalid(name, error.to_string()))
    }

    /// A text header that may be absent, parsed.
    pub fn parse_optional<T: FromStr<Err: std::fmt::Display>>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, DecodeError> {
        if self.get(name).is_none() { Ok(None) } else { self.parse(name).map(Some) }
    }

    /// Refuses a version this build does not read.
    pub fn check_version(&self) -> Result<(), DecodeError> {
        let version = i64::try_from(self.int("version")?).unwrap_or(i64::MAX);
        if (super::WIRE_VERSION - 1..=super::WIRE_VERSION).contains(&version) {
            Ok(())
        } else {
            Err(DecodeError::Version(version))
        }
    }
}
