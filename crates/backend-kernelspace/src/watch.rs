//! Noticing what others do: HNS tells of networks, but not of load balancers, so these are counted now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hcn::{Guid, Hcn, HcnError, Kind};

/// How often a target has done something, which tells its changes from those of others.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<AtomicU64>);

impl Activity {
    pub(crate) fn note(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Looks at which load balancers and networks there are: two calls for each look, however many there are.
pub struct Watcher {
    hcn: Box<dyn Hcn>,
    activity: Vec<Activity>,
    /// What was seen last, and what the targets had done by then.
    seen: Option<(Vec<u64>, Seen)>,
}

type Seen = [BTreeSet<Guid>; 2];

/// What others have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// A load balancer is gone, maybe one of ours.
    Deleted,
    /// Networks are other ones, or there are more load balancers.
    Other,
}

impl Watcher {
    /// Looks at what the targets of these activities change.
    pub fn new(hcn: Box<dyn Hcn>, activity: Vec<Activity>) -> Self {
        Self { hcn, activity, seen: None }
    }

    /// What others have done since the last look, if in the meantime the targets did nothing.
    ///
    /// # Errors
    /// HNS refuses it or is away.
    pub fn look(&mut self) -> Result<Option<Doing>, HcnError> {
        let before = self.counts();
        let networks = self.hcn.ids(Kind::Network)?.into_iter().collect();
        let balancers = self.hcn.ids(Kind::LoadBalancer)?.into_iter().collect();
        let now = [networks, balancers];
        if self.counts() != before {
            self.seen = None;
            return Ok(None);
        }
        let last = self.seen.replace((before.clone(), now.clone()));
        let last = last.filter(|(counts, seen)| *counts == before && *seen != now);
        let is_subset = |[_, balancers]: &Seen| balancers.is_subset(&now[1]);
        Ok(last.map(|(_, seen)| if is_subset(&seen) { Doing::Other } else { Doing::Deleted }))
    }

    fn counts(&self) -> Vec<u64> {
        self.activity.iter().map(Activity::count).collect()
    }
}
