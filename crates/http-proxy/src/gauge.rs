//! How much goes on at a time, with a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What goes on now. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU32>);

/// One of what goes on, until this is dropped.
#[derive(Debug)]
pub struct Held(Arc<AtomicU32>);

impl Gauge {
    /// One more, if there are fewer than the limit.
    pub fn take(&self, limit: Option<u32>) -> Option<Held> {
        let limit = limit.unwrap_or(u32::MAX);
        let more = |n: u32| (n < limit).then(|| n.saturating_add(1));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Held(self.0.clone()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_than_the_limit() {
        let gauge = Gauge::default();
        let mut held: Vec<Held> = (0..5).filter_map(|_| gauge.take(Some(3))).collect();
        assert_eq!(held.len(), 3);
        // A limit that has become smaller takes nothing away.
        assert!(gauge.take(Some(1)).is_none());
        held.pop();
        assert!(gauge.take(Some(3)).is_some());
        assert!(gauge.take(None).is_some());
        assert!(gauge.take(Some(0)).is_none());
    }

    #[test]
    fn threads_share_a_limit() {
        let gauge = Gauge::default();
        let taken: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| {
                    let gauge = gauge.clone();
                    scope.spawn(move || {
                        (0..100).filter_map(|_| gauge.take(Some(50)).map(std::mem::forget)).count()
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(taken, 50);
    }
}
