//! Values of annotations: lists of `name=value`, with commas between.

use std::fmt;
use std::time::Duration;

/// Why a text is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidText(pub(crate) String);

impl fmt::Display for InvalidText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidText {}

pub(crate) type Result<T> = std::result::Result<T, InvalidText>;

/// No number is larger.
pub(crate) const MOST: u32 = 1_000_000;
/// In one list.
const MOST_PAIRS: usize = 256;

/// The pairs of a list, none of them twice.
pub(crate) fn pairs(text: &str) -> Result<Vec<(&str, &str)>> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for item in text.split(',') {
        let pair = item.trim().split_once('=');
        let (name, value) =
            pair.ok_or_else(|| InvalidText(format!("{} is not of the form name=value", quoted(item))))?;
        if pairs.len() >= MOST_PAIRS {
            return Err(InvalidText(format!("there are more than {MOST_PAIRS} values")));
        }
        if pairs.iter().any(|(known, _)| *known == name) {
            return Err(InvalidText(format!("{name} is there twice")));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// What is said of these, as a list.
pub(crate) fn said_pairs<T: fmt::Display>(
    pairs: impl IntoIterator<Item = (&'static str, Option<T>)>,
) -> String {
    let said = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    said.collect::<Vec<_>>().join(",")
}

pub(crate) fn unknown(name: &str, known: &str) -> InvalidText {
    InvalidText(format!("{} is unknown; there are {known}", quoted(name)))
}

pub(crate) fn number(name: &str, text: &str, least: u32, most: u32) -> Result<u32> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let found = text.parse().ok().filter(|found| is_digits && (least..=most).contains(found));
    found.ok_or_else(|| InvalidText(format!("{name} is {}, not a number of {least} to {most}", quoted(text))))
}

const LONGEST: Duration = Duration::from_hours(24);

/// A whole number with a unit, of one millisecond to a day.
pub(crate) fn duration(name: &str, text: &str) -> Result<Duration> {
    let invalid =
        || InvalidText(format!("{name} is {}, not a time such as 500ms, 10s or 5m, up to 24h", quoted(text)));
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(invalid()),
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis));
    let found = millis.map(Duration::from_millis);
    found.filter(|found| !found.is_zero() && *found <= LONGEST).ok_or_else(invalid)
}

/// As much of a text as people need to find it.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[track_caller]
    pub(crate) fn refused<T: fmt::Debug>(parsed: Result<T>, reason: &str) {
        assert_eq!(parsed.unwrap_err().to_string(), reason);
    }

    /// Whoever may write an annotation is not to keep everybody waiting.
    #[test]
    fn a_list_is_bounded() {
        let list = |n: usize| (0..n).map(|n| format!("n{n}=1")).collect::<Vec<_>>().join(",");
        assert_eq!(pairs(&list(MOST_PAIRS)).unwrap().len(), MOST_PAIRS);
        refused(pairs(&list(MOST_PAIRS + 1)), "there are more than 256 values");
    }
}
