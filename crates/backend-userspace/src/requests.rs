//! Requests that workers have carried.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use proxy::frame::{OutBy, RequestCount, RequestCounts};

/// What a family's workers have told, those that are no more too. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Mutex<BTreeMap<ServicePort, Sums>>>);

/// A Service port: namespace, name, and the port's name, which may be empty.
pub type ServicePort = (String, String, String);

/// What is known of a Service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Requests.
    pub counts: RequestCounts,
    /// Times that an endpoint was ejected.
    pub ejections: u64,
    /// Times that an endpoint's health check began to fail.
    pub check_failures: u64,
}

/// Service ports that are known at a time: a worker that makes up names fills no memory.
const MAX_KNOWN: usize = 1 << 16;

impl Requests {
    /// Takes in what a worker told.
    pub fn add(&self, told: &RequestCount) {
        self.change(&told.pool, |sums| sums.counts = sums.counts.plus(&told.counts));
    }

    /// An endpoint of a pool gets nothing from now on.
    pub(crate) fn note_outage(&self, pool: &str, by: OutBy) {
        self.change(pool, |sums| match by {
            OutBy::Ejection => sums.ejections += 1,
            OutBy::HealthCheck => sums.check_failures += 1,
        });
    }

    fn change(&self, pool: &str, change: impl FnOnce(&mut Sums)) {
        let Some((namespace, service, port)) = service_port(pool) else { return };
        let port = (namespace.to_owned(), service.to_owned(), port.to_owned());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MAX_KNOWN || known.contains_key(&port) {
            change(known.entry(port).or_default());
        }
    }

    /// All there is.
    pub fn read(&self) -> BTreeMap<ServicePort, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whose a pool is, by its name ([`pool_names`](crate::routes::pool_names)): namespace, name, and the port's name. Both traffic policies
/// are the same Service port's.
pub(crate) fn service_port(pool: &str) -> Option<(&str, &str, &str)> {
    let (namespace, rest) = pool.split_once('/')?;
    let (name, _protocol) = rest.split_once('/')?;
    let (service, port) = name.split_once(':').unwrap_or((name, ""));
    Some((namespace, service, port))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_policies_of_a_service_port_are_one_sum() {
        let requests = Requests::default();
        let mut counts = RequestCounts::default();
        counts.note(200, Duration::from_millis(2), 1);
        for pool in ["shop/web:http/Tcp", "shop/web:http/Tcp local", "shop/plain/Tcp", "", "nobodys"] {
            requests.add(&RequestCount { pool: pool.to_owned(), counts });
        }
        requests.note_outage("shop/web:http/Tcp", OutBy::Ejection);
        let port = |service: &str, port: &str| ("shop".to_owned(), service.to_owned(), port.to_owned());
        let web = Sums { counts: counts.plus(&counts), ejections: 1, check_failures: 0 };
        let plain = Sums { counts, ..Sums::default() };
        assert_eq!(requests.read(), BTreeMap::from([(port("web", "http"), web), (port("plain", ""), plain)]));
    }
}
