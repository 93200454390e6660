//! Sets of item indexes as ranges (`17,20-22`), and values repeated over them (`1*99,2`).

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A set of item indexes, kept as sorted, disjoint, non-adjacent inclusive ranges. Written `17,20-22`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ranges(Vec<(u64, u64)>);

/// Text that is not ranges, or runs, of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form {1}")]
pub struct RangesError(pub String, pub &'static str);

const RANGES_FORM: &str = "17,20-22 (ascending, not overlapping)";
const RUNS_FORM: &str = "value*count,value (count 1 or more)";

impl Ranges {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// All of `first..first + count`.
    pub fn span(first: u64, count: u64) -> Self {
        if count == 0 { Self::default() } else { Self(vec![(first, first + count - 1)]) }
    }

    /// The set of `indexes`, which must ascend.
    pub fn from_ascending(indexes: impl IntoIterator<Item = u64>) -> Self {
        let mut ranges = Self::default();
        for index in indexes {
            ranges.push(index);
        }
        ranges
    }

    /// Adds an index at or above every index in the set; adding the highest again changes nothing.
    pub fn push(&mut self, index: u64) {
        match self.0.last_mut() {
            Some((_, last)) if *last == index => {}
            Some((_, last)) if *last + 1 == index => *last = index,
            Some((_, last)) => {
                debug_assert!(*last < index, "indexes must ascend");
                self.0.push((index, index));
            }
            None => self.0.push((index, index)),
        }
    }

    /// How many indexes the set holds.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest index.
    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|(first, _)| *first)
    }

    /// The highest index.
    pub fn last(&self) -> Option<u64> {
        self.0.last().map(|(_, last)| *last)
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u64) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after > 0 && self.0[after - 1].1 >= index
    }

    /// The indexes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// The ranges, ascending.
    pub fn as_ranges(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.0.iter().map(|(first, last)| *first..=*last)
    }

    /// The indexes of this set for which `keep` holds.
    #[must_use]
    pub fn filter(&self, mut keep: impl FnMut(u64) -> bool) -> Self {
        Self::from_ascending(self.iter().filter(|index| keep(*index)))
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}

impl From<Ranges> for String {
    fn from(ranges: Ranges) -> Self {
        ranges.to_string()
    }
}

impl TryFrom<String> for Ranges {
    type Error = RangesError;

    fn try_from(text: String) -> Result<Self, RangesError> {
        text.parse()
    }
}

impl FromStr for Ranges {
    type Err = RangesError;

    /// Reads `17,20-22`; refuses what does not ascend, so a hostile message cannot name an item twice.
    fn from_str(text: &str) -> Result<Self, RangesError> {
        let wrong = || RangesError(shorten(text), RANGES_FORM);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        if text.is_empty() {
            return Ok(Self(ranges));
        }
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u64 = first.parse().map_err(|_| wrong())?;
            let last: u64 = last.parse().map_err(|_| wrong())?;
            if first > last || last == u64::MAX || ranges.last().is_some_and(|(_, before)| first <= *before) {
                return Err(wrong());
            }
            match ranges.last_mut() {
                Some((_, before)) if *before + 1 == first => *before = last,
                _ => ranges.push((first, last)),
            }
        }
        Ok(Self(ranges))
    }
}

/// One value per item, in the order of the items, written as runs: `succeeded*99,failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs<T>(Vec<(T, u64)>);

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Runs<T> {
    /// `count` times `value`.
    pub fn repeat(value: T, count: u64) -> Self {
        if count == 0 { Self::default() } else { Self(vec![(value, count)]) }
    }

    /// Adds one value at the end.
    pub fn push(&mut self, value: T) {
        match self.0.last_mut() {
            Some((last, count)) if *last == value => *count += 1,
            _ => self.0.push((value, 1)),
        }
    }

    /// How many values there are.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The runs: value and how often it comes in a row.
    pub fn runs(&self) -> impl Iterator<Item = (T, u64)> + '_ {
        self.0.iter().copied()
    }

    /// The values, one per item.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.0.iter().flat_map(|(value, count)| (0..*count).map(|_| *value))
    }
}

impl<T: Copy + PartialEq> FromIterator<T> for Runs<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut runs = Self::default();
        for value in values {
            runs.push(value);
        }
        runs
    }
}

impl<T: fmt::Display> fmt::Display for Runs<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (value, count)) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            if *count == 1 { write!(f, "{value}")? } else { write!(f, "{value}*{count}")? }
        }
        Ok(())
    }
}

impl<T: FromStr + Copy + PartialEq> FromStr for Runs<T> {
    type Err = RangesError;

    fn from_str(text: &str) -> Result<Self, RangesError> {
        let wrong = || RangesError(shorten(text), RUNS_FORM);
        let mut runs = Vec::new();
        let mut total: u64 = 0;
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (value, count) = part.split_once('*').unwrap_or((part, "1"));
            let count: u64 = count.parse().map_err(|_| wrong())?;
            total = total.checked_add(count).ok_or_else(wrong)?;
            if count == 0 {
                return Err(wrong());
            }
            runs.push((value.parse().map_err(|_| wrong())?, count));
        }
        Ok(Self(runs))
    }
}

/// Hostile text is quoted in errors only in part.
fn shorten(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_written_as_the_wire_contract_says() {
        let ranges = Ranges::from_ascending([17, 20, 21, 22]);
        assert_eq!(ranges.to_string(), "17,20-22");
        assert_eq!(ranges.len(), 4);
        assert!(ranges.contains(21) && !ranges.contains(18) && !ranges.contains(23));
        assert_eq!(Runs::from_iter([1u32, 1, 1, 2]).to_string(), "1*3,2");
    }

    #[test]
    fn hostile_ranges_are_refused() {
        for bad in ["1,1", "3-2", "5,4", "1-3,2", "x", "1,", "-", "18446744073709551615", "1-2-3"] {
            assert!(bad.parse::<Ranges>().is_err(), "{bad}");
        }
        for bad in ["1*0", "1*x", "*", "1*18446744073709551615,1"] {
            assert!(bad.parse::<Runs<u32>>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn ranges_survive_writing_and_reading(indexes in prop::collection::btree_set(0u64..500, 0..80)) {
            let ranges = Ranges::from_ascending(indexes.iter().copied());
            let read: Ranges = ranges.to_string().parse().unwrap();
            prop_assert_eq!(&read, &ranges);
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), indexes.iter().copied().collect::<Vec<_>>());
            for index in 0..500 {
                prop_assert_eq!(read.contains(index), indexes.contains(&index));
            }
        }

        #[test]
        fn runs_survive_writing_and_reading(values in prop::collection::vec(0u32..4, 0..80)) {
            let runs: Runs<u32> = values.iter().copied().collect();
            let read: Runs<u32> = runs.to_string().parse().unwrap();
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), values);
        }
    }
}
