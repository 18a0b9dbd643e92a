//! What a client's connection is at: its requests, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The requests of one connection.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    begun: AtomicUsize,
    ended: AtomicUsize,
    given_up: AtomicUsize,
    abused: Notify,
}

/// A client may give up so many requests; from then on it may give up no more than half of all it makes. One that does nothing
/// but begin requests and reset them costs endpoints all their work. (CVE-2023-44487.)
const MAX_GIVEN_UP: usize = 500;

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    requests: Arc<Requests>,
    is_answered: bool,
}

impl Requests {
    /// Another request.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay { requests: self.clone(), is_answered: false }
    }

    pub(crate) fn n_begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    pub(crate) fn n_under_way(&self) -> usize {
        self.n_begun().saturating_sub(self.ended.load(Ordering::Relaxed))
    }

    /// Ends when the client has given up too many.
    pub(crate) async fn abused(&self) {
        self.abused.notified().await;
    }

    fn note_given_up(&self) {
        let given_up = self.given_up.fetch_add(1, Ordering::Relaxed) + 1;
        if given_up >= MAX_GIVEN_UP && given_up * 2 > self.n_begun() {
            self.abused.notify_one();
        }
    }
}

impl UnderWay {
    /// All of the answer went to the client.
    pub(crate) fn answered(&mut self) {
        self.is_answered = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.requests.ended.fetch_add(1, Ordering::Relaxed);
        if !self.is_answered {
            self.requests.note_given_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_abused(requests: &Requests) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(requests.abused()).poll(&mut context).is_ready()
    }

    use std::future::Future as _;

    #[test]
    fn one_that_does_nothing_but_give_up_is_found() {
        let requests = Arc::new(Requests::default());
        for _ in 1..MAX_GIVEN_UP {
            drop(requests.begin());
            assert!(!is_abused(&requests));
        }
        drop(requests.begin());
        assert!(is_abused(&requests));
        assert_eq!(requests.n_under_way(), 0);
    }

    #[test]
    fn one_that_gives_up_less_than_half_may() {
        let requests = Arc::new(Requests::default());
        for _ in 0..4 * MAX_GIVEN_UP {
            requests.begin().answered();
            drop(requests.begin());
        }
        assert!(!is_abused(&requests));
    }
}
