//! Rules that choose endpoints, and beside them others that do nothing but hand flows over: for a mode whose own rules can't do that.
//!
//! Each change goes to the rules that choose first, so that whoever is handed over nothing any more is served. What fails there has
//! the others wait.

use std::fmt;

use mode::{
    Applied, Cause, EndpointOutage, Meter, NeedsReading, Plan, PlanOf, Planner, Reading, Rule, RuleCount,
    Settled, StepResults, Target,
};
use model::{Balancer, Family, Frontend, FrontendKey, Proxied, RuleSettings, Table};
use tokio::time::Instant;

/// The rules of `C`, which choose, with those of `H`, which hand over.
pub struct Beside<F: Family, C: Planner<F>, H: Planner<F>> {
    choosing: C,
    handing: H,
    /// What both hold by; `None`: nothing is held.
    held: Option<(C::Settings, H::Settings)>,
}

impl<F: Family, C: Planner<F>, H: Planner<F>> Beside<F, C, H> {
    /// Planners that know nothing of their targets yet.
    pub fn new(choosing: C, handing: H) -> Self {
        Self { choosing, handing, held: None }
    }
}

/// What a plan leads to.
pub struct PendingBeside<C, H, S> {
    choosing: C,
    n_choosing: usize,
    handing: H,
    n_handing: usize,
    /// If it is a plan of all.
    settings: Option<S>,
}

type Both<F, C, H> = (<C as Planner<F>>::Settings, <H as Planner<F>>::Settings);
type FoundBy<F, P> = <<P as Planner<F>>::Target as Target>::Found;

impl<F: Family, C: Planner<F>, H: Planner<F>> Planner<F> for Beside<F, C, H> {
    const NAME: &'static str = C::NAME;
    const TELLS_SERVICES: bool = C::TELLS_SERVICES;
    type Settings = Both<F, C, H>;
    type Target = BesideTarget<C::Target, H::Target>;
    type Held = PendingBeside<C::Held, H::Held, Self::Settings>;

    fn settings(&self, rules: &RuleSettings) -> Self::Settings {
        let proxied = rules.balancer.proxied().unwrap_or(Proxied::Asking);
        let handing = RuleSettings { balancer: Balancer::OtherRules(proxied), ..rules.clone() };
        (self.choosing.settings(rules), self.handing.settings(&handing))
    }

    fn held_settings(&self) -> Option<&Self::Settings> {
        self.held.as_ref()
    }

    fn plan(
        &self,
        table: &Table<F>,
        settings: &Self::Settings,
        cause: Cause<'_, F, (FoundBy<F, C>, FoundBy<F, H>)>,
    ) -> Result<PlanOf<Self, F>, NeedsReading> {
        let is_of_all = cause.is_whole();
        let (to_choosing, to_handing) = match cause {
            Cause::Changed(changed) => (Cause::Changed(changed), Cause::Changed(changed)),
            Cause::Settings => return Err(NeedsReading),
            Cause::Found((choosing, handing)) => (Cause::Found(choosing), Cause::Found(handing)),
            Cause::Anew(found) => {
                let (choosing, handing) = found.map(|(one, other)| (one, other)).unzip();
                (Cause::Anew(choosing), Cause::Anew(handing))
            }
            Cause::Woken(now) => (Cause::Woken(now), Cause::Woken(now)),
        };
        let choosing = self.choosing.plan(table, &settings.0, to_choosing)?;
        let handing = self.handing.plan(table, &settings.1, to_handing)?;
        let writes = choosing.writes + handing.writes;
        let held = PendingBeside {
            choosing: choosing.held,
            n_choosing: choosing.steps.len(),
            handing: handing.held,
            n_handing: handing.steps.len(),
            settings: is_of_all.then(|| settings.clone()),
        };
        let steps = choosing.steps.into_iter().map(|step| BesideStep::Choosing(Box::new(step)));
        let steps = steps.chain(handing.steps.into_iter().map(|step| BesideStep::Handing(Box::new(step))));
        Ok(Plan { steps: steps.collect(), writes, held })
    }

    fn detached(&self) -> Self {
        Self::new(self.choosing.detached(), self.handing.detached())
    }

    fn settle(&mut self, held: Self::Held, results: StepResults<Self::Target>) -> Settled<F> {
        let is_done = results.len() == held.n_choosing + held.n_handing && results.iter().all(Result::is_ok);
        if !is_done {
            return Settled::unknown();
        }
        let (mut of_choosing, mut of_handing) = (Vec::new(), Vec::new());
        for receipt in results.into_iter().flatten() {
            match receipt {
                BesideReceipt::Choosing(receipt) => of_choosing.push(Ok(receipt)),
                BesideReceipt::Handing(receipt) => of_handing.push(Ok(receipt)),
            }
        }
        let choosing = self.choosing.settle(held.choosing, of_choosing);
        let handing = self.handing.settle(held.handing, of_handing);
        if !(choosing.is_known && handing.is_known) {
            return Settled::unknown();
        }
        self.held = held.settings.or(self.held.take());
        choosing
    }

    fn wake_at(&self) -> Option<Instant> {
        self.choosing.wake_at().into_iter().chain(self.handing.wake_at()).min()
    }

    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        let mut rules = self.choosing.rules(key);
        rules.extend(self.handing.rules(key));
        rules
    }

    fn shortcomings(&self, frontend: &Frontend<F>) -> Vec<&'static str> {
        self.choosing.shortcomings(frontend)
    }

    fn occupant(&self, frontend: &Frontend<F>) -> Option<String> {
        self.choosing.occupant(frontend)
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        self.choosing.rule_counts()
    }

    fn outages(&self, table: &Table<F>, now: Instant) -> Vec<EndpointOutage> {
        self.choosing.outages(table, now)
    }

    /// What is handed over, its workers count.
    fn meters(&self, table: &Table<F>, counted: <C::Target as Target>::Counted) -> Vec<Meter> {
        self.choosing.meters(table, counted)
    }
}

/// Both targets of a family.
pub struct BesideTarget<C, H> {
    choosing: C,
    handing: H,
}

impl<C, H> BesideTarget<C, H> {
    /// With rules that choose, and others that hand over.
    pub const fn new(choosing: C, handing: H) -> Self {
        Self { choosing, handing }
    }
}

/// Something that is done or fails as a whole.
#[derive(Debug)]
pub enum BesideStep<C, H> {
    /// A step of the rules that choose.
    Choosing(Box<C>),
    /// A step of those that hand over.
    Handing(Box<H>),
}

/// What came of a step.
#[derive(Debug)]
pub enum BesideReceipt<C, H> {
    /// A step of the rules that choose was made.
    Choosing(C),
    /// A step of those that hand over was made.
    Handing(H),
}

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum BesideError<C: std::error::Error + 'static, H: std::error::Error + 'static> {
    /// The rules that choose.
    #[error(transparent)]
    Choosing(C),
    /// The rules that hand over.
    #[error(transparent)]
    Handing(H),
}

impl<C: Target, H: Target> Target for BesideTarget<C, H> {
    type Step = BesideStep<C::Step, H::Step>;
    type Receipt = BesideReceipt<C::Receipt, H::Receipt>;
    type Found = (C::Found, H::Found);
    type Counted = C::Counted;
    type Error = BesideError<C::Error, H::Error>;

    /// Ends with the first step that fails.
    fn apply(&mut self, steps: Vec<Self::Step>, yields: &dyn Fn() -> bool) -> Applied<Self> {
        let n_steps = steps.len();
        let (mut of_choosing, mut of_handing) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                BesideStep::Choosing(step) => of_choosing.push(*step),
                BesideStep::Handing(step) => of_handing.push(*step),
            }
        }
        let n_choosing = of_choosing.len();
        let chosen = self.choosing.apply(of_choosing, yields);
        let mut results = Vec::with_capacity(n_steps);
        let receipt =
            |result: Result<_, _>| result.map(BesideReceipt::Choosing).map_err(BesideError::Choosing);
        results.extend(chosen.results.into_iter().map(receipt));
        let mut applied = Applied { results, kernel_time: chosen.kernel_time, is_usable: chosen.is_usable };
        if applied.results.len() < n_choosing || applied.results.iter().any(Result::is_err) {
            return applied;
        }
        let handed = self.handing.apply(of_handing, yields);
        let receipt = |result: Result<_, _>| result.map(BesideReceipt::Handing).map_err(BesideError::Handing);
        applied.results.extend(handed.results.into_iter().map(receipt));
        applied.is_usable &= handed.is_usable;
        applied.kernel_time = applied.kernel_time.into_iter().chain(handed.kernel_time).reduce(|a, b| a + b);
        applied
    }

    fn read(&mut self) -> Reading<Self::Found, Self::Error> {
        let choosing = match self.choosing.read() {
            Reading::Whole(found) => found,
            Reading::Unstable => return Reading::Unstable,
            Reading::NotReadable => return Reading::NotReadable,
            Reading::Failed(error) => return Reading::Failed(BesideError::Choosing(error)),
        };
        match self.handing.read() {
            Reading::Whole(handing) => Reading::Whole((choosing, handing)),
            Reading::Unstable => Reading::Unstable,
            Reading::NotReadable => Reading::NotReadable,
            Reading::Failed(error) => Reading::Failed(BesideError::Handing(error)),
        }
    }

    fn traffic(&mut self) -> Result<Option<Self::Counted>, Self::Error> {
        self.choosing.traffic().map_err(BesideError::Choosing)
    }

    fn is_retryable(error: &Self::Error) -> bool {
        match error {
            BesideError::Choosing(error) => C::is_retryable(error),
            BesideError::Handing(error) => H::is_retryable(error),
        }
    }

    fn outcome_unknown(why: &'static str) -> Self::Error {
        BesideError::Choosing(C::outcome_unknown(why))
    }
}

impl<C: fmt::Display, H: fmt::Display> fmt::Display for BesideStep<C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Choosing(step) => step.fmt(f),
            Self::Handing(step) => step.fmt(f),
        }
    }
}
