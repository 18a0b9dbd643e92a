//! Durations of one kind, measured several times.

use std::time::Duration;

/// At least one duration, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// `None` without any.
    pub(crate) fn new(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        (!samples.is_empty()).then_some(Self(samples))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// What so many thousandths did not exceed: 0 is the minimum, 500 the median, 1000 the maximum.
    pub(crate) fn per_mille(&self, per_mille: usize) -> Duration {
        let last = self.0.len() - 1;
        // Rounded up: a p99 of few samples is their maximum, not something better.
        self.0[(last * per_mille.min(1000)).div_ceil(1000)]
    }

    /// The median.
    pub(crate) fn median(&self) -> Duration {
        self.per_mille(500)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let millis =
            |values: &[u64]| Samples::new(values.iter().map(|ms| Duration::from_millis(*ms)).collect());
        assert_eq!(millis(&[]), None);
        let one = millis(&[7]).unwrap();
        assert_eq!([0, 500, 990, 1000].map(|m| one.per_mille(m).as_millis()), [7; 4]);
        let three = millis(&[9, 1, 5]).unwrap();
        assert_eq!([0, 500, 990, 1000].map(|m| three.per_mille(m).as_millis()), [1, 5, 9, 9]);
        let many = millis(&(0..=1000).collect::<Vec<_>>()).unwrap();
        assert_eq!([0, 500, 990, 1000].map(|m| many.per_mille(m).as_millis()), [0, 500, 990, 1000]);
    }
}
