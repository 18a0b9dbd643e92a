//! The planner: that of the rules, and what the maps are to be beside them.

use std::time::Duration;

use mode::{
    Cause, Meter, NeedsReading, Plan, PlanOf, Planner, Rule, RuleCount, Settled, StepResults, Target,
};
use model::{Changed, Family, FrontendKey, RuleSettings, Table};
use tokio::time::Instant;

use crate::path::Condition;
use crate::served::{Change, Options, Served, Wanted};
use crate::target::{EbpfTarget, Receipt, Step};

/// What of the maps serves a frontend, in words.
pub type Explain<F> = Box<dyn Fn(&FrontendKey<F>) -> Vec<Rule> + Send>;

/// One family's maps, with the rules that `R` makes beneath.
pub struct EbpfPlanner<F: Family, R: Planner<F>> {
    rules: R,
    options: Options,
    explain: Explain<F>,
    held: Option<Settings<R::Settings>>,
    maps: Maps,
}

/// What the planner believes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maps {
    /// They are as they were last planned.
    Followed,
    /// They are off, and are to be brought to everything then, after so many attempts.
    Off { again_at: Option<Instant>, attempts: u32 },
}

/// What both depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings<S> {
    rules: S,
    own: RuleSettings,
}

/// What a plan leads to.
pub struct Pending<S, H> {
    rules: Option<H>,
    n_maps: usize,
    settings: Settings<S>,
}

/// Pauses before everything is tried again; then always the last one.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_secs(1), Duration::from_secs(10), Duration::from_mins(1)];

impl<F: Family, R: Planner<F>> EbpfPlanner<F, R> {
    /// A planner that knows nothing yet.
    pub fn new(rules: R, options: Options, explain: Explain<F>) -> Self {
        Self { rules, options, explain, held: None, maps: Maps::Off { again_at: None, attempts: 0 } }
    }

    fn everything(&self, table: &Table<F>, settings: &Settings<R::Settings>) -> Change<F> {
        Change::All(Wanted::of(table, &settings.own, &self.options))
    }

    /// What changed frontends ask of the maps. Those of other protocols are never in them.
    fn some(
        &self,
        table: &Table<F>,
        settings: &Settings<R::Settings>,
        changed: &Changed<F>,
    ) -> Option<Change<F>> {
        let keys = changed.frontends.iter().filter(|key| self.options.serve(key.protocol));
        let served = |key: &FrontendKey<F>| {
            table.get(key).and_then(|frontend| Served::of(frontend, &settings.own, &self.options))
        };
        let frontends: std::collections::BTreeMap<_, _> = keys.map(|key| (*key, served(key))).collect();
        (!frontends.is_empty()).then_some(Change::Some(frontends))
    }

    /// What is off stays so until its time has come.
    fn follow(&self, change: Option<Change<F>>) -> Option<Change<F>> {
        change.filter(|_| self.maps == Maps::Followed)
    }

    fn note(&mut self, condition: &Condition, at: Instant) {
        let attempts = match self.maps {
            Maps::Followed => 0,
            Maps::Off { attempts, .. } => attempts,
        };
        self.maps = match condition {
            Condition::On => Maps::Followed,
            Condition::Off(_) => {
                let pause = PAUSES.get(attempts as usize).or(PAUSES.last()).copied().unwrap_or_default();
                Maps::Off { again_at: Some(at + pause), attempts: attempts.saturating_add(1) }
            }
        };
    }
}

fn explains_nothing<F: Family>() -> Explain<F> {
    Box::new(|_| Vec::new())
}

type OwnFound<F, R> = <EbpfTarget<F, <R as Planner<F>>::Target> as Target>::Found;

impl<F: Family, R: Planner<F>> Planner<F> for EbpfPlanner<F, R> {
    const NAME: &'static str = "ebpf";
    type Settings = Settings<R::Settings>;
    type Target = EbpfTarget<F, R::Target>;
    type Held = Pending<R::Settings, R::Held>;

    fn settings(&self, rules: &RuleSettings) -> Self::Settings {
        Settings { rules: self.rules.settings(rules), own: rules.clone() }
    }

    fn held_settings(&self) -> Option<&Self::Settings> {
        self.held.as_ref().filter(|_| self.rules.held_settings().is_some())
    }

    fn plan(
        &self,
        table: &Table<F>,
        settings: &Self::Settings,
        cause: Cause<'_, F, OwnFound<F, R>>,
    ) -> Result<PlanOf<Self, F>, NeedsReading> {
        let everything = || Some(self.everything(table, settings));
        let plan_rules = |cause| self.rules.plan(table, &settings.rules, cause).map(Some);
        let (maps, rules) = match cause {
            Cause::Changed(changed) => {
                (self.follow(self.some(table, settings, changed)), plan_rules(Cause::Changed(changed))?)
            }
            Cause::Settings => (everything(), plan_rules(Cause::Settings)?),
            Cause::Found(found) => {
                let is_sound = found.maps == Condition::On
                    && self.maps == Maps::Followed
                    && self.held.as_ref().is_some_and(|held| held.own == settings.own);
                let maps = if is_sound { None } else { everything() };
                (maps, plan_rules(Cause::Found(&found.rules))?)
            }
            Cause::Anew(found) => (everything(), plan_rules(Cause::Anew(found.map(|found| &found.rules)))?),
            Cause::Woken(now) => {
                let is_due = self.rules.wake_at().is_some_and(|at| at <= now);
                let maps = if self.maps == Maps::Followed { None } else { everything() };
                (maps, if is_due { plan_rules(Cause::Woken(now))? } else { None })
            }
        };
        Ok(join(maps, rules, settings))
    }

    fn detached(&self) -> Self {
        let held = self.held.clone();
        Self {
            held,
            maps: self.maps,
            ..Self::new(self.rules.detached(), self.options.clone(), explains_nothing())
        }
    }

    fn settle(&mut self, held: Self::Held, results: StepResults<Self::Target>) -> Settled<F> {
        let Pending { rules, n_maps, settings } = held;
        let mut results = results;
        let of_rules = results.split_off(results.len().min(n_maps));
        for result in results {
            match result.as_ref() {
                Ok(Receipt::Maps(condition, at)) => self.note(condition, *at),
                // The thread has panicked; the reading that follows tells.
                _ => self.maps = Maps::Off { again_at: None, attempts: 0 },
            }
        }
        let Some(rules) = rules else { return Settled::done() };
        self.held = Some(settings);
        self.rules.settle(rules, rule_results::<F, R::Target>(of_rules))
    }

    fn wake_at(&self) -> Option<Instant> {
        let maps = match self.maps {
            Maps::Followed => None,
            Maps::Off { again_at, .. } => again_at,
        };
        maps.into_iter().chain(self.rules.wake_at()).min()
    }

    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        let mut rules = (self.explain)(key);
        rules.extend(self.rules.rules(key));
        rules
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        self.rules.rule_counts()
    }

    fn meters(&self, table: &Table<F>, counted: <Self::Target as Target>::Counted) -> Vec<Meter> {
        let mut meters = counted.sockets;
        // Those of one Service port follow each other.
        let mut last = None;
        meters.retain(|Meter { service, .. }| match &last {
            Some((looked_at, is_known)) if looked_at == service => *is_known,
            _ => {
                let is_known =
                    table.of_service(&service.service).any(|frontend| frontend.service == *service);
                last = Some((service.clone(), is_known));
                is_known
            }
        });
        meters.extend(self.rules.meters(table, counted.rules));
        meters
    }
}

/// The maps come first: they take microseconds, and the rules serve in any case.
fn join<F: Family, S: Clone, T, H>(
    maps: Option<Change<F>>,
    rules: Option<Plan<T, H>>,
    settings: &Settings<S>,
) -> Plan<Step<F, T>, Pending<S, H>> {
    let mut steps: Vec<Step<F, T>> = maps.into_iter().map(Step::Maps).collect();
    let n_maps = steps.len();
    let (mut writes, mut held) = (0, None);
    if let Some(plan) = rules {
        writes = plan.writes;
        held = Some(plan.held);
        steps.extend(plan.steps.into_iter().map(|step| Step::Rules(Box::new(step))));
    }
    Plan { steps, writes, held: Pending { rules: held, n_maps, settings: settings.clone() } }
}

fn rule_results<F: Family, T: Target>(results: StepResults<EbpfTarget<F, T>>) -> StepResults<T> {
    let of_rules = results.into_iter().filter_map(|result| match result {
        Ok(Receipt::Rules(receipt)) => Some(Ok(receipt)),
        Ok(Receipt::Maps(..)) => None,
        Err(error) => Some(Err(error)),
    });
    of_rules.collect()
}
