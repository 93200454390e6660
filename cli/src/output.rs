//! Standard output: what was asked for, and nothing else. Standard error: what there is to know about it.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use crate::Failure;

/// Writes a line, or several. When whoever reads has gone, as `head` does, the command ends as if it was done.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    ended(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Writes bytes as they are.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    ended(out.write_all(bytes).and_then(|()| out.flush()))
}

fn ended(written: std::io::Result<()>) -> Result<(), Failure> {
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::silent(0),
        _ => format!("standard output cannot be written: {error}").into(),
    })
}

/// Writes a line, or several, to standard error. If nobody reads it any more, the work goes on all the same.
pub(crate) fn tell(text: impl Display) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// `1 row`, `2,000 rows`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!((counted(1, "row").as_str(), counted(1_200, "row").as_str()), ("1 row", "1,200 rows"));
    }
}
