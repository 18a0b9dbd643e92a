//! Writes events to the API, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use source::{Client, Method, WriteError};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, trace, warn};

use crate::Message;
use crate::object::{create, patch};
use crate::series::{Known, Write};

/// How patient to be. The defaults are client-go's (`tools/events/event_broadcaster.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// How often an event is sent at most, if there is no answer.
    pub attempts: u32,
    /// The pause between two attempts; up to a quarter is added at random.
    pub pause: Duration,
    /// The longest wait for an answer.
    pub answer: Duration,
    /// How often the count of a repeated event is written.
    pub refresh: Duration,
    /// After so long without a repetition the next one is a new event.
    pub close: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            attempts: 12,
            pause: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            refresh: Duration::from_mins(30),
            close: Duration::from_mins(6),
        }
    }
}

/// Writes what a [`Recorder`](crate::Recorder) takes.
#[derive(Debug)]
pub struct Worker {
    instance: String,
    inbox: Receiver<Message>,
    dropped: Arc<AtomicU64>,
    timings: Timings,
}

impl Worker {
    pub(crate) fn new(instance: &str, inbox: Receiver<Message>, dropped: Arc<AtomicU64>) -> Self {
        Self { instance: instance.to_owned(), inbox, dropped, timings: Timings::default() }
    }

    /// Replaces the timings.
    #[must_use]
    pub fn with_timings(self, timings: Timings) -> Self {
        Self { timings, ..self }
    }

    /// Writes events until all recorders are gone.
    pub async fn run(mut self, client: Client) {
        let mut known = Known::new(self.timings);
        loop {
            let deadline = known.deadline();
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(Message::Event(event, at)) => {
                        if let Some(write) = known.take(*event, at, Instant::now()) {
                            self.deliver(&client, &write).await;
                        }
                    }
                    // Its sender may have given up waiting.
                    Some(Message::Flush(done)) => drop(done.send(())),
                    None => return,
                },
                () = due => {
                    for write in known.due(Instant::now()) {
                        self.deliver(&client, &write).await;
                    }
                }
            }
        }
    }

    /// Sends one event until the API has it, refuses it, or it has been tried often enough.
    async fn deliver(&self, client: &Client, write: &Write) {
        let mut tried = 0;
        loop {
            let error = match self.send(client, write).await {
                Ok(()) => {
                    return trace!(
                        reason = write.event.reason.as_str(),
                        name = write.identity.name,
                        "wrote an event"
                    );
                }
                Err(error) => error,
            };
            tried += 1;
            let pause = self.pause_after(&error).filter(|_| tried < self.timings.attempts);
            let Some(pause) = pause else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                warn!(%error, tried, reason = write.event.reason.as_str(), "An event could not be written");
                return;
            };
            debug!(v = 3, %error, ?pause, "an event could not be written yet");
            sleep(pause).await;
        }
    }

    /// How long to wait before an event is sent again; `None` if that makes no sense. Refusals are final, as upstream, unless
    /// the server asks to come back, or the credentials are being replaced.
    fn pause_after(&self, error: &WriteError) -> Option<Duration> {
        let pause = self.timings.pause.mul_f64(1.0 + fastrand::f64() / 4.0);
        match error {
            WriteError::NoAnswer(_) | WriteError::Refused { code: 401, .. } => Some(pause),
            WriteError::Refused { code, retry_after, .. } => {
                retry_after.filter(|_| *code == 429 || *code >= 500).map(|after| pause.max(after))
            }
            WriteError::Request(_) => None,
        }
    }

    async fn send(&self, client: &Client, write: &Write) -> Result<(), WriteError> {
        if let Some(series) = write.series {
            let body = patch(series).map_err(|error| WriteError::Request(error.to_string()))?;
            let patched =
                client.write(Method::MergePatch, &write.identity.path(), body, self.timings.answer).await;
            // The API forgets events after an hour.
            if !is_refused(&patched, 404) {
                return patched;
            }
        }
        let Write { event, identity, first, series } = write;
        let body = create(event, identity, *first, *series, &self.instance)
            .map_err(|error| WriteError::Request(error.to_string()))?;
        let created = client.write(Method::Create, &identity.collection(), body, self.timings.answer).await;
        // It is there: by another node, by an earlier process, or by an attempt whose answer was lost.
        if is_refused(&created, 409) { Ok(()) } else { created }
    }
}

fn is_refused(result: &Result<(), WriteError>, with: u16) -> bool {
    matches!(result, Err(WriteError::Refused { code, .. }) if *code == with)
}
