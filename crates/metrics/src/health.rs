//! Whether the proxy does its work: a state without clock and I/O, for `/healthz`, `/livez` and service health checks.
//!
//! Upstream's rules (`pkg/proxy/healthcheck/proxy_health.go`) and where they would lie:
//! - A family is unhealthy when something has been waiting for the kernel for too long. Waiting ends only when the kernel has
//!   the very change that waits; a change that arrives during a commit keeps waiting.
//! - A failed attempt waits for its repair, also if nobody asked for the attempt.
//! - An event loop that has stopped turning is unhealthy, whatever it said last.
//! - A Node that is gone is not eligible.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use model::IpFamily;
use tokio::time::Instant;

/// How often the event loop has to show that it turns. Far below any sensible [`Health::new`] timeout.
pub const BEAT_EVERY: Duration = Duration::from_secs(5);

/// The health of the proxy, shared by who does the work and who is asked.
#[derive(Clone, Debug)]
pub struct SharedHealth(Arc<Mutex<Health>>);

impl SharedHealth {
    /// See [`Health::new`].
    pub fn new(timeout: Duration) -> Self {
        Self(Arc::new(Mutex::new(Health::new(timeout))))
    }

    /// The state. To be held for a moment only, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The health of the proxy.
#[derive(Clone, Debug)]
pub struct Health {
    timeout: Duration,
    families: BTreeMap<IpFamily, Family>,
    beat: Option<Instant>,
    node_is_eligible: bool,
    canary: BTreeMap<IpFamily, CanaryState>,
}

/// What becomes of connections from the node to the canary's Service, in one family. It says nothing of health: whoever restarts the proxy
/// would mend nothing by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryState {
    /// An endpoint answers.
    Answers,
    /// There is no such Service, it has no cluster IP that is served, or no endpoint that takes new flows.
    Idle,
    /// No endpoint answers, neither through the Service nor asked by itself.
    EndpointsSilent,
    /// An endpoint answers when it is asked by itself, but not through the Service.
    Unreachable,
}

impl CanaryState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Answers, Self::Idle, Self::EndpointsSilent, Self::Unreachable];

    /// How it is called in answers of the health server and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Idle => "idle",
            Self::EndpointsSilent => "endpoints-silent",
            Self::Unreachable => "unreachable",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Family {
    /// The last success, at first the start.
    last_updated: SystemTime,
    was_synced: bool,
    pending_since: Option<Instant>,
}

/// The health at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// All families are.
    pub healthy: bool,
    /// Every family has had its rules in place at least once.
    pub started: bool,
    /// Load balancers should use this node, as far as its Node object says.
    pub node_eligible: bool,
    /// Each family's own.
    pub families: BTreeMap<IpFamily, FamilyReport>,
    /// What becomes of the canary, where there is one.
    pub canary: BTreeMap<IpFamily, CanaryState>,
}

/// The health of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyReport {
    /// When its rules were last known to be right; before that, when it was started.
    pub last_updated: SystemTime,
    /// Nothing has been waiting for too long.
    pub healthy: bool,
    /// Since when the oldest of what waits has been waiting.
    pub pending_since: Option<Instant>,
}

impl Report {
    /// The most recent success of any family.
    pub fn last_updated(&self) -> Option<SystemTime> {
        self.families.values().map(|family| family.last_updated).max()
    }
}

impl Health {
    /// Healthy, with no family yet. `timeout`: how long a change may wait, upstream's `2 * syncPeriod`.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            families: BTreeMap::new(),
            beat: None,
            node_is_eligible: false,
            canary: BTreeMap::new(),
        }
    }

    /// A family is served from now on.
    pub fn started(&mut self, family: IpFamily, now: SystemTime) {
        let state = Family { last_updated: now, was_synced: false, pending_since: None };
        self.families.entry(family).or_insert(state);
    }

    /// Since when the oldest of what a family's kernel state lacks has been waiting; `None`: nothing waits.
    pub fn pending(&mut self, family: IpFamily, since: Option<Instant>) {
        if let Some(state) = self.families.get_mut(&family) {
            state.pending_since = since;
        }
    }

    /// A family's rules are right, or were made so.
    pub fn synced(&mut self, family: IpFamily, now: SystemTime) {
        if let Some(state) = self.families.get_mut(&family) {
            state.last_updated = now;
            state.was_synced = true;
        }
    }

    /// The event loop turns. From the first call on it has to call at least every [`BEAT_EVERY`].
    pub fn beat(&mut self, now: Instant) {
        self.beat = Some(now);
    }

    /// What the Node object says; false if there is none.
    pub fn set_node_eligible(&mut self, eligible: bool) {
        self.node_is_eligible = eligible;
    }

    /// What became of the canary.
    pub fn set_canary(&mut self, family: IpFamily, state: CanaryState) {
        self.canary.insert(family, state);
    }

    /// The health now.
    pub fn report(&self, now: Instant) -> Report {
        let too_old = |since: Option<Instant>| {
            since.is_some_and(|at| now.saturating_duration_since(at) >= self.timeout)
        };
        let is_stuck = too_old(self.beat);
        let report = |family: &Family| FamilyReport {
            last_updated: family.last_updated,
            healthy: !is_stuck && !too_old(family.pending_since),
            pending_since: family.pending_since,
        };
        let families: BTreeMap<_, _> =
            self.families.iter().map(|(name, state)| (*name, report(state))).collect();
        Report {
            healthy: families.values().all(|family| family.healthy),
            started: !families.is_empty() && self.families.values().all(|family| family.was_synced),
            node_eligible: self.node_is_eligible,
            families,
            canary: self.canary.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_mins(1);

    fn wall(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// What happens, at which second.
    #[derive(Clone, Copy)]
    enum Event {
        Start(IpFamily),
        /// Something waits since this second.
        Pending(IpFamily, u64),
        Nothing(IpFamily),
        Synced(IpFamily),
        Beat,
    }

    use Event::{Beat, Nothing, Pending, Start, Synced};
    use IpFamily::{V4, V6};

    /// Applies events and says whether the proxy is `healthy` and `started` at a second.
    #[track_caller]
    fn check(events: &[(u64, Event)], at: u64, healthy: bool, started: bool) {
        let begin = Instant::now();
        let moment = |seconds| begin + Duration::from_secs(seconds);
        let mut health = Health::new(TIMEOUT);
        for (second, event) in events {
            match event {
                Start(family) => health.started(*family, wall(*second)),
                Pending(family, since) => health.pending(*family, Some(moment(*since))),
                Nothing(family) => health.pending(*family, None),
                Synced(family) => health.synced(*family, wall(*second)),
                Beat => health.beat(moment(*second)),
            }
        }
        let report = health.report(moment(at));
        assert_eq!((report.healthy, report.started), (healthy, started), "{report:?}");
    }

    #[test]
    fn before_any_family_all_is_well_but_not_started() {
        check(&[], 1_000_000, true, false);
        check(&[(0, Start(V4))], 1_000_000, true, false);
    }

    #[test]
    fn a_quiet_proxy_stays_healthy() {
        let quiet = [(0, Start(V4)), (1, Synced(V4)), (1, Nothing(V4)), (999_999, Beat)];
        check(&quiet, 1_000_000, true, true);
    }

    #[test]
    fn what_waits_too_long_is_unhealthy_at_the_timeout_exactly() {
        let waiting = [(0, Start(V4)), (1, Synced(V4)), (10, Pending(V4, 10))];
        check(&waiting, 69, true, true);
        check(&waiting, 70, false, true);
        let over = [waiting.as_slice(), &[(100, Synced(V4)), (100, Nothing(V4))]].concat();
        check(&over, 500, true, true);
    }

    #[test]
    fn a_success_does_not_excuse_what_still_waits() {
        // A commit succeeded at 60 s, but a change of second 10 was not in it.
        let events = [(0, Start(V4)), (10, Pending(V4, 10)), (60, Synced(V4)), (60, Pending(V4, 10))];
        check(&events, 70, false, true);
        // A later one, of second 59, has until 119.
        let events = [(0, Start(V4)), (10, Pending(V4, 10)), (60, Synced(V4)), (60, Pending(V4, 59))];
        check(&events, 118, true, true);
        check(&events, 119, false, true);
    }

    #[test]
    fn one_bad_family_is_enough() {
        let events = [
            (0, Start(V4)),
            (0, Start(V6)),
            (1, Synced(V4)),
            (1, Synced(V6)),
            (10, Pending(V6, 10)),
            (60, Synced(V4)),
        ];
        check(&events, 69, true, true);
        check(&events, 70, false, true);
    }

    #[test]
    fn both_families_have_to_start() {
        check(&[(0, Start(V4)), (0, Start(V6)), (1, Synced(V4))], 2, true, false);
        check(&[(0, Start(V4)), (0, Start(V6)), (1, Synced(V4)), (1, Synced(V6))], 2, true, true);
    }

    #[test]
    fn a_loop_that_does_not_turn_is_unhealthy() {
        let events = [(0, Start(V4)), (1, Synced(V4)), (1, Nothing(V4)), (5, Beat)];
        check(&events, 64, true, true);
        check(&events, 65, false, true);
    }

    #[test]
    fn a_family_that_is_not_served_does_not_count() {
        check(&[(0, Start(V4)), (1, Synced(V4)), (1, Pending(V6, 1)), (1, Synced(V6))], 1_000, true, true);
    }

    #[test]
    fn the_report_names_each_family_and_the_latest_success() {
        let now = Instant::now();
        let mut health = Health::new(TIMEOUT);
        assert_eq!(health.report(now).last_updated(), None);
        health.started(V4, wall(5));
        health.started(V6, wall(5));
        health.synced(V6, wall(9));
        health.pending(V4, Some(now));
        health.started(V6, wall(50));
        let report = health.report(now + TIMEOUT);
        assert_eq!(report.last_updated(), Some(wall(9)));
        let of = |family| (report.families[&family].last_updated, report.families[&family].healthy);
        assert_eq!(of(V4), (wall(5), false));
        assert_eq!(of(V6), (wall(9), true));
    }

    #[test]
    fn a_node_is_eligible_only_if_it_says_so() {
        let mut health = Health::new(TIMEOUT);
        assert!(!health.report(Instant::now()).node_eligible, "it was never seen");
        health.set_node_eligible(true);
        assert!(health.report(Instant::now()).node_eligible);
        health.set_node_eligible(false);
        assert!(!health.report(Instant::now()).node_eligible);
    }
}
