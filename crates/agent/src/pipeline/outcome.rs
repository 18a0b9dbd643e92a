//! What comes back from the worker, and what follows from it.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mode::{Applied, Planner, Reading, Settled, StepResults, Target};
use model::{Changed, Family, FrontendKey};
use tokio::time::Instant;

use super::next::{ANEW_AFTER, REBUILD_AFTER};
use super::whole::Whole;
use super::{
    Ahead, Done, Failed, Failing, Held, InFlight, Pipeline, Progress, Reason, Scope, Step, Touched, Turn,
    Work, earliest,
};
use crate::backoff::pause;
use crate::worker::Answer;

type Error<F, P> = <<P as Planner<F>>::Target as Target>::Error;
type Found<F, P> = <<P as Planner<F>>::Target as Target>::Found;

impl<F: Family, P: Planner<F>> Pipeline<F, P> {
    /// Takes in what came of the last job, which took so long, and gives the next one if it follows directly. `random` is
    /// from 0 up to 1.
    pub(crate) fn report(
        &mut self,
        answer: Answer<P::Target>,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> Turn<P::Target> {
        match (answer, std::mem::replace(&mut self.work, Work::Nothing)) {
            (Answer::Read(reading), Work::Reading { reason, touched }) => {
                self.take_reading(reading, reason, touched, took, now, random)
            }
            (Answer::NotOpened(error), Work::Reading { reason, touched }) => {
                self.reading_failed(Some(error), reason, touched, now, random)
            }
            (answer @ (Answer::Read(_) | Answer::NotOpened(_)), Work::ReadingAhead) => {
                self.ahead = Some(Ahead { answer, took, at: now });
                (Progress::Working, None)
            }
            (Answer::Worked, Work::Planning(planning)) => self.take_plan(*planning, now, random),
            (Answer::Applied(applied), Work::Applying(flight)) => {
                (self.settle(*flight, applied, now, random), None)
            }
            (Answer::NotOpened(error), Work::Applying(flight)) => {
                (self.not_tried(*flight, error, now, random), None)
            }
            (_, work) => {
                debug_assert!(false, "nothing of the kind was asked for");
                self.work = work;
                (Progress::Working, None)
            }
        }
    }

    fn take_reading(
        &mut self,
        reading: Reading<Found<F, P>, Error<F, P>>,
        reason: Reason,
        touched: Option<Touched>,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> Turn<P::Target> {
        match reading {
            Reading::Whole(found) => {
                self.reading_took = took;
                self.read_at = now;
                self.unread = 0;
                self.compare(found, reason, touched, now)
            }
            Reading::Unstable => self.reading_failed(None, reason, touched, now, random),
            Reading::Failed(error) => self.reading_failed(Some(error), reason, touched, now, random),
            Reading::NotReadable => {
                self.is_readable = false;
                self.touched = Touched::merge(self.touched, touched);
                match self.held {
                    Held::Known if reason == Reason::Audit => (Progress::Working, None),
                    Held::Known => self.look(reason, now, random),
                    Held::Unknown { reason, .. } => self.recover(reason, now, random),
                }
            }
        }
    }

    pub(super) fn compare(
        &mut self,
        found: Found<F, P>,
        reason: Reason,
        touched: Option<Touched>,
        now: Instant,
    ) -> Turn<P::Target> {
        let (whole, step) = if self.failures >= REBUILD_AFTER {
            (Whole::Anew(Some(found)), Step::Rebuild(reason))
        } else {
            (Whole::Found(found), Step::Repair(reason))
        };
        self.plan_whole(whole, step, since(touched), now)
    }

    /// A reading came to nothing: what is held is as known, or unknown, as before.
    fn reading_failed(
        &mut self,
        error: Option<Error<F, P>>,
        reason: Reason,
        touched: Option<Touched>,
        now: Instant,
        random: f64,
    ) -> Turn<P::Target> {
        self.touched = Touched::merge(self.touched, touched);
        self.unread = self.unread.saturating_add(1);
        let is_hopeless = error.as_ref().is_some_and(|error| !P::Target::is_retryable(error));
        if is_hopeless && !self.is_known() && self.unread < ANEW_AFTER {
            // Another reading would fail too.
            self.unread = ANEW_AFTER;
            return self.plan_whole(Whole::Anew(None), Step::Rebuild(reason), since(touched), now);
        }
        let retry_in = pause(self.unread, random);
        self.read_not_before = now + retry_in;
        if let Held::Unknown { reason, .. } = self.held {
            self.lose(reason, now + retry_in);
            self.failing_since.get_or_insert(now);
        }
        let failed = Failed {
            during: Failing::Read,
            error: error.map(Arc::new),
            refused: 0,
            steps: 0,
            failures: self.unread,
            retry_in,
            is_known: self.is_known(),
            kernel_time: None,
            duration: now.saturating_duration_since(self.attempt),
        };
        (Progress::Failed(failed), None)
    }

    /// Takes note of what came of a plan's steps.
    pub(super) fn settle(
        &mut self,
        flight: InFlight<P::Held, F>,
        applied: Applied<P::Target>,
        now: Instant,
        random: f64,
    ) -> Progress<P::Target> {
        let InFlight { held, step, scope, steps, writes, since, planned } = flight;
        let results: StepResults<P::Target> =
            applied.results.into_iter().map(|result| result.map_err(Arc::new)).collect();
        let errors = results.iter().filter_map(|result| result.as_ref().err());
        let (error, refused) = (errors.clone().next().cloned(), errors.count());
        let planner = &mut self.planner;
        let settled = catch_unwind(AssertUnwindSafe(|| planner.settle(held, results)));
        let settled = settled.unwrap_or_else(|_panic| Settled::unknown());
        let attempt = Attempt { step, refused, steps, since, kernel_time: applied.kernel_time };
        if !settled.is_known {
            let error =
                error.unwrap_or_else(|| Arc::new(P::Target::outcome_unknown("the planner has lost count")));
            return Progress::Failed(self.lost(error, attempt, now, random));
        }
        self.held = Held::Known;
        self.failures = 0;
        self.failing_since = None;
        let is_complete = settled.untried.is_empty();
        let retry_in = self.take_settled(&scope, settled, since, now, random);
        let Some(error) = error else {
            let is_nothing = steps == 0;
            if is_nothing && matches!(scope, Scope::Changes(_) | Scope::Woken) {
                return Progress::Working;
            }
            return Progress::Done(Done {
                step: if is_nothing { unchanged(step) } else { step },
                writes,
                kernel_time: applied.kernel_time,
                is_complete,
                latency: now.saturating_duration_since(since),
                planned,
                duration: now.saturating_duration_since(self.attempt),
            });
        };
        Progress::Failed(self.failure(error, &attempt, 1, retry_in, now))
    }

    /// What was planned holds, but for what was refused or not tried; gives the shortest pause of what was refused.
    fn take_settled(
        &mut self,
        scope: &Scope<F>,
        settled: Settled<F>,
        since: Instant,
        now: Instant,
        random: f64,
    ) -> Duration {
        let Settled { failed, untried, .. } = settled;
        match scope {
            Scope::Changes(changed) => {
                self.note_unheard(&changed.frontends);
                self.retries.made(&without(changed, [&failed, &untried]));
            }
            Scope::Everything => {
                self.note_all_unheard();
                self.retries.keep_only(&failed);
            }
            Scope::Settings | Scope::Woken => {}
        }
        self.note_unheard(&failed.frontends);
        let retry_in = self.retries.refused(&failed, since, now, random);
        self.goes_on = !untried.is_empty();
        if self.goes_on {
            self.dirty.extend(&untried);
            self.dirty_since = earliest([self.dirty_since, Some(since)]);
        }
        let waits = |key: &FrontendKey<F>| self.dirty.frontends.contains(key) || self.retries.has(key);
        let (later, ready): (BTreeSet<_>, BTreeSet<_>) =
            std::mem::take(&mut self.stale_flows).into_iter().partition(waits);
        self.stale_flows = later;
        self.ready_flows.extend(ready);
        if self.is_settled() {
            // What differed for a moment is as it was, and nobody has taken it up.
            self.dirty_since = None;
            self.asked_since = None;
        }
        retry_in
    }

    /// There was no way to the target, so that nothing was done.
    fn not_tried(
        &mut self,
        flight: InFlight<P::Held, F>,
        error: Error<F, P>,
        now: Instant,
        random: f64,
    ) -> Progress<P::Target> {
        let InFlight { step, scope, steps, since, .. } = flight;
        let attempt = Attempt { step, refused: steps, steps, since, kernel_time: None };
        let error = Arc::new(error);
        match scope {
            Scope::Changes(changed) if self.is_known() => {
                self.failures = self.failures.saturating_add(1);
                self.failing_since.get_or_insert(since);
                self.dirty.extend(&changed);
                self.dirty_since = earliest([self.dirty_since, Some(since)]);
                let retry_in = pause(self.failures, random);
                self.sync_not_before = self.sync_not_before.max(now + retry_in);
                let failures = self.failures;
                Progress::Failed(self.failure(error, &attempt, failures, retry_in, now))
            }
            Scope::Changes(_) | Scope::Settings | Scope::Woken | Scope::Everything => {
                Progress::Failed(self.lost(error, attempt, now, random))
            }
        }
    }

    /// There is no plan.
    pub(super) fn not_planned(
        &mut self,
        error: Error<F, P>,
        now: Instant,
        random: f64,
    ) -> Progress<P::Target> {
        let since = earliest([self.dirty_since.take(), self.asked_since.take()]).unwrap_or(now);
        let attempt =
            Attempt { step: Step::Repair(Reason::Failure), refused: 0, steps: 0, since, kernel_time: None };
        Progress::Failed(self.lost(Arc::new(error), attempt, now, random))
    }

    /// Nobody knows any more what is held.
    fn lost(
        &mut self,
        error: Arc<Error<F, P>>,
        attempt: Attempt,
        now: Instant,
        random: f64,
    ) -> Failed<P::Target> {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        self.asked_since = earliest([self.asked_since, Some(attempt.since)]);
        self.goes_on = false;
        let retry_in = pause(self.failures, random);
        let reason = match self.held {
            Held::Unknown { reason: Reason::Start, .. } => Reason::Start,
            Held::Unknown { .. } | Held::Known => Reason::Failure,
        };
        self.lose(reason, now + retry_in);
        let failures = self.failures;
        self.failure(error, &attempt, failures, retry_in, now)
    }

    fn failure(
        &self,
        error: Arc<Error<F, P>>,
        attempt: &Attempt,
        failures: u32,
        retry_in: Duration,
        now: Instant,
    ) -> Failed<P::Target> {
        Failed {
            during: if attempt.step == Step::Change { Failing::Change } else { Failing::Repair },
            error: Some(error),
            refused: attempt.refused,
            steps: attempt.steps,
            failures,
            retry_in,
            is_known: self.is_known(),
            kernel_time: attempt.kernel_time,
            duration: now.saturating_duration_since(self.attempt),
        }
    }
}

/// What is said of an attempt that failed.
#[derive(Clone, Copy)]
struct Attempt {
    step: Step,
    refused: usize,
    steps: usize,
    since: Instant,
    kernel_time: Option<Duration>,
}

fn since(touched: Option<Touched>) -> Option<Instant> {
    touched.map(|touched| touched.since)
}

/// The step of an attempt that found nothing to do.
fn unchanged(step: Step) -> Step {
    match step {
        Step::Repair(reason) | Step::Rebuild(reason) | Step::Unchanged(reason) => Step::Unchanged(reason),
        Step::Change => Step::Change,
    }
}

/// What is in none of the others.
fn without<F: Family>(changed: &Changed<F>, others: [&Changed<F>; 2]) -> Changed<F> {
    let [a, b] = others;
    let mut rest = changed.clone();
    rest.frontends.retain(|key| !a.frontends.contains(key) && !b.frontends.contains(key));
    rest.health_check_ports
        .retain(|p| !a.health_check_ports.contains(p) && !b.health_check_ports.contains(p));
    rest
}
