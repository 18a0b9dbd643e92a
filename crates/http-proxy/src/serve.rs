//! A client's connection.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::Frontend;
use crate::client_io::ClientIo;
use crate::forward::{self, Client};
use crate::requests::Requests;
use crate::response_body::ResponseBody;
use crate::times::idle_for;
use crate::tunnel::{self, Tunnels};
use crate::upstream::{Endpoint, Upstream};
use crate::waiting::Waiting;

/// For how long a client may keep a connection without a request, unless something else is said.
const MAX_IDLE: Duration = Duration::from_hours(1);
/// After so long without a request a connection of HTTP/1.1 is put aside, twice that at most.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(100);
/// For how long the head of a request may be on its way.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// The line and the headers of a request.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// What is read of a body of HTTP/1.1 before it goes on.
const BUFFER_BYTES: usize = 64 * 1024;
/// Requests of one client's connection at a time, in HTTP/2.
const MAX_STREAMS: u32 = 1024;
/// What a client may send of one body before an endpoint takes it, and of all of them.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// With what a client of HTTP/2 begins. (RFC 9113, section 3.4.)
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection, for as long as it lasts.
pub(crate) struct Visit<F> {
    pub(crate) client: Client,
    pub(crate) frontend: F,
    pub(crate) requests: Arc<Requests>,
    pub(crate) tunnels: Tunnels,
    /// See [`Frontend::idle_limit`].
    pub(crate) idle_limit: Option<Duration>,
    /// Endpoints to which it has connections of its own.
    own_endpoints: Mutex<BTreeMap<SocketAddr, Arc<Endpoint>>>,
}

impl<F> Visit<F> {
    /// Connections to an endpoint: those that all clients share, or its own if they begin with something.
    pub(crate) fn endpoint(
        &self,
        upstream: &Upstream,
        address: SocketAddr,
        preface: Option<&Arc<[u8]>>,
    ) -> Arc<Endpoint> {
        let Some(preface) = preface else { return upstream.endpoint(address) };
        let mut own = self.own_endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = own.get(&address).filter(|known| known.begins_with(preface)) {
            return known.clone();
        }
        let new = upstream.endpoint_of_client(address, preface.clone());
        own.insert(address, new.clone());
        new
    }
}

/// Serves a client's connection to its end. When `ending` becomes true, it ends after the requests that are under way.
pub async fn serve<F: Frontend>(
    mut stream: TcpStream,
    client: Client,
    frontend: F,
    ending: watch::Receiver<bool>,
) {
    let idle_limit = frontend.idle_limit();
    let begun = tokio::select! {
        begun = read_preface(&mut stream, idle_limit.unwrap_or(MAX_IDLE)) => begun,
        () = told(ending.clone()) => return,
    };
    let (read_ahead, is_http2) = match begun {
        Ok(begun) => begun,
        Err(error) => return debug!(client = %client.address, %error, "a client said nothing"),
    };
    let (requests, tunnels) = (Arc::new(Requests::default()), Tunnels::default());
    let own_endpoints = Mutex::default();
    let visit = Arc::new(Visit { client, frontend, requests, tunnels, idle_limit, own_endpoints });
    let io = ClientIo::new(stream, read_ahead);
    if is_http2 {
        Box::pin(serve_http2(io, &visit, ending)).await;
    } else {
        serve_http1(io, &visit, ending).await;
    }
    visit.tunnels.ended().await;
}

/// What a client begins with, and whether that is HTTP/2.
async fn read_preface(stream: &mut TcpStream, max_idle: Duration) -> io::Result<(Bytes, bool)> {
    let mut received = [0; PREFACE.len()];
    let mut n = timeout(max_idle, stream.read(&mut received)).await??;
    let may_be_preface = |received: &[u8]| !received.is_empty() && PREFACE.starts_with(received);
    let rest = async {
        while n < PREFACE.len() && may_be_preface(&received[..n]) {
            match stream.read(&mut received[n..]).await? {
                0 => break,
                more => n += more,
            }
        }
        Ok::<_, io::Error>(())
    };
    timeout(HEAD_LIMIT, rest).await??;
    Ok((Bytes::copy_from_slice(&received[..n]), received == *PREFACE))
}

/// A connection is idle most of its time. What a request needs, buffers above all, is only there while there is one, and a little
/// longer.
async fn serve_http1<F: Frontend>(io: ClientIo, visit: &Arc<Visit<F>>, ending: watch::Receiver<bool>) {
    let mut io = io.with_head_limit(HEAD_LIMIT, visit.requests.clone());
    loop {
        match Box::pin(serve_requests(io, visit, ending.clone())).await {
            Some(idle) => io = idle,
            None => return,
        }
        let is_over = tokio::select! {
            readable = timeout(visit.idle_limit.unwrap_or(MAX_IDLE), io.readable()) => readable.is_err(),
            () = told(ending.clone()) => true,
        };
        if is_over {
            // It may be gone already.
            return drop(io.shutdown().await);
        }
    }
}

/// Serves requests until there are no more of late; gives the connection, unless it has ended.
async fn serve_requests<F: Frontend>(
    io: ClientIo,
    visit: &Arc<Visit<F>>,
    ending: watch::Receiver<bool>,
) -> Option<ClientIo> {
    let waiting = Waiting::default();
    let mut builder = http1::Builder::new();
    builder
        .timer(waiting.clone())
        // Its end is of no matter, see `Waiting`.
        .header_read_timeout(MAX_IDLE)
        .max_buf_size(BUFFER_BYTES)
        .preserve_header_case(true)
        .auto_date_header(false);
    let answering = visit.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let visit = answering.clone();
        Box::pin(async move {
            if tunnel::may_begin(&request) {
                visit.tunnels.expect_one();
                // So that the connection hears of it before there is one.
                tokio::task::yield_now().await;
            }
            Ok::<_, Infallible>(forward::answer(&visit, request).await)
        })
    });
    let io = TokioIo::new(io.waiting(waiting.clone()));
    let mut connection = builder.serve_connection(io, service);
    let happened = tokio::select! {
        happened = next_happening(&mut connection, visit, &waiting) => happened,
        () = told(ending.clone()) => Happening::MayEnd,
    };
    match happened {
        Happening::Ended(ended) => note_end(visit, ended),
        Happening::MayEnd => drive(connection.with_upgrades(), visit, is_over(visit, ending)).await,
        Happening::Idle => {
            let parts = connection.into_parts();
            visit.frontend.idles();
            return Some(parts.io.into_inner().with_read_ahead(&parts.read_buf));
        }
    }
    None
}

/// What becomes of a connection of HTTP/1.1.
enum Happening {
    Ended(hyper::Result<()>),
    /// After what is under way, or because it becomes a tunnel.
    MayEnd,
    /// It waits for a request.
    Idle,
}

async fn next_happening<F: Frontend>(
    connection: &mut (impl Future<Output = hyper::Result<()>> + Unpin),
    visit: &Visit<F>,
    waiting: &Waiting,
) -> Happening {
    loop {
        let n_begun = visit.requests.n_begun();
        let happened = poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Happening::Ended(ended)),
            Poll::Pending if visit.tunnels.expects_one() => Poll::Ready(Happening::MayEnd),
            Poll::Pending => Poll::Pending,
        });
        tokio::select! {
            biased;
            happened = happened => return happened,
            () = sleep(BETWEEN_REQUESTS) => {}
        }
        if waiting.is_for_request() && visit.requests.n_begun() == n_begun {
            return Happening::Idle;
        }
    }
}

async fn serve_http2<F: Frontend>(io: ClientIo, visit: &Arc<Visit<F>>, ending: watch::Receiver<bool>) {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES)
        .auto_date_header(false);
    let answering = visit.clone();
    let service = service_fn(move |request| {
        let visit = answering.clone();
        // It is large, and moved until it is a task.
        Box::pin(async move { Ok::<_, Infallible>(forward::answer(&visit, request).await) })
    });
    drive(builder.serve_connection(TokioIo::new(io), service), visit, is_over(visit, ending)).await;
}

/// Until somebody tells, or there was no request for too long.
async fn is_over<F>(visit: &Visit<F>, ending: watch::Receiver<bool>) {
    let limit = visit.idle_limit.unwrap_or(MAX_IDLE);
    let (requests, mut n_begun) = (&visit.requests, 0);
    let idle = idle_for(limit, || {
        let n_before = std::mem::replace(&mut n_begun, requests.n_begun());
        n_before == n_begun && requests.n_under_way() == 0
    });
    tokio::select! {
        () = told(ending) => {}
        () = idle => {}
    }
}

/// Has no more requests after those that are under way.
trait EndsGracefully {
    fn end(self: Pin<&mut Self>);
}

impl<S> EndsGracefully for http1::UpgradeableConnection<TokioIo<ClientIo>, S>
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> EndsGracefully for http2::Connection<TokioIo<ClientIo>, S, TokioExecutor>
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
    TokioExecutor: Http2ServerConnExec<S::Future, ResponseBody>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Has a connection go on until it ends, or its client does nothing but harm; after `ending` with no more requests than are under way.
async fn drive<F, C>(connection: C, visit: &Visit<F>, ending: impl Future<Output = ()>)
where
    C: Future<Output = hyper::Result<()>> + EndsGracefully,
{
    let mut connection = pin!(connection);
    let client = visit.client.address;
    tokio::select! {
        ended = connection.as_mut() => return note_end(visit, ended),
        () = visit.requests.abused() => return debug!(%client, "a client gives up nearly all its requests"),
        () = ending => {}
    }
    connection.as_mut().end();
    tokio::select! {
        ended = connection => note_end(visit, ended),
        () = visit.requests.abused() => debug!(%client, "a client gives up nearly all its requests"),
    }
}

fn note_end<F>(visit: &Visit<F>, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        debug!(client = %visit.client.address, %error, "a client's connection broke");
    }
}

async fn told(mut ending: watch::Receiver<bool>) {
    if ending.wait_for(|ending| *ending).await.is_err() {
        // Nobody tells any more.
        std::future::pending::<()>().await;
    }
}
