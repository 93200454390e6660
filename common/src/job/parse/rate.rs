//! `rate` and `rate_floor` of a destination.

use toml::Spanned;
use toml::de::DeValue;

use super::section::Section;
use crate::job::Rate;

/// The rates, by window, and the floor.
pub(super) fn read(destination: &Section<'_>) -> (Vec<Rate>, Option<Rate>) {
    let rates = read_rates(destination);
    let floor = destination.parsed("rate_floor", str::parse);
    if rates.is_empty() && destination.raw("rate_floor").is_some() && destination.raw("rate").is_none() {
        let message = "`rate_floor` means nothing without `rate`";
        let help = "add it, for example `rate = \"100/s\"`, or remove `rate_floor`".to_owned();
        destination.fault_with_help(&destination.span_of("rate_floor"), message, help);
    }
    (rates, floor)
}

fn read_rates(destination: &Section<'_>) -> Vec<Rate> {
    let one = destination.raw("rate").filter(|value| value.get_ref().is_str());
    let values: Vec<&Spanned<DeValue<'_>>> = match one {
        Some(value) => vec![value],
        None => destination.list("rate", "\"100/s\" or [\"100/s\", \"100000/d\"]").unwrap_or_default(),
    };
    let mut rates: Vec<Rate> = Vec::new();
    for value in values {
        let Some(text) = destination.text_of("rate", value) else { continue };
        match text.text.parse::<Rate>() {
            Ok(rate) if rates.iter().any(|known| known.window == rate.window) => {
                destination.fault(&text.span, "`rate` has two limits for the same window; leave one");
            }
            Ok(rate) => rates.push(rate),
            Err(error) => destination.fault(&text.span, error),
        }
    }
    rates.sort_unstable();
    rates
}
