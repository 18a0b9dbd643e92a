//! Where flows go: routes to pools.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use balance::Policy;
use rustc_hash::FxBuildHasher;
use tokio::time::Instant;

use crate::frame::{Frontend, Pool, Protocol, Route, Routes};
use crate::pool::LivePool;
use crate::tally::Tally;

/// Which listener a flow came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Traffic {
    Any,
    Internal,
}

/// For how long a flow may be on its way from rules that handed it over to its being accepted here.
const LINGER: Duration = Duration::from_secs(2);

/// All routes, and what goes by them.
#[derive(Debug)]
pub(crate) struct Table(RwLock<Inner>, Arc<Tally>);

impl Table {
    /// Without routes yet; endpoints will be chosen by this policy.
    pub(crate) fn new(policy: Policy) -> Self {
        let tally = Arc::new(Tally::default());
        Self(RwLock::new(Inner { policy, tally: tally.clone(), ..Inner::default() }), tally)
    }

    /// What goes through.
    pub(crate) fn tally(&self) -> &Tally {
        &self.1
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new(Policy::default())
    }
}

#[derive(Debug, Default)]
struct Inner {
    policy: Policy,
    tally: Arc<Tally>,
    routes: HashMap<Frontend, Target, FxBuildHasher>,
    /// Routes that are gone since a moment ago, for flows that were on their way.
    left: Vec<(Instant, Frontend, Target)>,
    /// By name.
    pools: HashMap<String, Weak<Used>, FxBuildHasher>,
}

#[derive(Debug)]
struct Target {
    any: Arc<Used>,
    internal: Option<Arc<Used>>,
}

/// A pool that routes lead to. With the last of them its endpoints go, whoever still has a flow there.
#[derive(Debug)]
struct Used(Arc<LivePool>);

impl Drop for Used {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Table {
    /// Has these routes in force.
    pub(crate) fn apply(&self, routes: Routes) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Gone only when the new ones are there, since they may lead to the same pools.
        let replaced = if routes.replace { std::mem::take(&mut inner.routes) } else { HashMap::default() };
        let now = Instant::now();
        for frontend in &routes.gone {
            if let Some(target) = inner.routes.remove(frontend) {
                inner.left.push((now, *frontend, target));
            }
        }
        for Route { frontend, any, internal, policy } in routes.set {
            let policy = policy.unwrap_or(inner.policy);
            let mut used = |pool| inner.pool(pool, policy);
            let target = Target { any: used(any), internal: internal.map(used) };
            inner.routes.insert(frontend, target);
        }
        drop(replaced);
        inner.pools.retain(|_, pool| pool.strong_count() > 0);
    }

    /// Forgets routes that are gone for long enough. To be called now and then.
    pub(crate) fn forget_left(&self, now: Instant) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Inner { left, pools, .. } = &mut *inner;
        if !left.is_empty() {
            left.retain(|(since, ..)| now.saturating_duration_since(*since) < LINGER);
            pools.retain(|_, pool| pool.strong_count() > 0);
        }
    }

    /// The pool for flows to an address, or to a node port if no frontend has the address.
    pub(crate) fn pool(
        &self,
        protocol: Protocol,
        destination: SocketAddr,
        traffic: Traffic,
    ) -> Option<Arc<LivePool>> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let frontend = |address| Frontend { address, protocol, port: destination.port() };
        let keys = [frontend(Some(destination.ip())), frontend(None)];
        let routed = keys.iter().find_map(|key| inner.routes.get(key));
        let target = routed.or_else(|| keys.iter().find_map(|key| inner.left_for(key)))?;
        match (traffic, &target.internal) {
            (Traffic::Internal, Some(internal)) => Some(internal.0.clone()),
            _ => Some(target.any.0.clone()),
        }
    }
}

impl Inner {
    fn left_for(&self, wanted: &Frontend) -> Option<&Target> {
        let mut left = self.left.iter().rev();
        left.find(|(_, frontend, _)| frontend == wanted).map(|(_, _, target)| target)
    }

    fn pool(&mut self, pool: Pool, policy: Policy) -> Arc<Used> {
        if let Some(known) = self.pools.get(&pool.name).and_then(Weak::upgrade) {
            known.0.update(policy, &pool);
            return known;
        }
        let used = Arc::new(Used(Arc::new(LivePool::new(policy, &pool, self.tally.clone()))));
        self.pools.insert(pool.name, Arc::downgrade(&used));
        used
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

    use super::*;

    pub(crate) const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    pub(crate) fn endpoint(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 8080).into()
    }

    pub(crate) fn pool(name: &str, endpoints: &[u8], affinity_secs: Option<u64>) -> Pool {
        let endpoints = endpoints.iter().copied().map(endpoint).collect();
        Pool { name: name.to_owned(), endpoints, affinity_secs, ..Pool::default() }
    }

    pub(crate) fn frontend(address: Option<&str>, port: u16) -> Frontend {
        Frontend { address: address.map(|text| text.parse().unwrap()), protocol: Protocol::Tcp, port }
    }

    pub(crate) fn route(frontend: Frontend, any: Pool, internal: Option<Pool>) -> Route {
        Route { frontend, any, internal, policy: None }
    }

    pub(crate) fn set(table: &Table, routes: Vec<Route>) {
        table.apply(Routes { set: routes, ..Routes::default() });
    }

    fn pick(table: &Table, destination: &str, traffic: Traffic) -> Option<SocketAddr> {
        let pool = table.pool(Protocol::Tcp, destination.parse().unwrap(), traffic)?;
        pool.pick(CLIENT, &[]).map(|flow| flow.address()).ok()
    }

    #[test]
    fn an_address_comes_before_a_node_port() {
        let table = Table::default();
        set(
            &table,
            vec![
                route(frontend(Some("192.0.2.7"), 30080), pool("a", &[1], None), None),
                route(frontend(None, 30080), pool("b", &[2], None), None),
            ],
        );
        assert_eq!(pick(&table, "192.0.2.7:30080", Traffic::Any), Some(endpoint(1)));
        assert_eq!(pick(&table, "192.0.2.8:30080", Traffic::Any), Some(endpoint(2)));
        assert_eq!(pick(&table, "192.0.2.8:30081", Traffic::Any), None);
    }

    #[test]
    fn internal_flows_take_the_short_cut_where_there_is_one() {
        let table = Table::default();
        let with = route(frontend(None, 1), pool("a local", &[1], None), Some(pool("a", &[2], None)));
        set(&table, vec![with, route(frontend(None, 2), pool("b", &[3], None), None)]);
        assert_eq!(pick(&table, "192.0.2.8:1", Traffic::Any), Some(endpoint(1)));
        assert_eq!(pick(&table, "192.0.2.8:1", Traffic::Internal), Some(endpoint(2)));
        assert_eq!(pick(&table, "192.0.2.8:2", Traffic::Internal), Some(endpoint(3)));
    }

    #[test]
    fn frontends_of_a_pool_share_its_turns() {
        let table = Table::default();
        let both = ["10.96.0.1", "10.96.0.2"];
        set(
            &table,
            both.iter().map(|ip| route(frontend(Some(ip), 80), pool("a", &[1, 2], None), None)).collect(),
        );
        assert_eq!(pick(&table, "10.96.0.1:80", Traffic::Any), Some(endpoint(1)));
        assert_eq!(pick(&table, "10.96.0.2:80", Traffic::Any), Some(endpoint(2)));
    }

    #[test]
    fn what_replaces_leaves_nothing_else_and_keeps_what_stays() {
        let table = Table::default();
        set(&table, vec![route(frontend(None, 1), pool("a", &[1, 2], None), None)]);
        set(&table, vec![route(frontend(None, 2), pool("b", &[1], None), None)]);
        assert_eq!(pick(&table, "192.0.2.8:1", Traffic::Any), Some(endpoint(1)));
        let again = vec![route(frontend(None, 1), pool("a", &[1, 2], None), None)];
        table.apply(Routes { replace: true, set: again, ..Routes::default() });
        assert_eq!(pick(&table, "192.0.2.8:1", Traffic::Any), Some(endpoint(2)));
        assert_eq!(pick(&table, "192.0.2.8:2", Traffic::Any), None);
        assert_eq!(table.0.read().unwrap().pools.len(), 1);
    }

    #[test]
    fn a_table_chooses_by_its_policy() {
        let by_client = Table::new(Policy::Maglev);
        set(&by_client, vec![route(frontend(None, 1), pool("a", &[1, 2, 3], None), None)]);
        let met: std::collections::BTreeSet<_> =
            (0..6).map(|_| pick(&by_client, "192.0.2.8:1", Traffic::Any)).collect();
        assert_eq!(met.len(), 1, "a client has one endpoint");
    }

    #[test]
    fn a_route_may_have_a_policy_of_its_own_and_another_one_later() {
        let table = Table::default();
        let with = |policy| Route { policy, ..route(frontend(None, 1), pool("a", &[1, 2, 3], None), None) };
        let met = || {
            let met = (0..6).map(|_| pick(&table, "192.0.2.8:1", Traffic::Any));
            met.collect::<std::collections::BTreeSet<_>>().len()
        };
        for (policy, n) in [(Some(Policy::Maglev), 1), (None, 3), (Some(Policy::RingHash), 1)] {
            set(&table, vec![with(policy)]);
            assert_eq!(met(), n, "{policy:?}");
        }
    }

    #[test]
    fn what_is_gone_has_no_route() {
        let table = Table::default();
        set(&table, vec![route(frontend(None, 1), pool("a", &[1], None), None)]);
        let pick = || pick(&table, "192.0.2.8:1", Traffic::Any);
        table.apply(Routes { gone: vec![frontend(None, 1)], ..Routes::default() });
        // A flow may be on its way.
        assert_eq!(pick(), Some(endpoint(1)));
        table.forget_left(Instant::now() + LINGER);
        assert_eq!(pick(), None);
        assert!(table.0.read().unwrap().pools.is_empty());
    }

    #[test]
    fn a_client_with_affinity_stays_unless_its_endpoint_fails_or_goes() {
        let table = Table::default();
        let with = |endpoints: &[u8]| vec![route(frontend(None, 1), pool("a", endpoints, Some(60)), None)];
        set(&table, with(&[1, 2, 3]));
        let first = pick(&table, "192.0.2.8:1", Traffic::Any).unwrap();
        for _ in 0..5 {
            assert_eq!(pick(&table, "192.0.2.8:1", Traffic::Any), Some(first));
        }
        let pool = table.pool(Protocol::Tcp, "192.0.2.8:1".parse().unwrap(), Traffic::Any).unwrap();
        let other = pool.pick(CLIENT, &[first]).unwrap().address();
        assert_ne!(other, first);
        assert_eq!(pick(&table, "192.0.2.8:1", Traffic::Any), Some(other));
        let left: Vec<u8> = [1, 2, 3].into_iter().filter(|n| endpoint(*n) != other).collect();
        set(&table, with(&left));
        assert_ne!(pick(&table, "192.0.2.8:1", Traffic::Any), Some(other));
    }
}
