//! Durations and sizes, as a job file writes them and as people read them.

use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// Units of the short form, longest first; each may stand once, in this order.
const SHORT_UNITS: [(&str, u128); 5] = [
    ("d", SECONDS_PER_DAY as u128 * NANOS_PER_SECOND),
    ("h", 3_600 * NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("s", NANOS_PER_SECOND),
    ("ms", NANOS_PER_SECOND / 1_000),
];
/// Units of ISO 8601 before the `T` and behind it. Months and years have no fixed length.
const ISO_DATE_UNITS: [(&str, u128); 2] = [
    ("W", 7 * SECONDS_PER_DAY as u128 * NANOS_PER_SECOND),
    ("D", SECONDS_PER_DAY as u128 * NANOS_PER_SECOND),
];
const ISO_TIME_UNITS: [(&str, u128); 3] =
    [("H", 3_600 * NANOS_PER_SECOND), ("M", 60 * NANOS_PER_SECOND), ("S", NANOS_PER_SECOND)];

const BYTE_UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Reads a duration in ISO 8601 (`PT30S`, `P1DT12H`) or in short form (`30s`, `1h30m`, `500ms`).
///
/// Units are weeks (ISO only), days, hours, minutes, seconds and milliseconds (short only). The error says
/// what to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let nanos = match text.strip_prefix('P') {
        Some(iso) => match iso.split_once('T') {
            Some((date, "")) => sum_of(date, &[]),
            Some(("", time)) => sum_of(time, &ISO_TIME_UNITS),
            Some((date, time)) => {
                sum_of(date, &ISO_DATE_UNITS).zip(sum_of(time, &ISO_TIME_UNITS)).map(|(a, b)| a + b)
            }
            None => sum_of(iso, &ISO_DATE_UNITS),
        },
        None => sum_of(text, &SHORT_UNITS),
    };
    nanos
        .and_then(|nanos| {
            let seconds = u64::try_from(nanos / NANOS_PER_SECOND).ok()?;
            let rest = u32::try_from(nanos % NANOS_PER_SECOND).ok()?;
            Some(Duration::new(seconds, rest))
        })
        .ok_or_else(|| format!("`{}` is not a duration: write \"30s\", \"5m\" or \"PT5M\"", excerpt(text)))
}

/// The sum, in nanoseconds, of numbers each with one of `units`, every unit at most once and in order.
fn sum_of(mut text: &str, mut units: &[(&str, u128)]) -> Option<u128> {
    if text.is_empty() {
        return None;
    }
    let mut sum = 0u128;
    while !text.is_empty() {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at(digits);
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(letters);
        let place = units.iter().position(|(name, _)| *name == unit)?;
        sum = sum.checked_add(times(number, units[place].1)?)?;
        units = &units[place + 1..];
        text = rest;
    }
    Some(sum)
}

/// A decimal number (at most nine places) times `unit`, rounded down.
fn times(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.len() > 18 || !(1..=9).contains(&fraction.len()) {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: u128 = whole.parse().ok()?;
    let fraction: u128 = fraction.parse().ok()?;
    Some(whole.checked_mul(unit)? + fraction * unit / scale)
}

/// Writes a duration for people, in the short form and to the millisecond: `2d`, `1h30m`, `12.5s`, `40ms`.
///
/// [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let mut text = String::new();
    for (amount, unit) in
        [(seconds / SECONDS_PER_DAY, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m")]
    {
        if amount > 0 {
            text.extend([amount.to_string().as_str(), unit]);
        }
    }
    let rest = match (seconds % 60, millis) {
        (0, 0) => return text,
        (seconds, 0) => seconds.to_string(),
        (seconds, millis) => format!("{seconds}.{millis:03}").trim_end_matches('0').to_owned(),
    };
    text + &rest + "s"
}

/// Reads a size in bytes: `262144`, `256 KiB`, `1.5MB`. Units are B, KB, MB, GB (of 1,000) and KiB, MiB, GiB,
/// TiB (of 1,024), in any case. The error says what to write instead.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    BYTE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .and_then(|(_, size)| u64::try_from(times(number, u128::from(*size))?).ok())
        .ok_or_else(|| {
            format!("`{}` is not a size: write \"256 KiB\", \"1 MB\" or a number of bytes", excerpt(text))
        })
}

/// Writes a size in bytes for people: `512 B`, `256 KiB`, `1.5 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    let unit = BYTE_UNITS[5..].iter().rev().find(|(_, size)| bytes >= *size);
    let Some((name, size)) = unit else {
        return format!("{bytes} B");
    };
    let name = format!("{}iB", name[..1].to_ascii_uppercase());
    match bytes % size {
        0 => format!("{} {name}", bytes / size),
        _ => format!("{:.1} {name}", bytes as f64 / *size as f64),
    }
}

/// The beginning of a text that a message quotes.
fn excerpt(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_in_both_forms() {
        for (text, millis) in [
            ("PT30S", 30_000),
            ("PT0.5S", 500),
            ("PT5M", 300_000),
            ("PT1H30M", 5_400_000),
            ("P1D", 86_400_000),
            ("P1DT12H", 129_600_000),
            ("P2W", 1_209_600_000),
            ("30s", 30_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in [
            "",
            "30",
            "s",
            "P",
            "PT",
            "P1DT",
            "P1M",
            "P1Y",
            "PT1D",
            "30S",
            "5 m",
            "-5s",
            "1s1m",
            "1s1s",
            "1.s",
            ".5s",
            "1..5s",
            "99999999999999999999d",
            "é",
            "PT30",
        ] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.contains("PT5M"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("262144", 262_144),
            ("256 KiB", 262_144),
            ("256KiB", 262_144),
            ("1MB", 1_000_000),
            ("1.5 MiB", 1_572_864),
            ("10 b", 10),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1 X", "-1", "1 KiB KiB", "99999999999999999999 GB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        let written = [0, 1_023, 1_024, 262_144, 1_572_864, 5 << 30].map(format_bytes);
        assert_eq!(written, ["0 B", "1023 B", "1 KiB", "256 KiB", "1.5 MiB", "5 GiB"]);
    }

    #[test]
    fn durations_are_written_for_people() {
        let written = [0, 40, 12_500, 60_000, 5_400_000, 90_061_001]
            .map(|ms| format_duration(Duration::from_millis(ms)));
        assert_eq!(written, ["0s", "40ms", "12.5s", "1m", "1h30m", "1d1h1m1.001s"]);
    }

    proptest! {
        #[test]
        fn a_written_duration_is_read_back(millis in 0u64..10_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
