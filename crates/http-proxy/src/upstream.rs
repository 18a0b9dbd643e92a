//! Connections to the endpoints of a Service, kept and shared.

mod endpoint;
mod io;
mod life;
mod sending;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxBuildHasher;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub(crate) use self::endpoint::{ConnectError, Endpoint};
pub(crate) use self::sending::{Connection, Lent, SendError};
use crate::retry::Budget;

pub use io::tune;

/// How a worker carries requests.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For how long a connection to an endpoint is tried, before another endpoint is.
    pub connect_timeout: Duration,
    /// For how long requests may go on at an endpoint that is gone.
    pub drain: Duration,
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
    budget: Mutex<Budget>,
    began: Instant,
    /// Bytes of requests that are kept to be sent again.
    pub(crate) kept_bytes: Arc<AtomicUsize>,
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
            common,
            endpoints: Mutex::default(),
            budget: Mutex::default(),
            began: Instant::now(),
            kept_bytes: Arc::default(),
        }
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
    }

    /// Connections to an endpoint.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> Arc<Endpoint> {
        let mut endpoints = self.endpoints();
        let new = || Arc::new(Endpoint::new(address, self.common.clone()));
        endpoints.entry(address).or_insert_with(new).clone()
    }

    /// Room for a request, if there is some. The request counts for the budget of retries.
    pub(crate) fn begin(&self) -> Option<OwnedSemaphorePermit> {
        let room = self.common.requests.clone().try_acquire_owned().ok()?;
        self.budget().request(self.began.elapsed());
        Some(room)
    }

    /// Takes a retry from the budget, if there is one.
    pub(crate) fn take_retry(&self) -> bool {
        self.budget().take_retry(self.began.elapsed())
    }

    fn endpoints(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Endpoint>, FxBuildHasher>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
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
