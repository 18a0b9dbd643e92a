//! Durations for people.

/// As kubectl shows ages: the two largest units at most, `75s`, `3m20s`, `5h`, `2d3h`.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 0.001 {
        return format!("{:.0}µs", seconds * 1e6);
    }
    if seconds < 1.0 {
        return format!("{:.1}ms", seconds * 1e3);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and ages are whole seconds"
    )]
    let whole = seconds as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match whole {
        0..120 => format!("{whole}s"),
        120..600 => two(minutes, "m", whole % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

fn two(large: u64, unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, expected) in [
            (0.000_012, "12µs"),
            (0.0034, "3.4ms"),
            (1.9, "1s"),
            (75.0, "75s"),
            (200.0, "3m20s"),
            (180.0, "3m"),
            (3600.0, "60m"),
            (18_000.0, "5h"),
            (100_000.0, "27h"),
            (183_600.0, "2d3h"),
            (9e6, "104d"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
