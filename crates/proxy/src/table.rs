//! Where flows go: routes, and pools with what goes on in them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use balance::{Affinity, Choice, Draw, Policy};
use http_proxy::Upstream;
use rustc_hash::FxBuildHasher;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::frame::{Counts, Frontend, Pool, Protocol, Route, Routes};
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

/// Endpoints, and what they have to do.
#[derive(Debug)]
pub(crate) struct LivePool {
    counting: Counting,
    members: RwLock<Arc<Members>>,
    clients: Mutex<Affinity>,
    /// Connections to its endpoints, if requests are carried one by one.
    upstream: OnceLock<Arc<Upstream>>,
    began: Instant,
}

#[derive(Debug)]
struct Members {
    endpoints: Vec<Arc<Endpoint>>,
    policy: Policy,
    choice: Choice,
    affinity: Option<Duration>,
    by_request: bool,
}

/// One endpoint of a pool, for as long as it is there or has flows.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    flows: AtomicUsize,
    gone: watch::Sender<bool>,
    counting: Counting,
}

/// What a pool's flows are counted by.
#[derive(Clone, Debug)]
struct Counting {
    pool: Arc<str>,
    tally: Arc<Tally>,
}

/// So many bytes of a flow may be untold.
const UNTOLD_BYTES: u64 = 64 * 1024;

/// A flow to an endpoint, which counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Flow(Arc<Endpoint>, AtomicU64);

impl LivePool {
    fn new(policy: Policy, pool: &Pool, tally: Arc<Tally>) -> Self {
        let counting = Counting { pool: pool.name.as_str().into(), tally };
        let members = RwLock::new(Arc::new(Members::new(policy, pool, &[], &counting)));
        let (clients, upstream) = (Mutex::default(), OnceLock::new());
        Self { counting, members, clients, upstream, began: Instant::now() }
    }

    /// A connection found no endpoint.
    pub(crate) fn note_refusal(&self) {
        let Counting { pool, tally } = &self.counting;
        tally.add(pool, None, Counts { refused: 1, ..Counts::default() });
    }

    fn update(&self, policy: Policy, pool: &Pool) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if members.is_of(policy, pool) {
            return;
        }
        let new = Members::new(policy, pool, &members.endpoints, &self.counting);
        let is_there = |address| new.endpoints.iter().any(|endpoint| endpoint.address == address);
        for endpoint in members.endpoints.iter().filter(|endpoint| !is_there(endpoint.address)) {
            endpoint.gone.send_replace(true);
        }
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).retain(is_there);
        if let Some(upstream) = self.upstream.get() {
            upstream.retain(is_there);
        }
        *members = Arc::new(new);
    }

    /// All endpoints go; whoever has a flow to one gets no other.
    fn close(&self) {
        let (name, endpoints) = (String::new(), Vec::new());
        self.update(Policy::default(), &Pool { name, endpoints, affinity_secs: None, by_request: false });
    }

    /// Whether requests are carried one by one, not connections.
    pub(crate) fn is_by_request(&self) -> bool {
        self.members.read().unwrap_or_else(PoisonError::into_inner).by_request
    }

    /// Connections for requests to its endpoints, with the limits of this one.
    pub(crate) fn upstream(&self, of_all: &Upstream) -> Arc<Upstream> {
        self.upstream.get_or_init(|| Arc::new(of_all.sibling())).clone()
    }

    /// An endpoint for a client's new flow, none of those that were tried.
    pub(crate) fn pick(&self, client: IpAddr, tried: &[SocketAddr]) -> Option<Flow> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(timeout) = members.affinity else { return members.pick(client, tried) };
        let now = self.began.elapsed();
        // Held until the client has its endpoint, so that two flows at once come to the same.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let known = clients.endpoint(client, now, timeout).filter(|known| !tried.contains(known));
        let known = known.and_then(|known| members.flow_to(known));
        let flow = known.or_else(|| members.pick(client, tried))?;
        clients.give(client, flow.address(), now, timeout);
        Some(flow)
    }
}

impl Members {
    /// Endpoints that were there before stay what they are.
    fn new(policy: Policy, pool: &Pool, before: &[Arc<Endpoint>], counting: &Counting) -> Self {
        let endpoint = |address: &SocketAddr| {
            let known = before.iter().find(|endpoint| endpoint.address == *address);
            known.cloned().unwrap_or_else(|| Arc::new(Endpoint::new(*address, counting.clone())))
        };
        Self {
            endpoints: pool.endpoints.iter().map(endpoint).collect(),
            policy,
            choice: Choice::new(policy, &pool.endpoints),
            affinity: pool.affinity_secs.map(Duration::from_secs),
            by_request: pool.by_request,
        }
    }

    fn is_of(&self, policy: Policy, pool: &Pool) -> bool {
        self.policy == policy
            && self.by_request == pool.by_request
            && self.affinity == pool.affinity_secs.map(Duration::from_secs)
            && self.endpoints.iter().map(|endpoint| endpoint.address).eq(pool.endpoints.iter().copied())
    }

    fn pick(&self, client: IpAddr, tried: &[SocketAddr]) -> Option<Flow> {
        let load = |at: usize| self.endpoints[at].flows.load(Ordering::Relaxed);
        let usable = |at: usize| !tried.contains(&self.endpoints[at].address);
        let draw = Draw { client, random: fastrand::u64(..) };
        self.choice.pick(draw, load, usable).map(|at| Flow::new(&self.endpoints[at]))
    }

    fn flow_to(&self, address: SocketAddr) -> Option<Flow> {
        self.endpoints.iter().find(|endpoint| endpoint.address == address).map(Flow::new)
    }
}

impl Endpoint {
    fn new(address: SocketAddr, counting: Counting) -> Self {
        Self { address, flows: AtomicUsize::new(0), gone: watch::Sender::new(false), counting }
    }

    fn note(&self, counts: Counts) {
        let Counting { pool, tally } = &self.counting;
        tally.add(pool, Some(self.address), counts);
    }
}

impl Flow {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.flows.fetch_add(1, Ordering::Relaxed);
        Self(endpoint.clone(), AtomicU64::new(0))
    }

    /// The endpoint takes it.
    pub(crate) fn note_connection(&self) {
        self.0.note(Counts { connections: 1, ..Counts::default() });
    }

    /// The endpoint does not.
    pub(crate) fn note_retry(&self) {
        self.0.note(Counts { retries: 1, ..Counts::default() });
    }

    /// So many bytes more were carried.
    pub(crate) fn note_bytes(&self, more: usize) {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        if self.1.fetch_add(more, Ordering::Relaxed).saturating_add(more) >= UNTOLD_BYTES {
            self.tell_bytes();
        }
    }

    fn tell_bytes(&self) {
        let bytes = self.1.swap(0, Ordering::Relaxed);
        if bytes > 0 {
            self.0.note(Counts { bytes, ..Counts::default() });
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Ends when the endpoint is no longer one of the pool's.
    pub(crate) async fn endpoint_gone(&self) {
        // The sender is ours.
        drop(self.0.gone.subscribe().wait_for(|gone| *gone).await);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.tell_bytes();
        self.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn endpoint(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 8080).into()
    }

    fn pool(name: &str, endpoints: &[u8], affinity_secs: Option<u64>) -> Pool {
        let endpoints = endpoints.iter().copied().map(endpoint).collect();
        Pool { name: name.to_owned(), endpoints, affinity_secs, by_request: false }
    }

    fn frontend(address: Option<&str>, port: u16) -> Frontend {
        Frontend { address: address.map(|text| text.parse().unwrap()), protocol: Protocol::Tcp, port }
    }

    fn route(frontend: Frontend, any: Pool, internal: Option<Pool>) -> Route {
        Route { frontend, any, internal, policy: None }
    }

    fn set(table: &Table, routes: Vec<Route>) {
        table.apply(Routes { set: routes, ..Routes::default() });
    }

    fn pick(table: &Table, destination: &str, traffic: Traffic) -> Option<SocketAddr> {
        let pool = table.pool(Protocol::Tcp, destination.parse().unwrap(), traffic)?;
        pool.pick(CLIENT, &[]).map(|flow| flow.address())
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

    #[tokio::test]
    async fn flows_of_an_endpoint_that_goes_hear_of_it() {
        let table = Table::default();
        let with = |endpoints: &[u8]| vec![route(frontend(None, 1), pool("a", endpoints, None), None)];
        set(&table, with(&[1, 2]));
        let pool = table.pool(Protocol::Tcp, "192.0.2.8:1".parse().unwrap(), Traffic::Any).unwrap();
        let (one, other) = (pool.pick(CLIENT, &[]).unwrap(), pool.pick(CLIENT, &[]).unwrap());
        set(&table, with(&[2]));
        one.endpoint_gone().await;
        assert!(!*other.0.gone.borrow());
        // A pool whose frontends all go takes its endpoints with it, and gives none.
        table.apply(Routes { replace: true, ..Routes::default() });
        other.endpoint_gone().await;
        assert!(pool.pick(CLIENT, &[]).is_none());
    }
}
