//! The mode as the event loop sees it.

use iptables::{Iptables, IptablesError, Restore, Saved};
use mode::{
    Applied, Cause, Meter, NeedsReading, PlanOf, Planner, Reading, Rule, RuleCount, Settled, StepResults,
    Target,
};
use model::{Extent, Family, FrontendKey, RuleSettings, Table};

use crate::config::Config;
use crate::meters::{is_wanted, meters};
use crate::names::PREFIX;
use crate::plan::{Backend, Plan};

/// A family's tables. A step is one input of the program, whose sections are carried out one after the other, up to the one
/// that is refused.
pub struct IptablesTarget(pub Box<dyn Iptables>);

impl Target for IptablesTarget {
    type Step = Restore;
    type Receipt = ();
    type Found = Saved;
    type Counted = Vec<Meter>;
    type Error = IptablesError;

    fn apply(&mut self, steps: Vec<Restore>, _yields: &dyn Fn() -> bool) -> Applied<Self> {
        let mut applied = Applied { results: Vec::with_capacity(1), kernel_time: None, is_usable: true };
        for restore in steps {
            let result = self.0.restore(&restore);
            applied.is_usable = result.is_ok();
            applied.results.push(result);
            if !applied.is_usable {
                break;
            }
        }
        applied
    }

    /// A table is saved in one go, so that it is of one moment.
    fn read(&mut self) -> Reading<Saved, IptablesError> {
        match self.0.save(PREFIX) {
            Ok(found) => Reading::Whole(found),
            Err(error) => Reading::Failed(error),
        }
    }

    fn traffic(&mut self) -> Result<Option<Vec<Meter>>, IptablesError> {
        self.0.counts(&is_wanted).map(|rules| Some(meters(&rules)))
    }

    fn is_retryable(error: &IptablesError) -> bool {
        error.is_retryable()
    }

    fn outcome_unknown(why: &'static str) -> IptablesError {
        IptablesError::OutcomeUnknown { why }
    }
}

/// Decides about a family's tables.
#[derive(Debug)]
pub struct IptablesPlanner<F: Family> {
    backend: Backend<F>,
    /// See [`Config::drop_invalid`].
    drop_invalid: bool,
}

impl<F: Family> IptablesPlanner<F> {
    /// A planner that knows nothing of the tables yet. For `drop_invalid` see [`Config::drop_invalid`].
    pub fn new(drop_invalid: bool) -> Self {
        Self { backend: Backend::new(Config { drop_invalid, ..Config::default() }), drop_invalid }
    }
}

/// What a plan leads to, without its changes.
#[derive(Debug)]
pub struct Outcome<F: Family>(Plan<F>);

impl<F: Family> Planner<F> for IptablesPlanner<F> {
    const NAME: &'static str = "iptables";
    type Settings = Config;
    type Target = IptablesTarget;
    type Held = Outcome<F>;

    /// Packets to addresses that no Service has are left alone, as upstream does, so the ranges of cluster IPs do not
    /// matter.
    fn settings(&self, rules: &RuleSettings) -> Config {
        Config {
            node_ports: rules.node_ports.clone(),
            localhost_node_ports: rules.localhost_node_ports,
            pods: rules.pods.clone(),
            masquerade_all: rules.masquerade_all,
            masquerade_mark: rules.masquerade_mark,
            drop_invalid: self.drop_invalid,
        }
    }

    fn held_settings(&self) -> Option<&Config> {
        Some(self.backend.config())
    }

    fn plan(
        &self,
        table: &Table<F>,
        settings: &Config,
        cause: Cause<'_, F, Saved>,
    ) -> Result<PlanOf<Self, F>, NeedsReading> {
        let repair = |found, extent| self.backend.repair(settings, table, found, extent);
        let plan = match cause {
            Cause::Changed(changed) => self.backend.plan(table, changed),
            Cause::Found(found) => repair(found, Extent::Difference),
            Cause::Anew(Some(found)) => repair(found, Extent::Rebuild),
            // Which chains are stale, and which jumps there are, only the tables tell.
            Cause::Anew(None) | Cause::Settings | Cause::Woken(_) => return Err(NeedsReading),
        };
        Ok(handed_over(plan))
    }

    fn detached(&self) -> Self {
        Self::new(self.drop_invalid)
    }

    fn settle(&mut self, held: Outcome<F>, results: StepResults<IptablesTarget>) -> Settled<F> {
        if results.iter().any(Result::is_err) {
            return Settled::unknown();
        }
        self.backend.committed(held.0);
        Settled::done()
    }

    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        self.backend.explain(key)
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        self.backend.rule_counts()
    }

    fn meters(&self, _table: &Table<F>, counted: Vec<Meter>) -> Vec<Meter> {
        counted
    }
}

/// The changes go to the tables; the rest of the plan waits for the outcome.
fn handed_over<F: Family>(mut plan: Plan<F>) -> PlanOf<IptablesPlanner<F>, F> {
    let restore = std::mem::take(&mut plan.restore);
    let writes = restore.edit_count();
    let steps = if writes == 0 { Vec::new() } else { vec![restore] };
    mode::Plan { steps, writes, held: Outcome(plan) }
}
