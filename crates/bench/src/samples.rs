//! Values of one kind, measured several times.

use std::time::Duration;

/// At least one value, sorted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// `None` without any.
    pub(crate) fn new(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_unstable_by(f64::total_cmp);
        (!samples.is_empty()).then_some(Self(samples))
    }

    /// Durations in milliseconds; `None` without any.
    pub(crate) fn millis(samples: &[Duration]) -> Option<Self> {
        Self::new(samples.iter().copied().map(millis).collect())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// What so many thousandths did not exceed: 0 is the minimum, 500 the median, 1000 the maximum.
    pub(crate) fn per_mille(&self, per_mille: usize) -> f64 {
        let last = self.0.len() - 1;
        // Rounded up: a p99 of few samples is their maximum, not something better.
        self.0[(last * per_mille.min(1000)).div_ceil(1000)]
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.per_mille(500)
    }

    /// These and others.
    pub(crate) fn with(&self, others: &Self) -> Self {
        let mut all = [&self.0[..], &others.0[..]].concat();
        all.sort_unstable_by(f64::total_cmp);
        Self(all)
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples = |values: &[u32]| Samples::new(values.iter().copied().map(f64::from).collect());
        assert_eq!(samples(&[]), None);
        let quantiles =
            |samples: &Samples| [0, 500, 990, 1000].map(|m| format!("{}", samples.per_mille(m))).join(" ");
        assert_eq!(quantiles(&samples(&[7]).unwrap()), "7 7 7 7");
        let three = samples(&[9, 1, 5]).unwrap();
        assert_eq!(quantiles(&three), "1 5 9 9");
        assert_eq!(quantiles(&samples(&(0..=1000).collect::<Vec<_>>()).unwrap()), "0 500 990 1000");
        assert_eq!(quantiles(&three.with(&samples(&[0, 2]).unwrap())), "0 2 9 9");
    }

    #[test]
    fn durations_are_milliseconds() {
        assert_eq!(Samples::millis(&[Duration::from_micros(1500)]), Samples::new(vec![1.5]));
        assert_eq!(Samples::millis(&[]), None);
    }
}
