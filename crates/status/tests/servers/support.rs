//! Servers to ask.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::Response;
use http::request::Parts;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use metrics::health::SharedHealth;
use metrics::{Metrics, Options};
use model::IpFamily;
use model::view::HealthChecks;
use status::{Config, Further, Limits, Server, ServiceCheckFailed, Sources, Status};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::PATIENCE;

/// Running servers and what they read.
pub(crate) struct Bench {
    pub(crate) health: SharedHealth,
    pub(crate) checks: watch::Sender<BTreeMap<IpFamily, HealthChecks>>,
    pub(crate) told: Arc<Mutex<Vec<ServiceCheckFailed>>>,
    pub(crate) verbosity: Arc<Mutex<Option<i32>>>,
    pub(crate) status: Status,
    runtime: tokio::runtime::Runtime,
}

/// What waits for so long makes the proxy unhealthy.
pub(crate) const TIMEOUT: Duration = Duration::from_mins(1);

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

pub(crate) fn config() -> Config {
    Config {
        metrics_address: Some(loopback(0)),
        socket: None,
        health_address: Some(loopback(0)),
        bind_hard_fail: false,
        profiling: true,
        mode: "nftables".into(),
        configz: r#"{"kubeproxy.config.k8s.io":{"mode":"nftables"}}"#.into(),
        flags: Some(
            [("v", "2"), ("config", ""), ("proxy-mode", "nftables")]
                .map(|(a, b)| (a.into(), b.into()))
                .into(),
        ),
        version: "v1.2.3".into(),
        set_verbosity: Arc::new(|_| Ok(())),
        serves_statusz: true,
        further: Further {
            paths: &["/more/{*rest}"],
            answer: Arc::new(|request| Box::pin(std::future::ready(more(&request)))),
        },
        limits: Limits::default(),
    }
}

/// Answers below `/more/`.
fn more(request: &Parts) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let pieces = ["piece ", "by ", "piece"].map(|piece| Ok(Frame::data(piece.into())));
    let body = if request.uri.path() == "/more/whole" {
        Full::new("all of it".into()).boxed_unsync()
    } else {
        StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
    };
    let headers = Response::builder().header("content-type", "text/plain; charset=utf-8");
    headers.header("x-content-type-options", "nosniff").body(body).unwrap()
}

impl Bench {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(adjust: impl FnOnce(&mut Config)) -> Self {
        let metrics = Arc::new(Metrics::new(&Options::default()));
        let health = SharedHealth::new(TIMEOUT);
        let checks = watch::Sender::default();
        let sources = Sources { metrics, health: health.clone(), health_checks: checks.subscribe() };
        let (told, verbosity) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Option<i32>>>::default());
        let (notes, level) = (told.clone(), verbosity.clone());
        let mut config = config();
        config.set_verbosity = Arc::new(move |number| {
            if number > 10 {
                return Err("that is too much".to_owned());
            }
            *level.lock().unwrap() = Some(number);
            Ok(())
        });
        adjust(&mut config);
        let notify = Arc::new(move |failed| notes.lock().unwrap().push(failed));
        let status = Status::start(config, sources, notify).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { health, checks, told, verbosity, status, runtime }
    }

    /// Where a server listens.
    pub(crate) fn address(&self, server: Server) -> SocketAddr {
        let bound = async { tokio::time::timeout(PATIENCE, self.status.bound(server)).await };
        self.runtime.block_on(bound).unwrap()
    }

    /// The error that ends the program.
    pub(crate) fn failed(&mut self) -> status::ServeError {
        let failed = async { tokio::time::timeout(PATIENCE, self.status.failed()).await };
        self.runtime.block_on(failed).unwrap()
    }

    /// Both families run and have succeeded; the Node is eligible.
    pub(crate) fn all_well(&self) {
        let mut health = self.health.lock();
        for family in IpFamily::ALL {
            health.started(family, SystemTime::now());
            health.synced(family, SystemTime::now());
            health.pending(family, None);
        }
        health.set_node_eligible(true);
    }

    /// A change of IPv6 has been waiting for too long.
    pub(crate) fn stuck(&self) {
        let since = Instant::now().checked_sub(TIMEOUT).unwrap();
        self.health.lock().pending(IpFamily::V6, Some(since));
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(loopback(0)).unwrap().local_addr().unwrap().port()
}

/// Waits for something that the servers do by themselves.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
