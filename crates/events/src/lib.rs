//! What the proxy has to tell people, as Events (`events.k8s.io/v1`) about the Node or a Service.
//!
//! A [`Recorder`] takes events at any time, also before there is a way to the API, and never waits: beyond
//! [`QUEUE`] waiting ones they are dropped and counted. A [`Worker`] writes them one after the other. Equal events within
//! a few minutes become one with a count (`series`).
//!
//! Facts that are the same on every node, such as a conflict between two Services, get names made of what they say. So
//! the first node's event is the only one, however many nodes see the fact and however often they start.
#![forbid(unsafe_code)]

mod event;
mod object;
mod series;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;

pub use event::{Event, EventType, Reason, Regarding};
pub use worker::{Timings, Worker};

/// So many events may wait. Upstream's queue is as long (`maxQueuedEvents` in `client-go/tools/events`).
pub const QUEUE: usize = 1000;

/// Something for the worker.
#[derive(Debug)]
enum Message {
    /// Write this, which happened then.
    Event(Box<Event>, Timestamp),
    /// Say when all before this has been written, or given up.
    Flush(oneshot::Sender<()>),
}

/// Takes events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: Sender<Message>,
    dropped: Arc<AtomicU64>,
}

/// A recorder and the worker that writes what it takes. `instance` is the `reportingInstance`:
/// `kube-proxy-` and the host's name. If the worker is dropped, so are the events.
pub fn queue(instance: &str) -> (Recorder, Worker) {
    let (queue, inbox) = channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let worker = Worker::new(instance, inbox, dropped.clone());
    (Recorder { queue, dropped }, worker)
}

impl Recorder {
    /// Has an event written, some time. Never waits.
    pub fn send(&self, event: Event) {
        let message = Message::Event(Box::new(event), Timestamp::now());
        if self.queue.try_send(message).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all events so far have been written or given up, at most `limit`. For the end of the program.
    pub async fn flush(&self, limit: Duration) {
        let flushed = async {
            let (done, is_done) = oneshot::channel();
            // An error means that there is no worker, hence nothing to wait for.
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                drop(is_done.await);
            }
        };
        drop(tokio::time::timeout(limit, flushed).await);
    }

    /// How many events were not written: because too many waited, because there was no worker, or because the API did not
    /// take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
