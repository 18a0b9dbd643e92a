//! The way to a running proxy's API.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use inspect::document::Problem;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::system;

/// Answers are no longer than this.
const MAX_BYTES: usize = 256 << 20;

/// A proxy that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// At an address and port.
    Tcp(String),
    /// At a socket of the file system (`inspectSocket`).
    Unix(PathBuf),
}

/// The proxy did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error(
        "connect to {server}: is kube-proxy running on this node, and is this its metricsBindAddress? (--server says another)"
    )]
    Connect {
        /// Who was asked.
        server: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("ask {server}")]
    Http {
        /// Who was asked.
        server: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The proxy says that it can't be.
    #[error("{0}")]
    Refused(String),
    /// Packets can't be traced.
    #[error("trace packets: {0}")]
    Trace(String),
    /// There is no terminal, or it has gone.
    #[error("use the terminal")]
    Terminal(#[source] io::Error),
    /// It is no proxy of ours, or one of another version.
    #[error("{server} does not answer as this version of kube-proxy does: {why}")]
    Foreign {
        /// Who was asked.
        server: String,
        /// What is strange.
        why: String,
    },
}

/// `--server` can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--server {0:?}: want http://ADDRESS:PORT or unix:FILE")]
pub struct ServerError(String);

impl std::str::FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let is_path = path.starts_with('/') && !path.ends_with('/');
            return if is_path { Ok(Self::Unix(path.into())) } else { Err(ServerError(text.to_owned())) };
        }
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
        if !has_port || address.contains('/') {
            return Err(ServerError(text.to_owned()));
        }
        Ok(Self::Tcp(address.to_owned()))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Server {
    /// Asks for a document of the API.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.bytes(&format!("/api/v1/{path}")).await?;
        serde_json::from_slice(&body).map_err(|error| self.foreign(error.to_string()))
    }

    /// Asks for the body at a path.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        let response = self.ask(path).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
        let body = body.map_err(|source| ClientError::Http { server: self.to_string(), source })?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(ClientError::Refused(problem.error)),
            Err(_other) => Err(self.foreign(format!("{status} to GET {path}"))),
        }
    }

    /// Sends a request, and yields the response once its head is here.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask(&self, path: &str) -> Result<http::Response<hyper::body::Incoming>, ClientError> {
        let unreachable = |source| ClientError::Connect { server: self.to_string(), source };
        match self {
            Self::Tcp(address) => {
                self.over(TcpStream::connect(address).await.map_err(unreachable)?, path).await
            }
            Self::Unix(socket) => self.over(system::connect(socket).await.map_err(unreachable)?, path).await,
        }
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        path: &str,
    ) -> Result<http::Response<hyper::body::Incoming>, ClientError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| ClientError::Http {
            server: self.to_string(),
            source: error,
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.into()))?;
        // It ends with the response; what goes wrong shows there.
        drop(tokio::spawn(connection));
        let request = Request::get(path).header(HOST, self.host()).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| failed(error.into()))?;
        sender.send_request(request).await.map_err(|error| failed(error.into()))
    }

    /// A proxy answers only to addresses and to names that are surely its own.
    fn host(&self) -> &str {
        let Self::Tcp(address) = self else { return "localhost" };
        let name = address.rsplit_once(':').map_or(&**address, |(name, _)| name);
        let is_address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        if is_address { address } else { "localhost" }
    }

    fn foreign(&self, why: String) -> ClientError {
        ClientError::Foreign { server: self.to_string(), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        for (text, shown, host) in [
            ("http://127.0.0.1:10249", "http://127.0.0.1:10249", "127.0.0.1:10249"),
            ("[::1]:80/", "http://[::1]:80", "[::1]:80"),
            ("node-1:10249", "http://node-1:10249", "localhost"),
            ("unix:/run/kube-proxy.sock", "unix:/run/kube-proxy.sock", "localhost"),
            ("unix:///run/kube-proxy.sock", "unix:/run/kube-proxy.sock", "localhost"),
        ] {
            let server: Server = text.parse().unwrap();
            assert_eq!((server.to_string().as_str(), server.host()), (shown, host));
        }
        for text in ["", "127.0.0.1", "https://a:1", "http://a:1/x", "a:99999", ":80", "unix:", "unix:x"] {
            assert_eq!(text.parse::<Server>(), Err(ServerError(text.to_owned())));
        }
    }
}
