//! The planner: what to do about changes and draining.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use ipvs::ServerId;
use mode::{
    Cause, Meter, NeedsReading, Plan, PlanOf, Planner, Rule, RuleCount, Settled, StepResults, Target,
};
use model::{Balancer, Family, FrontendKey, NodePortAddresses, Protocol, RuleSettings, Table};
use tokio::time::Instant;

use crate::change::Change;
use crate::found::Difference;
use crate::options::Options;
use crate::rules::Rules;
use crate::state::{Id, Kind, Server, State, accepted};
use crate::target::{Found, IpvsTarget, Step};
use crate::traffic::{self, Counted};

/// One family's virtual servers, with the rules that `R` makes.
pub struct IpvsPlanner<F: Family, R: Rules<F>> {
    pub(crate) rules: R,
    pub(crate) options: Arc<Options>,
    /// What the kernel holds, and by which settings; `None`: not known.
    pub(crate) held: Option<(State<F>, RuleSettings)>,
}

/// What a plan leads to.
pub struct Pending<F: Family, H> {
    /// What the rules' planner wants to have again.
    pub(crate) rules: Option<H>,
    pub(crate) n_rules: usize,
    pub(crate) rules_first: bool,
    pub(crate) changes: Vec<Change<F>>,
    /// What is at these addresses if all of their changes are made.
    pub(crate) servers: BTreeMap<Id<F>, Option<Server<F>>>,
    /// What was found, where the kernel was read, and the settings that it is brought to.
    pub(crate) found: Option<Box<(State<F>, RuleSettings)>>,
}

impl<F: Family, R: Rules<F>> IpvsPlanner<F, R> {
    /// A planner that knows nothing of the kernel yet.
    pub fn new(rules: R, options: Arc<Options>) -> Self {
        Self { rules, options, held: None }
    }

    /// The rules know node ports by addresses of the node: what is local is no longer the node's alone.
    pub(crate) fn rule_settings(&self, state: &State<F>, settings: &RuleSettings) -> R::Settings {
        let addresses = accepted(&state.node_addresses, &settings.node_ports);
        let node_ports = NodePortAddresses::Within(addresses.map(|addr| IpNet::from(addr.into())).collect());
        let node_addresses = state.node_addresses.iter().map(|address| (*address).into()).collect();
        let balancer = Balancer::Ipvs { node_addresses, proxied: settings.balancer.proxied() };
        let settings = RuleSettings { node_ports, localhost_node_ports: false, balancer, ..settings.clone() };
        self.rules.settings(&settings)
    }
}

/// What changed frontends ask for.
fn plan_changed<F: Family, H>(
    (state, settings): &(State<F>, RuleSettings),
    table: &Table<F>,
    keys: &BTreeSet<FrontendKey<F>>,
) -> Pending<F, H> {
    let (mut difference, mut addresses) = (Difference::default(), BTreeSet::new());
    for key in keys {
        for id in state.ids(key, settings) {
            let wanted = state.wanted(&id, table, settings);
            difference.server(state, id, wanted);
            addresses.insert(id.address);
        }
    }
    difference.addresses_of_changed(state, &addresses);
    difference.into_pending(None)
}

/// The endpoints that are to be looked at.
fn plan_due<F: Family, H>(state: &State<F>, now: Instant) -> Pending<F, H> {
    let due = state.drains().filter(|(_, _, drain)| drain.check_at.is_some_and(|at| at <= now));
    let changes = due.map(|(id, socket, _)| Change::ReleaseReal(id, socket)).collect();
    Difference { changes, ..Difference::default() }.into_pending(None)
}
type OwnFound<F, R> = Found<<<R as Planner<F>>::Target as Target>::Found>;

impl<F: Family, R: Rules<F>> Planner<F> for IpvsPlanner<F, R> {
    const NAME: &'static str = "ipvs";
    type Settings = RuleSettings;
    type Target = IpvsTarget<F, R::Target>;
    type Held = Pending<F, R::Held>;

    fn settings(&self, rules: &RuleSettings) -> RuleSettings {
        rules.clone()
    }

    fn held_settings(&self) -> Option<&RuleSettings> {
        self.held.as_ref().map(|(_, settings)| settings)
    }

    fn plan(
        &self,
        table: &Table<F>,
        settings: &RuleSettings,
        cause: Cause<'_, F, OwnFound<F, R>>,
    ) -> Result<PlanOf<Self, F>, NeedsReading> {
        let (pending, rules) = match cause {
            Cause::Settings | Cause::Anew(None) => return Err(NeedsReading),
            Cause::Changed(changed) => {
                let held = self.held.as_ref().ok_or(NeedsReading)?;
                let rule_settings = self.rule_settings(&held.0, &held.1);
                let rules = self.rules.plan(table, &rule_settings, Cause::Changed(changed))?;
                (plan_changed(held, table, &changed.frontends), Some(rules))
            }
            Cause::Woken(now) => {
                let (state, _) = self.held.as_ref().ok_or(NeedsReading)?;
                (plan_due(state, now), None)
            }
            Cause::Found(found) => {
                let pending = self.found(table, settings, found);
                let rules = self.rules_for_found(table, &pending, Cause::Found(&found.rules))?;
                (pending.after(R::choose_endpoints(&found.rules)), Some(rules))
            }
            Cause::Anew(Some(found)) => {
                let pending = self.found(table, settings, found);
                let rules = self.rules_for_found(table, &pending, Cause::Anew(Some(&found.rules)))?;
                (pending.after(R::choose_endpoints(&found.rules)), Some(rules))
            }
        };
        Ok(pending.with_rules(rules))
    }

    fn detached(&self) -> Self {
        Self::new(self.rules.detached(), Arc::clone(&self.options))
    }

    fn settle(&mut self, held: Self::Held, results: StepResults<Self::Target>) -> Settled<F> {
        self.settle_pending(held, results)
    }

    fn wake_at(&self) -> Option<Instant> {
        let (state, _) = self.held.as_ref()?;
        state.drains().filter_map(|(_, _, drain)| drain.check_at).min()
    }

    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        let mut rules = self.rules.rules(key);
        if let Some((state, settings)) = &self.held {
            rules.extend(state.ids(key, settings).iter().filter_map(|id| explain(state, id, &self.options)));
        }
        rules
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        self.rules.rule_counts()
    }

    /// A virtual server counts for the Service port that has its address. What is held may not be known just now: all go on
    /// counting.
    fn meters(&self, table: &Table<F>, counted: Counted<<R::Target as Target>::Counted>) -> Vec<Meter> {
        let kind = |id: &ServerId| {
            let id = Id::of(id)?;
            match &self.held {
                Some((state, _)) => {
                    state.server(&id).filter(|server| server.exists).map(|server| server.kind)
                }
                None => [Kind::ServiceAddress, Kind::NodePort]
                    .into_iter()
                    .find(|kind| table.get(&id.key(*kind)).is_some()),
            }
        };
        let of_servers =
            counted.servers.iter().filter_map(|found| traffic::meter(table, kind(&found.0), found));
        let mut meters: Vec<Meter> = of_servers.collect();
        meters.extend(counted.rules.into_iter().flat_map(|rules| self.rules.meters(table, rules)));
        meters
    }
}

/// Where virtual servers are, for who asks.
pub const PLACE: &str = "IPVS";

/// A virtual server as `ipvsadm -Ln` tells it, on one line.
fn explain<F: Family>(state: &State<F>, id: &Id<F>, options: &Options) -> Option<Rule> {
    let server = state.server(id).filter(|server| server.exists)?;
    let mut text = options.virtual_server(id, server.persistence).to_string();
    let reals = server.sockets().map(|socket| format!("{socket} weight 1"));
    let drained = state.draining(id).map(|socket| format!("{socket} weight 0"));
    for (n, real) in reals.chain(drained).enumerate() {
        text.push_str(if n == 0 { " -> " } else { ", " });
        text.push_str(&real);
    }
    Some(Rule { place: PLACE.to_owned(), text })
}

impl<F: Family> Difference<F> {
    /// What brings one virtual server to what is wanted.
    pub(crate) fn server(&mut self, state: &State<F>, id: Id<F>, wanted: Option<Server<F>>) {
        let held = state.server(&id);
        if held.is_none() && wanted.is_none() || self.servers.contains_key(&id) {
            return;
        }
        let wanted = wanted.map(|wanted| self.server_changes(state, id, held, wanted));
        if wanted.is_none() && held.is_some_and(|held| held.exists) {
            self.changes.push(Change::DeleteVirtual(id));
        }
        if held != wanted.as_ref() {
            self.servers.insert(id, wanted);
        }
    }

    /// The changes; gives what there will be.
    fn server_changes(
        &mut self,
        state: &State<F>,
        id: Id<F>,
        held: Option<&Server<F>>,
        mut wanted: Server<F>,
    ) -> Server<F> {
        let Some(held) = held.filter(|held| held.exists) else {
            if wanted.exists {
                self.changes.push(Change::NewVirtual(id, wanted.persistence));
                self.changes.extend(wanted.sockets().map(|socket| Change::NewReal(id, socket)));
            }
            return wanted;
        };
        if held.differs || held.persistence != wanted.persistence {
            self.changes.push(Change::SetVirtual(id, wanted.persistence));
        }
        let leaving = self.real_changes(state, id, held, &wanted);
        // Without endpoints the virtual server stays only for the sake of those that are drained.
        wanted.exists |= leaving;
        if !wanted.exists {
            self.changes.push(Change::DeleteVirtual(id));
        }
        wanted
    }

    /// Adds endpoints, then takes away others; gives whether some will be left that are drained.
    fn real_changes(&mut self, state: &State<F>, id: Id<F>, held: &Server<F>, wanted: &Server<F>) -> bool {
        let (before, after): (Vec<_>, Vec<_>) = (held.sockets().collect(), wanted.sockets().collect());
        let drained = state.draining(&id).filter(|socket| after.binary_search(socket).is_err());
        let mut left = 0;
        for socket in drained {
            let is_due = state.drain(&id, &socket).is_some_and(|drain| drain.check_at.is_none());
            self.changes.extend(is_due.then_some(Change::ReleaseReal(id, socket)));
            left += 1;
        }
        for socket in after.iter().filter(|socket| before.binary_search(socket).is_err()) {
            self.changes.push(if state.is_draining(&id, socket) {
                Change::RestoreReal(id, *socket)
            } else {
                Change::NewReal(id, *socket)
            });
        }
        let gone = before.iter().filter(|socket| after.binary_search(socket).is_err());
        if id.protocol != Protocol::Udp {
            for socket in gone {
                self.changes.push(Change::DrainReal(id, *socket));
                left += 1;
            }
        } else if !after.is_empty() {
            self.changes.extend(gone.map(|socket| Change::DeleteReal(id, *socket)));
        }
        left > 0
    }

    /// What frontends at these addresses need on the device, or no longer; also if nothing else about them differs, since the
    /// address may have been refused.
    fn addresses_of_changed(&mut self, state: &State<F>, addresses: &BTreeSet<F::Addr>) {
        let needs =
            |server: Option<&Server<F>>| server.is_some_and(|server| server.kind == Kind::ServiceAddress);
        let mut uses: BTreeMap<F::Addr, i64> = addresses.iter().map(|address| (*address, 0)).collect();
        for (id, server) in &self.servers {
            let before = i64::from(needs(state.server(id)));
            *uses.entry(id.address).or_default() += i64::from(needs(server.as_ref())) - before;
        }
        let wanted = uses.iter().filter(|(address, change)| i64::from(state.uses(address)) + **change > 0);
        let wanted: BTreeSet<F::Addr> = wanted.map(|(address, _)| *address).collect();
        let unused = uses.keys().filter(|address| !wanted.contains(address)).copied().collect();
        self.addresses(state, &wanted, &unused);
    }

    /// Adds addresses before all else, and takes them away after all else.
    pub(crate) fn addresses(
        &mut self,
        state: &State<F>,
        wanted: &BTreeSet<F::Addr>,
        unused: &BTreeSet<F::Addr>,
    ) {
        let is_missing = |address: &&F::Addr| {
            !state.on_device.contains(*address) && !state.node_addresses.contains(*address)
        };
        let missing = wanted.iter().filter(is_missing).map(|address| Change::AddAddress(*address));
        self.changes.splice(0..0, missing.collect::<Vec<_>>());
        let needless = unused.iter().filter(|address| state.on_device.contains(*address));
        self.changes.extend(needless.map(|address| Change::DeleteAddress(*address)));
    }
}

impl<F: Family> Difference<F> {
    pub(crate) fn into_pending<H>(self, found: Option<Box<(State<F>, RuleSettings)>>) -> Pending<F, H> {
        let Self { changes, servers } = self;
        Pending { rules: None, n_rules: 0, rules_first: true, changes, servers, found }
    }
}

impl<F: Family, H> Pending<F, H> {
    /// Rules come after the servers.
    fn after(self, rules_last: bool) -> Self {
        Self { rules_first: !rules_last, ..self }
    }

    fn with_rules<S>(mut self, rules: Option<Plan<S, H>>) -> Plan<Step<F, S>, Self> {
        let servers: Vec<_> = self.changes.iter().map(|change| Step::Change(*change)).collect();
        let mut writes = servers.len();
        let mut rule_steps = Vec::new();
        if let Some(plan) = rules {
            writes += plan.writes;
            self.n_rules = plan.steps.len();
            self.rules = Some(plan.held);
            rule_steps = plan.steps.into_iter().map(|step| Step::Rules(Box::new(step))).collect();
        }
        let (mut first, last) = if self.rules_first { (rule_steps, servers) } else { (servers, rule_steps) };
        first.extend(last);
        Plan { steps: first, writes, held: self }
    }
}
