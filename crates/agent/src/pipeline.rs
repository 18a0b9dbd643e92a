//! One family's way from changed Services to its target, as a state machine without I/O and clock.
//!
//! Two things are kept apart: what is *held* ([`Held`]: the planner knows it, or nobody does) and what is *under way*
//! ([`Work`]). Only an apply that failed makes unknown what is held. A reading that fails, or is of no one state, changes
//! nothing: changes go on being planned from what is held, and the reading is tried again with growing pauses.

mod next;
mod outcome;
mod progress;
mod whole;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mode::{EndpointOutage, Meter, Planner, Rule, RuleCount, Target};
use model::{Changed, ConflictChange, Family, Frontend, FrontendKey, ServiceName, Table};
use tokio::time::Instant;

use crate::flows;
use crate::retries::Retries;
use crate::worker::Answer;

use whole::Planning;

pub(crate) use progress::{Done, Failed, Failing, Progress, Reason, Step, Turn};

/// What is known of what the target holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The planner knows it.
    Known,
    /// Nobody knows it. It is read, or everything made anew, not before this moment.
    Unknown { reason: Reason, not_before: Instant },
}

/// What the worker does.
enum Work<F: Family, P: Planner<F>> {
    Nothing,
    /// It reads. With what others did that has been waiting for that.
    Reading {
        reason: Reason,
        touched: Option<Touched>,
    },
    /// It reads before it is known what is wanted.
    ReadingAhead,
    /// It plans everything.
    Planning(Box<Planning<F, P>>),
    Applying(Box<InFlight<P::Held, F>>),
}

/// An answer that waits until somebody wants it, how long it took, and when it came.
struct Ahead<T: Target> {
    answer: Answer<T>,
    took: Duration,
    at: Instant,
}

/// What others did that has not been looked at.
#[derive(Clone, Copy)]
struct Touched {
    /// Since when.
    since: Instant,
    /// [`Reason::ForeignChange`] if some of it was to what is ours.
    reason: Reason,
}

impl Touched {
    /// Both together.
    fn merge(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.into_iter().chain(other).reduce(|one, other| Self {
            since: one.since.min(other.since),
            reason: one.reason.min(other.reason),
        })
    }
}

/// What a plan is about.
enum Scope<F: Family> {
    Changes(Changed<F>),
    Settings,
    /// What the planner asked for.
    Woken,
    Everything,
}

/// What waits for the results of steps.
struct InFlight<H, F: Family> {
    held: H,
    step: Step,
    scope: Scope<F>,
    steps: usize,
    writes: usize,
    /// When the oldest change in it became known.
    since: Instant,
    /// When it was made: later changes are not in it.
    planned: Instant,
}

/// One family's state.
pub(crate) struct Pipeline<F: Family, P: Planner<F>> {
    /// Shared with whoever plans everything, and copied if it changes meanwhile.
    table: Arc<Table<F>>,
    planner: P,
    settings: P::Settings,
    held: Held,
    work: Work<F, P>,
    /// What came of a reading before it was known what is wanted.
    ahead: Option<Ahead<P::Target>>,
    /// What differs from when it was last planned.
    dirty: Changed<F>,
    /// When the first of `dirty` became so.
    dirty_since: Option<Instant>,
    /// Since when something has been waiting for everything to be right: a start, other settings.
    asked_since: Option<Instant>,
    /// What others did that has not been looked at.
    touched: Option<Touched>,
    retries: Retries<F>,
    /// What was left of a plan that made room for others goes on at once.
    goes_on: bool,
    /// Applies in a row after which nobody knew what is held.
    failures: u32,
    /// When the first of them failed.
    failing_since: Option<Instant>,
    /// Readings in a row that came to nothing.
    unread: u32,
    /// No reading before this.
    read_not_before: Instant,
    /// When the target was last read, or a first time is due.
    read_at: Instant,
    /// How long that took.
    reading_took: Duration,
    /// False once the target has said so.
    is_readable: bool,
    /// These settings can't be reached from what is held.
    settings_need_reading: bool,
    /// `minSyncPeriod`
    min_period: Duration,
    /// Nothing new is begun before this.
    sync_not_before: Instant,
    /// When the present attempt began, or the last one.
    attempt: Instant,
    /// For [`Pipeline::take_unheard`].
    unheard: BTreeSet<ServiceName>,
    /// Changed frontends whose flows may be stale once the target has the change.
    stale_flows: BTreeSet<FrontendKey<F>>,
    /// Frontends whose flows may be stale now.
    ready_flows: BTreeSet<FrontendKey<F>>,
}

impl<F: Family, P: Planner<F>> Pipeline<F, P> {
    /// A pipeline that knows nothing of its target and will read it first.
    pub(crate) fn new(planner: P, settings: P::Settings, min_period: Duration, now: Instant) -> Self {
        Self {
            table: Arc::default(),
            planner,
            settings,
            held: Held::Unknown { reason: Reason::Start, not_before: now },
            work: Work::Nothing,
            ahead: None,
            dirty: Changed::default(),
            dirty_since: None,
            asked_since: None,
            touched: None,
            retries: Retries::default(),
            goes_on: false,
            failures: 0,
            failing_since: None,
            unread: 0,
            read_not_before: now,
            read_at: now,
            reading_took: Duration::ZERO,
            is_readable: true,
            settings_need_reading: false,
            min_period,
            sync_not_before: now,
            attempt: now,
            unheard: BTreeSet::new(),
            stale_flows: BTreeSet::new(),
            ready_flows: BTreeSet::new(),
        }
    }

    /// Takes in what one Service asks for; false if it is what it was.
    pub(crate) fn set_service(
        &mut self,
        name: &ServiceName,
        frontends: Vec<Frontend<F>>,
        health_check_port: Option<u16>,
        now: Instant,
    ) -> bool {
        let table = Arc::make_mut(&mut self.table);
        let changed = Changed {
            frontends: table.set_service(name, frontends),
            health_check_ports: table.set_health_check_port(name, health_check_port),
        };
        if changed.is_empty() {
            return false;
        }
        if P::TELLS_SERVICES {
            self.unheard.insert(name.clone());
        }
        self.dirty_since.get_or_insert(now);
        self.dirty.extend(&changed);
        let table = &self.table;
        self.stale_flows.extend(changed.frontends.iter().filter(|key| flows::may_be_stale(table, key)));
        true
    }

    /// What changed about conflicts between Services since this was last asked.
    pub(crate) fn take_conflict_changes(&mut self) -> Vec<ConflictChange<F>> {
        if self.table.has_conflict_changes() {
            Arc::make_mut(&mut self.table).take_conflict_changes()
        } else {
            Vec::new()
        }
    }

    /// Takes in settings.
    pub(crate) fn set_settings(&mut self, rules: &model::RuleSettings, now: Instant) {
        let settings = self.planner.settings(rules);
        if self.settings == settings {
            return;
        }
        self.settings = settings;
        self.settings_need_reading = false;
        if self.is_settled() {
            // They are as they were before a difference that nobody has taken up.
            self.asked_since = None;
        } else {
            self.request(now);
        }
    }

    /// Has something wait from now on until everything is known to be right.
    pub(crate) fn request(&mut self, now: Instant) {
        self.asked_since.get_or_insert(now);
    }

    /// What waits is not expected yet: it begins to wait now.
    pub(crate) fn hold(&mut self, now: Instant) {
        self.dirty_since = self.dirty_since.map(|_| now);
        self.asked_since = self.asked_since.map(|_| now);
    }

    /// Takes note that somebody else changed what the target holds.
    pub(crate) fn note_foreign_change(&mut self, now: Instant) {
        self.note(Touched { since: now, reason: Reason::ForeignChange });
    }

    /// Takes note that what the target leads to, or is on, came or went.
    pub(crate) fn note_surroundings(&mut self, now: Instant) {
        self.note(Touched { since: now, reason: Reason::Surroundings });
    }

    fn note(&mut self, touched: Touched) {
        self.touched = Touched::merge(self.touched, Some(touched));
    }

    /// Whose what was counted is; nobody's where telling them apart fails.
    pub(crate) fn meters(&self, counted: <P::Target as Target>::Counted) -> Vec<Meter> {
        catch_unwind(AssertUnwindSafe(|| self.planner.meters(&self.table, counted))).unwrap_or_default()
    }

    /// Endpoints that get nothing for now; none where finding them fails.
    pub(crate) fn outages(&self, now: Instant) -> Vec<EndpointOutage> {
        catch_unwind(AssertUnwindSafe(|| self.planner.outages(&self.table, now))).unwrap_or_default()
    }

    /// Since when the oldest of what the target lacks has been known, may lack after somebody else's change, or has been
    /// refused; `None`: it has all that is known. A change that arrives during an apply is not in it and goes on waiting.
    pub(crate) fn pending_since(&self) -> Option<Instant> {
        let under_way = match &self.work {
            Work::Applying(flight) => Some(flight.since),
            Work::Planning(planning) => planning.since,
            Work::Reading { touched, .. } => touched.map(|touched| touched.since),
            Work::Nothing | Work::ReadingAhead => None,
        };
        let waiting = [under_way, self.dirty_since, self.asked_since, self.failing_since];
        let touched = self.touched.map(|touched| touched.since);
        waiting.into_iter().chain([self.retries.since(), touched]).flatten().min()
    }

    /// Whether something is known that no plan has taken up.
    pub(crate) fn has_waiting(&self) -> bool {
        self.dirty_since.is_some() || self.asked_since.is_some()
    }

    /// Whether changes wait for steps that are being made.
    pub(crate) fn wants_room(&self) -> bool {
        matches!(self.work, Work::Applying(_)) && !self.dirty.is_empty()
    }

    /// The frontends that are wanted.
    pub(crate) fn table(&self) -> &Table<F> {
        &self.table
    }

    /// How many rules the target holds, in a mode that counts them.
    pub(crate) fn rule_counts(&self) -> Vec<RuleCount> {
        self.planner.rule_counts()
    }

    /// The rules that serve a frontend.
    pub(crate) fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        self.planner.rules(key)
    }

    /// What a Service asks for and the mode can't do.
    pub(crate) fn shortcomings(&self, name: &ServiceName) -> BTreeSet<&'static str> {
        let frontends = self.table.of_service(name);
        frontends.flat_map(|frontend| self.planner.shortcomings(frontend)).collect()
    }

    /// The frontends of a Service that somebody else's things stand for, and these things in words.
    pub(crate) fn taken(&self, name: &ServiceName) -> Vec<(FrontendKey<F>, String)> {
        let frontends = self.table.of_service(name);
        frontends.filter_map(|frontend| Some((frontend.key, self.planner.occupant(frontend)?))).collect()
    }

    /// The Services that may have to hear of something: [`Pipeline::shortcomings`] and [`Pipeline::taken`] may say other things of
    /// them than when this was last asked. None while it is not known what is held.
    pub(crate) fn take_unheard(&mut self) -> BTreeSet<ServiceName> {
        if self.is_known() { std::mem::take(&mut self.unheard) } else { BTreeSet::new() }
    }

    /// All Services for [`Pipeline::take_unheard`].
    fn note_all_unheard(&mut self) {
        if P::TELLS_SERVICES {
            let services = self.table.iter().map(|frontend| frontend.service.service.clone());
            self.unheard.extend(services);
        }
    }

    /// Services of frontends for [`Pipeline::take_unheard`].
    fn note_unheard<'a>(&mut self, keys: impl IntoIterator<Item = &'a FrontendKey<F>>) {
        if P::TELLS_SERVICES {
            let frontends = keys.into_iter().filter_map(|key| self.table.get(key));
            self.unheard.extend(frontends.map(|frontend| frontend.service.service.clone()));
        }
    }

    /// Whether a frontend is in force as it is wanted.
    pub(crate) fn is_in_force(&self, key: &FrontendKey<F>) -> bool {
        let in_flight = match &self.work {
            Work::Applying(flight) => {
                matches!(&flight.scope, Scope::Changes(changed) if changed.frontends.contains(key))
            }
            Work::Planning(planning) => planning.changed.frontends.contains(key),
            Work::Nothing | Work::Reading { .. } | Work::ReadingAhead => false,
        };
        self.is_known() && !in_flight && !self.dirty.frontends.contains(key) && !self.retries.has(key)
    }

    /// Whether it is known what the target holds.
    pub(crate) fn is_known(&self) -> bool {
        self.held == Held::Known
    }

    /// How many pieces were refused and wait for another try.
    pub(crate) fn refused(&self) -> usize {
        self.retries.len()
    }

    /// The frontends that changed in the target since they were last taken, and whose flows may be stale.
    pub(crate) fn take_ready_flows(&mut self) -> BTreeSet<FrontendKey<F>> {
        std::mem::take(&mut self.ready_flows)
    }

    /// Whether all that is known is in the target.
    pub(crate) fn is_settled(&self) -> bool {
        let makes_nothing = match &self.work {
            Work::Nothing | Work::Reading { .. } | Work::ReadingAhead => true,
            Work::Planning(planning) => planning.changed.is_empty(),
            Work::Applying(_) => false,
        };
        makes_nothing
            && self.is_known()
            && self.dirty.is_empty()
            && self.retries.len() == 0
            && !self.settings_differ()
    }

    fn settings_differ(&self) -> bool {
        self.planner.held_settings() != Some(&self.settings)
    }
}

fn earliest<const N: usize>(moments: [Option<Instant>; N]) -> Option<Instant> {
    moments.into_iter().flatten().min()
}

#[cfg(test)]
mod tests;
