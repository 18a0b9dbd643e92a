//! Connections to one endpoint: those of HTTP/1.1 have one request at a time and are kept in between, those of HTTP/2 are shared.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tracing::debug;

use super::io::EndpointIo;
use super::life::Life;
use super::{Common, Connection, Own};
use crate::gauge::Gauge;
use crate::request_body::RequestBody;

/// For how long a connection is kept without a request.
const MAX_IDLE: Duration = Duration::from_mins(1);
/// Requests on a connection of HTTP/2, before there is another one. What servers allow is seldom less.
const MAX_STREAMS: usize = 100;
/// Connections of HTTP/2. When all have so many requests, they share the rest.
const MAX_SHARED: usize = 16;
/// What an endpoint may send of one response that nobody takes yet.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// As much for each, so that slow clients can't hold up others on the same connection.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * 100;
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// The headers of a response.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// Streams that were given up and of which frames may still come.
const MAX_GIVEN_UP: usize = 1000;

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectError {
    Refused,
    TimedOut,
    /// There are as many connections as there may be.
    Full,
}

/// Connections to one endpoint.
pub(crate) struct Endpoint {
    address: SocketAddr,
    common: Arc<Common>,
    of_pool: Arc<Own>,
    connections: Gauge,
    /// What each connection begins with.
    preface: Option<Arc<[u8]>>,
    gone: watch::Sender<bool>,
    /// The last one is taken first, so that those that are not needed become old.
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    /// One connection of HTTP/2 is made at a time; when that failed last, and how.
    connecting: tokio::sync::Mutex<Option<(Instant, ConnectError)>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    life: Arc<Life>,
    _place: OwnedSemaphorePermit,
}

struct Shared {
    sender: http2::SendRequest<RequestBody>,
    life: Arc<Life>,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, common: Arc<Common>, of_pool: Arc<Own>) -> Self {
        Self {
            address,
            common,
            of_pool,
            connections: Gauge::default(),
            preface: None,
            gone: watch::Sender::new(false),
            idle: Mutex::default(),
            shared: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// The same endpoint, for one client alone, whose connections begin with this.
    pub(super) fn of_client(&self, preface: Arc<[u8]>) -> Self {
        let new = Self::new(self.address, self.common.clone(), self.of_pool.clone());
        Self { connections: self.connections.clone(), preface: Some(preface), ..new }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it is still there, for connections that begin with this.
    pub(crate) fn begins_with(&self, preface: &Arc<[u8]>) -> bool {
        self.preface.as_ref() == Some(preface) && !*self.gone.borrow()
    }

    /// It is no longer one of the Service's.
    pub(super) fn close(&self) {
        self.gone.send_replace(true);
        lock(&self.idle).clear();
        lock(&self.shared).clear();
    }

    /// A connection for one request of HTTP/1.1: one that was idle for no longer than this, or a new one.
    pub(crate) async fn http1(self: &Arc<Self>, max_idle: Duration) -> Result<Connection, ConnectError> {
        if let Some(Idle { sender, life, .. }) = self.take_idle(max_idle) {
            return Ok(Connection::http1(sender, &life, self.clone()));
        }
        let io = TokioIo::new(self.connect().await?);
        let mut builder = http1::Builder::new();
        builder.preserve_header_case(true);
        let made = builder.handshake(io).await;
        let (sender, connection) = made.map_err(|_broken| ConnectError::Refused)?;
        let life = Life::new();
        let taken = Connection::http1(sender, &life, self.clone());
        self.run(connection.with_upgrades(), life);
        Ok(taken)
    }

    fn take_idle(&self, max_idle: Duration) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        while let Some(last) = idle.pop() {
            if !last.sender.is_ready() {
                continue;
            }
            if last.life.idle() <= max_idle {
                return Some(last);
            }
            idle.push(last);
            return None;
        }
        None
    }

    /// Keeps a connection for later.
    pub(super) fn keep(&self, sender: http1::SendRequest<RequestBody>, life: Arc<Life>) {
        let Some(place) = self.common.idle_place() else { return };
        let mut idle = lock(&self.idle);
        if !*self.gone.borrow() {
            idle.retain(|other| !other.sender.is_closed());
            idle.push(Idle { sender, life, _place: place });
        }
    }

    /// A connection of HTTP/2 that has room for a request.
    pub(crate) async fn http2(self: &Arc<Self>) -> Result<Connection, ConnectError> {
        let asked = Instant::now();
        if let Some(found) = self.least_used(MAX_STREAMS) {
            return Ok(found);
        }
        let mut failed = self.connecting.lock().await;
        if let Some(found) = self.least_used(MAX_STREAMS) {
            return Ok(found);
        }
        if lock(&self.shared).len() >= MAX_SHARED
            && let Some(found) = self.least_used(usize::MAX)
        {
            return Ok(found);
        }
        match *failed {
            // Whoever waited for that has its outcome.
            Some((at, error)) if at >= asked && error != ConnectError::Full => return Err(error),
            _ => {}
        }
        let made = self.connect_http2().await;
        *failed = made.as_ref().err().map(|error| (Instant::now(), *error));
        match made {
            // Those that there are share what another one would have had.
            Err(ConnectError::Full) => self.least_used(usize::MAX).ok_or(ConnectError::Full),
            made => made,
        }
    }

    fn least_used(&self, max_streams: usize) -> Option<Connection> {
        let mut shared = lock(&self.shared);
        shared.retain(|connection| !connection.sender.is_closed());
        let least = shared.iter().min_by_key(|connection| connection.life.n_requests())?;
        (least.life.n_requests() < max_streams).then(|| Connection::http2(least.sender.clone(), &least.life))
    }

    async fn connect_http2(self: &Arc<Self>) -> Result<Connection, ConnectError> {
        let io = TokioIo::new(self.connect().await?);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(MAX_HEAD_BYTES)
            .max_concurrent_reset_streams(MAX_GIVEN_UP)
            .max_local_error_reset_streams(None);
        let made = builder.handshake(io).await;
        let (sender, connection) = made.map_err(|_broken| ConnectError::Refused)?;
        let life = Life::new();
        let taken = Connection::http2(sender.clone(), &life);
        self.run(connection, life.clone());
        let mut shared = lock(&self.shared);
        if !*self.gone.borrow() {
            shared.push(Shared { sender, life });
        }
        Ok(taken)
    }

    async fn connect(&self) -> Result<EndpointIo, ConnectError> {
        let limit = self.of_pool.times().connect;
        let (place, _pending) = self.of_pool.take_place(&self.connections).ok_or(ConnectError::Full)?;
        match tokio::time::timeout(limit, self.open()).await {
            Ok(Ok(stream)) => Ok(EndpointIo::new(stream, self.common.clone(), place)),
            Ok(Err(error)) => {
                debug!(endpoint = %self.address, %error, "an endpoint can't be reached");
                Err(ConnectError::Refused)
            }
            Err(_elapsed) => {
                debug!(endpoint = %self.address, "an endpoint does not answer");
                Err(ConnectError::TimedOut)
            }
        }
    }

    async fn open(&self) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await?;
        if let Some(preface) = &self.preface {
            stream.write_all(preface).await?;
        }
        Ok(stream)
    }

    /// Has a connection go on until it ends, is of no use, or the time of an endpoint that is gone is over.
    fn run(&self, connection: impl Future<Output = hyper::Result<()>> + Send + 'static, life: Arc<Life>) {
        let (endpoint, drained) = (self.address, self.drained());
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    debug!(%endpoint, %error, "a connection to an endpoint broke");
                },
                () = life.idle_for(MAX_IDLE) => {}
                () = drained => {}
            }
        });
    }

    /// Ends when the endpoint is gone, and its time is over.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut gone, of_pool) = (self.gone.subscribe(), self.of_pool.clone());
        async move {
            let is_gone = gone.wait_for(|gone| *gone).await.is_ok();
            if !is_gone {
                // Nobody tells any more.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(of_pool.times().drain).await;
        }
    }
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
