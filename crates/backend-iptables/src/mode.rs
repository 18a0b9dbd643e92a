//! The mode as the event loop sees it.

use std::collections::BTreeSet;
use std::time::Duration;

use iptables::{IptablesError, Restore, Saved};
use model::{Extent, Family, FrontendKey, IpFamily, Mode, RuleCount, RuleSettings, Table};

use crate::config::Config;
use crate::names::PREFIX;
use crate::plan::{Backend, Plan};

/// `iptables` mode.
#[derive(Clone, Copy, Debug)]
pub struct Iptables {
    /// See [`Config::drop_invalid`].
    pub drop_invalid: bool,
}

impl Mode for Iptables {
    const NAME: &'static str = "iptables";
    type Config = Config;
    type Changes = Restore;
    type Found = Saved;
    type Error = IptablesError;
    type Kernel = Box<dyn iptables::Iptables>;
    type Backend<F: Family> = Backend<F>;

    /// Packets to addresses that no Service has are left alone, as upstream does, so the ranges of cluster IPs do not
    /// matter.
    fn config(&self, settings: RuleSettings) -> Config {
        Config {
            node_ports: settings.node_ports,
            localhost_node_ports: settings.localhost_node_ports,
            pods: settings.pods,
            masquerade_all: settings.masquerade_all,
            masquerade_mark: settings.masquerade_mark,
            drop_invalid: self.drop_invalid,
            health_check_ports: settings.health_check_ports,
        }
    }

    fn read(kernel: &mut Self::Kernel, _family: IpFamily) -> Result<Saved, IptablesError> {
        kernel.save(PREFIX)
    }

    fn apply(kernel: &mut Self::Kernel, changes: &Restore) -> Result<Option<Duration>, IptablesError> {
        kernel.restore(changes).map(|()| None)
    }

    fn is_retryable(error: &IptablesError) -> bool {
        error.is_retryable()
    }

    fn outcome_unknown(why: &'static str) -> IptablesError {
        IptablesError::OutcomeUnknown { why }
    }
}

impl<F: Family> model::Backend<F, Iptables> for Backend<F> {
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

    fn repair(&self, config: &Config, table: &Table<F>, found: &Saved, extent: Extent) -> Plan<F> {
        self.repair(config, table, found, extent)
    }

    fn take_changes(plan: &mut Plan<F>) -> Option<(Restore, usize)> {
        let restore = std::mem::take(&mut plan.restore);
        let edits = restore.edit_count();
        (edits > 0).then_some((restore, edits))
    }

    fn committed(&mut self, plan: Plan<F>) {
        self.committed(plan);
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        self.rule_counts()
    }
}
