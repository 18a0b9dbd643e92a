//! What is to be done next, and when.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use mode::{Applied, Cause, PlanOf, Planner, Target};
use model::{Changed, Family};
use tokio::time::Instant;

use super::whole::Whole;
use super::{Ahead, Held, InFlight, Pipeline, Progress, Reason, Scope, Step, Turn, Work, earliest};
use crate::worker::Job;

/// From this many failed applies in a row everything is made anew.
pub(super) const REBUILD_AFTER: u32 = 3;
/// From this many readings in a row that came to nothing, while nobody knows what is held, likewise.
pub(super) const ANEW_AFTER: u32 = 3;
/// Two programs that undo each other's changes shall not keep the machine busy.
const TOUCHED_PAUSE: Duration = Duration::from_millis(250);
/// How often the target is read without a cause, at most.
const AUDIT_EVERY: Duration = Duration::from_mins(10);
/// Audits take at most one part in so many of the time.
const AUDIT_SHARE: u32 = 500;
/// For so long what was read ahead is taken for what is there.
pub(super) const AHEAD_IS_NEW: Duration = Duration::from_secs(5);

impl<F: Family, P: Planner<F>> Pipeline<F, P> {
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
        match self.work {
            Work::Nothing => {}
            Work::ReadingAhead => {
                // From now on somebody waits for it.
                self.work = Work::Reading { reason: Reason::Start, touched: None };
                return (Progress::Working, None);
            }
            Work::Reading { .. } | Work::Planning(_) | Work::Applying(_) => return (Progress::Working, None),
        }
        match self.held {
            Held::Unknown { reason, not_before } if not_before <= now => self.recover(reason, now, random),
            Held::Unknown { .. } => (Progress::Working, None),
            Held::Known => self.proceed(now, random),
        }
    }

    /// Nobody knows what is held: it is read, or, where that leads nowhere, everything is made anew.
    pub(super) fn recover(&mut self, reason: Reason, now: Instant, random: f64) -> Turn<P::Target> {
        let leads_nowhere = self.failures >= REBUILD_AFTER || self.unread >= ANEW_AFTER || !self.is_readable;
        if leads_nowhere {
            self.attempt = now;
            return self.plan_whole(Whole::Anew(None), Step::Rebuild(reason), None, now);
        }
        let read = self.read(reason, now);
        match self.ahead.take() {
            Some(Ahead { answer, took, at }) if now.saturating_duration_since(at) <= AHEAD_IS_NEW => {
                self.report(answer, took, now, random)
            }
            _ => (Progress::Working, Some(read)),
        }
    }

    /// Has the target read once, before it is known what is wanted, where that is worth while.
    pub(crate) fn read_ahead(&mut self, now: Instant) -> Option<Job<P::Target>> {
        if !P::Target::READS_AHEAD || !matches!(self.work, Work::Nothing) || self.is_known() {
            return None;
        }
        self.work = Work::ReadingAhead;
        self.attempt = now;
        Some(Job::Read)
    }

    /// What is held is known, and what differs from it is planned.
    fn proceed(&mut self, now: Instant, random: f64) -> Turn<P::Target> {
        if let Some(touched) = self.touched.filter(|_| now >= self.repair_at()) {
            return self.look(touched.reason, now, random);
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
    pub(super) fn look(&mut self, reason: Reason, now: Instant, random: f64) -> Turn<P::Target> {
        if self.is_readable {
            return (Progress::Working, Some(self.read(reason, now)));
        }
        let touched = self.touched.take().map(|touched| touched.since);
        self.asked_since = earliest([self.asked_since, touched]);
        self.lose(reason, now);
        self.recover(reason, now, random)
    }

    pub(super) fn read(&mut self, reason: Reason, now: Instant) -> Job<P::Target> {
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
                self.begin(plan, step, Scope::Settings, now, random)
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
            Planned::Plan(plan) => self.begin(plan, Step::Change, Scope::Changes(changed), now, random),
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
            Planned::Plan(plan) => self.begin(plan, Step::Change, Scope::Woken, now, random),
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
    pub(super) fn lose(&mut self, reason: Reason, not_before: Instant) {
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

    /// Hands over what was planned just now, and not of everything, from what was known then.
    fn begin(
        &mut self,
        plan: PlanOf<P, F>,
        step: Step,
        scope: Scope<F>,
        now: Instant,
        random: f64,
    ) -> Turn<P::Target> {
        let since = match &scope {
            Scope::Changes(_) => self.dirty_since.take(),
            Scope::Settings => self.asked_since.take(),
            Scope::Woken | Scope::Everything => None,
        };
        self.hand_over(plan, step, scope, since.unwrap_or(now), now, now, random)
    }

    /// Hands over what was planned at some moment from what has been known since another one; a plan without steps holds at once.
    #[expect(clippy::too_many_arguments, reason = "moments and a number")]
    pub(super) fn hand_over(
        &mut self,
        plan: PlanOf<P, F>,
        step: Step,
        scope: Scope<F>,
        since: Instant,
        planned: Instant,
        now: Instant,
        random: f64,
    ) -> Turn<P::Target> {
        let mode::Plan { steps, writes, held } = plan;
        let flight = InFlight { held, step, scope, steps: steps.len(), writes, since, planned };
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
