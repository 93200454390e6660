//! `Retry-After`: how long a server asks to be left alone.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::fmt::rfc2822;

/// No server is left alone for longer than this on its word.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What a `Retry-After` header's `value` asks for at `now`: seconds, or an HTTP date. At most 24 h; zero for a date
/// that has passed; None if it is neither.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Only a number beyond u64 fails to parse.
        return Some(value.parse().map_or(LONGEST, Duration::from_secs).min(LONGEST));
    }
    let date: Timestamp = rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(value).ok()?;
    // A date before 1970 has passed as much as 1970 has.
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(date.as_second().try_into().unwrap_or(0));
    Some(date.duration_since(now).unwrap_or_default().min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1994-11-06 08:49:37 UTC.
    const NOW: u64 = 784_111_777;

    fn at(value: &str) -> Option<u64> {
        retry_after(value, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_are_read_and_capped_at_a_day() {
        assert_eq!(at("0"), Some(0));
        assert_eq!(at(" 120 "), Some(120));
        assert_eq!(at("86401"), Some(86_400));
        assert_eq!(at("99999999999999999999999999"), Some(86_400));
    }

    #[test]
    fn dates_are_read_and_capped_at_a_day() {
        assert_eq!(at("Sun, 06 Nov 1994 08:49:47 GMT"), Some(10));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:27 GMT"), Some(0));
        assert_eq!(at("Sun, 06 Nov 2094 08:49:37 GMT"), Some(86_400));
    }

    #[test]
    fn anything_else_is_no_request() {
        for value in ["", "soon", "-1", "1.5", "+3", "10 s", "Sun, 06 Nov"] {
            assert_eq!(at(value), None, "{value:?}");
        }
    }
}
