//! Rules of iptables that choose, and a table of nftables beside them that hands over: both in their order, whatever fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use backend_iptables::{IptablesPlanner, IptablesTarget};
use backend_nftables::{Backend, Config, NftablesTarget, workers_table_name};
use backend_userspace::{Beside, BesideStep, BesideTarget};
use fakes::contract::Contract;
use fakes::iptables::{self, FakeIptables};
use fakes::kernel::{self, FakeKernel};
use fakes::on_paper;
use mode::{Cause, Planner, Reading, Settled, Target};
use model::{Balancer, Changed, Family as _, Proxied, RuleSettings, Table, V4};

struct Setup {
    planner: Beside<V4, IptablesPlanner<V4>, Backend<V4>>,
    target: BesideTarget<IptablesTarget, NftablesTarget>,
    iptables: FakeIptables,
    kernel: FakeKernel,
}

impl Setup {
    fn new() -> Self {
        let (iptables, kernel) = (FakeIptables::new(), FakeKernel::new());
        let handing = NftablesTarget::new(V4::FAMILY.into(), Box::new(kernel.clone())).beside_other_rules();
        Self {
            planner: Beside::new(IptablesPlanner::new(true), Backend::new(Config::default())),
            target: BesideTarget::new(IptablesTarget(Box::new(iptables.clone())), handing),
            iptables,
            kernel,
        }
    }

    /// Plans for a cause and does it; gives what steps there were, `i` and `n`, and what came of them.
    fn perform(&mut self, table: &Table<V4>, changed: Option<&Changed<V4>>) -> (String, Settled<V4>) {
        let asking = RuleSettings { balancer: Balancer::Proxies(Proxied::Asking), ..RuleSettings::default() };
        let settings = Planner::<V4>::settings(&self.planner, &asking);
        let plan = if let Some(changed) = changed {
            self.planner.plan(table, &settings, Cause::Changed(changed))
        } else {
            let Reading::Whole(found) = self.target.read() else { panic!("it can't be read") };
            self.planner.plan(table, &settings, Cause::Found(&found))
        };
        let plan = plan.unwrap();
        let kind = |step: &BesideStep<_, _>| if matches!(step, BesideStep::Choosing(_)) { 'i' } else { 'n' };
        let kinds = plan.steps.iter().map(kind).collect();
        let results = self.target.apply(plan.steps, &|| false).results;
        let results = results.into_iter().map(|result| result.map_err(Arc::new)).collect();
        (kinds, Planner::<V4>::settle(&mut self.planner, plan.held, results))
    }

    fn handed_over(&self) -> usize {
        let table = self.kernel.table(V4::FAMILY.into(), &workers_table_name());
        let names = ["service-ips", "service-nodeports"];
        table.map_or(0, |table| names.iter().map(|name| table.sets[*name].elements.len()).sum())
    }
}

fn contract() -> Table<V4> {
    on_paper::asking(&on_paper::table(&on_paper::store(&Contract::read()).unwrap()))
}

#[test]
fn rules_that_choose_come_first_and_nothing_is_written_twice() {
    let (mut setup, table) = (Setup::new(), contract());
    assert_eq!(setup.perform(&table, None), ("in".to_owned(), Settled::done()));
    let n = setup.handed_over();
    assert!(n > 20, "{n} are handed over");
    assert!(setup.planner.held_settings().is_some());
    assert_eq!(setup.perform(&table, None), (String::new(), Settled::done()));
    // A Service that asks goes, then one that does not.
    for (asks, steps) in [(true, "in"), (false, "i")] {
        let of = table
            .iter()
            .find(|frontend| frontend.proxying.is_some() == asks && !frontend.pool.endpoints().is_empty());
        let service = of.unwrap().service.service.clone();
        let mut fewer = table.clone();
        let changed = Changed::frontends(fewer.set_service(&service, Vec::new()));
        assert_eq!(setup.perform(&fewer, Some(&changed)), (steps.to_owned(), Settled::done()));
        assert_eq!(setup.handed_over() < n, asks);
        assert_eq!(setup.perform(&table, Some(&changed)), (steps.to_owned(), Settled::done()));
    }
    assert_eq!(setup.handed_over(), n);
}

#[test]
fn what_fails_leaves_unknown_what_is_held_and_is_made_right_by_the_next_reading() {
    let (mut setup, table) = (Setup::new(), contract());
    setup.iptables.fail_next([None, Some(iptables::Fault::Busy)]);
    let (steps, settled) = setup.perform(&table, None);
    assert_eq!((&*steps, settled), ("in", Settled::unknown()));
    assert_eq!(setup.handed_over(), 0, "nothing is handed over that nobody else serves");
    setup.kernel.fail_next([None, Some(kernel::Fault::Errno(12))]);
    let (steps, settled) = setup.perform(&table, None);
    assert_eq!((&*steps, settled), ("in", Settled::unknown()));
    assert!(setup.planner.held_settings().is_none());
    assert_eq!(setup.perform(&table, None), ("n".to_owned(), Settled::done()));
}
