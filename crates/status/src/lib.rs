//! The HTTP servers: metrics (10249), health (10256), and the health checks of Services on their node ports.
//!
//! All of them run on a thread of their own, so that they answer also while the event loop is busy or stuck, and so that no
//! client can delay a change on its way to the kernel. Nothing flows back: they read metrics, health and the published
//! health checks (crate `metrics`), and tell of failures through [`Notify`] and [`Status::failed`].
//!
//! Paths, codes, headers and bodies are those of Kubernetes v1.36 (`cmd/kube-proxy/app/server.go`,
//! `pkg/proxy/healthcheck`, `component-base/zpages`).
#![forbid(unsafe_code)]

mod addresses;
mod answer;
mod checks;
mod debug;
mod health;
mod listen;
mod metrics_server;
mod negotiate;
#[cfg_attr(windows, path = "process/windows.rs")]
#[cfg_attr(not(windows), path = "process/linux.rs")]
mod process;
mod routes;
mod serve;
#[cfg_attr(windows, path = "sockets/windows.rs")]
#[cfg_attr(not(windows), path = "sockets/unix.rs")]
mod sockets;
mod zpages;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use http::Response;
use http::request::Parts;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Bytes;
use metrics::Metrics;
use metrics::health::SharedHealth;
use model::view::HealthChecks;
use model::{IpFamily, ServiceName};
use tokio::sync::{mpsc, oneshot, watch};

pub use serve::Limits;

/// What is served, and where.
#[derive(Clone)]
pub struct Config {
    /// `metricsBindAddress`; `None`: no metrics server. Port 0: one that the system chooses.
    pub metrics_address: Option<SocketAddr>,
    /// `inspectSocket`: a socket of the file system that answers as the metrics server does.
    pub socket: Option<PathBuf>,
    /// `healthzBindAddress`; the same.
    pub health_address: Option<SocketAddr>,
    /// `bindAddressHardFail`: [`Status::failed`] returns when one of these two can't be served.
    pub bind_hard_fail: bool,
    /// `enableProfiling`: `/debug/pprof` and `/debug/flags` on the metrics server.
    pub profiling: bool,
    /// The proxy mode in effect, for `/proxyMode`.
    pub mode: String,
    /// The body of `/configz`.
    pub configz: String,
    /// All flags and their values, for `/flagz`; `None`: it does not exist (feature gate `ComponentFlagz`).
    pub flags: Option<Vec<(String, String)>>,
    /// Whether `/statusz` exists (feature gate `ComponentStatusz`).
    pub serves_statusz: bool,
    /// The program's version, for `/statusz`.
    pub version: String,
    /// Sets the verbosity of the log, for `/debug/flags/v`.
    pub set_verbosity: SetVerbosity,
    /// Further paths of the metrics server.
    pub further: Further,
    /// What clients may take.
    pub limits: Limits,
}

/// Paths of the metrics server that are not upstream's, and who answers them.
#[derive(Clone)]
pub struct Further {
    /// Paths, which may have parts such as `{name}`, or `{*rest}` at their end.
    pub paths: &'static [&'static str],
    /// Answers a request to one of them; its body is not looked at.
    pub answer: Arc<dyn Fn(Parts) -> Answering + Send + Sync>,
}

/// An answer that may take its time, and come piece by piece.
pub type Answering = Pin<Box<dyn Future<Output = Response<UnsyncBoxBody<Bytes, Infallible>>> + Send>>;

/// Sets the verbosity of the log, or says why not.
pub type SetVerbosity = Arc<dyn Fn(i32) -> Result<(), String> + Send + Sync>;

/// Where the answers come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Health of the proxy.
    pub health: SharedHealth,
    /// What to serve on `healthCheckNodePort`s, by family.
    pub health_checks: watch::Receiver<BTreeMap<IpFamily, HealthChecks>>,
}

/// Something that an operator should hear of as an event of the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCheckFailed {
    /// The Service whose health check can't be served.
    pub service: ServiceName,
    /// Its `healthCheckNodePort`.
    pub port: u16,
    /// The address that can't be bound.
    pub address: SocketAddr,
    /// Why.
    pub error: String,
}

/// Is told when a Service's health check can't be served; once as long as the reason stays the same. Called on the servers'
/// thread, so it must not block.
pub type Notify = Arc<dyn Fn(ServiceCheckFailed) + Send + Sync>;

/// One of the two main servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Of `metricsBindAddress`.
    Metrics,
    /// Of `healthzBindAddress`.
    Health,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Metrics => "metrics",
            Self::Health => "health",
        })
    }
}

/// A main server could not bind or serve, and the configuration says that this is the end.
#[derive(Debug, thiserror::Error)]
#[error("the {server} server can't serve on {address}")]
pub struct ServeError {
    /// Which one.
    pub server: Server,
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The running servers. They end when this is dropped.
#[derive(Debug)]
pub struct Status {
    failures: mpsc::Receiver<ServeError>,
    metrics_bound: watch::Receiver<Option<SocketAddr>>,
    health_bound: watch::Receiver<Option<SocketAddr>>,
    _stop: oneshot::Sender<()>,
}

impl Status {
    /// Starts the servers. What can't be bound now is tried again every five seconds.
    ///
    /// # Errors
    /// The system refuses a thread or what a runtime needs.
    pub fn start(config: Config, sources: Sources, notify: Notify) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (failures_tx, failures) = mpsc::channel(2);
        let (metrics_tx, metrics_bound) = watch::channel(None);
        let (health_tx, health_bound) = watch::channel(None);
        let (stop, stopped) = oneshot::channel::<()>();
        let run = async move {
            let pool = serve::Pool::new(config.limits);
            let server = |server, address: Option<SocketAddr>, bound| {
                address.map(|address| serve::Persistent {
                    server,
                    address,
                    hard_fail: config.bind_hard_fail,
                    pool: pool.clone(),
                    bound,
                    failures: failures_tx.clone(),
                })
            };
            if let Some(server) = server(Server::Metrics, config.metrics_address, metrics_tx) {
                let pages = metrics_server::MetricsServer::new(&config, &sources, SystemTime::now());
                tokio::spawn(server.run(pages.routes()));
            }
            if let Some(path) = config.socket.clone() {
                let pages = metrics_server::MetricsServer::new(&config, &sources, SystemTime::now());
                tokio::spawn(serve::on_socket(path, pool.clone(), pages.routes()));
            }
            if let Some(server) = server(Server::Health, config.health_address, health_tx) {
                tokio::spawn(server.run(health::HealthServer::new(&sources).routes()));
            }
            tokio::spawn(checks::serve(sources.health, sources.health_checks, notify, pool));
            // Ends also when the sender is dropped, which is all that it is for.
            drop(stopped.await);
        };
        std::thread::Builder::new().name("status".into()).spawn(move || runtime.block_on(run))?;
        Ok(Self { failures, metrics_bound, health_bound, _stop: stop })
    }

    /// Returns when a main server can't serve and [`Config::bind_hard_fail`] is set; never otherwise.
    pub async fn failed(&mut self) -> ServeError {
        match self.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// The address that a main server listens on, once it does. Waits for ever if it is switched off or can't.
    pub async fn bound(&self, server: Server) -> SocketAddr {
        let mut bound = match server {
            Server::Metrics => self.metrics_bound.clone(),
            Server::Health => self.health_bound.clone(),
        };
        let address = bound.wait_for(Option::is_some).await.ok().and_then(|address| *address);
        match address {
            Some(address) => address,
            None => std::future::pending().await,
        }
    }
}
