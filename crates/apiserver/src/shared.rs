//! What the server's thread and the handles share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::config::{Auth, Config};
use super::faults::{FaultTable, WatchAction, WatchCommand};
use super::kinds::Kind;
use super::store::Store;

/// One request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// HTTP method.
    pub method: String,
    /// Path with the query string.
    pub path_and_query: String,
    /// The `Accept` header.
    pub accept: Option<String>,
    /// All headers.
    pub headers: http::HeaderMap,
    /// The version of HTTP.
    pub version: http::Version,
    /// HTTP status of the answer; 0 when the connection was closed instead.
    pub status: u16,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) store: Store,
    pub(super) faults: FaultTable,
    pub(super) requests: Vec<RequestRecord>,
    /// All commands so far; a watch obeys those that were given after it opened.
    pub(super) commands: Vec<WatchCommand>,
    /// The bearer token that is valid now.
    pub(super) token: Option<String>,
}

/// The shared part of the server. The lock is held for short, never across an await.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    state: Mutex<State>,
    /// Announces the store's revision after each change, and wakes the watches.
    pub(super) revision: watch::Sender<u64>,
    pub(super) refusing: watch::Sender<bool>,
    pub(super) is_listening: watch::Sender<bool>,
    open_watches: [AtomicUsize; Kind::ALL.len()],
}

impl Shared {
    pub(super) fn new(config: Config) -> Self {
        let store = Store::new(config.history_limit);
        let token = match &config.auth {
            Auth::Token(token) => Some(token.clone()),
            Auth::None | Auth::ClientCertificate => None,
        };
        let state =
            State { store, faults: FaultTable::default(), requests: Vec::new(), commands: Vec::new(), token };
        Self {
            config,
            revision: watch::Sender::new(state.store.revision()),
            state: Mutex::new(state),
            refusing: watch::Sender::new(false),
            is_listening: watch::Sender::new(true),
            open_watches: Default::default(),
        }
    }

    /// The state. A panic of another holder leaves it usable, because each change is made in one step.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` on the store and wakes the watches.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.store);
        self.revision.send_replace(state.store.revision());
        result
    }

    /// Tells the watches that are open now to do something, after the changes so far and before later ones.
    pub(super) fn command(&self, kind: Option<Kind>, action: WatchAction) {
        {
            let mut state = self.lock();
            let revision = state.store.revision();
            state.commands.push(WatchCommand { revision, kind, action });
        }
        self.wake();
    }

    /// Lets every watch look for something to do.
    pub(super) fn wake(&self) {
        self.revision.send_modify(|_same| {});
    }

    pub(super) fn open_watches(&self, kind: Kind) -> usize {
        self.open_watches[kind.index()].load(Ordering::SeqCst)
    }
}

/// Counts a watch as open while it lives.
#[derive(Debug)]
pub(super) struct WatchGuard {
    shared: Arc<Shared>,
    kind: Kind,
}

impl WatchGuard {
    pub(super) fn new(shared: Arc<Shared>, kind: Kind) -> Self {
        shared.open_watches[kind.index()].fetch_add(1, Ordering::SeqCst);
        Self { shared, kind }
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.shared.open_watches[self.kind.index()].fetch_sub(1, Ordering::SeqCst);
    }
}
