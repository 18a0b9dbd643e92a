//! The way to the server: `kube`'s client for kubeconfig, TLS, credentials and proxies; requests and bodies are our own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::{Format, Status, decode_status};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::ServiceExt as _;

use crate::ApiConfig;
use crate::machine::Failure;

/// Most bytes of an error's body that are looked at.
const MAX_STATUS_BYTES: usize = 1 << 16;
/// Most bytes of one page. A server that ignores the page size sends all objects in one; 1 GiB is above what a server
/// can hold.
const MAX_PAGE_BYTES: usize = 1 << 30;
/// An idle connection is probed after this time, and given up after [`PROBES`] more probes, one each interval. A watch
/// is idle most of its life, and without probes a lost peer is not noticed.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig can't be read, or makes no sense.
    #[error("the kubeconfig can't be used")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// There is neither a kubeconfig nor a pod's service account.
    #[error("the pod's service account can't be used")]
    InCluster(#[source] kube::config::InClusterError),
    /// The server's URL makes no sense.
    #[error("the server's url can't be used")]
    Url(#[source] http::uri::InvalidUri),
    /// The user agent is no header value.
    #[error("the user agent can't be used")]
    UserAgent(#[source] http::header::InvalidHeaderValue),
    /// The certificates or credentials can't be used.
    #[error("the client can't be set up")]
    Client(#[source] Box<kube::Error>),
}

/// The client that all kinds share.
pub(crate) struct Transport {
    config: ApiConfig,
    current: Mutex<Generation>,
}

/// A client and which one it is, so that four tasks that fail at once make one new client.
#[derive(Clone)]
pub(crate) struct Generation {
    number: u64,
    client: Client,
}

impl Transport {
    pub(crate) async fn connect(config: ApiConfig) -> Result<Self, ConnectError> {
        let client = make_client(&config).await?;
        Ok(Self { config, current: Mutex::new(Generation { number: 0, client }) })
    }

    pub(crate) fn config(&self) -> &ApiConfig {
        &self.config
    }

    /// The client to use now.
    pub(crate) fn current(&self) -> Generation {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the configuration again, since its credentials (token, certificates, CA) may have been replaced. Does
    /// nothing if that has been done since `failed` was taken.
    pub(crate) async fn renew(&self, failed: &Generation) -> Result<(), ConnectError> {
        if self.current().number != failed.number {
            return Ok(());
        }
        let client = make_client(&self.config).await?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.number == failed.number {
            *current = Generation { number: failed.number + 1, client };
        }
        Ok(())
    }
}

async fn make_client(config: &ApiConfig) -> Result<Client, ConnectError> {
    let mut kube_config = kube_config(config).await?;
    // Trying again is the state machine's business, which knows what is worth it.
    kube_config.default_retry = false;
    let agent = HeaderValue::from_str(&config.user_agent).map_err(ConnectError::UserAgent)?;
    kube_config.headers.push((USER_AGENT, agent));
    build(kube_config).map_err(|error| ConnectError::Client(Box::new(error)))
}

async fn kube_config(config: &ApiConfig) -> Result<Config, ConnectError> {
    let url = config.server.as_deref().map(str::parse).transpose().map_err(ConnectError::Url)?;
    let kubeconfig_error = |error| ConnectError::Kubeconfig(Box::new(error));
    let Some(path) = &config.kubeconfig else {
        return match url {
            Some(url) => Ok(Config::new(url)),
            None => Config::incluster().map_err(ConnectError::InCluster),
        };
    };
    let mut kubeconfig = Kubeconfig::read_from(path).map_err(kubeconfig_error)?;
    if let Some(server) = &config.server {
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some(server.clone());
        }
    }
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(kubeconfig_error)
}

/// The client of `kube`, but over connections that notice a lost peer. With a proxy in between, `kube`'s own
/// connections have to do.
fn build(config: Config) -> Result<Client, kube::Error> {
    if config.proxy_url.is_some() {
        return Ok(ClientBuilder::try_from(config)?.build());
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(PROBE_INTERVAL));
    connector.set_keepalive_interval(Some(PROBE_INTERVAL));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(PROBE_INTERVAL * (PROBES + 1)));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client: hyper_util::client::legacy::Client<_, Body> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let client = client.map_err(tower::BoxError::from);
    let builder = ClientBuilder::new(client, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}

/// An answer whose status is 200.
pub(crate) struct Answer {
    format: Format,
    body: Body,
}

impl Generation {
    /// Sends a request with a JSON body. An answer other than 200 and 201 is a failure; what else it says is of no interest.
    pub(crate) async fn write(
        &self,
        request: http::Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<(), Failure> {
        let (head, body) = self.send(request.map(Body::from), limit).await?.into_parts();
        if matches!(head.status, StatusCode::OK | StatusCode::CREATED) {
            // A connection is used again only after the whole answer has been read.
            drop(read_start(body, limit).await);
            return Ok(());
        }
        let format = format(&head.headers);
        Err(Failure::Status(read_status(head.status, &head.headers, format, body, limit).await))
    }

    async fn send(
        &self,
        request: http::Request<Body>,
        limit: Duration,
    ) -> Result<http::Response<Body>, Failure> {
        tokio::time::timeout(limit, self.client.send(request))
            .await
            .map_err(|_elapsed| Failure::Unreachable(format!("no answer after {limit:?}")))?
            .map_err(|error| Failure::Unreachable(format!("the request failed: {}", chain(&error))))
    }

    /// Sends a GET request. An answer other than 200 is a failure.
    pub(crate) async fn get(
        &self,
        uri: &str,
        accept: &'static str,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let request = http::Request::get(uri)
            .header(ACCEPT, accept)
            .body(Body::empty())
            .map_err(|error| Failure::Unreachable(format!("the request can't be built: {error}")))?;
        let (head, body) = self.send(request, limit).await?.into_parts();
        let format = format(&head.headers);
        if head.status != StatusCode::OK {
            return Err(Failure::Status(read_status(head.status, &head.headers, format, body, limit).await));
        }
        match format {
            Some(format) => Ok(Answer { format, body }),
            None => Err(Failure::Unreadable(format!(
                "the answer has the content type {:?}",
                head.headers.get(CONTENT_TYPE)
            ))),
        }
    }
}

impl Answer {
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self, limit: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = tokio::time::timeout(limit, self.body.frame())
                .await
                .map_err(|_elapsed| Failure::Broken(format!("nothing came for {limit:?}")))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Failure::Broken(format!("the connection broke: {}", chain(&error))));
                }
                Some(Ok(frame)) => {
                    // Trailers are of no interest.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body.
    pub(crate) async fn read(mut self, limit: Duration) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(limit).await? {
            if body.len() + chunk.len() > MAX_PAGE_BYTES {
                return Err(Failure::Unreadable(format!("the answer exceeds {MAX_PAGE_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
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
async fn read_status(
    code: StatusCode,
    headers: &HeaderMap,
    format: Option<Format>,
    body: Body,
    limit: Duration,
) -> Status {
    let text = read_start(body, limit).await;
    let mut status = format.and_then(|format| decode_status(format, &text)).unwrap_or_else(|| {
        let line = String::from_utf8_lossy(&text);
        let message = line.lines().next().unwrap_or_default().chars().take(200).collect();
        Status {
            reason: code.canonical_reason().unwrap_or_default().to_owned(),
            message,
            ..Status::default()
        }
    });
    status.code = code.as_u16();
    status.retry_after = retry_after(headers, &RETRY_AFTER).max(status.retry_after);
    status
}

/// As much of a body as there is, up to a limit; what goes wrong ends it.
async fn read_start(mut body: Body, limit: Duration) -> Vec<u8> {
    let mut text = Vec::new();
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(limit, body.frame()).await {
        text.extend_from_slice(&frame.into_data().unwrap_or_default());
        if text.len() > MAX_STATUS_BYTES {
            break;
        }
    }
    text
}

/// Only the form in seconds; Kubernetes does not send dates.
fn retry_after(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The error and its causes, each said once: `kube`'s texts repeat theirs.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
