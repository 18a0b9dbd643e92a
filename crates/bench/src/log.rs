//! What the proxy tells of itself in its log. Pure.

use std::time::Duration;

/// The value of `key=` in a line in text form, if it is a number.
pub(crate) fn number(line: &str, key: &str) -> Option<u64> {
    let field = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
    field.parse().ok()
}

/// The time of a field in microseconds, in each line with this message that is about IPv4.
pub(crate) fn micros(lines: &[String], message: &str, key: &str) -> Vec<Duration> {
    let about = lines.iter().filter(|line| line.contains(message) && line.contains("ipFamily=\"IPv4\""));
    about.filter_map(|line| number(line, key)).map(Duration::from_micros).collect()
}

/// A transaction for changes.
pub(crate) const CHANGED: &str = "changed the kernel's rules";
/// The transaction at a start.
pub(crate) const BROUGHT: &str = "brought the kernel's rules up to date";
/// Both families have been read and are right.
pub(crate) fn is_ready(lines: &[String]) -> bool {
    let told =
        |family: &str| lines.iter().any(|line| line.contains("the kernel's rules") && line.contains(family));
    told("ipFamily=\"IPv4\"") && told("ipFamily=\"IPv6\"")
}

/// From the agent's start until all kinds were listed.
pub(crate) fn listed(lines: &[String]) -> Option<Duration> {
    let synced = lines.iter().filter(|line| line.contains("Caches are synced"));
    synced.filter_map(|line| number(line, "after_ms")).map(Duration::from_millis).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        let lines = [
            "I1121 03:33:23.100000    1 notices.rs:9] \"Caches are synced\" controller=\"node config\"",
            "I1121 03:33:23.100000    1 run.rs:9] \"Caches are synced\" after_ms=12",
            "I1121 03:33:23.200000    1 log.rs:9] \"brought the kernel's rules up to date\" ipFamily=\"IPv4\" elements=9 latency_us=831 took_us=7",
            "I1121 03:33:23.200000    1 log.rs:9] \"changed the kernel's rules\" ipFamily=\"IPv6\" latency_us=1",
        ]
        .map(str::to_owned);
        assert_eq!(listed(&lines), Some(Duration::from_millis(12)));
        assert_eq!(micros(&lines, BROUGHT, "latency_us"), [Duration::from_micros(831)]);
        assert!(micros(&lines, CHANGED, "latency_us").is_empty());
        assert!(is_ready(&lines) && !is_ready(&lines[..3]));
    }
}
