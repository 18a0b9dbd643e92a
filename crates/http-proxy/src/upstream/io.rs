//! A connection to an endpoint as bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Common, Place};

/// How long a connection is idle before it is asked whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_mins(2);

/// Has a connection send what it has at once, and notice after a while that the other side is gone. It works without either.
pub fn tune(stream: &TcpStream) {
    drop(stream.set_nodelay(true));
    drop(SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE)));
}

/// A connection, known to whoever hears of them until it is closed.
pub(super) struct EndpointIo {
    stream: TcpStream,
    /// Its local end and the endpoint's.
    ends: Option<(SocketAddr, SocketAddr)>,
    common: Arc<Common>,
    _place: Place,
}

impl EndpointIo {
    pub(super) fn new(stream: TcpStream, common: Arc<Common>, place: Place) -> Self {
        tune(&stream);
        let ends = stream.local_addr().and_then(|local| Ok((local, stream.peer_addr()?))).ok();
        if let Some((local, endpoint)) = ends {
            common.sockets.opened(local, endpoint);
        }
        Self { stream, ends, common, _place: place }
    }
}

impl Drop for EndpointIo {
    fn drop(&mut self) {
        if let Some((local, endpoint)) = self.ends {
            self.common.sockets.closed(local, endpoint);
        }
    }
}

impl AsyncRead for EndpointIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for EndpointIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
