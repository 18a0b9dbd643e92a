//! Connections to the endpoints of a Service, kept and shared.

mod endpoint;
mod io;
mod life;
mod sending;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use balance::{Limits, Resilience};
use rustc_hash::FxBuildHasher;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub(crate) use self::endpoint::{ConnectError, Endpoint};
pub(crate) use self::sending::{Connection, Lent, SendError};
use crate::gauge::{Gauge, Held};
use crate::retry::Budget;
use crate::times::Times;

pub use io::tune;

/// How a worker carries requests.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For how long what may take, where a Service does not say.
    pub times: Times,
    /// Requests under way at a time; more are answered with an error.
    pub max_requests: usize,
    /// Connections to endpoints that are kept for later.
    pub max_idle: usize,
}

/// Hears of connections to endpoints, by both of their ends.
pub trait Sockets: Send + Sync + 'static {
    /// There is one.
    fn opened(&self, local: SocketAddr, endpoint: SocketAddr);
    /// It is no more.
    fn closed(&self, local: SocketAddr, endpoint: SocketAddr);
}

/// What all of a worker's [`Upstream`]s share.
pub(crate) struct Common {
    pub(crate) settings: Settings,
    pub(crate) sockets: Arc<dyn Sockets>,
    requests: Arc<Semaphore>,
    idle: Arc<Semaphore>,
}

/// Connections to the endpoints of one pool, and its budget of retries.
pub struct Upstream {
    common: Arc<Common>,
    endpoints: Mutex<HashMap<SocketAddr, Arc<Endpoint>, FxBuildHasher>>,
    /// Those to which single clients have connections of their own, for as long as they do.
    of_clients: Mutex<Vec<Weak<Endpoint>>>,
    budget: Mutex<Budget>,
    began: Instant,
    retries: Gauge,
    own: Arc<Own>,
    /// Bytes of requests that are kept to be sent again.
    pub(crate) kept_bytes: Arc<AtomicUsize>,
}

/// What goes on at the endpoints of one pool, and its limits.
#[derive(Debug)]
pub(crate) struct Own {
    asked: Mutex<(Limits, Times)>,
    requests: Gauge,
    connections: Gauge,
    pending: Gauge,
}

/// A request's room among all requests of the worker, and among those of its pool.
#[derive(Debug)]
pub(crate) struct Room {
    _of_all: OwnedSemaphorePermit,
    _own: Held,
}

/// A connection's place among those of its pool, and among those of its endpoint.
#[derive(Debug)]
pub(crate) struct Place {
    _of_pool: Held,
    _of_endpoint: Held,
}

impl Own {
    fn new(times: Times) -> Self {
        let (requests, connections, pending) = Default::default();
        Self { asked: Mutex::new((Limits::default(), times)), requests, connections, pending }
    }

    fn asked(&self) -> MutexGuard<'_, (Limits, Times)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> Limits {
        self.asked().0
    }

    pub(crate) fn times(&self) -> Times {
        self.asked().1
    }

    /// A place for another connection to an endpoint that has so many, if there is one; and among those that are being made.
    pub(crate) fn take_place(&self, of_endpoint: &Gauge) -> Option<(Place, Held)> {
        let limits = self.limits();
        let pending = self.pending.take(limits.pending)?;
        let of_endpoint = of_endpoint.take(limits.endpoint_connections)?;
        let of_pool = self.connections.take(limits.connections)?;
        Some((Place { _of_pool: of_pool, _of_endpoint: of_endpoint }, pending))
    }
}

impl Upstream {
    /// Without any connection yet.
    pub fn new(settings: Settings, sockets: Arc<dyn Sockets>) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        let (requests, idle) = (semaphore(settings.max_requests), semaphore(settings.max_idle));
        Self::with(Arc::new(Common { settings, sockets, requests, idle }))
    }

    /// Another one, which shares the limits of this one.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self::with(self.common.clone())
    }

    fn with(common: Arc<Common>) -> Self {
        Self {
            own: Arc::new(Own::new(common.settings.times)),
            common,
            endpoints: Mutex::default(),
            of_clients: Mutex::default(),
            budget: Mutex::default(),
            began: Instant::now(),
            retries: Gauge::default(),
            kept_bytes: Arc::default(),
        }
    }

    /// How much may go on at a time from now on, and for how long.
    pub fn ask(&self, asked: &Resilience) {
        *self.own.asked() = (asked.limits, self.common.settings.times.but(asked.timeouts));
    }

    /// For how long a request waits for its answer to begin.
    pub(crate) fn request_limit(&self) -> Option<Duration> {
        self.own.times().request
    }

    /// Gives up connections to other endpoints than these: idle ones at once, others when nothing goes on there any more.
    pub fn retain(&self, is_there: impl Fn(SocketAddr) -> bool) {
        self.endpoints().retain(|address, endpoint| {
            let is_there = is_there(*address);
            if !is_there {
                endpoint.close();
            }
            is_there
        });
        self.of_clients().retain(|endpoint| {
            let Some(endpoint) = endpoint.upgrade() else { return false };
            let is_there = is_there(endpoint.address());
            if !is_there {
                endpoint.close();
            }
            is_there
        });
    }

    /// Connections to an endpoint.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> Arc<Endpoint> {
        let mut endpoints = self.endpoints();
        let new = || Arc::new(Endpoint::new(address, self.common.clone(), self.own.clone()));
        endpoints.entry(address).or_insert_with(new).clone()
    }

    /// Connections to an endpoint for one client alone, each of which begins with this. They count among all of the endpoint's.
    pub(crate) fn endpoint_of_client(&self, address: SocketAddr, preface: Arc<[u8]>) -> Arc<Endpoint> {
        let endpoint = Arc::new(self.endpoint(address).of_client(preface));
        let mut of_clients = self.of_clients();
        if of_clients.len() == of_clients.capacity() {
            of_clients.retain(|endpoint| endpoint.strong_count() > 0);
        }
        of_clients.push(Arc::downgrade(&endpoint));
        endpoint
    }

    /// Room for a request, if there is some. The request counts for the budget of retries.
    pub(crate) fn begin(&self) -> Option<Room> {
        let of_all = self.common.requests.clone().try_acquire_owned().ok()?;
        let own = self.own.requests.take(self.own.limits().requests)?;
        self.budget().request(self.began.elapsed());
        Some(Room { _of_all: of_all, _own: own })
    }

    /// Takes a retry from the budget, if there is one, and if there may be another one at this time.
    pub(crate) fn take_retry(&self) -> Option<Held> {
        let retry = self.retries.take(self.own.limits().retries)?;
        self.budget().take_retry(self.began.elapsed()).then_some(retry)
    }

    fn endpoints(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Endpoint>, FxBuildHasher>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_clients(&self) -> MutexGuard<'_, Vec<Weak<Endpoint>>> {
        self.of_clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Common {
    /// A place for a connection that is kept for later, if there is one.
    fn idle_place(&self) -> Option<OwnedSemaphorePermit> {
        self.idle.clone().try_acquire_owned().ok()
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("settings", &self.common.settings).finish_non_exhaustive()
    }
}
