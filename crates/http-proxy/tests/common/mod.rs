//! A proxy on the loopback interface, endpoints behind it, and clients.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses a part of it, and fails by panicking"
)]

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use balance::{Choice, Draw, Limits, Policy, Resilience, Timeouts, WHOLE_SHARE};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use http_proxy::{Client, Frontend, NoTurn, Pool, Recorder, Settings, Sockets, Times, Trace, Turn, Upstream};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A limit for what is expected to happen, on a machine that may be busy.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Endpoints, and how many requests each has.
pub struct Endpoints {
    addresses: Vec<SocketAddr>,
    loads: Vec<Arc<AtomicUsize>>,
    choice: Choice,
    upstream: Arc<Upstream>,
}

pub struct Request1(SocketAddr, Arc<AtomicUsize>);

impl Turn for Request1 {
    fn address(&self) -> SocketAddr {
        self.0
    }
}

impl Drop for Request1 {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

/// [`Endpoints`] as of one moment, and what a client's connections begin with.
pub struct Chosen(Arc<Endpoints>, Option<Arc<[u8]>>);

impl Pool for Chosen {
    type Turn = Request1;

    fn pick(&self, client: IpAddr, avoid: &[SocketAddr]) -> Result<Request1, NoTurn> {
        let Endpoints { addresses, loads, choice, .. } = &*self.0;
        let draw = Draw { client, random: fastrand::u64(..) };
        let load = |at: usize| loads[at].load(Ordering::Relaxed);
        let share = |at: usize| if avoid.contains(&addresses[at]) { 0 } else { WHOLE_SHARE };
        let at = choice.pick(draw, load, share).ok_or(NoTurn::NoEndpoint)?;
        loads[at].fetch_add(1, Ordering::Relaxed);
        Ok(Request1(addresses[at], loads[at].clone()))
    }

    fn upstream(&self) -> &Upstream {
        &self.0.upstream
    }

    fn preface(&self) -> Option<Arc<[u8]>> {
        self.1.clone()
    }
}

#[derive(Clone, Default)]
struct Way {
    endpoints: Arc<RwLock<Option<Arc<Endpoints>>>>,
    asked: Arc<RwLock<Asked>>,
    client: Option<SocketAddr>,
    traces: Arc<RwLock<Option<Traces>>>,
}

/// How many of a million traces are recorded, and who hears of them.
#[derive(Clone)]
struct Traces(u32, mpsc::UnboundedSender<Trace>);

/// What a Service may ask for.
#[derive(Clone, Copy, Default)]
pub struct Asked {
    pub idle_limit: Option<Duration>,
    /// Connections to endpoints begin with a line that names the client.
    pub has_preface: bool,
}

/// The line.
pub fn preface(client: SocketAddr) -> String {
    format!("for {client}\n")
}

impl Frontend for Way {
    type Pool = Chosen;

    fn pool(&self) -> Option<Chosen> {
        let client = self.client.filter(|_| self.asked.read().unwrap().has_preface);
        let preface = client.map(|client| preface(client).into_bytes().into());
        Some(Chosen(self.endpoints.read().unwrap().clone()?, preface))
    }

    fn idle_limit(&self) -> Option<Duration> {
        self.asked.read().unwrap().idle_limit
    }

    fn sampling(&self) -> Option<u32> {
        self.traces.read().unwrap().as_ref().map(|Traces(per_million, _)| *per_million)
    }

    fn recorder(&self) -> Recorder {
        let Traces(_, sender) = self.traces.read().unwrap().clone().unwrap();
        Box::new(move |trace| drop(sender.send(trace)))
    }
}

/// Counts connections to endpoints.
#[derive(Default)]
pub struct Connections {
    pub opened: AtomicUsize,
    pub closed: AtomicUsize,
}

impl Sockets for Connections {
    fn opened(&self, _: SocketAddr, _: SocketAddr) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn closed(&self, _: SocketAddr, _: SocketAddr) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A proxy.
pub struct Proxy {
    pub address: SocketAddr,
    pub connections: Arc<Connections>,
    way: Way,
    policy: Policy,
    upstream: Arc<Upstream>,
    ending: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

pub const SETTINGS: Settings = Settings {
    times: Times {
        connect: Duration::from_secs(10),
        idle: None,
        request: None,
        drain: Duration::from_hours(1),
    },
    max_requests: 100_000,
    max_idle: 10_000,
};

impl Proxy {
    pub async fn start(policy: Policy, endpoints: &[SocketAddr]) -> Self {
        Self::listening("127.0.0.1:0", policy, SETTINGS, endpoints).await
    }

    pub async fn listening(at: &str, policy: Policy, settings: Settings, endpoints: &[SocketAddr]) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Connections::default());
        let upstream = Arc::new(Upstream::new(settings, connections.clone()));
        let (way, ending) = (Way::default(), watch::Sender::new(false));
        let serving = tokio::spawn(serve(listener, way.clone(), ending.subscribe()));
        let this = Self { address, connections, way, policy, upstream, ending, serving };
        this.set(endpoints);
        this
    }

    /// Has requests go to these from now on.
    pub fn set(&self, endpoints: &[SocketAddr]) {
        let pool = Endpoints {
            addresses: endpoints.to_vec(),
            loads: endpoints.iter().map(|_| Arc::default()).collect(),
            choice: Choice::new(self.policy, endpoints, &[]),
            upstream: self.upstream.clone(),
        };
        *self.way.endpoints.write().unwrap() = Some(Arc::new(pool));
        self.upstream.retain(|address| endpoints.contains(&address));
    }

    /// How much may go on at a time from now on.
    pub fn limit(&self, limits: Limits) {
        self.upstream.ask(&Resilience { limits, ..Resilience::default() });
    }

    /// For how long what may take from now on.
    pub fn time(&self, timeouts: &str) {
        let timeouts = Timeouts::parse(timeouts).unwrap();
        self.upstream.ask(&Resilience { timeouts, ..Resilience::default() });
        self.way.asked.write().unwrap().idle_limit = timeouts.idle_limit();
    }

    /// Connections of clients that come from now on begin with a line of theirs.
    pub fn name_clients(&self) {
        self.way.asked.write().unwrap().has_preface = true;
    }

    /// Has requests recorded, so many of a million that are the first of their trace.
    pub fn trace(&self, per_million: u32) -> mpsc::UnboundedReceiver<Trace> {
        let (sender, traces) = mpsc::unbounded_channel();
        *self.way.traces.write().unwrap() = Some(Traces(per_million, sender));
        traces
    }

    /// Nobody serves this any more.
    pub fn remove(&self) {
        *self.way.endpoints.write().unwrap() = None;
        self.upstream.retain(|_| false);
    }

    /// Requests that endpoints have now.
    pub fn load(&self) -> usize {
        let pool = self.way.endpoints.read().unwrap().clone().unwrap();
        pool.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    /// Connections to endpoints that there are.
    pub fn n_connections(&self) -> usize {
        let opened = self.connections.opened.load(Ordering::Relaxed);
        opened - self.connections.closed.load(Ordering::Relaxed)
    }

    /// Has all connections end after the requests that are under way.
    pub fn end(&self) {
        self.ending.send_replace(true);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, way: Way, ending: watch::Receiver<bool>) {
    let mut carried = JoinSet::new();
    loop {
        let (stream, address) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let client = Client { address, sent_to: stream.local_addr().unwrap() };
        let way = Way { client: Some(address), ..way.clone() };
        carried.spawn(http_proxy::serve(stream, client, way, ending.clone()));
        while carried.try_join_next().is_some() {}
    }
}

pub type Body = BoxBody<Bytes, hyper::Error>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// An endpoint that speaks both versions of HTTP, until it is dropped: then all its connections break.
pub struct Server {
    pub address: SocketAddr,
    pub n_requests: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Server {
    pub async fn start<R, F>(respond: R) -> Self
    where
        R: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let n_requests = Arc::new(AtomicUsize::new(0));
        let counted = n_requests.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (respond, counted) = (respond.clone(), counted.clone());
                let service = service_fn(move |request| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let response = respond(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, n_requests, serving }
    }

    /// One that answers with its name.
    pub async fn named(name: &'static str) -> Self {
        Self::start(move |_| async move { Response::new(full(name)) }).await
    }

    pub fn n_requests(&self) -> usize {
        self.n_requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Sees to it that this process can have so many connections, with both of their ends, or as many as the system lets it have.
pub fn connections_at_both_ends(wanted: u64) -> u64 {
    const OTHER_FILES: u64 = 200;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let files = maximum.unwrap_or(u64::MAX).min(2 * wanted + OTHER_FILES).max(current.unwrap_or(0));
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).unwrap();
    ((files - OTHER_FILES) / 2).min(wanted)
}

/// A server that says `well` and a proxy before it, on a runtime of their own, for clients that block.
pub fn served() -> (tokio::runtime::Runtime, Server, Proxy) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (server, proxy) = runtime.block_on(async {
        let server = Server::named("well").await;
        let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
        (server, proxy)
    });
    (runtime, server, proxy)
}

/// Sends a request, and reads its answer to the end.
pub fn ask_and_wait(mut stream: &std::net::TcpStream, request: &[u8], is_whole: impl Fn(&[u8]) -> bool) {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    while !is_whole(&answer) {
        let mut received = [0; 1024];
        let n = stream.read(&mut received).unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&received[..n]);
    }
}

/// The pages that this process has in memory, in bytes.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * u64::try_from(rustix::param::page_size()).unwrap()
}

/// An address where nobody listens, for as long as this is there.
pub struct Nobody {
    pub address: SocketAddr,
    _bound: TcpSocket,
}

pub fn nobody() -> Nobody {
    let bound = TcpSocket::new_v4().unwrap();
    bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
    Nobody { address: bound.local_addr().unwrap(), _bound: bound }
}

/// A client with one connection.
pub enum OneConnection {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

pub const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

impl OneConnection {
    pub async fn to(address: SocketAddr, version: Version) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), version).await
    }

    pub async fn over(stream: TcpStream, version: Version) -> Self {
        let io = TokioIo::new(stream);
        match version {
            Version::Http1 => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self::Http1(sender)
            }
            Version::Http2 => {
                let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
                let (sender, connection) = handshake.await.unwrap();
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        }
    }

    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }

    /// Status and body of the answer.
    pub async fn text(&mut self, request: Request<Body>) -> hyper::Result<(u16, String)> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    pub async fn get(&mut self) -> hyper::Result<(u16, String)> {
        self.text(request("GET", "")).await
    }
}

/// A request to `http://web/`.
pub fn request(method: &str, body: impl Into<Bytes>) -> Request<Body> {
    Request::builder().method(method).uri("http://web/").header("host", "web").body(full(body)).unwrap()
}

pub fn grpc_call() -> Request<Body> {
    let mut request = request("POST", &b"\0\0\0\0\x02hi"[..]);
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    *request.version_mut() = http::Version::HTTP_2;
    request
}
