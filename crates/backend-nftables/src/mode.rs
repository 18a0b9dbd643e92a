//! The mode as the event loop sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Extent, Family, FrontendKey, IpFamily, Mode, RuleSettings, Table};
use nft::{Kernel, KernelError, Ruleset, Transaction};

use crate::config::Config;
use crate::layout::table_name;
use crate::plan::{Backend, Plan};

/// `nftables` mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nftables;

impl Mode for Nftables {
    const NAME: &'static str = "nftables";
    type Config = Config;
    type Changes = Transaction;
    type Found = Option<Ruleset>;
    type Error = KernelError;
    type Kernel = Box<dyn Kernel>;
    type Backend<F: Family> = Backend<F>;

    /// Nothing is accepted by our table that another could refuse, so health checks are not its concern.
    fn config(&self, settings: RuleSettings) -> Config {
        Config { health_check_ports: BTreeMap::new(), ..settings }
    }

    fn read(kernel: &mut Self::Kernel, family: IpFamily) -> Result<Option<Ruleset>, KernelError> {
        let family = match family {
            IpFamily::V4 => nft::Family::Ip,
            IpFamily::V6 => nft::Family::Ip6,
        };
        kernel.read(family, &table_name())?.whole()
    }

    fn apply(kernel: &mut Self::Kernel, changes: &Transaction) -> Result<Option<Duration>, KernelError> {
        kernel.apply(changes).map(|applied| Some(applied.kernel_time))
    }

    fn is_retryable(error: &KernelError) -> bool {
        error.is_retryable()
    }

    fn outcome_unknown(why: &'static str) -> KernelError {
        KernelError::OutcomeUnknown { why }
    }
}

impl<F: Family> model::Backend<F, Nftables> for Backend<F> {
    type Plan = Plan<F>;

    fn new(config: Config) -> Self {
        Self::new(config)
    }

    fn config(&self) -> &Config {
        self.config()
    }

    fn plan(&self, table: &Table<F>, keys: &BTreeSet<FrontendKey<F>>) -> Plan<F> {
        self.plan(table, keys)
    }

    fn repair(&self, config: &Config, table: &Table<F>, found: &Option<Ruleset>, extent: Extent) -> Plan<F> {
        self.repair(config, table, found.as_ref(), extent)
    }

    fn take_changes(plan: &mut Plan<F>) -> Option<(Transaction, usize)> {
        if plan.transaction.is_empty() {
            return None;
        }
        let nothing = Transaction::new(plan.transaction.family, plan.transaction.table.clone());
        let transaction = std::mem::replace(&mut plan.transaction, nothing);
        let elements = transaction.element_count();
        Some((transaction, elements))
    }

    fn committed(&mut self, plan: Plan<F>) {
        self.committed(plan);
    }
}
