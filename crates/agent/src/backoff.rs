//! Pauses between attempts.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(10);

/// How long to wait after this many failures in a row (at least one): 50 ms doubling to 10 s, then anything from the
/// half of it up to it, so that many nodes that failed together do not try again together.
///
/// `random` is from 0 up to 1.
pub(crate) fn pause(failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<_> = [1, 2, 3, 8, 9, u32::MAX].map(|n| pause(n, 1.0).as_millis()).into();
        assert_eq!(pauses, [50, 100, 200, 6400, 10_000, 10_000]);
        assert_eq!(pause(1, 0.0).as_millis(), 25);
    }
}
