//! Where the objects come from: an API server's lists and watches, or a folder of manifests.
//!
//! Flow: configuration and files (`access`) → connections (`dial`, `tls`) → requests (`transport`) → bytes → crate `api` → state machine (`machine`, one per kind, without I/O) →
//! [`SourceEvent`]s in a bounded channel, in the order of each kind. An event that arrives is in the channel at once;
//! nothing here waits for more to come. A listing is delivered whole or not at all, so nobody ever sees half a state.
#![forbid(unsafe_code)]

mod access;
mod backoff;
mod body;
mod client;
mod config;
mod credentials;
mod dial;
mod drive;
mod environment;
mod event;
mod file;
mod files;
mod folder;
mod kubeconfig;
mod listing;
mod machine;
mod plugin;
mod proxy;
mod request;
mod scan;
mod tls;
mod transport;

use std::sync::{Arc, Mutex};

use metrics::SourceMetrics;
use model::{Interner, Kind};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

pub use access::{AccessError, ConnectError, UrlError};
pub use client::{Client, Method, WriteError};
pub use config::{ApiConfig, ContentType, Timings, user_agent};
pub use environment::Environment;
use event::Events;
pub use event::SourceEvent;
pub use file::{ReadError, read_text};
pub use files::FileError;
pub use folder::FolderError;
pub use kubeconfig::KubeconfigError;
pub use proxy::ProxyError;
pub use tls::{KeyError, TlsError};

/// Names shared by the tasks of one source. The lock is held while one message is decoded, never across an await.
type SharedInterner = Arc<Mutex<Interner>>;

/// A running source. Dropping it stops it.
#[derive(Debug)]
pub struct Source {
    tasks: JoinSet<()>,
    client: Option<Client>,
}

impl Source {
    /// The way to write to the API server, over the same connections; `None` for a folder.
    pub fn client(&self) -> Option<Client> {
        self.client.clone()
    }

    /// Returns when a task of the source has ended. That happens when the receiver is gone, or by a fault in the program
    /// (a panic): then nothing more is learnt of some kind, and the program should not go on as if it were.
    pub async fn ended(&mut self) {
        self.tasks.join_next().await;
    }
}

/// Starts to list and watch all kinds at an API server.
///
/// The server need not be there yet: only what is wrong with the configuration itself is an error, everything else is
/// reported as [`SourceEvent::Problem`] and tried again. The tasks end when the channel's receiver is dropped.
///
/// # Errors
/// The kubeconfig or the pod's service account can't be read, or names credentials that can't be used.
pub async fn spawn_api(
    config: ApiConfig,
    metrics: SourceMetrics,
    events: Sender<SourceEvent>,
) -> Result<Source, ConnectError> {
    spawn_api_in(Environment::of_process(), config, metrics, events).await
}

/// The same in an environment of one's own.
///
/// # Errors
/// As [`spawn_api`].
pub async fn spawn_api_in(
    environment: Environment,
    config: ApiConfig,
    metrics: SourceMetrics,
    events: Sender<SourceEvent>,
) -> Result<Source, ConnectError> {
    let events = Events::new(events, metrics);
    let timings = config.timings;
    let transport = Arc::new(transport::Transport::connect(config, environment).await?);
    let interner = SharedInterner::default();
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL {
        let driver = drive::Driver::new(kind, transport.clone(), timings, interner.clone(), events.clone());
        tasks.spawn(driver.run());
    }
    Ok(Source { tasks, client: Some(Client::new(transport)) })
}

/// Starts to read the manifests (`*.yaml`, `*.yml`, `*.json`, not recursive) of a folder, and reads them again when they
/// change. Every kind counts as listed after the first reading.
///
/// # Errors
/// The folder does not exist or can't be watched.
pub fn spawn_folder(
    dir: std::path::PathBuf,
    metrics: SourceMetrics,
    events: Sender<SourceEvent>,
) -> Result<Source, FolderError> {
    let events = Events::new(events, metrics);
    let folder = folder::Folder::open(dir)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(folder.run(events));
    Ok(Source { tasks, client: None })
}
