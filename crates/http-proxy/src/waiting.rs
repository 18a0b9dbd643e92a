//! Whether a client's connection of HTTP/1.1 waits for its next request, so that it can be put aside without the memory of one.
//!
//! Nothing but the time-out for heads tells: it runs from when a connection begins to wait for the head of a request until it has
//! that, and it only begins to when all of the request before was read, and all of its answer taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};

/// What a connection waits for. Clones are of the same connection. As a [`Timer`] it hears of heads that are waited for, and its time
/// is never over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Heads that are waited for: one or none.
    heads: AtomicUsize,
    /// Bytes of an answer wait for the client.
    is_blocked: AtomicBool,
    is_ending: AtomicBool,
}

impl Waiting {
    /// Whether the connection waits for a request, and for nothing else.
    pub(crate) fn is_for_request(&self) -> bool {
        let State { heads, is_blocked, is_ending } = &*self.0;
        heads.load(Ordering::Relaxed) > 0
            && !is_blocked.load(Ordering::Relaxed)
            && !is_ending.load(Ordering::Relaxed)
    }

    /// The client took what it was sent, or did not.
    pub(crate) fn note_write(&self, is_blocked: bool) {
        self.0.is_blocked.store(is_blocked, Ordering::Relaxed);
    }

    /// No request will be served any more.
    pub(crate) fn note_end(&self) {
        self.0.is_ending.store(true, Ordering::Relaxed);
    }
}

impl Timer for Waiting {
    fn sleep(&self, _limit: Duration) -> Pin<Box<dyn Sleep>> {
        self.0.heads.fetch_add(1, Ordering::Relaxed);
        Box::pin(ForHead(self.0.clone()))
    }

    #[expect(clippy::disallowed_types, reason = "the trait has it; it is not looked at")]
    fn sleep_until(&self, _deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(Duration::ZERO)
    }
}

/// A head is waited for until this is dropped.
#[derive(Debug)]
struct ForHead(Arc<State>);

impl Future for ForHead {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Sleep for ForHead {}

impl Drop for ForHead {
    fn drop(&mut self) {
        self.0.heads.fetch_sub(1, Ordering::Relaxed);
    }
}
