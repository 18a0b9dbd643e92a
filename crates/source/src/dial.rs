//! Connections: direct or by way of a proxy, encrypted or not, and none that stays when its peer has gone silent.

#[cfg_attr(not(target_os = "linux"), path = "dial/elsewhere.rs")]
#[cfg_attr(target_os = "linux", path = "dial/linux.rs")]
mod system;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;

use crate::access::basic;
use crate::proxy::{Protocol, Proxy};

/// The limit for one address, client-go's.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// The limit for all that comes before the first request: addresses, proxy and TLS (client-go: 30 s and 10 s).
const DIAL_LIMIT: Duration = Duration::from_secs(40);
/// A silent connection is probed after this time and as often, and given up after [`SILENCE`]: a watch is silent most of its
/// life, and without probes a lost peer is not noticed. client-go needs 45 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(30);

type Tcp = TokioIo<TcpStream>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Dialing<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Connects to servers.
#[derive(Clone)]
pub(crate) struct Connector(HttpsConnector<Dialer>);

impl Connector {
    /// TLS to a proxy is like that to the server, as in Go. `server_name`: what the server's certificate has to be for, if not
    /// for the host of the URL.
    pub(crate) fn new(
        proxy: Option<&Proxy>,
        tls: ClientConfig,
        server_name: Option<ServerName<'static>>,
        http2: bool,
    ) -> Self {
        let dialer = Dialer::new(proxy, &tls);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let builder = match server_name {
            Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
            None => builder,
        };
        Self(if http2 {
            builder.enable_all_versions().wrap_connector(dialer)
        } else {
            builder.enable_http1().wrap_connector(dialer)
        })
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Stream>;
    type Error = BoxError;
    type Future = Dialing<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let dialing = self.0.call(server);
        Box::pin(async move {
            tokio::time::timeout(DIAL_LIMIT, dialing)
                .await
                .map_err(|_elapsed| BoxError::from(format!("no connection after {DIAL_LIMIT:?}")))?
        })
    }
}

/// The way to the server's port.
#[derive(Clone)]
enum Dialer {
    Direct(HttpConnector),
    /// An HTTP proxy: tunnels for `https`, whole requests for `http`.
    Http {
        address: Uri,
        forward: HttpsConnector<HttpConnector>,
        tunnel: Tunnel<HttpsConnector<HttpConnector>>,
    },
    Socks(SocksV5<HttpConnector>),
}

impl Dialer {
    fn new(proxy: Option<&Proxy>, tls: &ClientConfig) -> Self {
        let Some(proxy) = proxy else { return Self::Direct(tcp()) };
        let address = proxy.address.clone();
        if proxy.protocol == Protocol::Socks5 {
            let socks = SocksV5::new(address, tcp());
            return Self::Socks(match proxy.login.clone() {
                Some((name, password)) => socks.with_auth(name, password),
                None => socks,
            });
        }
        let is_tls = proxy.protocol == Protocol::Https;
        let address = if is_tls { with_scheme(address, Scheme::HTTPS) } else { address };
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
        let forward = builder.enable_http1().wrap_connector(tcp());
        let tunnel = Tunnel::new(address.clone(), forward.clone());
        let header = proxy.login.as_ref().and_then(|(name, password)| basic(name, password).ok());
        let tunnel = match header {
            Some(header) => tunnel.with_auth(header),
            None => tunnel,
        };
        Self::Http { address, forward, tunnel }
    }
}

fn with_scheme(uri: Uri, scheme: Scheme) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(scheme);
    Uri::from_parts(parts).unwrap_or(uri)
}

fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_LIMIT));
    connector.set_keepalive(Some(PROBE_INTERVAL));
    connector.set_keepalive_interval(Some(PROBE_INTERVAL));
    connector.set_keepalive_retries(Some(2));
    // Counts for requests that nobody acknowledges as well.
    system::give_up_after(&mut connector, SILENCE);
    connector
}

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = BoxError;
    type Future = Dialing<Stream>;

    /// All of these are always ready.
    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let is_tls = server.scheme() == Some(&Scheme::HTTPS);
        match self {
            Self::Direct(tcp) => {
                let dialing = tcp.call(server);
                Box::pin(async move { Ok(Stream::plain(dialing.await?)) })
            }
            Self::Socks(socks) => {
                let dialing = socks.call(with_port(&server, is_tls));
                Box::pin(async move { Ok(Stream::plain(dialing.await?)) })
            }
            Self::Http { tunnel, .. } if is_tls => {
                let dialing = tunnel.call(server);
                Box::pin(async move { Ok(Stream { io: dialing.await?, is_forwarded: false }) })
            }
            Self::Http { address, forward, .. } => {
                let dialing = forward.call(address.clone());
                Box::pin(async move { Ok(Stream { io: dialing.await?, is_forwarded: true }) })
            }
        }
    }
}

/// The library takes 443 for what has no port.
fn with_port(server: &Uri, is_tls: bool) -> Uri {
    if is_tls || server.port().is_some() {
        return server.clone();
    }
    let full = format!("http://{}:80", server.host().unwrap_or_default());
    full.parse().unwrap_or_else(|_invalid| server.clone())
}

/// A connection to a server's port.
pub(crate) struct Stream {
    /// TLS of this layer is that to the proxy.
    io: MaybeHttpsStream<Tcp>,
    /// The other end is a proxy that wants whole URLs.
    is_forwarded: bool,
}

impl Stream {
    fn plain(tcp: Tcp) -> Self {
        Self { io: MaybeHttpsStream::Http(tcp), is_forwarded: false }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_forwarded)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// What the kernel does with these is its own business: what matters is that they are set, and their sums.
    #[tokio::test]
    async fn a_silent_connection_is_given_up_within_45_seconds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let stream = tcp().call(server).await.unwrap();
        let socket = socket2::SockRef::from(stream.inner());
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        let retries = socket.tcp_keepalive_retries().unwrap();
        let idle = socket.tcp_keepalive_time().unwrap() + socket.tcp_keepalive_interval().unwrap() * retries;
        let unacknowledged = socket.tcp_user_timeout().unwrap().unwrap();
        let limit = Duration::from_secs(45);
        assert!(idle < limit && unacknowledged < limit, "{idle:?}, {unacknowledged:?}");
        // A probe more may go out before the time is over.
        assert!(unacknowledged + PROBE_INTERVAL < limit);
    }
}
