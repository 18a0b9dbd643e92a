//! Does the steps.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mode::{Applied, Reading, Target};
use proxy::frame::Routes;
use tokio::time::Instant;

use crate::supervisor::{Site, Supervisor};
use crate::traffic::{Carried, Counted};

/// One family's rules, and the worker that carries what they hand over.
pub struct UserspaceTarget<R: Target, S: Site> {
    rules: R,
    supervisor: Arc<Mutex<Supervisor<S>>>,
    carried: Carried,
}

/// Something that is done or fails as a whole.
#[derive(Debug)]
pub enum Step<S> {
    /// A step of the rules.
    Rules(Box<S>),
    /// Other routes for the worker. It can't fail: a worker that does not take them is started again, with all of them.
    Routes(Box<Routes>),
    /// All is in place, so that flows can be handed over.
    Capture,
}

/// What came of a step.
#[derive(Debug)]
pub enum Receipt<R> {
    /// A step of the rules was made.
    Rules(R),
    /// All else was.
    Done,
}

impl<R: Target, S: Site> UserspaceTarget<R, S> {
    /// With these rules, and whoever looks after the worker.
    pub fn new(rules: R, supervisor: Arc<Mutex<Supervisor<S>>>) -> Self {
        Self { rules, supervisor, carried: Carried::default() }
    }

    /// The same, which tells what workers carry.
    #[must_use]
    pub fn counting(self, carried: Carried) -> Self {
        Self { carried, ..self }
    }
}

/// Makes steps of the rules; false: not all of them.
fn apply_rules<R: Target, S: Site + 'static>(
    rules: &mut R,
    steps: Vec<R::Step>,
    yields: &dyn Fn() -> bool,
    applied: &mut Applied<UserspaceTarget<R, S>>,
) -> bool {
    let n_steps = steps.len();
    let Applied { results, kernel_time, is_usable } = rules.apply(steps, yields);
    applied.is_usable &= is_usable;
    applied.kernel_time = sum(applied.kernel_time, kernel_time);
    let is_done = results.len() == n_steps && results.iter().all(Result::is_ok);
    applied.results.extend(results.into_iter().map(|result| result.map(Receipt::Rules)));
    is_done
}

fn lock<S: Site>(supervisor: &Mutex<Supervisor<S>>) -> MutexGuard<'_, Supervisor<S>> {
    supervisor.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Target, S: Site + 'static> Target for UserspaceTarget<R, S> {
    type Step = Step<R::Step>;
    type Receipt = Receipt<R::Receipt>;
    type Found = R::Found;
    type Counted = Counted<R::Counted>;
    type Error = R::Error;

    fn apply(&mut self, steps: Vec<Self::Step>, yields: &dyn Fn() -> bool) -> Applied<Self> {
        let mut applied = Applied { results: Vec::new(), kernel_time: None, is_usable: true };
        // The lease is not renewed meanwhile: a table has one writer at a time.
        let mut supervisor = lock(&self.supervisor);
        let began = Instant::now();
        let mut steps = steps.into_iter().peekable();
        while let Some(step) = steps.next() {
            match step {
                Step::Routes(routes) => {
                    supervisor.set_routes(*routes, Instant::now());
                    applied.results.push(Ok(Receipt::Done));
                }
                Step::Capture => {
                    supervisor.capture(Instant::now());
                    applied.results.push(Ok(Receipt::Done));
                }
                Step::Rules(step) => {
                    let mut of_rules = vec![*step];
                    while let Some(Step::Rules(step)) = steps.next_if(|step| matches!(step, Step::Rules(_))) {
                        of_rules.push(*step);
                    }
                    if !apply_rules(&mut self.rules, of_rules, yields, &mut applied) {
                        break;
                    }
                }
            }
        }
        if began.elapsed() > Supervisor::<S>::PERIOD {
            supervisor.look_after(Instant::now());
        }
        applied
    }

    fn read(&mut self) -> Reading<R::Found, R::Error> {
        // A renewal meanwhile would make it look as if others changed the table: there is one before, and one at once after it.
        let mut supervisor = lock(&self.supervisor);
        supervisor.look_after(Instant::now());
        let reading = self.rules.read();
        supervisor.look_after(Instant::now());
        reading
    }

    fn traffic(&mut self) -> Result<Option<Self::Counted>, Self::Error> {
        Ok(Some(Counted { rules: self.rules.traffic()?, carried: self.carried.read() }))
    }

    fn is_retryable(error: &R::Error) -> bool {
        R::is_retryable(error)
    }

    fn outcome_unknown(why: &'static str) -> R::Error {
        R::outcome_unknown(why)
    }
}

fn sum(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).reduce(|one, other| one + other)
}

impl<S: fmt::Display> fmt::Display for Step<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(step) => step.fmt(f),
            Self::Routes(routes) => {
                write!(f, "{} routes set, {} gone", routes.set.len(), routes.gone.len())
            }
            Self::Capture => f.write_str("flows are handed over"),
        }
    }
}
