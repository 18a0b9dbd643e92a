//! The endpoints of a pool, and what goes on there: who is chosen, what is counted, who gets nothing for now.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use balance::{
    Affinity, Choice, Crowd, Draw, Ejected, Outliers, Policy, ProxyProtocol, Resilience, SlowStart,
    WHOLE_SHARE,
};
use http_proxy::{Gauge, Held, NoTurn, Times, Upstream};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::frame::{Availability, Counts, Out, OutBy, Pool};
use crate::health::{self, Checking};
use crate::tally::Tally;

/// Endpoints, and what they have to do.
#[derive(Debug)]
pub(crate) struct LivePool {
    counting: Counting,
    members: RwLock<Arc<Members>>,
    clients: Mutex<Affinity>,
    outliers: Mutex<Outliers>,
    connections: Gauge,
    pending: Gauge,
    /// Connections to its endpoints, if requests are carried one by one.
    upstream: OnceLock<Arc<Upstream>>,
    began: Instant,
}

#[derive(Debug)]
struct Members {
    endpoints: Vec<Arc<Endpoint>>,
    policy: Policy,
    weights: Vec<u32>,
    choice: Choice,
    affinity: Option<Duration>,
    by_request: bool,
    resilience: Resilience,
}

/// One endpoint of a pool, for as long as it is there or has flows.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    flows: AtomicUsize,
    gone: watch::Sender<bool>,
    counting: Counting,
    /// Its health check fails.
    is_ill: AtomicBool,
    /// Until when it is ejected, in milliseconds since its pool began.
    ejected_until: AtomicU64,
    /// Since when it serves, in milliseconds since its pool began; 0: it always did.
    serves_since: AtomicU64,
    pool_began: Instant,
    checking: Mutex<Option<Checking>>,
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
pub(crate) struct Flow {
    endpoint: Arc<Endpoint>,
    pool: Arc<LivePool>,
    bytes: AtomicU64,
    untold_bytes: AtomicU64,
}

impl LivePool {
    /// A pool with these endpoints.
    pub(crate) fn new(policy: Policy, pool: &Pool, tally: Arc<Tally>) -> Self {
        let counting = Counting { pool: pool.name.as_str().into(), tally };
        let began = Instant::now();
        let members = Members::new(policy, pool, &[], &counting, began);
        members.check_health(None);
        Self {
            counting,
            members: RwLock::new(Arc::new(members)),
            clients: Mutex::default(),
            outliers: Mutex::default(),
            connections: Gauge::default(),
            pending: Gauge::default(),
            upstream: OnceLock::new(),
            began,
        }
    }

    /// A connection found no endpoint.
    pub(crate) fn note_refusal(&self) {
        let Counting { pool, tally } = &self.counting;
        tally.add(pool, None, Counts { refused: 1, ..Counts::default() });
    }

    /// Has these endpoints, and goes on with those that it had.
    pub(crate) fn update(&self, policy: Policy, pool: &Pool) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if members.is_of(policy, pool) {
            return;
        }
        let new = Members::new(policy, pool, &members.endpoints, &self.counting, self.began);
        let is_there = |address| new.endpoints.iter().any(|endpoint| endpoint.address == address);
        for endpoint in members.endpoints.iter().filter(|endpoint| !is_there(endpoint.address)) {
            endpoint.gone.send_replace(true);
            endpoint.check_no_more();
        }
        new.check_health(Some(&**members));
        lock(&self.outliers).retain(is_there);
        if members.resilience.ejection.is_some() && new.resilience.ejection.is_none() {
            new.endpoints.iter().for_each(|endpoint| endpoint.readmit());
        }
        lock(&self.clients).retain(is_there);
        if let Some(upstream) = self.upstream.get() {
            upstream.retain(is_there);
            upstream.ask(&new.resilience);
        }
        *members = Arc::new(new);
    }

    /// All endpoints go; whoever has a flow to one gets no other.
    pub(crate) fn close(&self) {
        let members = self.members();
        let Members { policy, by_request, resilience, .. } = &*members;
        let empty = Pool { by_request: *by_request, resilience: resilience.clone(), ..Pool::default() };
        self.update(*policy, &empty);
    }

    /// For how long what may take.
    pub(crate) fn times(&self, otherwise: &Times) -> Times {
        otherwise.but(self.members().resilience.timeouts)
    }

    /// What connections to its endpoints begin with.
    pub(crate) fn proxy_protocol(&self) -> Option<ProxyProtocol> {
        self.members().resilience.proxy_protocol
    }

    /// Whether requests are carried one by one, not connections.
    pub(crate) fn is_by_request(&self) -> bool {
        self.members.read().unwrap_or_else(PoisonError::into_inner).by_request
    }

    /// A request is answered.
    pub(crate) fn note_answer(&self, status: u16, took: Duration, retries: u32) {
        let Counting { pool, tally } = &self.counting;
        tally.note_answer(pool, status, took, retries);
    }

    /// [`Pool::name`]
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.counting.pool
    }

    /// The Service port, as `namespace/name:port`.
    pub(crate) fn service(&self) -> &str {
        let pool = &*self.counting.pool;
        pool.rsplit_once('/').map_or(pool, |(service, _protocol)| service)
    }

    fn members(&self) -> Arc<Members> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A place for another connection, if there may be one.
    pub(crate) fn take_connection(&self) -> Option<Held> {
        self.connections.take(self.members().resilience.limits.connections)
    }

    /// A place among the connections that are being made, if there may be another one.
    pub(crate) fn take_pending(&self) -> Option<Held> {
        self.pending.take(self.members().resilience.limits.pending)
    }

    /// What was given to an endpoint succeeded or failed.
    fn report(&self, endpoint: &Endpoint, succeeded: bool) {
        let members = self.members();
        let Some(settings) = &members.resilience.ejection else { return };
        let now = self.began.elapsed();
        // Held until it is ejected, so that no two think that there is one to spare.
        let mut outliers = lock(&self.outliers);
        let n_out = members.endpoints.iter().filter(|endpoint| endpoint.is_out(now)).count();
        let crowd = Crowd { n_endpoints: members.endpoints.len(), n_out };
        let ejected = outliers.report(settings, endpoint.address, succeeded, crowd, now);
        if let Some(ejected) = ejected {
            endpoint.eject(&ejected, now);
        }
    }

    /// Connections for requests to its endpoints, with the limits of this one.
    pub(crate) fn upstream(&self, of_all: &Upstream) -> Arc<Upstream> {
        let new = || {
            let upstream = of_all.sibling();
            upstream.ask(&self.members().resilience);
            Arc::new(upstream)
        };
        self.upstream.get_or_init(new).clone()
    }

    /// An endpoint for a client's new flow, none of those that were tried.
    ///
    /// # Errors
    /// There is none, or none that may have more.
    pub(crate) fn pick(self: &Arc<Self>, client: IpAddr, tried: &[SocketAddr]) -> Result<Flow, NoTurn> {
        let (members, now) = (self.members(), self.began.elapsed());
        let flow = |endpoint| Flow::new(endpoint, self.clone());
        let Some(timeout) = members.affinity else {
            return members.pick(client, tried, now).map(flow);
        };
        // Held until the client has its endpoint, so that two flows at once come to the same.
        let mut clients = lock(&self.clients);
        let known = clients.endpoint(client, now, timeout).filter(|known| !tried.contains(known));
        let known = known.and_then(|known| members.usable(known, now));
        let endpoint = known.map_or_else(|| members.pick(client, tried, now), Ok)?;
        clients.give(client, endpoint.address, now, timeout);
        Ok(flow(endpoint))
    }
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Members {
    /// Endpoints that were there before stay what they are. Those that come to others begin to serve now.
    fn new(
        policy: Policy,
        pool: &Pool,
        before: &[Arc<Endpoint>],
        counting: &Counting,
        pool_began: Instant,
    ) -> Self {
        let endpoint = |address: &SocketAddr| {
            let known = before.iter().find(|endpoint| endpoint.address == *address);
            let new = || {
                let new = Endpoint::new(*address, counting.clone(), pool_began);
                if !before.is_empty() {
                    new.begin_to_serve();
                }
                Arc::new(new)
            };
            known.cloned().unwrap_or_else(new)
        };
        Self {
            endpoints: pool.endpoints.iter().map(endpoint).collect(),
            policy,
            weights: pool.weights.clone(),
            choice: Choice::new(policy, &pool.endpoints, &pool.weights),
            affinity: pool.affinity_secs.map(Duration::from_secs),
            by_request: pool.by_request,
            resilience: pool.resilience.clone(),
        }
    }

    /// Has endpoints asked whether they serve, those that are not yet.
    fn check_health(&self, before: Option<&Self>) {
        let asked = |members: &Self| {
            let Resilience { health_check, proxy_protocol, .. } = &members.resilience;
            (health_check.clone(), *proxy_protocol)
        };
        let is_as_before = before.is_some_and(|before| asked(before) == asked(self));
        for endpoint in &self.endpoints {
            let is_checked = lock(&endpoint.checking).is_some();
            match &self.resilience.health_check {
                Some(_) if is_as_before && is_checked => {}
                Some(check) => {
                    endpoint.check_no_more();
                    let begun = health::begin(endpoint, check.clone(), self.resilience.proxy_protocol);
                    *lock(&endpoint.checking) = Some(begun);
                }
                None => endpoint.check_no_more(),
            }
        }
    }

    fn is_of(&self, policy: Policy, pool: &Pool) -> bool {
        self.policy == policy
            && self.by_request == pool.by_request
            && self.resilience == pool.resilience
            && self.weights == pool.weights
            && self.affinity == pool.affinity_secs.map(Duration::from_secs)
            && self.endpoints.iter().map(|endpoint| endpoint.address).eq(pool.endpoints.iter().copied())
    }

    fn pick(&self, client: IpAddr, tried: &[SocketAddr], now: Duration) -> Result<&Arc<Endpoint>, NoTurn> {
        let endpoint = |at: usize| &self.endpoints[at];
        let is_untried = |at: usize| !tried.contains(&endpoint(at).address);
        let load = |at: usize| endpoint(at).flows.load(Ordering::Relaxed);
        let limit = self.flows_of_endpoint();
        let has_room = |at: usize| load(at) < limit;
        let is_well = |at: usize| is_untried(at) && !endpoint(at).is_out(now);
        let draw = Draw { client, random: fastrand::u64(..) };
        let slow_start = self.resilience.slow_start.as_ref();
        let share = |at: usize| if has_room(at) { endpoint(at).share(slow_start, now) } else { 0 };
        let all = 0..self.endpoints.len();
        // If none is well that could be tried, one that is not is better than none.
        let picked = if all.clone().any(is_well) {
            self.choice.pick(draw, load, |at| if is_well(at) { share(at) } else { 0 })
        } else {
            self.choice.pick(draw, load, |at| if is_untried(at) { share(at) } else { 0 })
        };
        let none = || if all.clone().any(is_untried) { NoTurn::Full } else { NoTurn::NoEndpoint };
        picked.map(endpoint).ok_or_else(none)
    }

    /// How many flows an endpoint may have at a time: requests or connections.
    fn flows_of_endpoint(&self) -> usize {
        let limits = &self.resilience.limits;
        let limit = if self.by_request { limits.endpoint_requests } else { limits.endpoint_connections };
        limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
    }

    /// The endpoint of an address, if it may have more.
    fn usable(&self, address: SocketAddr, now: Duration) -> Option<&Arc<Endpoint>> {
        let endpoint = self.endpoints.iter().find(|endpoint| endpoint.address == address)?;
        let has_room = endpoint.flows.load(Ordering::Relaxed) < self.flows_of_endpoint();
        (has_room && !endpoint.is_out(now)).then_some(endpoint)
    }
}

impl Endpoint {
    fn new(address: SocketAddr, counting: Counting, pool_began: Instant) -> Self {
        Self {
            address,
            flows: AtomicUsize::new(0),
            gone: watch::Sender::new(false),
            counting,
            is_ill: AtomicBool::new(false),
            ejected_until: AtomicU64::new(0),
            serves_since: AtomicU64::new(0),
            pool_began,
            checking: Mutex::default(),
        }
    }

    fn note(&self, counts: Counts) {
        let Counting { pool, tally } = &self.counting;
        tally.add(pool, Some(self.address), counts);
    }

    /// Whether it is to get nothing, so long after its pool began.
    fn is_out(&self, now: Duration) -> bool {
        self.is_ill.load(Ordering::Relaxed) || millis(now) < self.ejected_until.load(Ordering::Relaxed)
    }

    /// It is to get little at first, if its Service wants that.
    fn begin_to_serve(&self) {
        self.serves_since.store(millis(self.pool_began.elapsed()).max(1), Ordering::Relaxed);
    }

    /// How much it gets of what is due to it, so long after its pool began.
    fn share(&self, slow_start: Option<&SlowStart>, now: Duration) -> u32 {
        let Some(slow_start) = slow_start else { return WHOLE_SHARE };
        let (since, ejected_until) =
            (self.serves_since.load(Ordering::Relaxed), self.ejected_until.load(Ordering::Relaxed));
        match since.max(ejected_until) {
            0 => WHOLE_SHARE,
            since => slow_start.share(now.saturating_sub(Duration::from_millis(since))),
        }
    }

    fn eject(&self, ejected: &Ejected, now: Duration) {
        self.ejected_until.store(millis(now + ejected.lasting), Ordering::Relaxed);
        let (why, lasting_ms) = (ejected.reason.to_string(), Some(millis(ejected.lasting)));
        warn!(pool = &*self.counting.pool, endpoint = %self.address, lasting_ms, why, "an endpoint is ejected");
        self.tell(OutBy::Ejection, Some(Out { why, lasting_ms }));
    }

    /// It is ejected no more, whatever was said.
    fn readmit(&self) {
        if self.ejected_until.swap(0, Ordering::Relaxed) > 0 {
            self.tell(OutBy::Ejection, None);
        }
    }

    /// Its health check fails from now on, or does no more.
    fn set_ill(&self, why: Option<String>) {
        if self.is_ill.swap(why.is_some(), Ordering::Relaxed) == why.is_some() {
            return;
        }
        warn!(pool = &*self.counting.pool, endpoint = %self.address, why, "what a health check says of an endpoint");
        if why.is_none() {
            self.begin_to_serve();
        }
        self.tell(OutBy::HealthCheck, why.map(|why| Out { why, lasting_ms: None }));
    }

    /// What a check says, if it is still the one whose word counts.
    pub(crate) fn checked(&self, is_current: &AtomicBool, why: Option<String>) {
        let _checking = lock(&self.checking);
        if is_current.load(Ordering::Relaxed) {
            self.set_ill(why);
        }
    }

    fn check_no_more(&self) {
        let mut checking = lock(&self.checking);
        drop(checking.take());
        self.set_ill(None);
    }

    fn tell(&self, by: OutBy, out: Option<Out>) {
        let Counting { pool, tally } = &self.counting;
        tally.tell(Availability { pool: pool.to_string(), endpoint: self.address, by, out });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Flow {
    fn new(endpoint: &Arc<Endpoint>, pool: Arc<LivePool>) -> Self {
        endpoint.flows.fetch_add(1, Ordering::Relaxed);
        let (bytes, untold_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { endpoint: endpoint.clone(), pool, bytes, untold_bytes }
    }

    /// The endpoint takes it, and succeeds or fails.
    pub(crate) fn note_connection(&self, succeeded: bool) {
        self.endpoint.note(Counts { connections: 1, ..Counts::default() });
        self.pool.report(&self.endpoint, succeeded);
    }

    /// The endpoint does not.
    pub(crate) fn note_retry(&self) {
        self.endpoint.note(Counts { retries: 1, ..Counts::default() });
        self.pool.report(&self.endpoint, false);
    }

    /// So many bytes more were carried.
    pub(crate) fn note_bytes(&self, more: usize) {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        self.bytes.fetch_add(more, Ordering::Relaxed);
        if self.untold_bytes.fetch_add(more, Ordering::Relaxed).saturating_add(more) >= UNTOLD_BYTES {
            self.tell_bytes();
        }
    }

    fn tell_bytes(&self) {
        let bytes = self.untold_bytes.swap(0, Ordering::Relaxed);
        if bytes > 0 {
            self.endpoint.note(Counts { bytes, ..Counts::default() });
        }
    }

    /// So many bytes were carried so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// For how long what may take there.
    pub(crate) fn times(&self, otherwise: &Times) -> Times {
        self.pool.times(otherwise)
    }

    /// Ends when the endpoint is no longer one of the pool's.
    pub(crate) async fn endpoint_gone(&self) {
        // The sender is ours.
        drop(self.endpoint.gone.subscribe().wait_for(|gone| *gone).await);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.tell_bytes();
        self.endpoint.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use balance::{Ejection, Limits, SlowStart};

    use super::*;
    use crate::frame::{Protocol, Route, Routes};
    use crate::table::tests::{CLIENT, endpoint, frontend, pool, route, set};
    use crate::table::{Table, Traffic};

    #[tokio::test]
    async fn flows_of_an_endpoint_that_goes_hear_of_it() {
        let table = Table::default();
        let with = |endpoints: &[u8]| vec![route(frontend(None, 1), pool("a", endpoints, None), None)];
        set(&table, with(&[1, 2]));
        let pool = table.pool(Protocol::Tcp, "192.0.2.8:1".parse().unwrap(), Traffic::Any).unwrap();
        let (one, other) = (pool.pick(CLIENT, &[]).unwrap(), pool.pick(CLIENT, &[]).unwrap());
        set(&table, with(&[2]));
        one.endpoint_gone().await;
        assert!(!*other.endpoint.gone.borrow());
        // A pool whose frontends all go takes its endpoints with it, and gives none.
        table.apply(Routes { replace: true, ..Routes::default() });
        other.endpoint_gone().await;
        assert!(pool.pick(CLIENT, &[]).is_err());
    }

    fn with(endpoints: &[u8], resilience: &Resilience) -> Vec<Route> {
        let pool = Pool { resilience: resilience.clone(), ..pool("a", endpoints, None) };
        vec![route(frontend(None, 1), pool, None)]
    }

    fn of(table: &Table) -> Arc<LivePool> {
        table.pool(Protocol::Tcp, "192.0.2.8:1".parse().unwrap(), Traffic::Any).unwrap()
    }

    fn fail(pool: &Arc<LivePool>, n: u8, times: usize) {
        let members = pool.members();
        let failing = members.endpoints.iter().find(|found| found.address == endpoint(n)).unwrap();
        for _ in 0..times {
            Flow::new(failing, pool.clone()).note_retry();
        }
    }

    fn met(pool: &Arc<LivePool>) -> std::collections::BTreeSet<SocketAddr> {
        (0..12).map(|_| pool.pick(CLIENT, &[]).unwrap().address()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_fails_gets_nothing_for_a_while_and_never_more_than_half_do() {
        let table = Table::default();
        let ejection = Some(Ejection { failures: 3, time: Duration::from_secs(30), ..Ejection::default() });
        let resilience = Resilience { ejection, ..Resilience::default() };
        set(&table, with(&[1, 2, 3], &resilience));
        let pool = of(&table);
        fail(&pool, 1, 2);
        assert_eq!(met(&pool).len(), 3);
        fail(&pool, 1, 1);
        assert_eq!(met(&pool), [endpoint(2), endpoint(3)].into());
        let why = "3 failures in a row".to_owned();
        let told =
            |out| Availability { pool: "a".to_owned(), endpoint: endpoint(1), by: OutBy::Ejection, out };
        let expected = told(Some(Out { why, lasting_ms: Some(30_000) }));
        assert_eq!(table.tally().take_untold(), [expected]);
        // Two of three would be more than half.
        fail(&pool, 2, 50);
        assert_eq!(met(&pool), [endpoint(2), endpoint(3)].into());
        // When all others were tried, it is better than none.
        let last = pool.pick(CLIENT, &[endpoint(2), endpoint(3)]).unwrap();
        assert_eq!(last.address(), endpoint(1));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(met(&pool).len(), 3);
        // A Service that asks for no ejection any more has all of its endpoints at once.
        fail(&pool, 1, 3);
        assert_eq!(met(&pool).len(), 2);
        table.tally().take_untold();
        set(&table, with(&[1, 2, 3], &Resilience::default()));
        assert_eq!(met(&pool).len(), 3);
        assert_eq!(table.tally().take_untold(), [told(None)]);
    }

    #[test]
    fn an_endpoint_that_is_ill_gets_nothing_unless_all_are() {
        let table = Table::default();
        set(&table, with(&[1, 2], &Resilience::default()));
        let pool = of(&table);
        let members = pool.members();
        members.endpoints[0].set_ill(Some("it answers 503".to_owned()));
        assert_eq!(met(&pool), [endpoint(2)].into());
        members.endpoints[1].set_ill(Some("it answers 503".to_owned()));
        assert_eq!(met(&pool).len(), 2);
        members.endpoints[0].set_ill(None);
        assert_eq!(met(&pool), [endpoint(1)].into());
        assert_eq!(table.tally().take_untold().len(), 3);
    }

    /// How many of so many flows an endpoint gets.
    fn share(pool: &Arc<LivePool>, n: u8, of: usize) -> usize {
        (0..of).filter(|_| pool.pick(CLIENT, &[]).unwrap().address() == endpoint(n)).count()
    }

    /// Of two that have all, an endpoint in turns gets half; of what is due to it a new one gets a tenth, then half, then all.
    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_comes_gets_little_at_first() {
        let table = Table::default();
        let slow_start = SlowStart::parse("window=90s").ok();
        let ejection = Some(Ejection { failures: 1, ..Ejection::default() });
        let resilience = Resilience { slow_start, ejection, ..Resilience::default() };
        tokio::time::advance(Duration::from_secs(5)).await;
        set(&table, with(&[1], &resilience));
        let pool = of(&table);
        // Whoever is there from the beginning has nobody before it.
        assert_eq!(share(&pool, 1, 100), 100);
        tokio::time::advance(Duration::from_secs(5)).await;
        set(&table, with(&[1, 2], &resilience));
        // Within five sigma of 4,000.
        let is_about = |found: usize, expected: usize| found.abs_diff(expected) < 160;
        let first = share(&pool, 2, 4000);
        assert!(is_about(first, 200), "{first}");
        tokio::time::advance(Duration::from_secs(40)).await;
        let later = share(&pool, 2, 4000);
        assert!(is_about(later, 1000), "{later}");
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(share(&pool, 2, 4000), 2000);
        // So does one that was ejected, or whose health check failed.
        fail(&pool, 2, 1);
        assert_eq!(share(&pool, 2, 100), 0);
        tokio::time::advance(Duration::from_secs(30)).await;
        let again = share(&pool, 2, 4000);
        assert!(is_about(again, 200), "{again}");
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(share(&pool, 2, 4000), 2000);
        let members = pool.members();
        members.endpoints[1].set_ill(Some("it answers 503".to_owned()));
        members.endpoints[1].set_ill(None);
        let again = share(&pool, 2, 4000);
        assert!(is_about(again, 200), "{again}");
        // Without the wish it has all at once.
        set(&table, with(&[1, 2], &Resilience::default()));
        assert_eq!(share(&pool, 2, 4000), 2000);
    }

    #[test]
    fn weights_are_those_of_the_endpoints_as_they_are_told() {
        let table = Table::new(Policy::Weighted);
        let with = |endpoints: &[u8], weights: &[u32]| {
            let pool = Pool { weights: weights.to_vec(), ..pool("a", endpoints, None) };
            set(&table, vec![route(frontend(None, 1), pool, None)]);
            of(&table)
        };
        let pool = with(&[1, 2], &[3, 1]);
        // Within five sigma of 3,000 of 4,000.
        let met = share(&pool, 1, 4000);
        assert!(met.abs_diff(3000) < 140, "{met}");
        let pool = with(&[1, 2], &[0, 1]);
        assert_eq!(share(&pool, 1, 4000), 0);
        let pool = with(&[1, 2], &[]);
        let met = share(&pool, 1, 4000);
        assert!(met.abs_diff(2000) < 160, "{met}");
    }

    #[test]
    fn limits_hold_for_each_endpoint_and_for_all() {
        let table = Table::default();
        let limits = Limits {
            endpoint_connections: Some(2),
            connections: Some(3),
            pending: Some(1),
            ..Limits::default()
        };
        set(&table, with(&[1, 2], &Resilience { limits, ..Resilience::default() }));
        let pool = of(&table);
        let flows: Vec<Flow> = (0..4).map(|_| pool.pick(CLIENT, &[]).unwrap()).collect();
        assert_eq!(pool.pick(CLIENT, &[]).unwrap_err(), NoTurn::Full);
        assert_eq!(pool.pick(CLIENT, &[endpoint(1), endpoint(2)]).unwrap_err(), NoTurn::NoEndpoint);
        drop(flows);
        assert!(pool.pick(CLIENT, &[]).is_ok());
        let held: Vec<Held> = (0..5).filter_map(|_| pool.take_connection()).collect();
        assert_eq!(held.len(), 3);
        let pending = pool.take_pending();
        assert!(pending.is_some() && pool.take_pending().is_none());
    }
}
