//! Plans of everything, which take long in large clusters: made on the worker's thread, from the table as it stood when they were
//! begun. What changes meanwhile is planned after that.

use std::sync::{Arc, mpsc};

use mode::{Cause, NeedsReading, PlanOf, Planner, Target};
use model::{Changed, Family};
use tokio::time::Instant;

use super::{Pipeline, Progress, Scope, Step, Turn, Work, earliest};
use crate::worker::{Job, Task};

/// [`Cause::Found`] and [`Cause::Anew`], with what was found.
pub(super) enum Whole<R> {
    /// What is found is made right.
    Found(R),
    /// Everything is made anew.
    Anew(Option<R>),
}

impl<R> Whole<R> {
    fn cause<F: Family>(&self) -> Cause<'_, F, R> {
        match self {
            Self::Found(found) => Cause::Found(found),
            Self::Anew(found) => Cause::Anew(found.as_ref()),
        }
    }
}

/// A plan of everything that is being made.
pub(super) struct Planning<F: Family, P: Planner<F>> {
    step: Step,
    /// What it takes up, and since when the oldest of that has been known.
    pub(super) changed: Changed<F>,
    pub(super) since: Option<Instant>,
    begun: Instant,
    plan: mpsc::Receiver<Result<PlanOf<P, F>, NeedsReading>>,
}

impl<F: Family, P: Planner<F>> Pipeline<F, P> {
    /// Plans everything, as a step of this kind. `touched`: since when somebody else's change waits for it.
    pub(super) fn plan_whole(
        &mut self,
        whole: Whole<<P::Target as Target>::Found>,
        step: Step,
        touched: Option<Instant>,
        now: Instant,
    ) -> Turn<P::Target> {
        let (sender, plan) = mpsc::channel();
        let (planner, table, settings) =
            (self.planner.detached(), Arc::clone(&self.table), self.settings.clone());
        let task = move || {
            // Nobody wants it any more if it can't be sent.
            drop(sender.send(planner.plan(&table, &settings, whole.cause())));
        };
        let since = earliest([self.dirty_since.take(), self.asked_since.take(), touched]);
        let changed = std::mem::take(&mut self.dirty);
        self.work = Work::Planning(Box::new(Planning { step, changed, since, begun: now, plan }));
        (Progress::Working, Some(Job::Work(Task::new(task))))
    }

    /// Takes in the plan that the worker has made.
    pub(super) fn take_plan(
        &mut self,
        planning: Planning<F, P>,
        now: Instant,
        random: f64,
    ) -> Turn<P::Target> {
        let Planning { step, changed, since, begun, plan } = planning;
        match plan.try_recv() {
            Ok(Ok(plan)) => {
                self.hand_over(plan, step, Scope::Everything, since.unwrap_or(now), begun, now, random)
            }
            planned => {
                self.dirty.extend(&changed);
                self.asked_since = earliest([self.asked_since, since]);
                if planned.is_ok() {
                    return self.no_whole_plan(step, now, random);
                }
                let error = P::Target::outcome_unknown("a panic of the planner");
                (self.not_planned(error, now, random), None)
            }
        }
    }

    /// The planner wants a reading for what it was asked.
    fn no_whole_plan(&mut self, step: Step, now: Instant, random: f64) -> Turn<P::Target> {
        let error = match step {
            Step::Rebuild(reason) if self.is_readable => {
                return (Progress::Working, Some(self.read(reason, now)));
            }
            Step::Rebuild(_) => "it can't be read, and not be made anew without that",
            _ => "what was read tells nothing",
        };
        (self.not_planned(P::Target::outcome_unknown(error), now, random), None)
    }
}
