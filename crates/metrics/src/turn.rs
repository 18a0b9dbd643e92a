//! How long the event loop's turns take: nothing else is done meanwhile.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::{Gauge, Histogram, HistogramOpts};

use crate::buckets;
use crate::registrar::Registrar;

/// Turns of the event loop.
#[derive(Debug)]
pub struct LoopTurn {
    durations: Histogram,
    longest: Gauge,
    longest_nanos: AtomicU64,
    most_services: AtomicUsize,
}

impl LoopTurn {
    pub(crate) fn register(registrar: &Registrar) -> Self {
        let opts = HistogramOpts::new(
            "kubeproxy_event_loop_turn_seconds",
            "One turn of the event loop: taking in what has arrived, and planning what follows",
        );
        Self {
            durations: registrar.histogram(opts.buckets(buckets::commit())),
            longest: registrar.float_gauge(
                "kubeproxy_event_loop_longest_turn_seconds",
                "The longest turn of the event loop since the start",
            ),
            longest_nanos: AtomicU64::new(0),
            most_services: AtomicUsize::new(0),
        }
    }

    /// A turn took so long, and looked at so many Services.
    pub fn observe(&self, took: Duration, services: usize) {
        self.most_services.fetch_max(services, Ordering::Relaxed);
        self.durations.observe(took.as_secs_f64());
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.longest_nanos.fetch_max(nanos, Ordering::Relaxed);
        if nanos > before {
            self.longest.set(took.as_secs_f64());
        }
    }

    /// The most Services that one turn looked at.
    pub fn most_services(&self) -> usize {
        self.most_services.load(Ordering::Relaxed)
    }

    /// The longest turn so far.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_nanos.load(Ordering::Relaxed))
    }
}
