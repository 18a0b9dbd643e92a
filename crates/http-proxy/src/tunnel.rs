//! Bytes both ways, after a client and an endpoint have agreed on another protocol.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use http::header::UPGRADE;
use http::{Method, Request};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tracing::debug;

use crate::response_body::Held;

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

    /// Carries bytes until both sides have no more, or the time of an endpoint that is gone is over.
    pub(crate) fn begin(&self, ends: Ends, held: Held, drained: impl Future<Output = ()> + Send + 'static) {
        let mut tunnels = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tunnels.try_join_next().is_some() {}
        tunnels.spawn(async move {
            tokio::select! {
                () = carry(ends) => {}
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

async fn carry(ends: Ends) {
    let carried = async {
        let (client, endpoint) = tokio::try_join!(ends.client, ends.endpoint)?;
        let (mut client, mut endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
        Ok::<_, hyper::Error>(tokio::io::copy_bidirectional(&mut client, &mut endpoint).await)
    };
    match carried.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(%error, "a tunnel broke"),
        Err(error) => debug!(%error, "a tunnel did not begin"),
    }
}
