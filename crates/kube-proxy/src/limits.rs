//! What is switched off on this node, or stays as it is, and why: for who asks the proxy how it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use inspect::document::Limit;

/// Those that last. Whoever finds one notes it, from any thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits(Arc<Mutex<BTreeMap<String, String>>>);

impl Limits {
    /// Takes note that something is switched off, or, without a reason, that it no longer is.
    pub(crate) fn note(&self, what: &str, why: Option<String>) {
        let mut limits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => drop(limits.insert(what.to_owned(), why)),
            None => drop(limits.remove(what)),
        }
    }

    /// All there are now.
    pub(crate) fn all(&self) -> Vec<Limit> {
        let limits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        limits.iter().map(|(what, why)| Limit { what: what.clone(), why: why.clone() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_forgotten() {
        let limits = Limits::default();
        let told = || limits.all().into_iter().map(|limit| (limit.what, limit.why)).collect::<Vec<_>>();
        limits.note("workers, IPv4", Some("they die".to_owned()));
        limits.note("workers, IPv6", None);
        assert_eq!(told(), [("workers, IPv4".to_owned(), "they die".to_owned())]);
        limits.note("workers, IPv4", Some("no room".to_owned()));
        assert_eq!(told(), [("workers, IPv4".to_owned(), "no room".to_owned())]);
        limits.note("workers, IPv4", None);
        assert_eq!(told(), []);
    }
}
