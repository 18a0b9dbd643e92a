//! For how long a connection to an endpoint is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A connection's requests, and when it last had one.
#[derive(Debug)]
pub(super) struct Life {
    began: Instant,
    n_requests: AtomicUsize,
    /// Milliseconds since it began.
    last_end: AtomicU64,
}

/// A request on a connection, until this is dropped.
#[derive(Debug)]
pub(super) struct Use(Arc<Life>);

impl Life {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), n_requests: AtomicUsize::new(0), last_end: AtomicU64::new(0) })
    }

    pub(super) fn begin(self: &Arc<Self>) -> Use {
        self.n_requests.fetch_add(1, Ordering::Relaxed);
        Use(self.clone())
    }

    pub(super) fn n_requests(&self) -> usize {
        self.n_requests.load(Ordering::Relaxed)
    }

    /// For how long it has had no request.
    pub(super) fn idle(&self) -> Duration {
        self.last_end().elapsed()
    }

    /// Ends when it has had no request for so long.
    pub(super) async fn idle_for(&self, limit: Duration) {
        loop {
            sleep_until(self.last_end().max(Instant::now() - limit / 2) + limit).await;
            if self.n_requests() == 0 && self.idle() >= limit {
                return;
            }
        }
    }

    fn last_end(&self) -> Instant {
        self.began + Duration::from_millis(self.last_end.load(Ordering::Relaxed))
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_end.store(now, Ordering::Relaxed);
        self.0.n_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_while_it_is_used() {
        let life = Life::new();
        let watched = life.clone();
        let over = tokio::spawn(async move { watched.idle_for(LIMIT).await });
        let used = life.begin();
        tokio::time::sleep(LIMIT * 5).await;
        assert!(!over.is_finished());
        drop(used);
        let ended = Instant::now();
        over.await.unwrap();
        assert!((LIMIT..LIMIT * 2).contains(&ended.elapsed()));
    }
}
