//! What went through, gathered for the agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustc_hash::FxBuildHasher;

use crate::frame::{Availability, Count, Counts, RequestCount, RequestCounts, ToAgent};
use crate::worker::Shared;

/// How often the agent is told.
const PERIOD: Duration = Duration::from_secs(1);

/// Of what is counted: the pool's name, and the endpoint if it concerns one.
type Counted = (Arc<str>, Option<SocketAddr>);

/// What the agent does not know yet.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: Mutex<HashMap<Counted, Counts, FxBuildHasher>>,
    untold: Mutex<Vec<Availability>>,
    requests: Mutex<HashMap<Arc<str>, RequestCounts, FxBuildHasher>>,
}

/// So much about endpoints may be untold at a time. Far more than half of all would have to fail at once.
const MAX_UNTOLD: usize = 4096;

impl Tally {
    pub(crate) fn add(&self, pool: &Arc<str>, endpoint: Option<SocketAddr>, more: Counts) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = counts.entry((pool.clone(), endpoint)).or_default();
        *known = known.plus(more);
    }

    /// An endpoint gets nothing for now, or does again.
    pub(crate) fn tell(&self, availability: Availability) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.len() < MAX_UNTOLD {
            untold.push(availability);
        }
    }

    /// A request of a pool is answered.
    pub(crate) fn note_answer(&self, pool: &Arc<str>, status: u16, took: Duration, retries: u32) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.entry(pool.clone()).or_default().note(status, took, retries);
    }

    /// All requests that were answered, once.
    pub(crate) fn take_requests(&self) -> Vec<RequestCount> {
        let taken = std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        taken.into_iter().map(|(pool, counts)| RequestCount { pool: pool.to_string(), counts }).collect()
    }

    /// All that is to be told of endpoints, once.
    pub(crate) fn take_untold(&self) -> Vec<Availability> {
        std::mem::take(&mut *self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All that was counted, once.
    pub(crate) fn take(&self) -> Vec<Count> {
        let taken = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let count = |((pool, endpoint), counts): (Counted, Counts)| Count {
            pool: pool.to_string(),
            endpoint,
            counts,
        };
        taken.into_iter().map(count).collect()
    }
}

/// Tells the agent, for as long as the worker works.
pub(crate) async fn report(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for count in shared.table.tally().take() {
            shared.control.tell(ToAgent::Counted(count));
        }
        for requests in shared.table.tally().take_requests() {
            shared.control.tell(ToAgent::Requests(requests));
        }
        for availability in shared.table.tally().take_untold() {
            shared.control.tell(ToAgent::Availability(availability));
        }
        let lost = shared.control.traces().take_lost();
        if lost > 0 {
            shared.control.tell(ToAgent::TracesLost(lost));
        }
    }
}
