//! What a source tells.

use api::Rejection;
use metrics::SourceMetrics;
use model::{Change, Kind};
use tokio::sync::mpsc::Sender;

/// Something that a source has to say, in the order in which it came to know it (per kind).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The state differs from before, or may do so.
    Change(Change),
    /// The first complete listing of this kind has been delivered (as [`Change::Replace`], just before). Sent once.
    Listed(Kind),
    /// An object, or an item of one, can't be used. It is sent again when the object is read again.
    Rejected(Rejection),
    /// Something does not work; the source tries again on its own.
    Problem {
        /// The kind that is affected; `None` for a whole folder.
        kind: Option<Kind>,
        /// What does not work and why, for the log.
        text: String,
    },
    /// What was reported as a problem of this kind works again.
    Recovered(Kind),
}

/// The receiver is gone: there is nobody to work for.
#[derive(Debug)]
pub(crate) struct Closed;

/// The way to the receiver. What is rejected is counted on it.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    sender: Sender<SourceEvent>,
    metrics: SourceMetrics,
}

impl Events {
    pub(crate) fn new(sender: Sender<SourceEvent>, metrics: SourceMetrics) -> Self {
        Self { sender, metrics }
    }

    pub(crate) fn metrics(&self) -> &SourceMetrics {
        &self.metrics
    }

    pub(crate) async fn send(&self, event: SourceEvent) -> Result<(), Closed> {
        if let SourceEvent::Rejected(rejection) = &event {
            self.metrics.resource(rejection.kind).rejected.inc();
        }
        self.sender.send(event).await.map_err(|_closed| Closed)
    }

    /// Returns when the receiver is gone.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}
