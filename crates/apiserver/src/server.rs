//! The listening socket and its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::service;
use super::shared::Shared;

/// How long a bind is repeated when the port is not free again yet.
const REBIND_PAUSE: Duration = Duration::from_millis(10);

/// Serves connections until `stop` fires or its sender is gone.
pub(super) async fn run(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    mut stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let mut refusing = shared.refusing.subscribe();
    let mut listener = Some(TcpListener::from_std(listener)?);
    loop {
        tokio::select! {
            _ = &mut stop => return Ok(()),
            _ = refusing.changed() => {
                let is_refusing = *refusing.borrow_and_update();
                listener = if is_refusing { None } else { Some(rebind(listener.take(), address).await) };
                shared.is_listening.send_replace(!is_refusing);
            }
            stream = accept(listener.as_ref()) => match stream {
                Ok(stream) => drop(tokio::spawn(connection(shared.clone(), stream, tls.clone()))),
                Err(error) => tracing::warn!(%error, "a connection could not be accepted"),
            },
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

async fn rebind(listener: Option<TcpListener>, address: SocketAddr) -> TcpListener {
    if let Some(listener) = listener {
        return listener;
    }
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => tracing::warn!(%error, %address, "the port is not free yet"),
        }
        tokio::time::sleep(REBIND_PAUSE).await;
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, tls: Option<TlsAcceptor>) {
    // Without this, small events wait for the acknowledgement of the ones before them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::warn!(%error, "nodelay is not available");
    }
    let mut refusing = shared.refusing.subscribe();
    let served = async {
        match tls {
            None => serve(shared, stream, false).await,
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => {
                    let has_certificate = stream.get_ref().1.peer_certificates().is_some();
                    serve(shared, stream, has_certificate).await;
                }
                Err(error) => tracing::debug!(%error, "TLS handshake failed"),
            },
        }
    };
    tokio::select! {
        () = served => {}
        _ = refusing.wait_for(|is_refusing| *is_refusing) => {}
    }
}

async fn serve<S>(shared: Arc<Shared>, stream: S, has_certificate: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| service::handle(shared.clone(), has_certificate, request));
    if let Err(error) =
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
    {
        // Clients go away and faults break connections: both end here.
        tracing::debug!(%error, "connection ended");
    }
}
