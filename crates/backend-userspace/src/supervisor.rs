//! One worker at work, its listeners, and the lease.
//!
//! Whoever has this asks it every [`Supervisor::PERIOD`] to [look after](Supervisor::look_after) all of that. Then:
//!
//! - a worker that died is started again with the listeners of before, where new connections have waited meanwhile, and is told
//!   all routes;
//! - the lease is renewed only for a worker that is alive, has all routes and has room for flows. Without, it ends, and rules choose
//!   endpoints;
//! - when nobody serves the listeners any more, flows of UDP are made to go elsewhere;
//! - workers that die again and again are given up for a while;
//! - an address that is no longer the node's is given up with its listeners.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proxy::frame::{Frontend, Route, Routes};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::carried::WithWorker;

/// What has the I/O.
pub trait Site: Send {
    /// Where flows arrive, for workers.
    type Listeners: Send;
    /// A worker.
    type Worker: Worker;

    /// An address of this node: the one that is in use, if it still is one; `None`: there is none.
    fn address(&mut self, in_use: Option<IpAddr>) -> Option<IpAddr>;

    /// Listeners at an address.
    ///
    /// # Errors
    /// What the system says.
    fn listen(&mut self, address: IpAddr) -> io::Result<Self::Listeners>;

    /// Starts a worker, which knows no routes yet.
    ///
    /// # Errors
    /// What the system says.
    fn start(&mut self, listeners: &Self::Listeners) -> io::Result<Self::Worker>;

    /// Renews the lease of these listeners, or begins it.
    ///
    /// # Errors
    /// Why the kernel refuses, in words.
    fn renew(&mut self, listeners: &Self::Listeners) -> Result<(), String>;

    /// Ends the lease, if there is one.
    fn end(&mut self);

    /// Where flows of UDP arrive.
    fn udp(&self, listeners: &Self::Listeners) -> Vec<SocketAddr>;

    /// Has the kernel forget flows of UDP that arrive there, so that their next datagrams go elsewhere.
    fn forget(&mut self, listeners: &[SocketAddr]);
}

/// A worker, as long as it is one.
pub trait Worker: Send {
    /// Has it take other routes, and waits until they are in force.
    ///
    /// # Errors
    /// It is gone, or does not answer.
    fn set_routes(&mut self, routes: &Routes) -> Result<(), WorkerGone>;

    /// Whether it is there.
    fn is_alive(&mut self) -> bool;

    /// Whether it has as many flows as it can have.
    fn is_full(&self) -> bool;

    /// Has it take no more flows, and end with its last one.
    fn drain(&mut self);
}

/// See [`Worker::set_routes`].
#[derive(Debug)]
pub struct WorkerGone(pub String);

impl fmt::Display for WorkerGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// New flows are handed to a worker.
    pub is_leased: bool,
    /// Workers that died.
    pub deaths: u64,
}

/// From so many deaths within [`RECENT`] on, workers are given up for [`GIVEN_UP`].
const MAX_DEATHS: usize = 5;
const RECENT: Duration = Duration::from_mins(1);
const GIVEN_UP: Duration = Duration::from_mins(1);

/// Whether flows are to be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capture {
    NotYet,
    On,
    /// Not any more, whatever is still being planned.
    Over,
}

/// Looks after a family's worker.
pub struct Supervisor<S: Site> {
    site: S,
    routes: BTreeMap<Frontend, Route>,
    with_worker: WithWorker,
    place: Option<(IpAddr, S::Listeners)>,
    worker: Option<S::Worker>,
    /// When workers died of late.
    deaths: VecDeque<Instant>,
    n_deaths: u64,
    /// No worker before.
    not_before: Option<Instant>,
    capture: Capture,
    /// Without routes there is no worker.
    is_lazy: bool,
    is_leased: bool,
    /// What was last complained of, so that it is said once.
    complaint: Option<String>,
}

impl<S: Site> Supervisor<S> {
    /// How often to look after all: the lease stands two failures.
    pub const PERIOD: Duration = Duration::from_secs(1);

    /// Nothing is begun yet.
    pub fn new(site: S) -> Self {
        Self {
            site,
            routes: BTreeMap::new(),
            with_worker: WithWorker::default(),
            place: None,
            worker: None,
            deaths: VecDeque::new(),
            n_deaths: 0,
            not_before: None,
            capture: Capture::NotYet,
            is_lazy: false,
            is_leased: false,
            complaint: None,
        }
    }

    /// Has no worker where there are no routes.
    #[must_use]
    pub fn lazy(self) -> Self {
        Self { is_lazy: true, ..self }
    }

    /// Why flows go to endpoints without a worker, although one should have them.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// How it is.
    pub fn condition(&self) -> Condition {
        Condition { is_leased: self.is_leased, deaths: self.n_deaths }
    }

    /// What is with a worker.
    pub fn with_worker(&self) -> WithWorker {
        self.with_worker.clone()
    }

    /// Other routes.
    pub(crate) fn set_routes(&mut self, mut routes: Routes, now: Instant) {
        routes.set.retain(|route| self.routes.get(&route.frontend) != Some(route));
        routes.gone.retain(|frontend| self.routes.contains_key(frontend));
        for frontend in &routes.gone {
            self.routes.remove(frontend);
        }
        self.routes.extend(routes.set.iter().map(|route| (route.frontend, route.clone())));
        self.with_worker.set_frontends(routes.set.iter().map(|route| &route.frontend), &routes.gone);
        if routes.set.is_empty() && routes.gone.is_empty() {
            return;
        }
        let told = self.worker.as_mut().map(|worker| worker.set_routes(&routes));
        if let Some(Err(gone)) = told {
            warn!(error = %gone, "a worker does not take its routes");
            self.note_death(now);
            self.look_after(now);
        }
    }

    /// From now on flows are handed over.
    pub(crate) fn capture(&mut self, now: Instant) {
        if self.capture == Capture::NotYet {
            self.capture = Capture::On;
        }
        self.look_after(now);
    }

    /// Does what is due.
    pub fn look_after(&mut self, now: Instant) {
        if self.capture != Capture::On {
            return;
        }
        if self.is_lazy && self.routes.is_empty() {
            return self.retire();
        }
        if let Err(why) = self.renew(now) {
            if self.complaint.as_ref() != Some(&why) {
                warn!(reason = why, "flows go to endpoints without a worker");
            }
            self.complaint = Some(why);
            self.end_lease();
            if self.worker.is_none() {
                self.abandon();
            }
        } else if self.complaint.take().is_some() || !self.is_leased {
            info!("flows go through a worker");
            self.is_leased = true;
        }
    }

    fn renew(&mut self, now: Instant) -> Result<(), String> {
        self.check_address();
        self.check_worker(now)?;
        let (Some((_, listeners)), Some(worker)) = (&self.place, &self.worker) else {
            return Err("there is no worker".to_owned());
        };
        if worker.is_full() {
            return Err("the worker has no room".to_owned());
        }
        self.site.renew(listeners)
    }

    /// Gives listeners up whose address is no longer the node's.
    fn check_address(&mut self) {
        let in_use = self.place.as_ref().map(|(address, _)| *address);
        let address = self.site.address(in_use);
        if in_use.is_some() && address != in_use {
            self.leave();
        }
    }

    fn check_worker(&mut self, now: Instant) -> Result<(), String> {
        if self.worker.as_mut().is_some_and(|worker| !worker.is_alive()) {
            warn!("a worker died");
            self.note_death(now);
        }
        if self.worker.is_some() {
            return Ok(());
        }
        if self.not_before.is_some_and(|not_before| now < not_before) {
            return Err("workers die again and again".to_owned());
        }
        self.start(now).map_err(|error| format!("a worker can't be started: {error}"))
    }

    fn start(&mut self, now: Instant) -> io::Result<()> {
        if self.place.is_none() {
            let address = self.site.address(None);
            let address = address.ok_or_else(|| io::Error::other("the node has no address of the family"))?;
            self.place = Some((address, self.site.listen(address)?));
        }
        let Some((_, listeners)) = &self.place else { return Ok(()) };
        let mut worker = self.site.start(listeners)?;
        let all = Routes { replace: true, set: self.routes.values().cloned().collect(), ..Routes::default() };
        if let Err(gone) = worker.set_routes(&all) {
            self.note_death(now);
            return Err(io::Error::other(gone.0));
        }
        self.with_worker.set_listeners(self.site.udp(listeners));
        self.worker = Some(worker);
        Ok(())
    }

    fn note_death(&mut self, now: Instant) {
        self.worker = None;
        self.n_deaths += 1;
        self.deaths.push_back(now);
        self.deaths.retain(|death| now.saturating_duration_since(*death) < RECENT);
        if self.deaths.len() >= MAX_DEATHS {
            self.deaths.clear();
            self.not_before = Some(now + GIVEN_UP);
        }
    }

    fn end_lease(&mut self) {
        // Also if it is not known to be there: an earlier process may have left one.
        self.site.end();
        self.is_leased = false;
    }

    /// Nothing is to be carried any more, for now.
    fn retire(&mut self) {
        self.complaint = None;
        if self.place.is_some() {
            self.leave();
            info!("no Service asks for a worker");
        }
    }

    /// Gives the listeners up, and has the worker end with its last flow.
    fn leave(&mut self) {
        self.end_lease();
        self.abandon();
        self.place = None;
        if let Some(mut worker) = self.worker.take() {
            worker.drain();
        }
    }

    /// Nobody serves the listeners. A client of UDP that goes on sending would never get an answer again.
    fn abandon(&mut self) {
        let listeners = self.with_worker.take_listeners();
        if !listeners.is_empty() {
            self.site.forget(&listeners);
        }
    }

    /// Hands over no more flows, and has the worker end with its last one. Gives it, so that it can be waited for.
    pub fn shut_down(&mut self) -> Option<S::Worker> {
        self.capture = Capture::Over;
        self.end_lease();
        self.abandon();
        let mut worker = self.worker.take()?;
        worker.drain();
        Some(worker)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proxy::frame::{Pool, Protocol};

    use super::*;

    /// What a host does, and what it was asked for.
    #[derive(Debug, Default)]
    struct Host {
        addresses: Vec<IpAddr>,
        /// Listeners that the lease is for, by their address.
        lease: Option<IpAddr>,
        renewals: usize,
        refuses: bool,
        workers: Vec<FakeState>,
        /// Listeners whose flows were forgotten.
        forgotten: Vec<SocketAddr>,
        /// Workers that start and die at once.
        doomed: bool,
    }

    #[derive(Debug, Default)]
    struct FakeState {
        address: Option<IpAddr>,
        routes: Vec<Frontend>,
        is_dead: bool,
        is_full: bool,
        drains: bool,
    }

    type Shared = Arc<Mutex<Host>>;

    struct FakeSite(Shared);

    struct FakeWorker(Shared, usize);

    impl Site for FakeSite {
        type Listeners = IpAddr;
        type Worker = FakeWorker;

        fn address(&mut self, in_use: Option<IpAddr>) -> Option<IpAddr> {
            let addresses = &self.0.lock().unwrap().addresses;
            in_use.filter(|in_use| addresses.contains(in_use)).or(addresses.first().copied())
        }

        fn listen(&mut self, address: IpAddr) -> io::Result<IpAddr> {
            Ok(address)
        }

        fn start(&mut self, listeners: &IpAddr) -> io::Result<FakeWorker> {
            let mut host = self.0.lock().unwrap();
            let is_dead = host.doomed;
            host.workers.push(FakeState { address: Some(*listeners), is_dead, ..FakeState::default() });
            Ok(FakeWorker(self.0.clone(), host.workers.len() - 1))
        }

        fn renew(&mut self, listeners: &IpAddr) -> Result<(), String> {
            let mut host = self.0.lock().unwrap();
            if host.refuses {
                return Err("refused".to_owned());
            }
            host.lease = Some(*listeners);
            host.renewals += 1;
            Ok(())
        }

        fn end(&mut self) {
            self.0.lock().unwrap().lease = None;
        }

        fn udp(&self, listeners: &IpAddr) -> Vec<SocketAddr> {
            vec![(*listeners, 53).into()]
        }

        fn forget(&mut self, listeners: &[SocketAddr]) {
            let mut host = self.0.lock().unwrap();
            assert_eq!(host.lease, None, "new flows would come");
            host.forgotten.extend(listeners);
        }
    }

    impl Worker for FakeWorker {
        fn set_routes(&mut self, routes: &Routes) -> Result<(), WorkerGone> {
            let state = &mut self.0.lock().unwrap().workers[self.1];
            if state.is_dead {
                return Err(WorkerGone("dead".to_owned()));
            }
            if routes.replace {
                state.routes.clear();
            }
            state.routes.retain(|frontend| !routes.gone.contains(frontend));
            state.routes.extend(routes.set.iter().map(|route| route.frontend));
            Ok(())
        }

        fn is_alive(&mut self) -> bool {
            !self.0.lock().unwrap().workers[self.1].is_dead
        }

        fn is_full(&self) -> bool {
            self.0.lock().unwrap().workers[self.1].is_full
        }

        fn drain(&mut self) {
            self.0.lock().unwrap().workers[self.1].drains = true;
        }
    }

    fn address(n: u8) -> IpAddr {
        [192, 168, 0, n].into()
    }

    fn frontend(port: u16) -> Frontend {
        Frontend { address: None, protocol: Protocol::Tcp, port }
    }

    fn set(ports: &[u16]) -> Routes {
        let pool = || Pool {
            name: "a".to_owned(),
            endpoints: vec![([10, 0, 0, 1], 80).into()],
            affinity_secs: None,
            ..Pool::default()
        };
        let route =
            |port: &u16| Route { frontend: frontend(*port), any: pool(), internal: None, policy: None };
        Routes { set: ports.iter().map(route).collect(), ..Routes::default() }
    }

    fn begun(ports: &[u16]) -> (Shared, Supervisor<FakeSite>, Instant) {
        let host = Arc::new(Mutex::new(Host { addresses: vec![address(7)], ..Host::default() }));
        let (mut supervisor, now) = (Supervisor::new(FakeSite(host.clone())), Instant::now());
        supervisor.set_routes(set(ports), now);
        (host, supervisor, now)
    }

    #[test]
    fn nothing_is_handed_over_before_all_is_in_place() {
        let (host, mut supervisor, now) = begun(&[1]);
        supervisor.look_after(now);
        assert!(host.lock().unwrap().workers.is_empty());
        assert_eq!(host.lock().unwrap().lease, None);
        supervisor.capture(now);
        assert_eq!(host.lock().unwrap().lease, Some(address(7)));
        assert_eq!(host.lock().unwrap().workers[0].routes, [frontend(1)]);
        assert_eq!(supervisor.condition(), Condition { is_leased: true, deaths: 0 });
    }

    #[test]
    fn each_look_renews_the_lease() {
        let (host, mut supervisor, now) = begun(&[1]);
        supervisor.capture(now);
        supervisor.look_after(now + Supervisor::<FakeSite>::PERIOD);
        assert_eq!(host.lock().unwrap().renewals, 2);
        assert_eq!(host.lock().unwrap().workers.len(), 1);
    }

    #[test]
    fn a_worker_hears_of_what_differs_and_the_next_one_of_all() {
        let (host, mut supervisor, now) = begun(&[1, 2]);
        supervisor.capture(now);
        let gone = Routes { gone: vec![frontend(1), frontend(9)], ..set(&[2, 3]) };
        supervisor.set_routes(gone, now);
        assert_eq!(host.lock().unwrap().workers[0].routes, [frontend(2), frontend(3)]);
        host.lock().unwrap().workers[0].is_dead = true;
        supervisor.look_after(now);
        assert_eq!(host.lock().unwrap().workers[1].routes, [frontend(2), frontend(3)]);
        assert_eq!(host.lock().unwrap().lease, Some(address(7)), "connections wait for it");
        assert_eq!(supervisor.condition().deaths, 1);
    }

    #[test]
    fn a_worker_that_takes_no_routes_is_replaced_at_once() {
        let (host, mut supervisor, now) = begun(&[1]);
        supervisor.capture(now);
        host.lock().unwrap().workers[0].is_dead = true;
        supervisor.set_routes(set(&[2]), now);
        assert_eq!(host.lock().unwrap().workers[1].routes, [frontend(1), frontend(2)]);
    }

    #[test]
    fn a_full_worker_gets_no_more_until_it_has_room() {
        let (host, mut supervisor, now) = begun(&[1]);
        supervisor.capture(now);
        host.lock().unwrap().workers[0].is_full = true;
        supervisor.look_after(now);
        assert_eq!(host.lock().unwrap().lease, None);
        assert!(!supervisor.condition().is_leased);
        host.lock().unwrap().workers[0].is_full = false;
        supervisor.look_after(now);
        assert_eq!(host.lock().unwrap().lease, Some(address(7)));
        assert_eq!(host.lock().unwrap().workers.len(), 1);
    }

    #[test]
    fn workers_that_die_again_and_again_are_given_up_for_a_while() {
        let (host, mut supervisor, now) = begun(&[1]);
        host.lock().unwrap().doomed = true;
        for _ in 0..20 {
            supervisor.capture(now);
        }
        assert_eq!(host.lock().unwrap().workers.len(), MAX_DEATHS);
        assert_eq!(host.lock().unwrap().lease, None);
        host.lock().unwrap().doomed = false;
        supervisor.look_after(now + GIVEN_UP - Duration::from_secs(1));
        assert_eq!(host.lock().unwrap().lease, None);
        supervisor.look_after(now + GIVEN_UP);
        assert_eq!(host.lock().unwrap().lease, Some(address(7)));
    }

    #[test]
    fn flows_are_forgotten_once_when_nobody_serves_them_any_more() {
        let (host, mut supervisor, now) = begun(&[1]);
        supervisor.capture(now);
        host.lock().unwrap().doomed = true;
        let forgotten = || host.lock().unwrap().forgotten.clone();
        for _ in 0..20 {
            host.lock().unwrap().workers[0].is_dead = true;
            supervisor.look_after(now);
        }
        assert_eq!(forgotten(), [(address(7), 53).into()]);
        // One that has no room carries what it has.
        host.lock().unwrap().doomed = false;
        supervisor.look_after(now + GIVEN_UP);
        host.lock().unwrap().workers.last_mut().unwrap().is_full = true;
        supervisor.look_after(now + GIVEN_UP);
        assert_eq!(forgotten().len(), 1);
        supervisor.shut_down();
        assert_eq!(forgotten().len(), 2);
    }

    #[test]
    fn deaths_of_long_ago_do_not_count() {
        let (host, mut supervisor, mut now) = begun(&[1]);
        supervisor.capture(now);
        for n in 0..3 * MAX_DEATHS {
            host.lock().unwrap().workers[n].is_dead = true;
            now += RECENT / 4;
            supervisor.look_after(now);
            assert_eq!(host.lock().unwrap().lease, Some(address(7)), "after {n} deaths");
        }
    }

    #[test]
    fn an_address_that_goes_takes_its_listeners_and_drains_its_worker() {
        let (host, mut supervisor, now) = begun(&[1]);
        supervisor.capture(now);
        // Another one alone changes nothing.
        host.lock().unwrap().addresses.insert(0, address(8));
        supervisor.look_after(now);
        assert_eq!(host.lock().unwrap().workers.len(), 1);
        host.lock().unwrap().addresses = vec![address(8)];
        supervisor.look_after(now);
        let state = host.lock().unwrap();
        assert!(state.workers[0].drains);
        assert_eq!((state.lease, state.workers[1].address), (Some(address(8)), Some(address(8))));
    }

    #[test]
    fn a_node_without_an_address_has_no_worker() {
        let (host, mut supervisor, now) = begun(&[1]);
        host.lock().unwrap().addresses.clear();
        supervisor.capture(now);
        assert!(host.lock().unwrap().workers.is_empty());
        host.lock().unwrap().addresses.push(address(7));
        supervisor.look_after(now);
        assert_eq!(host.lock().unwrap().lease, Some(address(7)));
    }

    #[test]
    fn a_worker_that_only_some_ask_for_is_there_for_as_long_as_somebody_does() {
        let host = Arc::new(Mutex::new(Host { addresses: vec![address(7)], ..Host::default() }));
        let (mut supervisor, now) = (Supervisor::new(FakeSite(host.clone())).lazy(), Instant::now());
        supervisor.capture(now);
        assert!(host.lock().unwrap().workers.is_empty());
        for n in 1..3 {
            supervisor.set_routes(set(&[1]), now);
            supervisor.look_after(now);
            assert_eq!(host.lock().unwrap().lease, Some(address(7)));
            assert_eq!(host.lock().unwrap().workers.len(), n);
            supervisor.set_routes(Routes { gone: vec![frontend(1)], ..Routes::default() }, now);
            supervisor.look_after(now);
            let state = host.lock().unwrap();
            assert!(state.workers[n - 1].drains && state.lease.is_none());
            assert_eq!(state.forgotten.len(), n);
        }
        assert_eq!(supervisor.condition().deaths, 0);
    }

    #[test]
    fn a_lease_that_is_refused_is_asked_for_again() {
        let (host, mut supervisor, now) = begun(&[1]);
        host.lock().unwrap().refuses = true;
        supervisor.capture(now);
        assert!(!supervisor.condition().is_leased && supervisor.complaint().is_some());
        host.lock().unwrap().refuses = false;
        supervisor.look_after(now);
        assert_eq!(supervisor.complaint(), None);
        assert!(supervisor.condition().is_leased);
    }

    #[test]
    fn the_end_drains_and_hands_nothing_over_any_more() {
        let (host, mut supervisor, now) = begun(&[1]);
        supervisor.capture(now);
        assert!(supervisor.shut_down().is_some());
        supervisor.look_after(now);
        // A plan that was under way.
        supervisor.capture(now);
        let state = host.lock().unwrap();
        assert!(state.workers[0].drains);
        assert_eq!((state.lease, state.workers.len()), (None, 1));
    }
}
