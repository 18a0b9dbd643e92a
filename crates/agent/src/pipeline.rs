//! One family's way from changed Services to its target, as a state machine without I/O and clock.
//!
//! Two things are kept apart: what is *held* ([`Held`]: the planner knows it, or nobody does) and what is *under way*
//! ([`Work`]). Only an apply that failed makes unknown what is held. A reading that fails, or is of no one state, changes
//! nothing: changes go on being planned from what is held, and the reading is tried again with growing pauses.

mod outcome;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mode::{Applied, Cause, Meter, PlanOf, Planner, Rule, RuleCount, Target};
use model::{Changed, ConflictChange, Family, Frontend, FrontendKey, Protocol, ServiceName, Table};
use tokio::time::Instant;

use crate::log::with_causes;
use crate::retries::Retries;
use crate::worker::Job;

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Changes were made.
    Change,
    /// What was wrong or other than wanted was made right.
    Repair(Reason),
    /// Everything was made anew.
    Rebuild(Reason),
    /// The target was found right; nothing was sent.
    Unchanged(Reason),
}

/// Why everything is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// Nothing is known of it yet.
    Start,
    /// An apply failed.
    Failure,
    /// The settings changed.
    Settings,
    /// Somebody else changed it.
    ForeignChange,
    /// It has not been looked at for a while.
    Audit,
}

/// What is known of what the target holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The planner knows it.
    Known,
    /// Nobody knows it. It is read, or everything made anew, not before this moment.
    Unknown { reason: Reason, not_before: Instant },
}

/// What the worker does.
enum Work<H, F: Family> {
    Nothing,
    /// It reads. With since when somebody else's change has been waiting for that.
    Reading {
        reason: Reason,
        touched: Option<Instant>,
    },
    Applying(Box<InFlight<H, F>>),
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
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and any may hold with any other"
)]
pub(crate) struct Pipeline<F: Family, P: Planner<F>> {
    table: Table<F>,
    planner: P,
    settings: P::Settings,
    held: Held,
    work: Work<P::Held, F>,
    /// What differs from when it was last planned.
    dirty: Changed<F>,
    /// When the first of `dirty` became so.
    dirty_since: Option<Instant>,
    /// Since when something has been waiting for everything to be right: a start, other settings.
    asked_since: Option<Instant>,
    /// Since when somebody else's change has not been looked at.
    touched: Option<Instant>,
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
    /// Changed frontends whose flows may be stale once the target has the change.
    stale_flows: BTreeSet<FrontendKey<F>>,
    /// Frontends whose flows may be stale now.
    ready_flows: BTreeSet<FrontendKey<F>>,
}

/// What came of something.
pub(crate) enum Progress<T: Target> {
    /// Goes on; nothing to say.
    Working,
    Done(Done),
    Failed(Failed<T>),
}

/// A success.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) step: Step,
    /// What was written and deleted.
    pub(crate) writes: usize,
    /// What the kernel itself took for it, if that is known.
    pub(crate) kernel_time: Option<Duration>,
    /// Nothing was left for another plan.
    pub(crate) is_complete: bool,
    /// From the moment the oldest change in it was known.
    pub(crate) latency: Duration,
    /// When it was planned: what was known then is in force now.
    pub(crate) planned: Instant,
    /// How long the whole attempt took, with reading and planning.
    pub(crate) duration: Duration,
}

/// What an attempt did when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    /// It read.
    Read,
    /// It made everything right, or anew.
    Repair,
    /// It made changes.
    Change,
}

/// A failure, and what is done about it.
pub(crate) struct Failed<T: Target> {
    pub(crate) during: Failing,
    /// What went wrong first; `None`: what was read is of no one state.
    pub(crate) error: Option<Arc<T::Error>>,
    /// How many of the attempt's steps were refused, and how many there were.
    pub(crate) refused: usize,
    pub(crate) steps: usize,
    /// Failures of the kind in a row.
    pub(crate) failures: u32,
    pub(crate) retry_in: Duration,
    /// What is held is known all the same.
    pub(crate) is_known: bool,
    pub(crate) kernel_time: Option<Duration>,
    /// How long the attempt took.
    pub(crate) duration: Duration,
}

impl<T: Target> Failed<T> {
    /// What went wrong, with its causes.
    pub(crate) fn text(&self) -> String {
        self.error.as_ref().map_or_else(
            || "what is ours kept changing while it was read".to_owned(),
            |error| with_causes(&**error),
        )
    }

    /// Whether trying again has no chance.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.error.as_ref().is_some_and(|error| !T::is_retryable(error))
    }
}

/// Something for the worker, and something to say.
pub(crate) type Turn<T> = (Progress<T>, Option<Job<T>>);

/// From this many failed applies in a row everything is made anew.
const REBUILD_AFTER: u32 = 3;
/// From this many readings in a row that came to nothing, while nobody knows what is held, likewise.
const ANEW_AFTER: u32 = 3;
/// Two programs that undo each other's changes shall not keep the machine busy.
const TOUCHED_PAUSE: Duration = Duration::from_millis(250);
/// How often the target is read without a cause, at most.
const AUDIT_EVERY: Duration = Duration::from_mins(10);
/// Audits take at most one part in so many of the time.
const AUDIT_SHARE: u32 = 500;

impl<F: Family, P: Planner<F>> Pipeline<F, P> {
    /// A pipeline that knows nothing of its target and will read it first.
    pub(crate) fn new(planner: P, settings: P::Settings, min_period: Duration, now: Instant) -> Self {
        Self {
            table: Table::default(),
            planner,
            settings,
            held: Held::Unknown { reason: Reason::Start, not_before: now },
            work: Work::Nothing,
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
        let changed = Changed {
            frontends: self.table.set_service(name, frontends),
            health_check_ports: self.table.set_health_check_port(name, health_check_port),
        };
        if changed.is_empty() {
            return false;
        }
        self.dirty_since.get_or_insert(now);
        self.dirty.extend(&changed);
        self.stale_flows.extend(changed.frontends.iter().filter(|key| key.protocol != Protocol::Tcp));
        true
    }

    /// What changed about conflicts between Services since this was last asked.
    pub(crate) fn take_conflict_changes(&mut self) -> Vec<ConflictChange<F>> {
        self.table.take_conflict_changes()
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
        self.touched.get_or_insert(now);
    }

    /// Whose what was counted is; nobody's where telling them apart fails.
    pub(crate) fn meters(&self, counted: <P::Target as Target>::Counted) -> Vec<Meter> {
        catch_unwind(AssertUnwindSafe(|| self.planner.meters(&self.table, counted))).unwrap_or_default()
    }

    /// Since when the oldest of what the target lacks has been known, may lack after somebody else's change, or has been
    /// refused; `None`: it has all that is known. A change that arrives during an apply is not in it and goes on waiting.
    pub(crate) fn pending_since(&self) -> Option<Instant> {
        let under_way = match &self.work {
            Work::Applying(flight) => Some(flight.since),
            Work::Reading { touched, .. } => *touched,
            Work::Nothing => None,
        };
        let waiting = [under_way, self.dirty_since, self.asked_since, self.failing_since, self.touched];
        waiting.into_iter().chain([self.retries.since()]).flatten().min()
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

    /// Whether a frontend is in force as it is wanted.
    pub(crate) fn is_in_force(&self, key: &FrontendKey<F>) -> bool {
        let in_flight = match &self.work {
            Work::Applying(flight) => {
                matches!(&flight.scope, Scope::Changes(changed) if changed.frontends.contains(key))
            }
            Work::Nothing | Work::Reading { .. } => false,
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
        matches!(self.work, Work::Nothing | Work::Reading { .. })
            && self.is_known()
            && self.dirty.is_empty()
            && self.retries.len() == 0
            && !self.settings_differ()
    }

    fn settings_differ(&self) -> bool {
        self.planner.held_settings() != Some(&self.settings)
    }

    /// When [`Pipeline::next`] should be asked again, if nothing else happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if !matches!(self.work, Work::Nothing) {
            return None;
        }
        if let Held::Unknown { not_before, .. } = self.held {
            return Some(not_before);
        }
        let audit = self.is_readable.then(|| self.audit_at());
        let touched = self.touched.map(|_| self.repair_at());
        let settings = self.settings_differ().then(|| self.settings_at());
        let changes = (!self.dirty.is_empty()).then_some(self.sync_not_before);
        let retries = self.retries.next_due().map(|due| due.max(self.sync_not_before));
        [audit, touched, settings, changes, retries, self.planner.wake_at()].into_iter().flatten().min()
    }

    /// Changes wait while the target is read, so one for which that takes long is read less often.
    fn audit_at(&self) -> Instant {
        let pause = AUDIT_EVERY.max(self.reading_took * AUDIT_SHARE);
        (self.read_at + pause).max(self.read_not_before)
    }

    fn repair_at(&self) -> Instant {
        (self.read_at + TOUCHED_PAUSE).max(self.read_not_before).max(self.sync_not_before)
    }

    fn settings_at(&self) -> Instant {
        if self.settings_need_reading {
            self.read_not_before.max(self.sync_not_before)
        } else {
            self.sync_not_before
        }
    }

    /// The next job for the worker, if there is one to be done now. `random` is from 0 up to 1.
    pub(crate) fn next(&mut self, now: Instant, random: f64) -> Turn<P::Target> {
        if !matches!(self.work, Work::Nothing) {
            return (Progress::Working, None);
        }
        match self.held {
            Held::Unknown { reason, not_before } if not_before <= now => self.recover(reason, now, random),
            Held::Unknown { .. } => (Progress::Working, None),
            Held::Known => self.proceed(now, random),
        }
    }

    /// Nobody knows what is held: it is read, or, where that leads nowhere, everything is made anew.
    fn recover(&mut self, reason: Reason, now: Instant, random: f64) -> Turn<P::Target> {
        let leads_nowhere = self.failures >= REBUILD_AFTER || self.unread >= ANEW_AFTER || !self.is_readable;
        if !leads_nowhere {
            return (Progress::Working, Some(self.read(reason, now)));
        }
        self.attempt = now;
        match self.plan(Cause::Anew(None)) {
            Planned::Plan(plan) => {
                self.begin(plan, Step::Rebuild(reason), Scope::Everything, None, now, random)
            }
            Planned::NeedsReading if self.is_readable => (Progress::Working, Some(self.read(reason, now))),
            Planned::NeedsReading => {
                let error = P::Target::outcome_unknown("it can't be read, and not be made anew without that");
                (self.not_planned(error, now, random), None)
            }
            Planned::Panicked(error) => (self.not_planned(error, now, random), None),
        }
    }

    /// What is held is known, and what differs from it is planned.
    fn proceed(&mut self, now: Instant, random: f64) -> Turn<P::Target> {
        if self.touched.is_some() && now >= self.repair_at() {
            return self.look(Reason::ForeignChange, now, random);
        }
        if self.settings_differ() && now >= self.settings_at() {
            return self.change_settings(now, random);
        }
        if self.goes_on || now >= self.sync_not_before {
            let mut changed = std::mem::take(&mut self.dirty);
            changed.extend(&self.retries.due(now));
            if !changed.is_empty() {
                return self.change(changed, now, random);
            }
        }
        if self.planner.wake_at().is_some_and(|at| at <= now) {
            return self.wake(now, random);
        }
        if self.is_readable && now >= self.audit_at() {
            return self.look(Reason::Audit, now, random);
        }
        (Progress::Working, None)
    }

    /// Everything is compared, or made anew where nothing can be read.
    fn look(&mut self, reason: Reason, now: Instant, random: f64) -> Turn<P::Target> {
        if self.is_readable {
            return (Progress::Working, Some(self.read(reason, now)));
        }
        let touched = self.touched.take();
        self.asked_since = earliest([self.asked_since, touched]);
        self.lose(reason, now);
        self.recover(reason, now, random)
    }

    fn read(&mut self, reason: Reason, now: Instant) -> Job<P::Target> {
        // What happens from here on may be missing from what is read.
        self.work = Work::Reading { reason, touched: self.touched.take() };
        self.attempt = now;
        self.sync_not_before = now + self.min_period;
        Job::Read
    }

    fn change_settings(&mut self, now: Instant, random: f64) -> Turn<P::Target> {
        if self.settings_need_reading {
            return self.look(Reason::Settings, now, random);
        }
        self.attempt = now;
        match self.plan(Cause::Settings) {
            Planned::Plan(plan) => {
                let step = Step::Repair(Reason::Settings);
                self.begin(plan, step, Scope::Settings, None, now, random)
            }
            Planned::NeedsReading => {
                self.settings_need_reading = true;
                // Changes do not wait for it while readings come to nothing.
                self.proceed(now, random)
            }
            Planned::Panicked(error) => (self.not_planned(error, now, random), None),
        }
    }

    fn change(&mut self, changed: Changed<F>, now: Instant, random: f64) -> Turn<P::Target> {
        self.attempt = now;
        match self.plan(Cause::Changed(&changed)) {
            Planned::Plan(plan) => self.begin(plan, Step::Change, Scope::Changes(changed), None, now, random),
            Planned::NeedsReading => {
                self.dirty = changed;
                self.look_after_all(now, random)
            }
            Planned::Panicked(error) => {
                self.dirty = changed;
                (self.not_planned(error, now, random), None)
            }
        }
    }

    fn wake(&mut self, now: Instant, random: f64) -> Turn<P::Target> {
        self.attempt = now;
        match self.plan(Cause::Woken(now)) {
            Planned::Plan(plan) => self.begin(plan, Step::Change, Scope::Woken, None, now, random),
            Planned::NeedsReading => self.look_after_all(now, random),
            Planned::Panicked(error) => (self.not_planned(error, now, random), None),
        }
    }

    /// The planner can't tell from what it holds.
    fn look_after_all(&mut self, now: Instant, random: f64) -> Turn<P::Target> {
        self.lose(Reason::Failure, now);
        self.recover(Reason::Failure, now, random)
    }

    /// Nobody knows any more what is held.
    fn lose(&mut self, reason: Reason, not_before: Instant) {
        self.held = Held::Unknown { reason, not_before };
    }

    /// A planner that panics has decided nothing, and believes what it did before.
    fn plan(&self, cause: Cause<'_, F, <P::Target as Target>::Found>) -> Planned<F, P> {
        let planning = AssertUnwindSafe(|| self.planner.plan(&self.table, &self.settings, cause));
        match catch_unwind(planning) {
            Ok(Ok(plan)) => Planned::Plan(plan),
            Ok(Err(mode::NeedsReading)) => Planned::NeedsReading,
            Err(_panic) => Planned::Panicked(P::Target::outcome_unknown("a panic of the planner")),
        }
    }

    /// Hands a plan's steps over; one without any holds at once. `touched`: since when somebody else's change waits for it.
    fn begin(
        &mut self,
        plan: PlanOf<P, F>,
        step: Step,
        scope: Scope<F>,
        touched: Option<Instant>,
        now: Instant,
        random: f64,
    ) -> Turn<P::Target> {
        let since = match &scope {
            Scope::Changes(_) => self.dirty_since.take(),
            Scope::Settings => self.asked_since.take(),
            Scope::Woken => None,
            Scope::Everything => {
                self.dirty = Changed::default();
                earliest([self.dirty_since.take(), self.asked_since.take(), touched])
            }
        };
        let mode::Plan { steps, writes, held } = plan;
        let since = since.unwrap_or(now);
        let flight = InFlight { held, step, scope, steps: steps.len(), writes, since, planned: now };
        if steps.is_empty() {
            let nothing = Applied { results: Vec::new(), kernel_time: None, is_usable: true };
            return (self.settle(flight, nothing, now, random), None);
        }
        if !self.goes_on {
            self.sync_not_before = now + self.min_period;
        }
        self.work = Work::Applying(Box::new(flight));
        (Progress::Working, Some(Job::Apply(steps)))
    }
}

/// What came of planning.
enum Planned<F: Family, P: Planner<F>> {
    Plan(PlanOf<P, F>),
    NeedsReading,
    Panicked(<P::Target as Target>::Error),
}

fn earliest<const N: usize>(moments: [Option<Instant>; N]) -> Option<Instant> {
    moments.into_iter().flatten().min()
}

#[cfg(test)]
mod tests;
