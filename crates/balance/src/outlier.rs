//! Which endpoints get nothing for a while, because they failed.
//!
//! Times are since any moment that stays the same.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use rustc_hash::FxBuildHasher;

use crate::resilience::Ejection;

/// What is remembered of the endpoints of one pool.
#[derive(Debug, Default)]
pub struct Outliers {
    records: HashMap<SocketAddr, Record, FxBuildHasher>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Failures since the last success.
    in_a_row: u32,
    /// When the attempts began that are counted here.
    since: Duration,
    attempts: u32,
    failures: u32,
    /// How often it was ejected of late.
    times: u32,
    /// Until when it is ejected, or was.
    until: Duration,
}

/// An endpoint gets nothing from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// For how long.
    pub lasting: Duration,
    /// Why.
    pub reason: Reason,
}

/// Why an endpoint gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// So many failures in a row.
    InARow(u32),
    /// So many failures of so many attempts.
    Share(u32, u32),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InARow(failures) => write!(f, "{failures} failures in a row"),
            Self::Share(failures, attempts) => write!(f, "{failures} failures of {attempts} attempts"),
        }
    }
}

/// The endpoints of a pool, as far as they matter for the next ejection.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// All of them.
    pub n_endpoints: usize,
    /// Those that get nothing, whyever.
    pub n_out: usize,
}

impl Crowd {
    /// Never more than half of them get nothing.
    const fn has_one_to_spare(self) -> bool {
        (self.n_out + 1) * 2 <= self.n_endpoints
    }
}

impl Outliers {
    /// Takes note of what came of an attempt; tells if the endpoint is to get nothing for a while. What comes of attempts that were
    /// begun before is not counted meanwhile. If the endpoint can't be spared, the next failure is looked at likewise.
    pub fn report(
        &mut self,
        settings: &Ejection,
        endpoint: SocketAddr,
        succeeded: bool,
        crowd: Crowd,
        now: Duration,
    ) -> Option<Ejected> {
        let record = self.records.entry(endpoint).or_default();
        if now < record.until {
            return None;
        }
        record.note(settings, succeeded, now);
        let reason = record.reason(settings)?;
        if !crowd.has_one_to_spare() {
            return None;
        }
        Some(record.eject(settings, reason, now))
    }

    /// Forgets endpoints that are gone.
    pub fn retain(&mut self, is_there: impl Fn(SocketAddr) -> bool) {
        self.records.retain(|endpoint, _| is_there(*endpoint));
    }
}

impl Record {
    fn note(&mut self, settings: &Ejection, succeeded: bool, now: Duration) {
        if now.saturating_sub(self.since) >= settings.within {
            (self.since, self.attempts, self.failures) = (now, 0, 0);
        }
        self.attempts = self.attempts.saturating_add(1);
        if succeeded {
            self.in_a_row = 0;
        } else {
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.failures = self.failures.saturating_add(1);
        }
    }

    fn reason(&self, settings: &Ejection) -> Option<Reason> {
        if settings.failures > 0 && self.in_a_row >= settings.failures {
            return Some(Reason::InARow(self.in_a_row));
        }
        let is_enough = settings.share > 0 && self.failures > 0 && self.attempts >= settings.requests;
        let is_too_many =
            u64::from(self.failures) * 100 >= u64::from(self.attempts) * u64::from(settings.share);
        (is_enough && is_too_many).then_some(Reason::Share(self.failures, self.attempts))
    }

    /// Each time counts for less and less: one is forgotten for each [`Ejection::time`] that the endpoint served since the last one.
    fn eject(&mut self, settings: &Ejection, reason: Reason, now: Duration) -> Ejected {
        let served = now.saturating_sub(self.until).as_millis();
        let forgotten = served / settings.time.as_millis().max(1);
        let times = self.times.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX)).saturating_add(1);
        let lasting = settings.time.saturating_mul(times).min(settings.longest);
        *self = Self { times, until: now.saturating_add(lasting), since: now, ..Self::default() };
        Ejected { lasting, reason }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Ejection = Ejection {
        failures: 3,
        share: 50,
        requests: 10,
        within: Duration::from_secs(10),
        time: Duration::from_secs(30),
        longest: Duration::from_secs(100),
    };
    const MANY: Crowd = Crowd { n_endpoints: 10, n_out: 0 };

    fn endpoint(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 80).into()
    }

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn fail(outliers: &mut Outliers, times: u32, now: Duration) -> Option<Ejected> {
        (0..times).filter_map(|_| outliers.report(&SETTINGS, endpoint(1), false, MANY, now)).last()
    }

    #[test]
    fn failures_in_a_row_eject_for_longer_each_time_and_good_times_count() {
        let mut outliers = Outliers::default();
        assert_eq!(fail(&mut outliers, 2, at(0)), None);
        assert_eq!(outliers.report(&SETTINGS, endpoint(1), true, MANY, at(0)), None);
        assert_eq!(fail(&mut outliers, 2, at(1)), None);
        let ejected = |lasting| Some(Ejected { lasting: at(lasting), reason: Reason::InARow(3) });
        assert_eq!(fail(&mut outliers, 1, at(2)), ejected(30));
        // What fails meanwhile was begun before.
        assert_eq!(fail(&mut outliers, 50, at(31)), None);
        assert_eq!(fail(&mut outliers, 3, at(32)), ejected(60));
        assert_eq!(fail(&mut outliers, 3, at(92)), ejected(90));
        assert_eq!(fail(&mut outliers, 3, at(182)), ejected(100));
        // It has served for as long as two of the first times.
        assert_eq!(fail(&mut outliers, 3, at(282 + 60)), ejected(90));
        assert_eq!(fail(&mut outliers, 3, at(342 + 90 + 3000)), ejected(30));
    }

    #[test]
    fn a_share_of_failures_ejects_if_there_were_enough_attempts() {
        let mut outliers = Outliers::default();
        let report = |outliers: &mut Outliers, n: u64, now| {
            outliers.report(&SETTINGS, endpoint(1), n.is_multiple_of(2), MANY, now)
        };
        for n in 0..9 {
            assert_eq!(report(&mut outliers, n, at(n)), None);
        }
        let expected = Ejected { lasting: at(30), reason: Reason::Share(5, 10) };
        assert_eq!(report(&mut outliers, 9, at(9)), Some(expected));
        // Spread over a longer time they are none.
        let mut outliers = Outliers::default();
        assert!((0..1000).all(|n| report(&mut outliers, n, at(n * 2)).is_none()));
    }

    #[test]
    fn the_last_half_is_never_ejected() {
        let mut outliers = Outliers::default();
        for (n_endpoints, n_out, is) in
            [(1, 0, false), (2, 0, true), (2, 1, false), (3, 1, false), (4, 1, true)]
        {
            let mut last = None;
            for _ in 0..3 {
                last = outliers.report(&SETTINGS, endpoint(1), false, Crowd { n_endpoints, n_out }, at(0));
            }
            assert_eq!(last.is_some(), is, "{n_out} of {n_endpoints}");
            outliers.retain(|_| false);
        }
    }

    proptest! {
        /// Whatever comes: never more than half are out, never for longer than the limit nor shorter than the first time, and one whose
        /// attempts all succeed is never out.
        #[test]
        fn ejections_stay_within_their_bounds(
            n_endpoints in 1..8_usize,
            attempts in proptest::collection::vec((0..8_u8, any::<bool>(), 0..20_u64), 1..400),
            failures in 0..5_u32,
            share in 1..100_u32,
        ) {
            let settings = Ejection { failures, share, ..SETTINGS };
            let (mut outliers, mut until) = (Outliers::default(), BTreeMap::new());
            let mut now = 0;
            for (n, succeeded, pause) in attempts {
                now += pause;
                let n = n % u8::try_from(n_endpoints).unwrap();
                until.retain(|_, until| *until > at(now));
                let crowd = Crowd { n_endpoints, n_out: until.len() };
                let succeeded = succeeded || n == 0;
                let ejected = outliers.report(&settings, endpoint(n), succeeded, crowd, at(now));
                if let Some(Ejected { lasting, .. }) = ejected {
                    prop_assert!(n != 0 && (settings.time..=settings.longest).contains(&lasting));
                    prop_assert!(until.insert(n, at(now) + lasting).is_none());
                }
                prop_assert!(until.len() * 2 <= n_endpoints);
            }
        }

        /// An endpoint that always fails is out as soon as it can be.
        #[test]
        fn one_that_always_fails_is_ejected(failures in 1..20_u32, share in 0..100_u32) {
            let settings = Ejection { failures, share, ..SETTINGS };
            let mut outliers = Outliers::default();
            let found = (0..failures).find_map(|_| outliers.report(&settings, endpoint(1), false, MANY, at(0)));
            prop_assert!(found.is_some());
        }
    }
}
