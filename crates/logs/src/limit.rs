//! Repeats are counted, not repeated: which records are written, given how often their like came. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long the like of a record is counted, from the first one on.
pub(crate) const WINDOW: Duration = Duration::from_mins(1);
/// So many of a kind are written in a window; the rest is summed up at its end.
pub(crate) const SHOWN: u64 = 100;
/// So many kinds are told apart. Beyond, further ones count as one.
const MAX_KINDS: usize = 1024;

/// Counts records by kind (`K`). `S` is what is needed to write the summing up.
#[derive(Debug)]
pub(crate) struct Limiter<K: Ord, S> {
    /// `None`: all kinds that there was no room for.
    windows: BTreeMap<Option<K>, Window<S>>,
}

#[derive(Debug)]
struct Window<S> {
    ends: Duration,
    shown: u64,
    left_out: u64,
    /// The first one that was left out.
    sample: Option<S>,
}

/// What was left out of a window that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeftOut<S> {
    pub(crate) count: u64,
    pub(crate) sample: S,
}

impl<K: Ord, S> Default for Limiter<K, S> {
    fn default() -> Self {
        Self { windows: BTreeMap::new() }
    }
}

impl<K: Ord, S> Limiter<K, S> {
    /// Whether a record is to be written. `now` counts from any fixed moment. Ended windows must have been taken
    /// ([`Limiter::ended`]) not long ago.
    pub(crate) fn admit(&mut self, kind: K, now: Duration, sample: impl FnOnce() -> S) -> bool {
        let kind = Some(kind);
        let is_known = self.windows.len() < MAX_KINDS || self.windows.contains_key(&kind);
        let window = self.windows.entry(kind.filter(|_| is_known)).or_insert_with(|| Window::starting(now));
        if window.ends <= now && window.left_out == 0 {
            *window = Window::starting(now);
        }
        if window.shown < SHOWN {
            window.shown += 1;
            return true;
        }
        window.left_out += 1;
        window.sample.get_or_insert_with(sample);
        false
    }

    /// Forgets the windows that have ended; returns what they left out.
    pub(crate) fn ended(&mut self, now: Duration) -> Vec<LeftOut<S>> {
        let ended = self.windows.extract_if(.., |_kind, window| window.ends <= now);
        ended.filter_map(|(_kind, window)| window.left_out()).collect()
    }

    /// Forgets everything; returns what was left out so far.
    pub(crate) fn finish(&mut self) -> Vec<LeftOut<S>> {
        std::mem::take(&mut self.windows).into_values().filter_map(Window::left_out).collect()
    }
}

impl<S> Window<S> {
    fn starting(now: Duration) -> Self {
        Self { ends: now + WINDOW, shown: 0, left_out: 0, sample: None }
    }

    fn left_out(self) -> Option<LeftOut<S>> {
        self.sample.map(|sample| LeftOut { count: self.left_out, sample })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn admit(limiter: &mut Limiter<u32, u64>, kind: u32, n: u64, now: Duration) -> Vec<bool> {
        (0..n).map(|i| limiter.admit(kind, now, || i)).collect()
    }

    #[test]
    fn a_flood_is_summed_up() {
        let mut limiter = Limiter::default();
        let shown = admit(&mut limiter, 1, SHOWN + 40, NOW);
        assert_eq!(shown.iter().filter(|shown| **shown).count() as u64, SHOWN);
        assert!(shown[..usize::try_from(SHOWN).unwrap()].iter().all(|shown| *shown), "the first ones");
        assert!(limiter.admit(2, NOW, || 0), "another kind is not concerned");
        assert_eq!(limiter.ended(NOW + WINDOW / 2), []);
        assert_eq!(limiter.ended(NOW + WINDOW), [LeftOut { count: 40, sample: SHOWN }]);
        assert_eq!(limiter.ended(NOW + WINDOW), [], "once");
        assert!(limiter.admit(1, NOW + WINDOW, || 0), "and it begins anew");
    }

    #[test]
    fn a_trickle_is_never_held_back() {
        let mut limiter = Limiter::default();
        for i in 0..10 * u32::try_from(SHOWN).unwrap() {
            // Nobody takes ended windows.
            assert!(limiter.admit(1, NOW + i * WINDOW / u32::try_from(SHOWN).unwrap(), || 0));
        }
    }

    #[test]
    fn nothing_left_out_is_lost_at_the_end() {
        let mut limiter = Limiter::default();
        admit(&mut limiter, 1, SHOWN + 1, NOW);
        assert_eq!(limiter.finish(), [LeftOut { count: 1, sample: SHOWN }]);
        assert_eq!(limiter.finish(), []);
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = Limiter::default();
        for kind in 0..10_000 {
            limiter.admit(kind, NOW, || 0);
        }
        assert!(limiter.windows.len() <= MAX_KINDS + 1);
        let left_out: u64 = limiter.ended(NOW + WINDOW).iter().map(|left_out| left_out.count).sum();
        let kinds = u64::try_from(MAX_KINDS).unwrap();
        assert_eq!(left_out, 10_000 - kinds - SHOWN);
    }
}
