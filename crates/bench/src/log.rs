//! What our program tells of itself in its log. The only place that knows the log's form. Everything here is an extra:
//! no measurement needs it, and what is not found is left out. Pure.

use std::time::Duration;

/// Messages of one family's transactions.
pub(crate) const CHANGED: &str = "changed the kernel's rules";
/// The transaction at a start.
pub(crate) const BROUGHT: &str = "brought the kernel's rules up to date";
/// All kinds have been listed and decoded; the same is said of single kinds, without a time.
const LISTED: &str = "Caches are synced";
/// What is in every message about a family's rules.
const RULES: &str = "the kernel's rules";

/// Programs at the socket serve.
pub(crate) const TRANSLATED: &str = "connections are translated at the socket";
/// How long it took to bring their maps to what is wanted, in microseconds.
pub(crate) const TOOK: &str = "took_us";

/// From when the oldest change was received until it was committed, in microseconds.
pub(crate) const LATENCY: &str = "latency_us";
/// Of that, inside the kernel.
pub(crate) const IN_KERNEL: &str = "kernel_us";
/// Since the program's own start, in milliseconds.
const AFTER: &str = "after_ms";

/// The times in a field in microseconds, of each line with this message that is about IPv4.
pub(crate) fn times(lines: &[String], message: &str, key: &str) -> Vec<Duration> {
    let about = lines.iter().filter(|line| line.contains(message) && line.contains("IPv4"));
    about.filter_map(|line| number(line, key)).map(Duration::from_micros).collect()
}

/// From the agent's start until all kinds were listed.
pub(crate) fn listed(lines: &[String]) -> Option<Duration> {
    let synced = lines.iter().filter(|line| line.contains(LISTED));
    synced.filter_map(|line| number(line, AFTER)).map(Duration::from_millis).next()
}

/// From the agent's start until both families' rules had been read and were right: until all lists were there, and how long
/// the slower family took from then.
pub(crate) fn ready(lines: &[String]) -> Option<Duration> {
    let took = |family: &str| {
        let line = lines.iter().find(|line| line.contains(RULES) && line.contains(family))?;
        number(line, LATENCY).map(Duration::from_micros)
    };
    Some(listed(lines)? + took("IPv4")?.max(took("IPv6")?))
}

/// The number after `key=`, in quotes or not.
fn number(line: &str, key: &str) -> Option<u64> {
    let field = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
    field.trim_matches('"').parse().ok()
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
            "I1121 03:33:23.200000    1 log.rs:9] \"the kernel's rules are right as they are\" ipFamily=\"IPv6\" latency_us=900",
            "I1121 03:33:23.200000    1 log.rs:9] \"changed the kernel's rules\" ipFamily=\"IPv6\" latency_us=1",
        ]
        .map(str::to_owned);
        assert_eq!(listed(&lines), Some(Duration::from_millis(12)));
        assert_eq!(times(&lines, BROUGHT, LATENCY), [Duration::from_micros(831)]);
        assert!(times(&lines, CHANGED, LATENCY).is_empty());
        assert_eq!(ready(&lines), Some(Duration::from_micros(12_900)));
        assert_eq!(ready(&lines[..3]), None);
    }
}
