//! Connections: accepted, limited, answered.
//!
//! Clients may be anybody who reaches the port. One that is slow, silent or talks nonsense costs one of a limited number of
//! connections for a limited time; when all are taken the oldest has to go, so that nobody can keep others away.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, error, info};

use crate::answer::Answer;
use crate::listen::bind;
use crate::routes::Routes;
use crate::sockets::bind_socket;
use crate::{ServeError, Server, sockets};

/// What clients of all listeners together may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time: file descriptors that the proxy itself may need.
    pub connections: usize,
    /// Until a request's head has arrived, also on a connection that had one before.
    pub head: Duration,
    /// Until a client takes the next piece of an answer.
    pub answer: Duration,
    /// The age at which a connection is closed after its present request.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let patience = Duration::from_secs(30);
        Self { connections: 256, head: patience, answer: patience, age: Duration::from_mins(5) }
    }
}

/// Bytes of a request's head, and of what is read ahead.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// For the present request, when a connection is to be closed.
const LAST_REQUEST: Duration = Duration::from_secs(5);
/// Before a failed server is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// When the system has no memory or file descriptors for another connection.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(200);

/// All open connections of all listeners.
#[derive(Clone)]
pub(crate) struct Pool {
    limits: Limits,
    oldest_first: Arc<Mutex<VecDeque<AbortHandle>>>,
}

impl Pool {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, oldest_first: Arc::default() }
    }

    fn add(&self, connection: AbortHandle) {
        let mut connections = self.oldest_first.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| !connection.is_finished());
        while connections.len() >= self.limits.connections.max(1) {
            connections.pop_front().iter().for_each(AbortHandle::abort);
        }
        connections.push_back(connection);
    }

    fn close_oldest(&self) {
        let mut connections = self.oldest_first.lock().unwrap_or_else(PoisonError::into_inner);
        connections.pop_front().iter().for_each(AbortHandle::abort);
    }
}

/// A server that is started again when it fails.
pub(crate) struct Persistent {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) hard_fail: bool,
    pub(crate) pool: Pool,
    /// Where it listens at the moment.
    pub(crate) bound: watch::Sender<Option<SocketAddr>>,
    pub(crate) failures: mpsc::Sender<ServeError>,
}

impl Persistent {
    /// Serves until it fails where failure is final, else for ever.
    pub(crate) async fn run(self, routes: Routes) {
        let routes = Arc::new(routes);
        let handler = move |request| routes.answer(request);
        let Self { server, address, .. } = self;
        let mut last_error = String::new();
        loop {
            let failed = match bind(address) {
                Ok(listener) => {
                    last_error.clear();
                    self.bound.send_replace(listener.local_addr().ok());
                    info!(%server, %address, "serving");
                    serve(&listener, &self.pool, handler.clone()).await
                }
                Err(failed) => failed,
            };
            self.bound.send_replace(None);
            if self.hard_fail {
                // Nobody who waits for it is gone only at the end of the program.
                drop(self.failures.send(ServeError { server, address, source: failed }).await);
                return;
            }
            // Every five seconds the same would hide other lines.
            let text = failed.to_string();
            if text == last_error {
                debug!(%server, %address, error = text, "the server still can't serve");
            } else {
                error!(%server, %address, error = text, "the server can't serve; it is tried again and again");
                last_error = text;
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }
}

/// Where connections come from.
pub(crate) trait Listener {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves on a socket of the file system, which only who owns it may open. What can't be done is tried again and again.
pub(crate) async fn on_socket(path: PathBuf, pool: Pool, routes: Routes) {
    let routes = Arc::new(routes);
    let handler = move |request| routes.answer(request);
    let mut last_error = String::new();
    loop {
        let failed = match bind_socket(&path) {
            Ok(listener) => {
                last_error.clear();
                info!(socket = %path.display(), "serving");
                serve(&listener, &pool, handler.clone()).await
            }
            Err(failed) => failed,
        };
        let text = failed.to_string();
        if text != last_error {
            error!(socket = %path.display(), error = text, "the socket can't be served; it is tried again and again");
            last_error = text;
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// Answers requests until the listener fails, and says why it did.
pub(crate) async fn serve<L, H, A>(listener: &L, pool: &Pool, handler: H) -> io::Error
where
    L: Listener,
    H: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    // They are closed with the listener.
    let mut connections = JoinSet::new();
    loop {
        match listener.next().await {
            Ok(stream) => {
                while connections.try_join_next().is_some() {}
                pool.add(connections.spawn(connection(stream, pool.limits, handler.clone())));
                // It gets its turn before further ones can drive it out: most have sent their request already.
                tokio::task::yield_now().await;
            }
            Err(error) => match error.raw_os_error() {
                Some(code) if sockets::SHORTAGE.contains(&code) => {
                    pool.close_oldest();
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
                Some(code) if sockets::LISTENER_UNUSABLE.contains(&code) => return error,
                None => return error,
                // The connection is gone before it began: accept(2) lists a dozen ways.
                Some(_) => {}
            },
        }
    }
}

/// One connection; what the client does wrong ends it.
async fn connection<S, H, A>(stream: S, limits: Limits, handler: H)
where
    S: AsyncRead + AsyncWrite,
    H: Fn(Request<Incoming>) -> A,
    A: Future<Output = Answer>,
{
    let answer = |request| {
        let answer = handler(request);
        async { Ok::<_, Infallible>(answer.await) }
    };
    let mut stream = Box::pin(TimeoutStream::new(stream));
    stream.as_mut().set_write_timeout_pinned(Some(limits.answer));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut connection = pin!(connection);
    let ended = match tokio::time::timeout(limits.age, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_too_old) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_REQUEST, connection).await {
                Ok(ended) => ended,
                Err(_too_slow) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a client's connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{TEXT, answer};
    use futures_util::{StreamExt as _, stream};
    use http::StatusCode;
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::{Bytes, Frame};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A body comes as it is made, piece by piece, and ends with the client.
    #[tokio::test]
    async fn an_answer_may_be_a_stream() {
        let (pieces, mut source) = mpsc::channel::<Bytes>(1);
        let made = stream::poll_fn(move |context| source.poll_recv(context));
        let body = StreamBody::new(made.map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
        let once = Arc::new(Mutex::new(Some(body.boxed_unsync())));
        let routes = Routes::default().now("/events/{name}", move |call| {
            let body = once.lock().unwrap().take().unwrap();
            answer(StatusCode::OK, TEXT, call.request.uri().path().to_owned()).map(|_| body)
        });
        let listener = bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (pool, routes) = (Pool::new(Limits::default()), Arc::new(routes));
        let server =
            tokio::spawn(async move { serve(&listener, &pool, move |request| routes.answer(request)).await });
        client.write_all(b"GET /events/all HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut received = String::new();
        for piece in ["data: one\n\n", "data: two\n\n"] {
            pieces.send(piece.into()).await.unwrap();
            while !received.contains(piece) {
                let mut buffer = [0; 1024];
                let n = client.read(&mut buffer).await.unwrap();
                assert_ne!(n, 0, "{received}");
                received.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        }
        drop(client);
        pieces.closed().await;
        server.abort();
    }
}
