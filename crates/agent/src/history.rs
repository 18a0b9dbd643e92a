//! One family's last changes, and how long each took. Bounded.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use model::{IpFamily, ServiceName};
use tokio::time::Instant;

use crate::snapshot::RecentChange;

/// So many changes are remembered.
const REMEMBERED: usize = 256;

/// The last changes, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    changes: VecDeque<Entry>,
    /// How many of them are not in force.
    waiting: usize,
}

#[derive(Debug)]
struct Entry {
    service: ServiceName,
    known: Instant,
    known_at: SystemTime,
    latency: Option<Duration>,
}

impl History {
    /// A Service changed.
    pub(crate) fn changed(&mut self, service: &ServiceName, now: Instant, at: SystemTime) {
        if self.changes.len() == REMEMBERED
            && let Some(oldest) = self.changes.pop_front()
            && oldest.latency.is_none()
        {
            self.waiting -= 1;
        }
        self.changes.push_back(Entry { service: service.clone(), known: now, known_at: at, latency: None });
        self.waiting += 1;
    }

    /// What was known at a moment is in force now, for those Services of which `is_in_force` says so.
    pub(crate) fn in_force(
        &mut self,
        known: Instant,
        now: Instant,
        is_in_force: impl Fn(&ServiceName) -> bool,
    ) {
        if self.waiting == 0 {
            return;
        }
        for entry in &mut self.changes {
            if entry.latency.is_none() && entry.known <= known && is_in_force(&entry.service) {
                entry.latency = Some(now.saturating_duration_since(entry.known));
                self.waiting -= 1;
            }
        }
    }

    /// All of them.
    pub(crate) fn all(&self, family: IpFamily) -> impl Iterator<Item = RecentChange> {
        self.changes.iter().map(move |entry| entry.told(family))
    }

    /// The last one of a Service.
    pub(crate) fn last_of(&self, service: &ServiceName, family: IpFamily) -> Option<RecentChange> {
        let entry = self.changes.iter().rev().find(|entry| entry.service == *service)?;
        Some(entry.told(family))
    }
}

impl Entry {
    fn told(&self, family: IpFamily) -> RecentChange {
        RecentChange {
            family: family.to_string(),
            namespace: self.service.namespace.to_string(),
            name: self.service.name.to_string(),
            known_at: self.known_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            latency_seconds: self.latency.map(|latency| latency.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ObjectName;

    #[test]
    fn the_last_changes_are_remembered_with_their_latencies() {
        let (begin, at) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        let (mut history, name) = (History::default(), |n: usize| ObjectName::new("ns", &format!("svc-{n}")));
        for n in 0..REMEMBERED + 2 {
            history.changed(&name(n), begin + Duration::from_secs(n as u64), at);
        }
        assert_eq!((history.all(IpFamily::V4).count(), history.waiting), (REMEMBERED, REMEMBERED));
        let end = begin + Duration::from_secs(REMEMBERED as u64);
        history.in_force(end, end, |service| *service != name(3));
        assert_eq!(history.waiting, 2, "one is refused, one came later");
        assert!(history.last_of(&name(0), IpFamily::V4).is_none());
        let last = history.last_of(&name(REMEMBERED - 1), IpFamily::V4).unwrap();
        assert_eq!((last.known_at, last.latency_seconds), (5.0, Some(1.0)));
        assert_eq!(history.last_of(&name(3), IpFamily::V4).unwrap().latency_seconds, None);
    }
}
