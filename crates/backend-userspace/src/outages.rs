//! Endpoints that a worker gives nothing for now, although Kubernetes says that they serve.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mode::{EndpointOutage, OutageCause};
use model::{Family, Frontend, Table};
use proxy::frame::{Availability, OutBy};
use tokio::time::Instant;

use crate::requests::Requests;
use crate::traffic::frontend_of_pool;

/// What a family's worker has told. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Outages(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    /// Which worker is at work: what others say counts no more.
    worker: u64,
    out: BTreeMap<By, Out>,
    ejections: u64,
    check_failures: u64,
    by_service: Requests,
}

/// The pool's name, the endpoint, and what has it out.
type By = (String, SocketAddr, OutBy);

#[derive(Clone, Debug)]
struct Out {
    why: String,
    until: Option<Instant>,
}

/// So many at a time are remembered: a worker that makes up names fills no memory.
const MAX_OUT: usize = 1 << 16;

/// A worker that tells.
#[derive(Clone, Debug)]
pub struct Teller(Outages, u64);

/// How much was told, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutageCounts {
    /// Endpoints that are ejected now.
    pub ejected: usize,
    /// Endpoints whose health check fails now.
    pub ill: usize,
    /// Ejections so far.
    pub ejections: u64,
    /// Health checks that began to fail so far.
    pub check_failures: u64,
}

impl Outages {
    /// The same, which has outages counted by Service port too.
    #[must_use]
    pub fn counting(self, by_service: &Requests) -> Self {
        self.lock().by_service = by_service.clone();
        self
    }

    /// Another worker is at work, which knows of no outage yet.
    pub fn new_worker(&self) -> Teller {
        let mut told = self.lock();
        told.worker += 1;
        told.out.clear();
        Teller(self.clone(), told.worker)
    }

    /// How much was told.
    pub fn counts(&self, now: Instant) -> OutageCounts {
        let mut told = self.lock();
        told.forget_ended(now);
        let n_out = |by| told.out.keys().filter(|(_, _, own)| *own == by).count();
        OutageCounts {
            ejected: n_out(OutBy::Ejection),
            ill: n_out(OutBy::HealthCheck),
            ejections: told.ejections,
            check_failures: told.check_failures,
        }
    }

    /// What is so now, of Services of which workers have the flows.
    pub(crate) fn of<F: Family>(
        &self,
        table: &Table<F>,
        is_proxied: impl Fn(&Frontend<F>) -> bool,
        now: Instant,
    ) -> Vec<EndpointOutage> {
        let mut told = self.lock();
        told.forget_ended(now);
        let outage = |((pool, endpoint, by), out): (&By, &Out)| {
            let lasting = out.until.map(|until| until.saturating_duration_since(now));
            let cause = match by {
                OutBy::Ejection => OutageCause::Ejected,
                OutBy::HealthCheck => OutageCause::CheckFails,
            };
            let frontend = frontend_of_pool(table, pool).filter(|frontend| is_proxied(frontend))?;
            let (service, why) = (frontend.service.clone(), out.why.clone());
            Some(EndpointOutage { service, endpoint: *endpoint, cause, why, lasting })
        };
        told.out.iter().filter_map(outage).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn forget_ended(&mut self, now: Instant) {
        self.out.retain(|_, out| out.until.is_none_or(|until| now < until));
    }
}

impl Teller {
    /// The worker is no more.
    pub fn ended(&self) {
        let mut told = self.0.lock();
        if told.worker == self.1 {
            told.out.clear();
        }
    }

    /// Takes in what the worker told.
    pub fn tell(&self, availability: Availability, now: Instant) {
        let Self(outages, worker) = self;
        let mut told = outages.lock();
        if told.worker != *worker {
            return;
        }
        let Availability { pool, endpoint, by, out } = availability;
        let key = (pool, endpoint, by);
        let Some(out) = out else {
            told.out.remove(&key);
            return;
        };
        told.by_service.note_outage(&key.0, by);
        match by {
            OutBy::Ejection => told.ejections += 1,
            OutBy::HealthCheck => told.check_failures += 1,
        }
        told.forget_ended(now);
        if told.out.len() < MAX_OUT || told.out.contains_key(&key) {
            let until = out.lasting_ms.map(|millis| now + Duration::from_millis(millis).min(LONGEST));
            told.out.insert(key, Out { why: out.why, until });
        }
    }
}

/// No endpoint can be out for longer without being told again.
const LONGEST: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use proxy::frame::Out as Told;

    use super::*;
    use crate::traffic::tests::table;

    fn availability(pool: &str, by: OutBy, lasting_ms: Option<u64>) -> Availability {
        let out = Some(Told { why: "5 failures in a row".to_owned(), lasting_ms });
        Availability { pool: pool.to_owned(), endpoint: ([10, 244, 0, 1], 8080).into(), by, out }
    }

    #[test]
    fn what_a_worker_tells_is_so_until_its_time_is_over_or_it_tells_otherwise() {
        let (table, outages, now) = (table(), Outages::default(), Instant::now());
        let teller = outages.new_worker();
        teller.tell(availability("shop/web:http/Tcp", OutBy::Ejection, Some(30_000)), now);
        teller.tell(availability("shop/web:http/Tcp local", OutBy::HealthCheck, None), now);
        teller.tell(availability("shop/gone:http/Tcp", OutBy::Ejection, Some(30_000)), now);
        let told = outages.of(&table, |_| true, now + Duration::from_secs(10));
        let told: Vec<_> =
            told.iter().map(|outage| (outage.service.to_string(), outage.cause, outage.lasting)).collect();
        let web = || "shop/web:http".to_owned();
        let expected = [
            (web(), OutageCause::Ejected, Some(Duration::from_secs(20))),
            (web(), OutageCause::CheckFails, None),
        ];
        assert_eq!(told, expected);
        let counts = OutageCounts { ejected: 2, ill: 1, ejections: 2, check_failures: 1 };
        assert_eq!(outages.counts(now), counts);

        let later = now + Duration::from_secs(30);
        let well = availability("shop/web:http/Tcp local", OutBy::HealthCheck, None);
        teller.tell(Availability { out: None, ..well }, later);
        assert_eq!(outages.of(&table, |_| true, later), []);
        assert_eq!(outages.counts(later), OutageCounts { ejected: 0, ill: 0, ..counts });
    }

    #[test]
    fn a_worker_that_is_no_more_says_nothing() {
        let (table, outages, now) = (table(), Outages::default(), Instant::now());
        let before = outages.new_worker();
        before.tell(availability("shop/web:http/Tcp", OutBy::HealthCheck, None), now);
        let teller = outages.new_worker();
        assert_eq!(outages.of(&table, |_| true, now), []);
        before.tell(availability("shop/web:http/Tcp", OutBy::HealthCheck, None), now);
        assert_eq!(outages.of(&table, |_| true, now), []);
        teller.tell(availability("shop/web:http/Tcp", OutBy::HealthCheck, None), now);
        assert_eq!(outages.of(&table, |_| true, now).len(), 1);
        assert_eq!(outages.of(&table, |_| false, now), []);
        teller.ended();
        assert_eq!(outages.of(&table, |_| true, now), []);
    }
}
