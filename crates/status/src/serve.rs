//! Connections: accepted, limited, answered.
//!
//! Clients may be anybody who reaches the port. One that is slow, silent or talks nonsense costs one of a limited number of
//! connections for a limited time; when all are taken the oldest has to go, so that nobody can keep others away.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::{debug, error, info};

use crate::answer::Answer;
use crate::listen::bind;
use crate::{ServeError, Server};

/// What clients of one listener may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Until a request's head has arrived, also on a connection that had one before.
    pub head: Duration,
    /// The age at which a connection is closed after its present request.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 128, head: Duration::from_secs(30), age: Duration::from_mins(5) }
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

/// A server that is started again when it fails.
pub(crate) struct Persistent {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) hard_fail: bool,
    pub(crate) limits: Limits,
    /// Where it listens at the moment.
    pub(crate) bound: watch::Sender<Option<SocketAddr>>,
    pub(crate) failures: mpsc::Sender<ServeError>,
}

impl Persistent {
    /// Serves until it fails where failure is final, else for ever.
    pub(crate) async fn run<H, A>(self, handler: H)
    where
        H: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        let Self { server, address, .. } = self;
        let mut last_error = String::new();
        loop {
            let failed = match bind(address) {
                Ok(listener) => {
                    last_error.clear();
                    self.bound.send_replace(listener.local_addr().ok());
                    info!(%server, %address, "serving");
                    serve(&listener, self.limits, handler.clone()).await
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

/// Answers requests until the listener fails, and says why it did.
pub(crate) async fn serve<H, A>(listener: &TcpListener, limits: Limits, handler: H) -> io::Error
where
    H: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let mut connections = Connections { oldest_first: VecDeque::new() };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = tokio::spawn(connection(stream, limits, handler.clone()));
                connections.add(connection.abort_handle(), limits.connections);
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    connections.close_oldest();
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
                // The listener itself is unusable.
                Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP) | None => {
                    return error;
                }
                // The connection is gone before it began: accept(2) lists a dozen ways.
                Some(_) => {}
            },
        }
    }
}

/// The open connections; they are closed with the listener.
struct Connections {
    oldest_first: VecDeque<AbortHandle>,
}

impl Connections {
    fn add(&mut self, connection: AbortHandle, limit: usize) {
        self.oldest_first.retain(|connection| !connection.is_finished());
        while self.oldest_first.len() >= limit.max(1) {
            self.close_oldest();
        }
        self.oldest_first.push_back(connection);
    }

    fn close_oldest(&mut self) {
        if let Some(connection) = self.oldest_first.pop_front() {
            connection.abort();
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.oldest_first.iter().for_each(AbortHandle::abort);
    }
}

/// One connection; what the client does wrong ends it.
async fn connection<H, A>(stream: TcpStream, limits: Limits, handler: H)
where
    H: Fn(Request<Incoming>) -> A,
    A: Future<Output = Answer>,
{
    let answer = |request| {
        let answer = handler(request);
        async { Ok::<_, Infallible>(answer.await) }
    };
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
