//! The mode as the event loop sees it.

use mode::{
    Applied, Cause, Meter, NeedsReading, PlanOf, Planner, Reading, Rule, Settled, StepResults, Target,
};
use model::{Changed, Extent, Family, FrontendKey, RuleSettings, Table};
use netlink::NetlinkError;
use nft::{Counts, Kernel, Name, Ruleset, Transaction};

use crate::config::Config;
use crate::layout::{Map, table_name, workers_table_name};
use crate::plan::{Backend, Plan};

/// A family's table in a kernel. Atomic: a transaction is the only step of a plan.
pub struct NftablesTarget {
    kernel: Box<dyn Kernel>,
    family: nft::Family,
    table: Name,
}

impl NftablesTarget {
    /// The table of this family, through this connection.
    pub fn new(family: nft::Family, kernel: Box<dyn Kernel>) -> Self {
        Self { kernel, family, table: table_name() }
    }

    /// The same, for the table beside rules of others ([`workers_table_name`]).
    #[must_use]
    pub fn beside_other_rules(self) -> Self {
        Self { table: workers_table_name(), ..self }
    }
}

impl Target for NftablesTarget {
    type Step = Transaction;
    type Receipt = ();
    /// `None`: there is no table.
    type Found = Option<Ruleset>;
    /// What elements counted.
    type Counted = Counts;
    type Error = NetlinkError;
    const READS_AHEAD: bool = true;

    fn apply(&mut self, steps: Vec<Transaction>, _yields: &dyn Fn() -> bool) -> Applied<Self> {
        let mut applied = Applied { results: Vec::with_capacity(1), kernel_time: None, is_usable: true };
        for transaction in steps {
            let result = self.kernel.apply(&transaction);
            applied.is_usable = result.is_ok();
            applied.results.push(result.map(|done| applied.kernel_time = Some(done.kernel_time)));
            if !applied.is_usable {
                break;
            }
        }
        applied
    }

    fn read(&mut self) -> Reading<Option<Ruleset>, NetlinkError> {
        match self.kernel.read(self.family, &self.table) {
            Ok(nft::Reading::Whole(found)) => Reading::Whole(found),
            Ok(nft::Reading::Unstable) => Reading::Unstable,
            Err(error) => Reading::Failed(error),
        }
    }

    fn traffic(&mut self) -> Result<Option<Counts>, NetlinkError> {
        let sets = Map::COUNTED.map(Map::name);
        self.kernel.counts(self.family, &self.table, &sets).map(Some)
    }

    fn is_retryable(error: &NetlinkError) -> bool {
        error.is_retryable()
    }

    fn outcome_unknown(why: &'static str) -> NetlinkError {
        NetlinkError::OutcomeUnknown { why }
    }
}

/// What a plan leads to, without its transaction.
pub struct Outcome<F: Family>(Plan<F>);

impl<F: Family> Planner<F> for Backend<F> {
    const NAME: &'static str = "nftables";
    type Settings = Config;
    type Target = NftablesTarget;
    type Held = Outcome<F>;

    fn settings(&self, rules: &RuleSettings) -> Config {
        rules.clone()
    }

    fn held_settings(&self) -> Option<&Config> {
        Some(self.config())
    }

    fn plan(
        &self,
        table: &Table<F>,
        settings: &Config,
        cause: Cause<'_, F, Option<Ruleset>>,
    ) -> Result<PlanOf<Self, F>, NeedsReading> {
        let plan = match cause {
            Cause::Changed(Changed { frontends, .. }) => self.plan(table, frontends),
            Cause::Found(found) => self.repair(settings, table, found.as_ref(), Extent::Difference),
            Cause::Anew(found) => {
                self.repair(settings, table, found.and_then(Option::as_ref), Extent::Rebuild)
            }
            // Rules of chains that were made for other settings are not known any more.
            Cause::Settings | Cause::Woken(_) => return Err(NeedsReading),
        };
        Ok(handed_over(plan))
    }

    fn detached(&self) -> Self {
        Self::new(Config::default())
    }

    fn settle(&mut self, held: Outcome<F>, results: StepResults<NftablesTarget>) -> Settled<F> {
        if results.iter().any(Result::is_err) {
            return Settled::unknown();
        }
        self.committed(held.0);
        Settled::done()
    }

    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        self.explain(key)
    }

    fn meters(&self, _table: &Table<F>, counted: Counts) -> Vec<Meter> {
        self.whose(&counted)
    }
}

/// The transaction goes to the kernel; the rest of the plan waits for the outcome.
fn handed_over<F: Family>(mut plan: Plan<F>) -> PlanOf<Backend<F>, F> {
    let nothing = Transaction::new(plan.transaction.family, plan.transaction.table.clone());
    let transaction = std::mem::replace(&mut plan.transaction, nothing);
    let writes = transaction.element_count();
    let steps = if transaction.is_empty() { Vec::new() } else { vec![transaction] };
    mode::Plan { steps, writes, held: Outcome(plan) }
}
