//! How long attempts took, in few words: a completion carries it in a header.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Durations of attempts, counted in buckets that grow by a tenth: bucket `n` holds durations up to
/// `1.1^n` microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies(BTreeMap<u16, u64>);

impl Latencies {
    /// The highest bucket: beyond 39 days.
    const LAST: u16 = 303;

    /// Counts one attempt.
    pub fn record(&mut self, duration: std::time::Duration) {
        let micros = (duration.as_secs_f64() * 1e6).max(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped just before")]
        let bucket = (micros.ln() / 1.1f64.ln()).ceil().clamp(0.0, f64::from(Self::LAST)) as u16;
        *self.0.entry(bucket).or_default() += 1;
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// The duration, in seconds, that the share `quantile` (0 to 1) of the attempts did not exceed; at
    /// most a tenth too long. None when nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let total: u64 = self.0.values().sum();
        let wanted = (total as f64 * quantile).ceil().max(1.0);
        let mut seen = 0u64;
        for (bucket, count) in &self.0 {
            seen += count;
            if seen as f64 >= wanted {
                return Some(1.1f64.powi(i32::from(*bucket)) / 1e6);
            }
        }
        None
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Written `bucket:count,bucket:count`.
impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (bucket, count)) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            write!(f, "{bucket}:{count}")?;
        }
        Ok(())
    }
}

impl FromStr for Latencies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut counts = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let read = part
                .split_once(':')
                .and_then(|(bucket, count)| Some((bucket.parse::<u16>().ok()?, count.parse::<u64>().ok()?)));
            match read {
                Some((bucket, count)) if bucket <= Self::LAST && count < 1 << 48 => {
                    counts.insert(bucket, count)
                }
                _ => return Err("must be bucket:count pairs".to_owned()),
            };
        }
        Ok(Self(counts))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn latencies_answer_within_a_tenth() {
        let mut latencies = Latencies::default();
        for millis in 1..=1000 {
            latencies.record(Duration::from_millis(millis));
        }
        let read: Latencies = latencies.to_string().parse().unwrap();
        let p95 = read.quantile(0.95).unwrap();
        assert!((0.95..0.95 * 1.1).contains(&p95), "{p95}");
        assert!(Latencies::default().quantile(0.5).is_none());
    }
}
