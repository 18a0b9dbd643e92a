//! Whether an endpoint is well, by what came of checks.

use crate::resilience::HealthCheck;

/// What is known of one endpoint. It is well until checks say otherwise, since Kubernetes says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    is_ill: bool,
    /// Outcomes in a row that say otherwise.
    otherwise: u32,
}

impl Health {
    /// Whether it is to get nothing.
    pub const fn is_ill(&self) -> bool {
        self.is_ill
    }

    /// Takes note of a check; tells if that changes whether it is ill.
    pub fn report(&mut self, settings: &HealthCheck, succeeded: bool) -> Option<bool> {
        if succeeded != self.is_ill {
            self.otherwise = 0;
            return None;
        }
        self.otherwise = self.otherwise.saturating_add(1);
        let enough = if self.is_ill { settings.successes } else { settings.failures };
        if self.otherwise < enough {
            return None;
        }
        *self = Self { is_ill: !self.is_ill, otherwise: 0 };
        Some(self.is_ill)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(failures: u32, successes: u32) -> HealthCheck {
        HealthCheck { failures, successes, ..HealthCheck::parse("tcp").unwrap() }
    }

    #[test]
    fn it_takes_some_in_a_row_each_way() {
        let (settings, mut health) = (settings(3, 2), Health::default());
        let outcomes = [false, false, true, false, false, false, false, true, false, true, true, true];
        let told: Vec<_> = outcomes.iter().filter_map(|outcome| health.report(&settings, *outcome)).collect();
        assert_eq!(told, [true, false]);
        assert!(!health.is_ill());
    }

    proptest! {
        #[test]
        fn what_is_told_alternates_and_is_what_the_last_outcomes_say(
            outcomes in proptest::collection::vec(any::<bool>(), 0..200),
            failures in 1..5_u32,
            successes in 1..5_u32,
        ) {
            let (settings, mut health) = (settings(failures, successes), Health::default());
            let mut last = false;
            for at in 0..outcomes.len() {
                let told = health.report(&settings, outcomes[at]);
                prop_assert!(told != Some(last));
                last = told.unwrap_or(last);
                prop_assert_eq!(last, health.is_ill());
                let enough = usize::try_from(if last { successes } else { failures }).unwrap();
                let since = (at + 1).saturating_sub(enough);
                // So many that say otherwise would have been told.
                let all_say_otherwise = outcomes[since..=at].iter().all(|succeeded| *succeeded == last);
                prop_assert!(at + 1 < enough || !all_say_otherwise || told.is_some());
            }
        }
    }
}
