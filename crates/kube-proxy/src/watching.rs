//! Threads that look at what others do.

use std::time::Duration;

/// The pause before something that ended by itself is begun again.
pub(crate) const AGAIN_PAUSE: Duration = Duration::from_secs(5);

/// Runs a watch on a thread of its own, again if it panics, until it says that nobody listens any more.
pub(crate) fn spawn_watch(watch: impl Fn() + Send + 'static) {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let work = move || {
        while catch_unwind(AssertUnwindSafe(&watch)).is_err() {
            tracing::warn!(retryingTime = ?AGAIN_PAUSE, "the watch of the rules panicked");
            std::thread::sleep(AGAIN_PAUSE);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("watch".into()).spawn(work) {
        tracing::warn!(%error, "foreign changes of the rules are noticed only by audits");
    }
}
