//! Kubernetes quantities, such as `512`, `1k` and `64Ki`.

use std::fmt;
use std::str::FromStr;

/// An amount with Kubernetes' suffixes (`apimachinery/pkg/api/resource`). Written in the canonical form: the largest suffix
/// that leaves a whole number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantity {
    /// In billionths, rounded away from zero.
    nanos: i128,
    form: Form,
}

/// Which suffixes it was written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// `k`, `M`, `G`, ...
    #[default]
    Decimal,
    /// `Ki`, `Mi`, `Gi`, ...
    Binary,
    /// `e3`, `e6`, ...
    Exponent,
}

/// Text that is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity: want a number, such as 512, 1k or 64Ki")]
pub struct QuantityError(String);

const UNIT: i128 = 1_000_000_000;
/// Suffixes of powers of 1000, the first for a billionth.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
/// Suffixes of powers of 1024.
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// As a number of bytes, rounded down; none for less than nothing.
    pub fn bytes(self) -> usize {
        usize::try_from((self.nanos / UNIT).max(0)).unwrap_or(usize::MAX)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text).ok_or_else(|| QuantityError(text.chars().take(64).collect()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (form, numerator, denominator) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Eighteen digits on either side keep the arithmetic below within 128 bits.
    if whole.len() + fraction.len() == 0 || whole.len() > 18 || fraction.len() > 18 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.checked_mul(numerator)?;
    let divisor = places.checked_mul(denominator)?;
    let nanos = scaled / divisor + i128::from(scaled % divisor != 0);
    if nanos > i128::from(i64::MAX) * UNIT {
        return None;
    }
    Some(Quantity { nanos: if text.starts_with('-') { -nanos } else { nanos }, form })
}

/// What a suffix multiplies by to get billionths, as a fraction.
fn scale(suffix: &str) -> Option<(Form, i128, i128)> {
    let power = |base: i128, index: usize| base.checked_pow(u32::try_from(index).ok()?);
    if let Some(index) = DECIMAL.iter().position(|known| *known == suffix) {
        return Some((Form::Decimal, power(1000, index)?, 1));
    }
    if let Some(index) = BINARY.iter().position(|known| *known == suffix) {
        return Some((Form::Binary, power(1024, index)?.checked_mul(UNIT)?, 1));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let factor = 10i128.checked_pow(exponent.unsigned_abs().min(19)).filter(|_| exponent.abs() <= 18)?;
    Some(if exponent < 0 { (Form::Exponent, UNIT, factor) } else { (Form::Exponent, UNIT * factor, 1) })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.nanos / UNIT;
        if self.form == Form::Binary && self.nanos % UNIT == 0 && whole.abs() >= 1024 {
            let (value, index) = reduce(whole, 1024, BINARY.len());
            return write!(f, "{value}{}", BINARY[index]);
        }
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let (value, index) = reduce(self.nanos, 1000, DECIMAL.len());
        match (self.form, index) {
            // The fourth entry is the suffix of ones.
            (_, 3) => write!(f, "{value}"),
            (Form::Exponent, 0..3) => write!(f, "{value}e-{}", 3 * (3 - index)),
            (Form::Exponent, _) => write!(f, "{value}e{}", 3 * (index - 3)),
            (Form::Decimal | Form::Binary, _) => write!(f, "{value}{}", DECIMAL[index]),
        }
    }
}

/// Divides by the base as often as nothing is left over and a suffix exists.
fn reduce(mut value: i128, base: i128, suffixes: usize) -> (i128, usize) {
    let mut index = 0;
    while value % base == 0 && index + 1 < suffixes {
        value /= base;
        index += 1;
    }
    (value, index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, written: &str) {
        let quantity: Quantity = text.parse().unwrap();
        assert_eq!(quantity.to_string(), written, "{text}");
        assert_eq!(written.parse::<Quantity>().unwrap().nanos, quantity.nanos, "{text}");
    }

    #[test]
    fn quantities_are_written_in_canonical_form() {
        reads("0", "0");
        reads("512", "512");
        reads("1000", "1k");
        reads("1024", "1024");
        reads("1024Ki", "1Mi");
        reads("1Ki", "1Ki");
        reads("0.5Ki", "512");
        reads("1500m", "1500m");
        reads("1.5", "1500m");
        reads("2e3", "2e3");
        reads("2E", "2E");
        reads("1e-3", "1e-3");
        reads("-1k", "-1k");
        reads("0.0000000001", "1n");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "1K", "1 Ki", "Ki", ".", "1.2.3", "1e", "1e99", "99E", "x", "--1"] {
            assert!(Quantity::from_str(text).is_err(), "{text}");
        }
    }
}
