//! For how long the rules could not be brought into the kernel, and when people should hear of it. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::notice::SYNCS_FAIL_EVERY;

/// One family's failures in a row.
#[derive(Debug)]
pub(crate) struct Outage {
    /// Nobody hears of one that is over within this time.
    tolerated: Duration,
    since: Option<Instant>,
    told: Option<Instant>,
}

impl Outage {
    pub(crate) fn new(tolerated: Duration) -> Self {
        Self { tolerated, since: None, told: None }
    }

    /// Takes note of a failure; returns how long it has been so if people should hear of it now.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let lasting = now.saturating_duration_since(since);
        let is_due = self.told.is_none_or(|told| now.saturating_duration_since(told) >= SYNCS_FAIL_EVERY);
        if lasting <= self.tolerated || !is_due {
            return None;
        }
        self.told = Some(now);
        Some(lasting)
    }

    /// Takes note of a success; returns how long it was otherwise if people have heard of that.
    pub(crate) fn worked(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take()?;
        self.told.take().map(|_told| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERATED: Duration = Duration::from_mins(1);

    #[test]
    fn it_is_told_after_a_while_and_then_now_and_then() {
        let mut outage = Outage::new(TOLERATED);
        let start = Instant::now();
        let told: Vec<u64> = (0..1000)
            .filter_map(|second| outage.failed(start + Duration::from_secs(second)))
            .map(|lasting| lasting.as_secs())
            .collect();
        assert_eq!(told, [61, 361, 661, 961]);
        let end = start + Duration::from_secs(1000);
        assert_eq!(outage.worked(end), Some(Duration::from_secs(1000)));
        assert_eq!(outage.worked(end), None);
        assert_eq!(outage.failed(end), None, "a new one begins anew");
        assert_eq!(outage.failed(end + TOLERATED * 2), Some(TOLERATED * 2));
    }

    #[test]
    fn short_ones_are_nobodys_business() {
        let mut outage = Outage::new(TOLERATED);
        let mut now = Instant::now();
        for _ in 0..10 {
            assert_eq!(outage.failed(now), None);
            now += TOLERATED;
            assert_eq!(outage.failed(now), None);
            assert_eq!(outage.worked(now), None);
        }
    }
}
