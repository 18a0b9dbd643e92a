//! Bytes both ways, after a client and an endpoint have agreed on another protocol.

use std::sync::{Mutex, PoisonError};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tracing::debug;

use crate::response_body::Held;

/// The tunnels of a client's connection.
#[derive(Debug, Default)]
pub(crate) struct Tunnels(Mutex<JoinSet<()>>);

/// Both ends of a tunnel, once they are there.
pub(crate) struct Ends {
    pub(crate) client: OnUpgrade,
    pub(crate) endpoint: OnUpgrade,
}

impl Tunnels {
    /// Carries bytes until both sides have no more, or the time of an endpoint that is gone is over.
    pub(crate) fn begin(&self, ends: Ends, held: Held, drained: impl Future<Output = ()> + Send + 'static) {
        let mut tunnels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut tunnels = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
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
