//! RFC 3339 timestamps in UTC, as the API writes them.

use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time: seconds since 1970 and nanoseconds within the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timestamp {
    pub(super) seconds: i64,
    pub(super) nanos: u32,
}

impl Timestamp {
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }

    /// Reads `2026-11-21T01:05:48Z`, with an optional fraction and the offset `Z` only.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
        let mut date = date.splitn(3, '-').map(str::parse::<i64>);
        let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
        let mut clock = clock.splitn(3, ':').map(str::parse::<i64>);
        let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || fraction.len() > 9 {
            return None;
        }
        let nanos = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
        let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        Some(Self { seconds, nanos })
    }

    /// Without a fraction, as `metav1.Time`.
    pub(super) fn to_seconds_text(self) -> String {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(86_400));
        let of_day = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// With six digits of fraction, as `metav1.MicroTime`.
    pub(super) fn to_micros_text(self) -> String {
        let text = self.to_seconds_text();
        format!("{}.{:06}Z", text.trim_end_matches('Z'), self.nanos / 1000)
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar. Years begin in March here, so that
/// the leap day is the last one.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    days + (month * 306 + 5) / 10 + day - 1 - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let mut year = shifted.div_euclid(366);
    while days_from_civil(year + 1, 3, 1) <= days {
        year += 1;
    }
    let of_year = days - days_from_civil(year, 3, 1);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-21T01:05:47Z", 1_795_223_147),
            ("2024-12-31T23:59:59Z", 1_735_689_599),
        ];
        for (text, seconds) in cases {
            let parsed = Timestamp::parse(text).unwrap();
            assert_eq!(parsed, Timestamp { seconds, nanos: 0 }, "{text}");
            assert_eq!(parsed.to_seconds_text(), text);
        }
    }

    #[test]
    fn every_day_of_some_years() {
        for day in 0..40_000 {
            let moment = Timestamp { seconds: day * 86_400, nanos: 0 };
            assert_eq!(Timestamp::parse(&moment.to_seconds_text()), Some(moment));
        }
    }

    #[test]
    fn fractions() {
        let parsed = Timestamp::parse("2026-11-21T01:05:48.25Z").unwrap();
        assert_eq!(parsed.nanos, 250_000_000);
        assert_eq!(parsed.to_micros_text(), "2026-11-21T01:05:48.250000Z");
        for bad in ["", "2026-11-21", "2026-13-01T00:00:00Z", "2026-11-21T01:05:48", "2026-11-21T01:05:xxZ"] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }
}
