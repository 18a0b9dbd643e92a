//! What workers have carried.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mode::{Counters, Meter};
use model::{Family, Frontend, ObjectName, Table};
use proxy::frame::{Count, Counts};
use rustc_hash::FxBuildHasher;

use crate::requests::service_port;
use crate::routes::pool_names;

/// What a family's workers have told, those that are no more too. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Carried(Arc<Mutex<BTreeMap<By, Known>>>);

/// The pool's name, and the endpoint if it concerns one.
type By = (String, Option<SocketAddr>);

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    counts: Counts,
    /// Readings since the last change.
    unchanged: u32,
}

/// What has not changed for so many readings, an hour or so, is forgotten; it begins anew if it comes back.
const FORGOTTEN_AFTER: u32 = 360;

/// Endpoints and pools that are known at a time.
const MAX_KNOWN: usize = 1 << 20;

/// What was counted.
#[derive(Debug)]
pub struct Counted<R> {
    /// By the rules.
    pub(crate) rules: Option<R>,
    /// By workers.
    pub(crate) carried: Vec<Count>,
}

impl Carried {
    /// Takes in what a worker told. One that makes up names fills no memory.
    pub fn add(&self, count: Count) {
        let mut carried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_full, key) = (carried.len() >= MAX_KNOWN, (count.pool, count.endpoint));
        if is_full && !carried.contains_key(&key) {
            return;
        }
        let known = carried.entry(key).or_default();
        *known = Known { counts: known.counts.plus(count.counts), unchanged: 0 };
    }

    pub(crate) fn read(&self) -> Vec<Count> {
        let mut carried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        carried.retain(|_, known| {
            known.unchanged += 1;
            known.unchanged <= FORGOTTEN_AFTER
        });
        let count = |((pool, endpoint), known): (&By, &Known)| Count {
            pool: pool.clone(),
            endpoint: *endpoint,
            counts: known.counts,
        };
        carried.iter().map(count).collect()
    }
}

/// A frontend of the Service port whose pool this is.
pub(crate) fn frontend_of_pool<'t, F: Family>(table: &'t Table<F>, pool: &str) -> Option<&'t Frontend<F>> {
    let (namespace, name, _port) = service_port(pool)?;
    let owner = ObjectName::new(namespace, name);
    table.of_service(&owner).find(|frontend| pool_names(&frontend.service).iter().any(|own| own == pool))
}

/// The counters of a pool's endpoint, if the pool is a Service's.
pub(crate) fn meter<F: Family>(table: &Table<F>, count: &Count) -> Option<Meter> {
    let service = &frontend_of_pool(table, &count.pool)?.service;
    let Counts { connections, refused, retries, bytes } = count.counts;
    let counters = Counters {
        refused,
        bytes: Some(bytes),
        retries: Some(retries),
        ..Counters::connections(connections)
    };
    let id = FxBuildHasher.hash_one(&count.pool);
    Some(Meter { service: service.clone(), endpoint: count.endpoint, id, counters })
}

#[cfg(test)]
pub(crate) mod tests {
    use model::{
        AddressKind, Destination, EndpointNode, FrontendAddress, FrontendKey, Pool, Protocol,
        ServicePortName, V4, Verdict,
    };

    use super::*;

    pub(crate) fn table() -> Table<V4> {
        let key = FrontendKey {
            address: FrontendAddress::Ip([10, 96, 0, 10].into()),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let service = ServicePortName {
            service: ObjectName::new("shop", "web"),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        let endpoint = Destination { address: [10, 244, 0, 1].into(), port: 8080, node: EndpointNode::Other };
        let pool = Pool::new([endpoint].into(), Verdict::Reject);
        let mut table = Table::default();
        let frontend = Frontend::new(key, AddressKind::ClusterIp, service.clone(), pool);
        table.set_service(&service.service, vec![frontend]);
        table
    }

    fn count(pool: &str, endpoint: Option<&str>, counts: Counts) -> Count {
        Count { pool: pool.to_owned(), endpoint: endpoint.map(|text| text.parse().unwrap()), counts }
    }

    /// What is told by several workers, one after the other, is one sum.
    #[test]
    fn what_workers_tell_is_their_services() {
        let (table, carried) = (table(), Carried::default());
        let some = Counts { connections: 2, bytes: 100, retries: 1, ..Counts::default() };
        for pool in ["shop/web:http/Tcp", "shop/web:http/Tcp", "shop/web:http/Tcp local"] {
            carried.add(count(pool, Some("10.244.0.1:8080"), some));
        }
        carried.add(count("shop/web:http/Tcp", None, Counts { refused: 3, ..Counts::default() }));
        for nobodys in ["", "shop", "shop/web", "shop/web:https/Tcp", "shop/gone:http/Tcp", "a/b/c/d"] {
            carried.add(count(nobodys, None, some));
        }
        let meters: Vec<Meter> =
            carried.read().into_iter().filter_map(|count| meter(&table, &count)).collect();
        let told: Vec<_> = meters
            .iter()
            .map(|meter| (meter.service.to_string(), meter.endpoint.is_some(), meter.counters))
            .collect();
        let web = || "shop/web:http".to_owned();
        let counters = |connections, refused, retries, bytes| Counters {
            refused,
            bytes: Some(bytes),
            retries: Some(retries),
            ..Counters::connections(connections)
        };
        let expected = [
            (web(), false, counters(0, 3, 0, 0)),
            (web(), true, counters(4, 0, 2, 200)),
            (web(), true, counters(2, 0, 1, 100)),
        ];
        assert_eq!(told, expected);
        assert_ne!(meters[1].id, meters[2].id);
    }

    #[test]
    fn what_does_not_change_is_forgotten_in_the_end() {
        let carried = Carried::default();
        carried.add(count("a/b:c/Tcp", None, Counts { refused: 1, ..Counts::default() }));
        for _ in 0..FORGOTTEN_AFTER {
            assert_eq!(carried.read().len(), 1);
        }
        assert!(carried.read().is_empty());
    }
}
