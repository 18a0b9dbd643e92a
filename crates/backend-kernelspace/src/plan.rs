//! The planner: which steps a cause asks for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hcn::{Guid, LoadBalancer};
use mode::{Cause, NeedsReading, Plan, PlanOf, Planner, Rule, RuleCount, Settled, StepResults};
use model::{Family, Frontend, FrontendKey, RuleSettings, Table};
use rustc_hash::FxBuildHasher;
use tokio::time::Instant;

use crate::differences;
use crate::draft::{Drafted, checks, draft};
use crate::form::{common_port, is_unreachable};
use crate::found::state_of;
use crate::options::Options;
use crate::state::{Entry, State, endpoint_key};
use crate::step::Step;
use crate::target::{Found, HnsTarget};

/// One family's load balancers and endpoints.
pub struct KernelspacePlanner<F: Family> {
    pub(crate) options: Arc<Options>,
    /// What HNS holds, and by which settings; `None`: not known.
    pub(crate) held: Option<(State<F>, RuleSettings)>,
    /// What this process made, also where it is not known what is held: it stays ours whatever becomes of its endpoints, and
    /// what HNS makes of a document is no reason to write it again.
    pub(crate) made: HashMap<Guid, Made, FxBuildHasher>,
    /// Load balancers are not changed in place in this process any more.
    pub(crate) modify_is_broken: bool,
    pub(crate) written: usize,
}

/// A load balancer that was made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    /// As it was asked for, and as HNS has it since; without endpoints.
    pub(crate) asked: LoadBalancer,
    pub(crate) answered: LoadBalancer,
}

/// What a plan leads to.
pub struct Pending<F: Family> {
    pub(crate) steps: Vec<Step<F>>,
    pub(crate) entries: BTreeMap<FrontendKey<F>, Entry<F>>,
    /// What was found, where HNS was read, and the settings that it is brought to.
    pub(crate) found: Option<Box<(State<F>, RuleSettings)>>,
    /// When it is about contents only.
    pub(crate) checks: Option<Instant>,
}

impl<F: Family> KernelspacePlanner<F> {
    /// A planner that knows nothing of HNS yet.
    pub fn new(options: Arc<Options>) -> Self {
        Self { options, held: None, made: HashMap::default(), modify_is_broken: false, written: 0 }
    }

    fn changed(&self, table: &Table<F>, keys: &BTreeSet<FrontendKey<F>>) -> Result<Pending<F>, NeedsReading> {
        let (state, _) = self.held.as_ref().ok_or(NeedsReading)?;
        Ok(draft(state, table, &self.options, keys.iter().copied()).pending(None))
    }

    fn found(&self, table: &Table<F>, settings: &RuleSettings, found: &Found) -> Pending<F> {
        let state = state_of(found, settings, &self.made, self.modify_is_broken);
        let frontends = table.iter().map(|frontend| frontend.key);
        // What is there already first, so that it is right again before anything is added.
        let (there, new): (Vec<_>, Vec<_>) = frontends.partition(|key| state.balancer(key).is_some());
        let others: BTreeSet<_> = state.balancers().keys().copied().collect();
        let endpoints: BTreeSet<_> = state.addresses().into_iter().map(endpoint_key).collect();
        let keys = there.into_iter().chain(new).chain(others).chain(endpoints);
        let drafted = draft(&state, table, &self.options, keys);
        drafted.pending(Some(Box::new((state, settings.clone()))))
    }
}

impl<F: Family> Drafted<F> {
    fn pending(self, found: Option<Box<(State<F>, RuleSettings)>>) -> Pending<F> {
        Pending { steps: self.steps, entries: self.entries, found, checks: None }
    }
}

impl<F: Family> Planner<F> for KernelspacePlanner<F> {
    const NAME: &'static str = "kernelspace";
    const TELLS_SERVICES: bool = true;
    type Settings = RuleSettings;
    type Target = HnsTarget<F>;
    type Held = Pending<F>;

    /// Only the node's address concerns this mode.
    fn settings(&self, rules: &RuleSettings) -> RuleSettings {
        RuleSettings { node_address: rules.node_address, ..RuleSettings::default() }
    }

    fn held_settings(&self) -> Option<&RuleSettings> {
        self.held.as_ref().map(|(_, settings)| settings)
    }

    fn plan(
        &self,
        table: &Table<F>,
        settings: &RuleSettings,
        cause: Cause<'_, F, Found>,
    ) -> Result<PlanOf<Self, F>, NeedsReading> {
        let pending = match cause {
            // What is stale is not known without a reading, and objects of others have to stay.
            Cause::Settings | Cause::Anew(None) => return Err(NeedsReading),
            Cause::Changed(changed) => self.changed(table, &changed.frontends)?,
            Cause::Found(found) | Cause::Anew(Some(found)) => self.found(table, settings, found),
            Cause::Woken(now) => {
                let (state, _) = self.held.as_ref().ok_or(NeedsReading)?;
                Pending { steps: checks(state), entries: BTreeMap::new(), found: None, checks: Some(now) }
            }
        };
        Ok(Plan { steps: pending.steps.clone(), writes: pending.steps.len(), held: pending })
    }

    fn detached(&self) -> Self {
        let (made, modify_is_broken) = (self.made.clone(), self.modify_is_broken);
        Self { made, modify_is_broken, ..Self::new(Arc::clone(&self.options)) }
    }

    fn settle(&mut self, held: Pending<F>, results: StepResults<HnsTarget<F>>) -> Settled<F> {
        self.settle_pending(held, &results)
    }

    fn wake_at(&self) -> Option<Instant> {
        self.held.as_ref().map(|(state, _)| state.check_at)
    }

    /// The load balancer, as HNS has it.
    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        let balancer = self.held.as_ref().and_then(|(state, _)| state.balancer(key));
        let rule = |held: &crate::state::HeldBalancer| {
            let document = LoadBalancer { id: Some(held.id), ..held.document.clone() };
            let text = serde_json::to_string(&document).unwrap_or_default();
            Rule { place: "HNS load balancer".to_owned(), text }
        };
        balancer.map(rule).into_iter().collect()
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        let Some((state, _)) = &self.held else { return Vec::new() };
        let held = state.balancers().len();
        vec![RuleCount { table: "loadbalancers", held, written: self.written }]
    }

    fn shortcomings(&self, frontend: &Frontend<F>) -> Vec<&'static str> {
        let mut lacks = Vec::new();
        let endpoints = frontend.pool.endpoints();
        let port = common_port(endpoints);
        let facts = self.held.as_ref().map(|(state, _)| &state.facts);
        if frontend.allowed_sources.is_some() {
            lacks.push(differences::SOURCE_RANGES.text);
        }
        if frontend.internal_pool.as_ref().is_some_and(|pool| *pool != frontend.pool) {
            lacks.push(differences::SHORT_CUT.text);
        }
        if frontend.affinity.is_some() {
            let is_old = facts.is_some_and(|facts| !facts.version.has_affinity());
            lacks.push(if is_old { differences::NO_AFFINITY.text } else { differences::AFFINITY.text });
        }
        if endpoints.iter().any(|endpoint| Some(endpoint.port) != port) {
            lacks.push(differences::PORTS.text);
        }
        if facts.is_some_and(|facts| endpoints.iter().any(|endpoint| is_unreachable(facts, endpoint))) {
            lacks.push(differences::HOST_NETWORK.text);
        }
        lacks
    }

    fn occupant(&self, frontend: &Frontend<F>) -> Option<String> {
        let (state, _) = self.held.as_ref()?;
        let is_refused = state.blocked.contains(&frontend.key) && state.balancer(&frontend.key).is_none();
        let id = state.foreign.get(&frontend.key).filter(|_| is_refused)?;
        Some(format!("load balancer {id}"))
    }
}
