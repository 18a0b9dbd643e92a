//! Values of flags as Go reads them (`strconv`).

use std::fmt;

/// Text that is not a value of its type; says what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ValueError(pub(crate) String);

impl ValueError {
    pub(crate) fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

/// `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Result<bool, ValueError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ValueError::new("want true or false")),
    }
}

/// `strconv.ParseInt(text, 0, 32)`: decimal, or with the prefix `0x`, `0b`, `0o` or `0`.
pub(crate) fn parse_int(text: &str) -> Result<i32, ValueError> {
    let error = || ValueError::new("want a whole number of at most 32 bits");
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let lower = unsigned.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let digits =
        without_underscores(digits).filter(|digits| !digits.starts_with(['+', '-'])).ok_or_else(error)?;
    let sign = if text.starts_with('-') { "-" } else { "" };
    i32::from_str_radix(&format!("{sign}{digits}"), radix).map_err(|_range| error())
}

/// Go lets single underscores separate digits.
fn without_underscores(digits: &str) -> Option<String> {
    let sound = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    sound.then(|| digits.replace('_', ""))
}

/// `strconv.ParseUint(text, 10, 32)`.
pub(crate) fn parse_uint(text: &str) -> Result<u32, ValueError> {
    let error = || ValueError::new("want a whole number that is not negative");
    if text.starts_with('+') {
        return Err(error());
    }
    text.parse().map_err(|_range| error())
}

/// `strconv.ParseFloat(text, 32)`, without the hexadecimal form, infinity and not-a-number: nothing here can use those.
pub(crate) fn parse_float(text: &str) -> Result<f32, ValueError> {
    let value = text.parse::<f32>().ok().filter(|value| value.is_finite());
    value.ok_or_else(|| ValueError::new("want a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_gos_prefixes() {
        for (text, value) in [
            ("10", 10),
            ("-999", -999),
            ("+5", 5),
            ("0x10", 16),
            ("0XfF", 255),
            ("0b1", 1),
            ("0o7", 7),
            ("017", 15),
            ("0", 0),
            ("-0x10", -16),
            ("1_000", 1000),
            ("-2147483648", i32::MIN),
        ] {
            assert_eq!(parse_int(text), Ok(value), "{text}");
        }
        for text in ["", "x", "1.0", "08", "0x", "1__0", "_1", "--1", "0x-1", "2147483648", " 1"] {
            assert!(parse_int(text).is_err(), "{text}");
        }
    }

    #[test]
    fn booleans_are_gos() {
        assert_eq!((parse_bool("T"), parse_bool("0")), (Ok(true), Ok(false)));
        assert!(parse_bool("yes").is_err() && parse_bool("").is_err());
    }

    #[test]
    fn levels_are_decimal() {
        assert_eq!(parse_uint("4"), Ok(4));
        assert!(parse_uint("-1").is_err() && parse_uint("+1").is_err() && parse_uint("0x1").is_err());
    }

    #[test]
    fn floats_are_finite() {
        assert_eq!((parse_float("2.5"), parse_float("-1")), (Ok(2.5), Ok(-1.0)));
        assert!(parse_float("inf").is_err() && parse_float("").is_err());
    }
}
