//! Bytes both ways, after a client and an endpoint have agreed on another protocol.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::UPGRADE;
use http::{Method, Request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::task::JoinSet;
use tracing::debug;

use crate::response_body::Held;
use crate::times::idle_for;

/// The tunnels of a client's connection.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    tasks: Mutex<JoinSet<()>>,
    expects_one: AtomicBool,
}

/// Whether a connection may become a tunnel after this request of HTTP/1.1. To HTTP/2 it does not change.
pub(crate) fn may_begin<B>(request: &Request<B>) -> bool {
    let wanted = request.headers().get(UPGRADE);
    *request.method() == Method::CONNECT
        || wanted.is_some_and(|wanted| !wanted.as_bytes().eq_ignore_ascii_case(b"h2c"))
}

/// Both ends of a tunnel, once they are there.
pub(crate) struct Ends {
    pub(crate) client: OnUpgrade,
    pub(crate) endpoint: OnUpgrade,
}

impl Tunnels {
    /// A client asks for one.
    pub(crate) fn expect_one(&self) {
        self.expects_one.store(true, Ordering::Relaxed);
    }

    /// Whether a client has asked for one.
    pub(crate) fn expects_one(&self) -> bool {
        self.expects_one.load(Ordering::Relaxed)
    }

    /// Carries bytes until both sides have no more, there were none for so long, or the time of an endpoint that is gone is over.
    pub(crate) fn begin(
        &self,
        ends: Ends,
        held: Held,
        idle_limit: Option<Duration>,
        drained: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut tunnels = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tunnels.try_join_next().is_some() {}
        tunnels.spawn(async move {
            tokio::select! {
                () = carry(ends, idle_limit) => {}
                () = drained => {}
            }
            let Held { mut under_way, .. } = held;
            under_way.answered();
        });
    }

    /// Ends with the last of them.
    pub(crate) async fn ended(&self) {
        let mut tunnels = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tunnels.join_next().await.is_some() {}
    }
}

async fn carry(ends: Ends, idle_limit: Option<Duration>) {
    let (client, endpoint) = match tokio::try_join!(ends.client, ends.endpoint) {
        Ok(ends) => ends,
        Err(error) => return debug!(%error, "a tunnel did not begin"),
    };
    let (from_client, to_client) = split(TokioIo::new(client));
    let (from_endpoint, to_endpoint) = split(TokioIo::new(endpoint));
    let (carried, mut seen) = (AtomicU64::new(0), 0);
    let both_ways = async {
        tokio::try_join!(
            one_way(from_client, to_endpoint, &carried),
            one_way(from_endpoint, to_client, &carried)
        )
    };
    let is_idle = || std::mem::replace(&mut seen, carried.load(Ordering::Relaxed)) == seen;
    tokio::select! {
        ended = both_ways => if let Err(error) = ended {
            debug!(%error, "a tunnel broke");
        },
        () = idle(idle_limit, is_idle) => debug!("a tunnel carried nothing for too long"),
    }
}

async fn idle(limit: Option<Duration>, is_idle: impl FnMut() -> bool) {
    match limit {
        Some(limit) => idle_for(limit, is_idle).await,
        None => std::future::pending().await,
    }
}

/// In each direction at a time.
const BUFFER_BYTES: usize = 8 * 1024;

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    carried: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        carried.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
    }
}
