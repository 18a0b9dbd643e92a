//! The way to the server: hyper's client over our own configuration of connections, credentials and limits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{Format, Status, decode_status};
use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Notify;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::access::{Access, ConnectError, basic};
use crate::body::Body;
use crate::credentials::{Credentials, Presented};
use crate::dial::Connector;
use crate::environment::Environment;
use crate::machine::Failure;
use crate::proxy::Protocol;
use crate::tls::{self, Identity, TlsError};
use crate::{ApiConfig, Timings};

/// Most bytes of an error's body that are looked at.
const MAX_STATUS_BYTES: usize = 1 << 16;
/// Most bytes of one page. A server that ignores the page size sends all objects in one; 1 GiB is above what a server
/// can hold.
const MAX_PAGE_BYTES: usize = 1 << 30;
/// However long the server, or something before it, wants to be left alone: this has to do.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);
/// A silent HTTP/2 connection is asked for a sign of life after this time, and given up after [`PING_LIMIT`] more. Together
/// they are below client-go's 45 s.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_LIMIT: Duration = Duration::from_secs(15);
/// Idle connections are kept as long as Go keeps them.
const IDLE_LIMIT: Duration = Duration::from_secs(90);
/// HTTP/2 windows: what may come before it has been taken in, of one answer and of all. hyper's own are small for lists.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

type HttpClient = Client<Connector, Full<Bytes>>;

/// The client that all kinds share.
pub(crate) struct Transport {
    config: ApiConfig,
    environment: Environment,
    current: Mutex<Arc<Generation>>,
    lost: Notify,
}

/// A client and which one it is, so that four tasks that fail at once make one new client.
pub(crate) struct Generation {
    number: u64,
    access: Access,
    credentials: Credentials,
    /// Headers of all requests.
    headers: HeaderMap,
    http2: bool,
    wire: Mutex<Wire>,
}

/// Connections, and the client certificate that they are made with.
#[derive(Clone)]
struct Wire {
    client: HttpClient,
    identity: Option<Identity>,
    /// [`Presented::serial`] of the plugin's certificate; 0 for none.
    serial: u64,
}

impl Transport {
    pub(crate) async fn connect(config: ApiConfig, environment: Environment) -> Result<Self, ConnectError> {
        let access = Access::read(&config, &environment).await?;
        let generation = Generation::new(0, access, &config, &environment)?;
        let current = Mutex::new(Arc::new(generation));
        Ok(Self { config, environment, current, lost: Notify::new() })
    }

    pub(crate) fn config(&self) -> &ApiConfig {
        &self.config
    }

    /// Tells those that wait in [`Transport::lost`].
    pub(crate) fn tell_lost(&self) {
        self.lost.notify_waiters();
    }

    /// Returns when the connection is lost, or can't be made, from now on.
    pub(crate) async fn lost(&self) {
        self.lost.notified().await;
    }

    /// The client to use now.
    pub(crate) fn current(&self) -> Arc<Generation> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the configuration again after a failure, since its credentials (token, certificates, CA) may have been
    /// replaced. Does nothing if that has been done since `failed` was taken. Connections stay if nothing has changed.
    pub(crate) async fn renew(&self, failed: &Generation) -> Result<(), ConnectError> {
        if self.current().number != failed.number {
            return Ok(());
        }
        let access = Access::read(&self.config, &self.environment).await?;
        if access == failed.access {
            return Ok(());
        }
        let generation = Generation::new(failed.number + 1, access, &self.config, &self.environment)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.number == failed.number {
            *current = Arc::new(generation);
        }
        Ok(())
    }
}

/// An answer whose status is 200.
pub(crate) struct Answer {
    format: Format,
    body: Body,
}

impl Generation {
    fn new(
        number: u64,
        access: Access,
        config: &ApiConfig,
        environment: &Environment,
    ) -> Result<Self, ConnectError> {
        let agent = HeaderValue::from_str(&config.user_agent).map_err(ConnectError::UserAgent)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &access.impersonation {
            headers.append(name, value.clone());
        }
        headers.insert(USER_AGENT, agent);
        if let Some(header) = forwarding_login(&access) {
            headers.insert(PROXY_AUTHORIZATION, header);
        }
        let http2 = environment.get("DISABLE_HTTP2").is_none();
        let wire = Mutex::new(Wire::new(&access, None, http2).map_err(ConnectError::Tls)?);
        let credentials = Credentials::new(access.login.clone(), config.timings.plugin);
        Ok(Self { number, access, credentials, headers, http2, wire })
    }

    /// The server's address and port as configured.
    pub(crate) fn host(&self) -> &str {
        self.access.server.authority().map_or("", |authority| authority.as_str())
    }

    /// What has failed and where, with what people need to know to mend it.
    pub(crate) fn describe(&self, failure: &Failure) -> String {
        let server = self.access.server.to_string();
        let text = format!("{}: {failure}", server.trim_end_matches('/'));
        match failure {
            Failure::Status(status) if status.code == 401 => {
                let identity = self.wire().identity.map(|identity| identity.to_string());
                let login = self.credentials.origin().map(|origin| format!("the credentials of {origin}"));
                let used: Vec<String> = identity.into_iter().chain(login).collect();
                if used.is_empty() { text } else { format!("{text} (asked with {})", used.join(" and ")) }
            }
            _ => text,
        }
    }

    /// Sends a request with a JSON body. An answer other than 200 and 201 is a failure; what else it says is of no interest.
    pub(crate) async fn write(&self, request: Request<Vec<u8>>, limit: Duration) -> Result<(), Failure> {
        let (head, body) = self.send(request.map(|body| Full::new(body.into())), limit).await?;
        if matches!(head.status, StatusCode::OK | StatusCode::CREATED) {
            // A connection is used again only after the whole answer has been read.
            drop(body.read_start(limit, MAX_STATUS_BYTES).await);
            return Ok(());
        }
        Err(Failure::Status(read_status(&head, body, limit).await))
    }

    /// Sends a GET request. An answer other than 200 is a failure.
    pub(crate) async fn get(
        &self,
        path: &str,
        accept: &'static str,
        is_list: bool,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = Request::get(path).header(ACCEPT, accept);
        if is_list && self.access.compression {
            request = request.header(ACCEPT_ENCODING, "gzip");
        }
        let request = request
            .body(Full::default())
            .map_err(|error| Failure::Unreachable(format!("the request can't be built: {error}")))?;
        let (head, body) = self.send(request, limit).await?;
        if head.status != StatusCode::OK {
            return Err(Failure::Status(read_status(&head, body, limit).await));
        }
        match format(&head.headers) {
            Some(format) => Ok(Answer { format, body }),
            None => Err(Failure::Unreadable(format!(
                "the answer has the content type {:?}",
                head.headers.get(CONTENT_TYPE)
            ))),
        }
    }

    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<(http::response::Parts, Body), Failure> {
        let presented = self.credentials.present().await.map_err(Failure::Unreachable)?;
        let wire = self.wire_for(&presented).map_err(|error| Failure::Unreachable(chain(&error)))?;
        *request.uri_mut() = self.uri(request.uri())?;
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        if let Some(header) = presented.header {
            headers.insert(AUTHORIZATION, header);
        }
        let response = tokio::time::timeout(limit, wire.client.request(request))
            .await
            .map_err(|_elapsed| Failure::Unreachable(format!("no answer after {limit:?}")))?
            .map_err(|error| Failure::Unreachable(self.reason(&error, &wire)))?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.credentials.refused(presented.serial).await;
        }
        let (head, incoming) = response.into_parts();
        let body = Body::new(&head.headers, incoming)?;
        Ok((head, body))
    }

    /// The URL of a path at this server.
    fn uri(&self, path: &Uri) -> Result<Uri, Failure> {
        let text = format!("{}{path}", self.access.server.to_string().trim_end_matches('/'));
        text.parse().map_err(|error| Failure::Unreachable(format!("{text:?} is no url: {error}")))
    }

    fn wire(&self) -> Wire {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// New connections if a plugin has given another certificate.
    fn wire_for(&self, presented: &Presented) -> Result<Wire, TlsError> {
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = &presented.pair
            && wire.serial != presented.serial
        {
            *wire = Wire { serial: presented.serial, ..Wire::new(&self.access, Some(pair), self.http2)? };
        }
        Ok(wire.clone())
    }

    /// Why a request has failed.
    fn reason(&self, error: &hyper_util::client::legacy::Error, wire: &Wire) -> String {
        let by_way = match &self.access.proxy {
            Some(proxy) => format!(" (by way of the proxy {proxy})"),
            None => String::new(),
        };
        let text = match find_tls(error) {
            Some(tls) => tls::explain(tls, &self.access.server, self.access.ca.as_ref()),
            None => chain(error),
        };
        match &wire.identity {
            // A server that refuses a certificate may do so after the handshake (TLS 1.3), and its alert may be lost with the
            // connection.
            Some(identity) if tls::is_about_client(&text) || !error.is_connect() => {
                format!("{text}; {identity}{by_way}")
            }
            _ => format!("{text}{by_way}"),
        }
    }
}

impl Wire {
    fn new(access: &Access, pair: Option<&crate::access::Pair>, http2: bool) -> Result<Self, TlsError> {
        let (config, identity) = tls::configure(access, pair)?;
        let name = access.server_name.clone().map(ServerName::try_from).transpose();
        let name = name.map_err(|error| TlsError::Setup(Box::new(error)))?;
        let connector = Connector::new(access.proxy.as_ref(), config, name, http2);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_AFTER)
            .http2_keep_alive_timeout(PING_LIMIT)
            .http2_keep_alive_while_idle(true)
            .build(connector);
        Ok(Self { client, identity, serial: 0 })
    }
}

/// A proxy that gets whole requests wants its login with each.
fn forwarding_login(access: &Access) -> Option<HeaderValue> {
    let proxy = access.proxy.as_ref().filter(|proxy| proxy.protocol != Protocol::Socks5)?;
    let (name, password) = proxy.login.as_ref()?;
    if access.server.scheme_str() == Some("https") { None } else { basic(name, password).ok() }
}

impl Answer {
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self, limit: Duration) -> Result<Option<Bytes>, Failure> {
        self.body.chunk(limit).await
    }

    /// The whole body.
    pub(crate) async fn read(self, timings: &Timings) -> Result<Vec<u8>, Failure> {
        self.body.read(timings.grace, timings.watch_timeout, MAX_PAGE_BYTES).await
    }
}

fn format(headers: &HeaderMap) -> Option<Format> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    match content_type.split(';').next()?.trim() {
        "application/vnd.kubernetes.protobuf" => Some(Format::Protobuf),
        "application/json" => Some(Format::Json),
        _ => None,
    }
}

/// The status in the body, or one made of the HTTP status where the body says nothing.
async fn read_status(head: &http::response::Parts, body: Body, limit: Duration) -> Status {
    let text = body.read_start(limit, MAX_STATUS_BYTES).await;
    let format = format(&head.headers);
    let mut status = format.and_then(|format| decode_status(format, &text)).unwrap_or_else(|| {
        let line = String::from_utf8_lossy(&text);
        let message = line.lines().next().unwrap_or_default().chars().take(200).collect();
        let reason = head.status.canonical_reason().unwrap_or_default().to_owned();
        Status { reason, message, ..Status::default() }
    });
    status.code = head.status.as_u16();
    let wanted = retry_after(&head.headers).max(status.retry_after);
    status.retry_after = wanted.map(|wanted| wanted.min(MAX_RETRY_AFTER));
    status
}

/// Only the form in seconds; Kubernetes does not send dates.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The error and its causes, each said once: some texts repeat theirs, and those of hyper's client say only that something
/// is an error.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !text.starts_with("client error (") && !texts.iter().any(|earlier| earlier.contains(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

/// The error of TLS in a chain; it hides inside errors of I/O, which do not name it as their cause.
fn find_tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}
