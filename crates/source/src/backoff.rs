//! Waiting longer after each failure.

use std::time::Duration;

use tokio::time::Instant;

use crate::Timings;

/// A watch that has lasted this long works.
const STEADY: Duration = Duration::from_secs(10);

/// The failures of late.
#[derive(Debug)]
pub(crate) struct Backoff {
    n_failures: u32,
    last_failure: Option<Instant>,
    min: Duration,
    max: Duration,
    reset: Duration,
}

impl Backoff {
    pub(crate) fn new(timings: &Timings) -> Self {
        let Timings { backoff_min: min, backoff_max: max, backoff_reset: reset, .. } = *timings;
        Self { n_failures: 0, last_failure: None, min, max, reset }
    }

    /// Counts a failure and says how long to wait. `jitter` is a random number in 0..1: how much of the wait is added
    /// to it.
    pub(crate) fn next(&mut self, now: Instant, jitter: f64) -> Duration {
        let exponent = self.count(now).min(16);
        let wait = self.min.saturating_mul(1 << exponent).min(self.max);
        wait + wait.mul_f64(jitter)
    }

    /// The same for something that is no failure unless it happens often: the first time costs nothing.
    pub(crate) fn next_lenient(&mut self, now: Instant, jitter: f64) -> Duration {
        if self.is_quiet(now) {
            self.count(now);
            return Duration::ZERO;
        }
        self.next(now, jitter)
    }

    /// A watch delivers events: the next failure is a first one again. It is not free, though, or a server that breaks
    /// off after each event would be asked without a pause. A listing is no such sign: it may be all that works.
    pub(crate) fn progress(&mut self) {
        self.n_failures = 0;
    }

    /// A watch was open for so long. Where that is long enough to show that watching works, it is progress even if there was
    /// nothing to tell: who loses the server now and then is not to wait longer each time.
    pub(crate) fn watched(&mut self, lasted: Duration) {
        if lasted >= STEADY {
            self.progress();
        }
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.last_failure.is_none_or(|last| now.duration_since(last) >= self.reset)
    }

    /// Returns how many failures came before this one.
    fn count(&mut self, now: Instant) -> u32 {
        if self.is_quiet(now) {
            self.n_failures = 0;
        }
        let before = self.n_failures;
        self.n_failures += 1;
        self.last_failure = Some(now);
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_begin_anew_after_quiet() {
        let mut backoff = Backoff::new(&Timings::default());
        let mut now = Instant::now();
        let waits: Vec<f64> = (0..8).map(|_| backoff.next(now, 0.0).as_secs_f64()).collect();
        assert_eq!(waits, [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]);
        assert_eq!(backoff.next(now, 0.5), Duration::from_secs(45));
        now += Duration::from_secs(119);
        assert_eq!(backoff.next(now, 0.0), Duration::from_secs(30));
        now += Duration::from_mins(2);
        assert_eq!(backoff.next(now, 0.0), Duration::from_millis(800));
    }

    #[test]
    fn a_first_mishap_is_free() {
        let mut backoff = Backoff::new(&Timings::default());
        let now = Instant::now();
        assert_eq!(backoff.next_lenient(now, 0.9), Duration::ZERO);
        assert_eq!(backoff.next_lenient(now, 0.0), Duration::from_millis(1600));
    }

    #[test]
    fn progress_begins_anew_but_not_for_free() {
        let mut backoff = Backoff::new(&Timings::default());
        let now = Instant::now();
        for _ in 0..5 {
            backoff.next(now, 0.0);
        }
        backoff.progress();
        assert_eq!(backoff.next_lenient(now, 0.0), Duration::from_millis(800));
    }

    #[test]
    fn outages_between_watches_that_last_do_not_add_up() {
        let mut backoff = Backoff::new(&Timings::default());
        let mut now = Instant::now();
        for _ in 0..5 {
            backoff.watched(STEADY);
            assert_eq!(backoff.next(now, 0.0), Duration::from_millis(800));
            now += STEADY;
        }
        backoff.watched(STEADY / 2);
        assert_eq!(backoff.next(now, 0.0), Duration::from_millis(1600), "it did not last");
    }

    #[test]
    fn endless_failures_do_not_overflow() {
        let mut backoff = Backoff::new(&Timings::default());
        let now = Instant::now();
        for _ in 0..1000 {
            assert!(backoff.next(now, 0.99) < Duration::from_mins(1));
        }
    }
}
