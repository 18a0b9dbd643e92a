//! The way to a collector: a bounded queue, and a thread that empties it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT};
use http::{HeaderMap, Method, Request, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::{Attributes, Span, encode};

/// Spans that may wait; more are dropped. This and what follows is what OpenTelemetry's batch processor has, except that it waits for
/// longer.
pub const MAX_WAITING: usize = 2048;
/// Spans that go together.
const MAX_BATCH: usize = 512;
/// For how long others are waited for, that go with the first.
const GATHERING: Duration = Duration::from_secs(1);
/// For how long a collector may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The pauses before spans are sent again that a collector could not take; after the last they are given up.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// An answer is not longer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Host and port.
    Tcp(String),
    /// A socket of the file system.
    Unix(PathBuf),
}

/// What became of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A collector has them.
    Exported,
    /// There was no room for them.
    Dropped,
    /// A collector refused them, or could not be reached.
    Failed,
}

/// Hears what becomes of how many spans.
pub type Count = Arc<dyn Fn(Outcome, u64) + Send + Sync>;

/// Spans on their way. Clones are of the same queue.
#[derive(Clone)]
pub struct Spans {
    queue: mpsc::Sender<Span>,
    count: Count,
}

impl Spans {
    /// Sends a span on its way, if there is room.
    pub fn add(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            (self.count)(Outcome::Dropped, 1);
        }
    }

    /// So many were dropped before they came here.
    pub fn note_dropped(&self, spans: u64) {
        (self.count)(Outcome::Dropped, spans);
    }
}

impl std::fmt::Debug for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spans").finish_non_exhaustive()
    }
}

/// Begins a thread that brings spans to a collector, for as long as somebody has [`Spans`]. `resource` says what they are of.
///
/// # Errors
/// There can't be a thread.
pub fn begin(endpoint: Endpoint, resource: Attributes, count: Count) -> io::Result<Spans> {
    let (queue, spans) = mpsc::channel(MAX_WAITING);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let way = Way { endpoint, resource, count: count.clone(), connection: None, is_failing: false };
    let started = std::thread::Builder::new().name("traces".into());
    started.spawn(move || runtime.block_on(way.carry(spans)))?;
    Ok(Spans { queue, count })
}

/// The way to a collector.
struct Way {
    endpoint: Endpoint,
    resource: Attributes,
    count: Count,
    connection: Option<SendRequest<Full<Bytes>>>,
    is_failing: bool,
}

/// Why a collector has not got spans.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("no connection")]
    NotConnected(#[source] io::Error),
    #[error("no answer")]
    Broken(#[source] hyper::Error),
    #[error("no answer in time")]
    TimedOut,
    #[error("an answer that is none of gRPC")]
    NoAnswer,
    #[error("it answers with status {status} of gRPC: {message}")]
    Refused { status: u8, message: String },
}

impl ExportError {
    /// Whether it may go well later. (OTLP, "OTLP/gRPC Response": `CANCELLED`, `DEADLINE_EXCEEDED`, `ABORTED`, `OUT_OF_RANGE`,
    /// `UNAVAILABLE`, `DATA_LOSS`, and `RESOURCE_EXHAUSTED`, which says when.)
    fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { status, .. } => [1, 4, 8, 10, 11, 14, 15].contains(status),
            Self::NotConnected(_) | Self::Broken(_) | Self::TimedOut | Self::NoAnswer => true,
        }
    }
}

impl Way {
    async fn carry(mut self, mut spans: mpsc::Receiver<Span>) {
        let mut batch = Vec::new();
        while spans.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let gathered = async {
                loop {
                    let room = MAX_BATCH - batch.len();
                    if spans.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            // What has come by then goes.
            drop(timeout(GATHERING, gathered).await);
            self.export(&batch).await;
            batch.clear();
        }
    }

    async fn export(&mut self, batch: &[Span]) {
        let message = framed(&encode(&self.resource, batch));
        let mut pauses = PAUSES.iter();
        let outcome = loop {
            let tried = timeout(LIMIT, self.try_once(message.clone())).await;
            match tried.unwrap_or(Err(ExportError::TimedOut)) {
                Ok(()) => break Outcome::Exported,
                Err(error) => {
                    self.connection = None;
                    self.complain(&error);
                    let Some(pause) = pauses.next().filter(|_| error.is_retryable()) else {
                        break Outcome::Failed;
                    };
                    sleep(*pause).await;
                }
            }
        };
        if outcome == Outcome::Exported && self.is_failing {
            self.is_failing = false;
            info!("traces are exported again");
        }
        (self.count)(outcome, u64::try_from(batch.len()).unwrap_or(u64::MAX));
    }

    /// Once, until it goes well again.
    fn complain(&mut self, error: &ExportError) {
        let cause = std::error::Error::source(error).map(tracing::field::display);
        if self.is_failing {
            debug!(%error, cause, "traces can't be exported");
        } else {
            warn!(%error, cause, endpoint = ?self.endpoint, "traces can't be exported");
        }
        self.is_failing = true;
    }

    async fn try_once(&mut self, message: Bytes) -> Result<(), ExportError> {
        let mut connection = match self.connection.take() {
            Some(kept) if !kept.is_closed() => kept,
            _ => connect(&self.endpoint).await?,
        };
        connection.ready().await.map_err(ExportError::Broken)?;
        let response = connection.send_request(self.request(message)).await.map_err(ExportError::Broken)?;
        self.connection = Some(connection);
        let (parts, body) = response.into_parts();
        if let Some(status) = grpc_status(&parts.headers) {
            return status;
        }
        let whole = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let trailers = whole.map_err(|_broken| ExportError::NoAnswer)?.trailers().cloned();
        trailers.as_ref().and_then(grpc_status).unwrap_or(Err(ExportError::NoAnswer))
    }

    fn request(&self, message: Bytes) -> Request<Full<Bytes>> {
        let authority = match &self.endpoint {
            Endpoint::Tcp(address) => address,
            Endpoint::Unix(_) => "localhost",
        };
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        // What was checked to be an address can be one.
        *request.uri_mut() = format!("http://{authority}{METHOD}").try_into().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(USER_AGENT, HeaderValue::from_static("kube-proxy"));
        request
    }
}

async fn connect(endpoint: &Endpoint) -> Result<SendRequest<Full<Bytes>>, ExportError> {
    match endpoint {
        Endpoint::Tcp(address) => {
            handshake(TcpStream::connect(address).await.map_err(ExportError::NotConnected)?).await
        }
        Endpoint::Unix(path) => {
            let connected = tokio::net::UnixStream::connect(path).await;
            handshake(connected.map_err(ExportError::NotConnected)?).await
        }
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, ExportError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(ExportError::Broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "the connection to a collector broke");
        }
    });
    Ok(sender)
}

/// One message. (gRPC over HTTP2, "Length-Prefixed-Message".)
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// What a status says, if there is one. It comes before the message or behind it.
fn grpc_status(headers: &HeaderMap) -> Option<Result<(), ExportError>> {
    let status = headers.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok());
    let message =
        headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
    Some(match status {
        Some(0) => Ok(()),
        Some(status) => Err(ExportError::Refused { status, message: message.unwrap_or_default() }),
        None => Err(ExportError::NoAnswer),
    })
}
