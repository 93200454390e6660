//! What makes bytes an item.

use serde::de::IgnoredAny;

use super::MAX_ITEM_BYTES;

/// Refuses what is not one JSON value in UTF-8, without building anything of it. The reason never quotes it.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    if bytes.len() > MAX_ITEM_BYTES {
        return Err(too_large());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| not_json(&error))
}

/// The reason of a row that is no JSON. The row's own line is told beside it; only the column is news.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    format!("not JSON: {what}, at column {}", error.column())
}

/// The reason of a row that is too large.
pub(super) fn too_large() -> String {
    format!("larger than {} MiB", MAX_ITEM_BYTES / 1024 / 1024)
}

/// Appends a checked JSON value. Line breaks in it can only stand between tokens; they become spaces.
pub(super) fn append(into: &mut Vec<u8>, value: &[u8]) {
    let start = into.len();
    into.extend_from_slice(value);
    if memchr::memchr2(b'\n', b'\r', value).is_some() {
        for byte in into[start..].iter_mut().filter(|byte| matches!(**byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
    }
}
