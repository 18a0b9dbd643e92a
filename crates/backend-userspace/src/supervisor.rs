//! One worker at work, its listeners, and the lease.
//!
//! Whoever has this asks it every [`Supervisor::PERIOD`] to [look after](Supervisor::look_after) all of that. Then:
//!
//! - a worker that died is started again with the listeners of before, where new connections have waited meanwhile, and is told
//!   all routes;
//! - the lease is renewed only for a worker that is alive, has all routes and has room for flows. Without, it ends, and rules choose
//!   endpoints;
//! - workers that die again and again are given up for a while;
//! - an address that is no longer the node's is given up with its listeners.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use proxy::frame::{Frontend, Route, Routes};
use tokio::time::Instant;
use tracing::{info, warn};

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

/// Looks after a family's worker.
pub struct Supervisor<S: Site> {
    site: S,
    routes: BTreeMap<Frontend, Route>,
    place: Option<(IpAddr, S::Listeners)>,
    worker: Option<S::Worker>,
    /// When workers died of late.
    deaths: VecDeque<Instant>,
    n_deaths: u64,
    /// No worker before.
    not_before: Option<Instant>,
    captures: bool,
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
            place: None,
            worker: None,
            deaths: VecDeque::new(),
            n_deaths: 0,
            not_before: None,
            captures: false,
            is_leased: false,
            complaint: None,
        }
    }

    /// How it is.
    pub fn condition(&self) -> Condition {
        Condition { is_leased: self.is_leased, deaths: self.n_deaths }
    }

    /// Other routes.
    pub(crate) fn set_routes(&mut self, mut routes: Routes, now: Instant) {
        routes.set.retain(|route| self.routes.get(&route.frontend) != Some(route));
        routes.gone.retain(|frontend| self.routes.contains_key(frontend));
        for frontend in &routes.gone {
            self.routes.remove(frontend);
        }
        self.routes.extend(routes.set.iter().map(|route| (route.frontend, route.clone())));
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
        self.captures = true;
        self.look_after(now);
    }

    /// Does what is due.
    pub fn look_after(&mut self, now: Instant) {
        if !self.captures {
            return;
        }
        if let Err(why) = self.renew(now) {
            if self.complaint.as_ref() != Some(&why) {
                warn!(reason = why, "flows go to endpoints without a worker");
            }
            self.complaint = Some(why);
            self.end_lease();
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
            self.end_lease();
            self.place = None;
            if let Some(mut worker) = self.worker.take() {
                worker.drain();
            }
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

    /// Hands over no more flows, and has the worker end with its last one. Gives it, so that it can be waited for.
    pub fn shut_down(&mut self) -> Option<S::Worker> {
        self.captures = false;
        self.end_lease();
        let mut worker = self.worker.take()?;
        worker.drain();
        Some(worker)
    }
}
