//! Durations in Go's form: `300ms`, `1.5h`, `2h45m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A signed time span, exact to the nanosecond; Go's `time.Duration`.
///
/// Read and written as Go does (`time.ParseDuration`, `Duration.String`): units ns, us, ms, s, m and h, no days, no number
/// without a unit except `0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration {
    nanos: i64,
}

/// Text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration {0:?}: want a number with a unit (ns, us, ms, s, m, h) such as \"30s\"")]
pub struct DurationError(String);

const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

impl GoDuration {
    /// No time at all.
    pub const ZERO: Self = Self { nanos: 0 };

    /// From nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { nanos }
    }

    /// From whole seconds.
    pub const fn from_secs(seconds: i32) -> Self {
        // Cannot overflow: 2^31 seconds are 2^61 nanoseconds. `i64::from` is not usable in a constant yet.
        Self { nanos: seconds as i64 * SECOND }
    }

    /// Whether it is below zero.
    pub const fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// As a span of the standard library; none if it is negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.nanos).ok().map(Duration::from_nanos)
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        parse(text).map(Self::from_nanos).ok_or_else(|| DurationError(text.chars().take(64).collect()))
    }
}

fn parse(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !is_number(c))?);
        let (unit, tail) = tail.split_at(tail.find(is_number).unwrap_or(tail.len()));
        total = total.checked_add(nanos(number, unit)?)?;
        rest = tail;
    }
    i64::try_from(sign * total).ok()
}

/// One number with its unit; what is below a nanosecond is cut off, as in Go.
fn nanos(number: &str, unit: &str) -> Option<i128> {
    let unit: i128 = match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND.into(),
        "m" => MINUTE.into(),
        "h" => HOUR.into(),
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = digits(whole)?.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.chars() {
        value += i128::from(digit.to_digit(10)?) * place / 10;
        // Exact down to the nanosecond for all units: each is a multiple of a power of ten, an hour after 36.
        place /= 10;
    }
    Some(value)
}

fn digits(text: &str) -> Option<i128> {
    if text.is_empty() { Some(0) } else { u64::from_str(text).ok().map(i128::from) }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        let nanos = self.nanos.unsigned_abs();
        let second = SECOND.unsigned_abs();
        let (hours, minutes) = (nanos / (3600 * second), nanos / (60 * second) % 60);
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => decimal(f, nanos, 1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => decimal(f, nanos, 1_000_000, "ms"),
            _ => {
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                decimal(f, nanos % (60 * second), second, "s")
            }
        }
    }
}

/// A value in a unit, with as many decimals as it needs.
fn decimal(f: &mut fmt::Formatter<'_>, nanos: u64, unit: u64, name: &str) -> fmt::Result {
    let (whole, rest) = (nanos / unit, nanos % unit);
    if rest == 0 {
        return write!(f, "{whole}{name}");
    }
    let width = unit.ilog10() as usize;
    let fraction = format!("{rest:0width$}");
    write!(f, "{whole}.{}{name}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, written: &str) {
        let duration: GoDuration = text.parse().unwrap();
        assert_eq!(duration.to_string(), written, "{text}");
        assert_eq!(written.parse(), Ok(duration), "{text}");
    }

    #[test]
    fn gos_forms_are_read_and_written() {
        reads("0", "0s");
        reads("0s", "0s");
        reads("300ms", "300ms");
        reads("1.5h", "1h30m0s");
        reads("2h45m", "2h45m0s");
        reads("24h", "24h0m0s");
        reads("15m", "15m0s");
        reads("30s", "30s");
        reads("90s", "1m30s");
        reads("1.000000001s", "1.000000001s");
        reads("1500us", "1.5ms");
        reads("1.5\u{3bc}s", "1.5\u{b5}s");
        reads("7ns", "7ns");
        reads(".5s", "500ms");
        reads("1.s", "1s");
        reads("-1s", "-1s");
        reads("+1s", "1s");
        reads("1h1ns", "1h0m0.000000001s");
        reads("0.1h", "6m0s");
        reads("9223372036854775807ns", "2562047h47m16.854775807s");
        reads("-9223372036854775808ns", "-2562047h47m16.854775808s");
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            "-",
            "900",
            "1d",
            "s",
            ".s",
            "1.5.5s",
            "1 s",
            " 1s",
            "1s ",
            "1h30",
            "infs",
            "9223372036854775808ns",
        ] {
            assert!(GoDuration::from_str(text).is_err(), "{text}");
        }
    }
}
