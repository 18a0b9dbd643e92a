//! A small Kubernetes API server for tests, demonstrations and measurements.
//!
//! It speaks HTTP/1.1, HTTP/2 and HTTPS as a real server does to a proxy: pagination,
//! selectors, streamed lists, bookmarks, compressed lists, expired resource versions, JSON and Kubernetes protobuf, and it can
//! misbehave on request ([`Faults`]). It runs on a thread of its own, so that tests need no runtime.
//!
//! What it does not do: discovery, CBOR and YAML bodies, tables, server-side apply and strategic
//! merge patches, deletion with finalizers or of whole collections, admission, defaults, and validation beyond the
//! schema of a kind. Objects are stored as they come, with only `uid`, `creationTimestamp` and `resourceVersion`
//! filled in.
#![forbid(unsafe_code)]

mod body;
mod config;
mod error;
mod faults;
mod json;
mod json_patch;
mod kinds;
mod kubeconfig;
mod list;
pub mod middlebox;
mod negotiate;
mod object;
mod objects;
mod options;
mod proto;
mod schema;
mod selector;
mod server;
mod service;
mod shared;
mod status;
mod store;
mod tables;
mod time;
mod tls;
mod token;
mod watch;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

pub use config::{Auth, Certificates, Config, Keys};
pub use error::{ObjectError, SchemaError, StartError};
pub use faults::{Disorder, Fault, Faults, Rule, Verb};
pub use kinds::Kind;
pub use negotiate::{Format, ProtobufSupport};
pub use shared::RequestRecord;

use object::{Object, key};
use shared::Shared;
use store::Store;
use tls::ClientTrust;

/// A running API server. Dropping it stops it and breaks its connections.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    trust: Option<ClientTrust>,
    acceptor: Option<TlsAcceptor>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Starts a server without objects. The socket is made on the calling thread, and the server's own thread
    /// inherits the caller's network namespace.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on, or certificates or the thread cannot be made.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let listen = |source| StartError::Listen { address: config.address, source };
        let listener = TcpListener::bind(config.address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (acceptor, trust) =
            if config.uses_tls() { Some(tls::make(&config)?).unzip() } else { (None, None) };
        let shared = Arc::new(Shared::new(config));
        let (stop, stopped) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let (for_thread, for_proxies) = (shared.clone(), acceptor.clone());
        let serve = move || {
            if let Err(error) =
                runtime.block_on(server::run(for_thread, listener, address, acceptor, stopped))
            {
                tracing::error!(%error, "the API server stopped");
            }
        };
        let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn(serve);
        let thread = Some(thread.map_err(StartError::Thread)?);
        Ok(Self { shared, address, trust, acceptor: for_proxies, stop: Some(stop), thread })
    }

    /// `http://127.0.0.1:12345`, or `https://`.
    pub fn url(&self) -> String {
        let scheme = if self.trust.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA's certificate in PEM, when the server uses TLS.
    pub fn ca_certificate(&self) -> Option<&str> {
        self.trust.as_ref().map(|trust| trust.ca.as_str())
    }

    /// The server's side of TLS, for a proxy with the same certificate.
    pub fn tls_acceptor(&self) -> Option<TlsAcceptor> {
        self.acceptor.clone()
    }

    /// Writes a kubeconfig with all that a client needs into `dir` (beside it the certificates that it
    /// names), and returns its path.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn kubeconfig(&self, dir: &Path) -> io::Result<PathBuf> {
        let has_certificate = self.shared.config.auth == Auth::ClientCertificate;
        let token = self.shared.lock().token.clone();
        kubeconfig::write(dir, &self.url(), self.trust.as_ref(), has_certificate, token.as_deref())
    }

    /// Replaces the bearer token; the old one is invalid at once. Only with [`Auth::Token`].
    pub fn set_token(&self, token: impl Into<String>) {
        self.shared.lock().token = Some(token.into());
    }

    /// Creates an object, or replaces the one of the same name, and returns its resource version.
    /// `apiVersion` and `kind` are needed; any `metadata.resourceVersion` is overwritten.
    ///
    /// # Errors
    ///
    /// When the kind is unknown, the name is missing or a field is of the wrong type.
    pub fn apply(&self, object: Value) -> Result<u64, ObjectError> {
        self.shared.change(|store| put(store, object))
    }

    /// Applies many objects, taking the lock once, and returns the last resource version.
    ///
    /// # Errors
    ///
    /// At the first object that [`ApiServer::apply`] would not take; those before it stay.
    pub fn load(&self, objects: impl IntoIterator<Item = Value>) -> Result<u64, ObjectError> {
        self.shared.change(|store| {
            for object in objects {
                put(store, object)?;
            }
            Ok(store.revision())
        })
    }

    /// Stores an object with its metadata exactly as given, `resourceVersion` included, which becomes the
    /// server's revision if it is larger. For starting from a recorded state: open watches are not told, and
    /// the history begins after it.
    ///
    /// # Errors
    ///
    /// As [`ApiServer::apply`].
    pub fn restore(&self, object: &Value) -> Result<(), ObjectError> {
        let kind = kind_of(object)?;
        let version =
            object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0);
        let object = Object::new(kind, object, version)?;
        self.shared.change(|store| store.restore(object));
        Ok(())
    }

    /// Lets the resource version jump forward, as after writes to kinds that nobody here watches. Smaller
    /// values do nothing.
    pub fn advance_to(&self, resource_version: u64) {
        self.shared.change(|store| store.advance_to(resource_version));
    }

    /// Removes an object; `namespace` is empty for cluster-wide kinds. Returns the resource version of the
    /// removal, or `None` when there was no such object.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Option<u64> {
        self.shared
            .change(|store| store.remove(kind, &key(namespace, name)))
            .map(|last| last.resource_version)
    }

    /// Puts an object whose JSON (without `kind` and `apiVersion`) and protobuf (without envelope) are
    /// arbitrary bytes into lists and watches. It has no labels, and all fields that can be selected by are
    /// empty. Returns its resource version.
    pub fn inject_raw(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        json: impl Into<Bytes>,
        proto: impl Into<Bytes>,
    ) -> u64 {
        let (json, proto) = (json.into(), proto.into());
        self.shared.change(|store| {
            let made: Result<_, std::convert::Infallible> =
                store.put(|revision| Ok(Object::raw(kind, namespace, name, json, proto, revision)));
            match made {
                Ok(object) => object.resource_version,
                Err(never) => match never {},
            }
        })
    }

    /// One object with `kind` and `apiVersion`, if it exists and is no raw one.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        let object = self.shared.lock().store.get(kind, &key(namespace, name)).cloned();
        object?.value()
    }

    /// All objects of a kind in the order of a list, without raw ones.
    pub fn list(&self, kind: Kind) -> Vec<Value> {
        let objects: Vec<Arc<Object>> = self.shared.lock().store.objects(kind).values().cloned().collect();
        objects.iter().filter_map(|object| object.value()).collect()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.shared.lock().store.objects(kind).len()
    }

    /// The events that clients have posted, of both event APIs.
    pub fn events(&self) -> Vec<Value> {
        let mut events = self.list(Kind::Event);
        events.extend(self.list(Kind::CoreEvent));
        events
    }

    /// The newest resource version.
    pub fn resource_version(&self) -> u64 {
        self.shared.lock().store.revision()
    }

    /// Forgets the history: every resource version handed out so far has expired, and watches that start from
    /// one get 410. Open watches that are up to date go on only from the new revision, so they get 410 too.
    pub fn expire(&self) {
        self.shared.change(Store::expire);
    }

    /// An older backup comes back: these objects are all there is, at this resource version, which may be lower than what was
    /// handed out. Open watches are not told; those from a later version wait for it, as in a real server.
    ///
    /// # Errors
    ///
    /// As [`ApiServer::apply`].
    pub fn restore_backup(
        &self,
        resource_version: u64,
        objects: impl IntoIterator<Item = Value>,
    ) -> Result<(), ObjectError> {
        self.shared.change(|store| {
            *store = Store::new(self.shared.config.history_limit);
            for object in objects {
                put(store, object)?;
            }
            store.advance_to(resource_version);
            Ok(())
        })
    }

    /// Every request so far, oldest first. Watches are listed when they begin.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.shared.lock().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.lock().requests.clear();
    }

    /// How many watches of a kind are open.
    pub fn open_watches(&self, kind: Kind) -> usize {
        self.shared.open_watches(kind)
    }

    /// Waits until `count` watches of a kind are open, and says whether that happened in time.
    pub fn wait_for_watches(&self, kind: Kind, count: usize, limit: Duration) -> bool {
        let mut waited = Duration::ZERO;
        while self.open_watches(kind) != count && waited < limit {
            std::thread::sleep(Duration::from_millis(1));
            waited += Duration::from_millis(1);
        }
        self.open_watches(kind) == count
    }

    /// The handle for making this server misbehave.
    pub fn faults(&self) -> Faults {
        Faults { shared: self.shared.clone() }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the API server's thread panicked");
        }
    }
}

fn kind_of(object: &Value) -> Result<Kind, ObjectError> {
    let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    Kind::from_type(&api_version, &kind).ok_or(ObjectError::UnknownKind { api_version, kind })
}

fn put(store: &mut Store, mut object: Value) -> Result<u64, ObjectError> {
    let kind = kind_of(&object)?;
    objects::put_value(store, kind, &mut object).map(|object| object.resource_version)
}
