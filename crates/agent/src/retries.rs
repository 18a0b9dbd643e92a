//! What a target refused alone, and when it is tried again. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Changed, Family, FrontendKey};
use tokio::time::Instant;

use crate::backoff::pause;

/// One thing of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece<F: Family> {
    Frontend(FrontendKey<F>),
    HealthCheckPort(u16),
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    failures: u32,
    /// When the change that was refused became known.
    since: Instant,
    not_before: Instant,
}

/// The pieces that a target refused, each with a pause of its own.
#[derive(Clone, Debug)]
pub(crate) struct Retries<F: Family>(BTreeMap<Piece<F>, Retry>);

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Retries<F> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<F: Family> Retries<F> {
    /// Takes note that these were refused; gives the shortest of their pauses. `random` is from 0 up to 1.
    pub(crate) fn refused(
        &mut self,
        changed: &Changed<F>,
        since: Instant,
        now: Instant,
        random: f64,
    ) -> Duration {
        let mut shortest = Duration::MAX;
        for piece in pieces(changed) {
            let retry = self.0.entry(piece).or_insert(Retry { failures: 0, since, not_before: now });
            retry.failures = retry.failures.saturating_add(1);
            let pause = pause(retry.failures, random);
            retry.not_before = now + pause;
            shortest = shortest.min(pause);
        }
        shortest
    }

    /// Takes note that these are as they should be.
    pub(crate) fn made(&mut self, changed: &Changed<F>) {
        for piece in pieces(changed) {
            self.0.remove(&piece);
        }
    }

    /// All are as they should be but these.
    pub(crate) fn keep_only(&mut self, refused: &Changed<F>) {
        self.0.retain(|piece, _| match piece {
            Piece::Frontend(key) => refused.frontends.contains(key),
            Piece::HealthCheckPort(port) => refused.health_check_ports.contains(port),
        });
    }

    /// Those whose pause is over.
    pub(crate) fn due(&self, now: Instant) -> Changed<F> {
        let mut due = Changed::default();
        for (piece, _) in self.0.iter().filter(|(_, retry)| retry.not_before <= now) {
            match piece {
                Piece::Frontend(key) => due.frontends.insert(*key),
                Piece::HealthCheckPort(port) => due.health_check_ports.insert(*port),
            };
        }
        due
    }

    /// When the next pause is over.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|retry| retry.not_before).min()
    }

    /// Since when the oldest of them has been waiting.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.0.values().map(|retry| retry.since).min()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this frontend is one of them.
    pub(crate) fn has(&self, key: &FrontendKey<F>) -> bool {
        self.0.contains_key(&Piece::Frontend(*key))
    }
}

fn pieces<F: Family>(changed: &Changed<F>) -> impl Iterator<Item = Piece<F>> {
    let frontends = changed.frontends.iter().copied().map(Piece::Frontend);
    frontends.chain(changed.health_check_ports.iter().copied().map(Piece::HealthCheckPort))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::V4;

    fn ports(ports: &[u16]) -> Changed<V4> {
        Changed { health_check_ports: ports.iter().copied().collect(), ..Changed::default() }
    }

    #[test]
    fn each_has_a_pause_of_its_own() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut retries = Retries::<V4>::default();
        assert_eq!(retries.refused(&ports(&[1]), at(0), at(0), 1.0), Duration::from_millis(50));
        assert_eq!(retries.refused(&ports(&[1, 2]), at(10), at(60), 1.0), Duration::from_millis(50));
        assert_eq!((retries.due(at(109)), retries.due(at(110))), (ports(&[]), ports(&[2])));
        assert_eq!((retries.next_due(), retries.since()), (Some(at(110)), Some(at(0))));
        assert_eq!(retries.due(at(160)), ports(&[1, 2]));
        retries.made(&ports(&[1]));
        assert_eq!((retries.len(), retries.since()), (1, Some(at(10))));
        retries.keep_only(&ports(&[1]));
        assert_eq!(retries.len(), 0);
    }
}
