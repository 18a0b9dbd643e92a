//! From frontends to steps.
//!
//! Each prefix of the steps is right: endpoints are there before load balancers that lead to them, and go after these let go of
//! them; what serves already is changed before what never did is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hcn::{Endpoint, Guid, IpConfiguration, Mac};
use model::{Family, Frontend, FrontendAddress, FrontendKey, IpFamily, Table};

use crate::form::{Form, Member as Wanted, Needs, health_check_form, needs};
use crate::options::Options;
use crate::state::{CHECKED_AT_ONCE, Entry, HeldBalancer, Modify, Place, State};
use crate::step::{Member, Modification, Step};

/// Steps that are being gathered, by when they come.
pub(crate) struct Draft<'a, F: Family> {
    state: &'a State<F>,
    table: &'a Table<F>,
    options: &'a Options,
    needs: BTreeMap<FrontendKey<F>, Needs<F>>,
    /// By health check, the frontends of these that want it.
    wanting: BTreeMap<FrontendKey<F>, BTreeSet<FrontendKey<F>>>,
    /// Endpoints that this plan makes or finds.
    pending: BTreeSet<F::Addr>,
    /// Load balancers that this plan deletes because of an endpoint.
    let_go: BTreeSet<FrontendKey<F>>,
    endpoints: Vec<Step<F>>,
    changes: Vec<Step<F>>,
    makings: Vec<Step<F>>,
    deletions: Vec<Step<F>>,
    unused: Vec<Step<F>>,
}

/// What a plan is made of.
pub(crate) struct Drafted<F: Family> {
    pub(crate) steps: Vec<Step<F>>,
    pub(crate) entries: BTreeMap<FrontendKey<F>, Entry<F>>,
}

/// The steps for these frontends, in their order.
pub(crate) fn draft<F: Family>(
    state: &State<F>,
    table: &Table<F>,
    options: &Options,
    keys: impl IntoIterator<Item = FrontendKey<F>>,
) -> Drafted<F> {
    let mut draft = Draft {
        state,
        table,
        options,
        needs: BTreeMap::new(),
        wanting: BTreeMap::new(),
        pending: BTreeSet::new(),
        let_go: BTreeSet::new(),
        endpoints: Vec::new(),
        changes: Vec::new(),
        makings: Vec::new(),
        deletions: Vec::new(),
        unused: Vec::new(),
    };
    let order = draft.gather(keys);
    draft.source_vip();
    for key in &order {
        draft.endpoints_of(key);
    }
    for key in draft.with_health_checks(&order) {
        let form = draft.form(&key);
        draft.balancer(key, form);
    }
    draft.finish()
}

/// Contents to look at, behind those that were looked at last.
pub(crate) fn checks<F: Family>(state: &State<F>) -> Vec<Step<F>> {
    use std::ops::Bound::{Excluded, Unbounded};

    let behind = state.checked_up_to.map_or(Unbounded, Excluded);
    let next = state.balancers().range((behind, Unbounded)).take(CHECKED_AT_ONCE);
    next.map(|(key, held)| Step::Check(*key, held.id)).collect()
}

impl<F: Family> Draft<'_, F> {
    /// What frontends need, and others that use an endpoint which has to be another one; in the order of their steps.
    fn gather(&mut self, keys: impl IntoIterator<Item = FrontendKey<F>>) -> Vec<FrontendKey<F>> {
        let mut order = Vec::new();
        let mut left: Vec<FrontendKey<F>> = keys.into_iter().collect();
        left.reverse();
        while let Some(key) = left.pop() {
            if self.needs.contains_key(&key) {
                continue;
            }
            let needed = self.table.get(&key).map(|frontend| self.needs_of(frontend)).unwrap_or_default();
            for address in needed.local.iter().chain(&needed.remote) {
                if self.is_to_be_replaced(*address, needed.local.contains(address)) {
                    left.extend(self.state.users(address));
                }
            }
            if let Some(check) = needed.health_check {
                self.wanting.entry(check).or_default().insert(key);
            }
            self.needs.insert(key, needed);
            order.push(key);
        }
        order
    }

    /// Whether the endpoint of an address that is there is not the one that is needed.
    fn is_to_be_replaced(&self, address: F::Addr, is_local: bool) -> bool {
        let wanted = Place::Elsewhere(self.state.facts.provider(address));
        let held = self.state.endpoint(&address).filter(|held| !held.is_here());
        held.is_some_and(|held| is_local || held.place != wanted)
    }

    fn needs_of(&self, frontend: &Frontend<F>) -> Needs<F> {
        needs(frontend, &self.state.facts, self.options)
    }

    /// An overlay's source VIP is an endpoint of this node.
    fn source_vip(&mut self) {
        let facts = &self.state.facts;
        let Some(address) = facts.source_vip.filter(|_| facts.is_overlay()) else { return };
        if self.state.endpoint(&address).is_some() {
            return;
        }
        let mut endpoint = remote_endpoint(address, self.state, None);
        endpoint.flags = hcn::EndpointFlags::default();
        endpoint.mac_address = facts.node_mac.map(|mac| mac.to_string()).unwrap_or_default();
        self.make_endpoint(address, endpoint);
    }

    /// Finds or makes what a frontend needs.
    fn endpoints_of(&mut self, key: &FrontendKey<F>) {
        let Some(needs) = self.needs.get(key) else { return };
        let (local, remote, service_ip) = (needs.local.clone(), needs.remote.clone(), needs.service_ip);
        for address in local {
            let held = self.state.endpoint(&address).copied();
            if held.is_some_and(|held| held.is_here()) || !self.pending.insert(address) {
                continue;
            }
            self.endpoints.push(Step::Locate(address));
            if let Some(held) = held {
                self.delete_endpoint(address, held.id);
            }
        }
        for address in remote {
            let provider = self.state.facts.provider(address);
            self.elsewhere(address, provider, Mac::of_remote(address.into()));
        }
        if let Some(address) = service_ip {
            let facts = &self.state.facts;
            let mac = facts.node_mac.unwrap_or_else(|| Mac::of_remote(address.into()));
            self.elsewhere(address, facts.node.map(Into::into), mac);
        }
    }

    /// A remote endpoint, unless the address is here or is being looked for.
    fn elsewhere(&mut self, address: F::Addr, provider: Option<IpAddr>, mac: Mac) {
        let held = self.state.endpoint(&address).copied();
        let is_right = held.is_some_and(|held| held.is_here() || held.place == Place::Elsewhere(provider));
        if is_right || self.pending.contains(&address) {
            return;
        }
        // One with another provider is made anew: an endpoint can't be moved, and two can't have one address.
        if let Some(held) = held {
            let users = self.state.leading_to(&held.id);
            for key in &users {
                if let Some(balancer) = self.state.balancer(key).filter(|_| self.let_go.insert(*key)) {
                    self.endpoints.push(Step::Delete(*key, balancer.id));
                }
            }
            self.endpoints.push(Step::DeleteEndpoint(address, held.id, users));
        }
        let endpoint = remote_endpoint(address, self.state, provider);
        self.make_endpoint(address, Endpoint { mac_address: mac.to_string(), ..endpoint });
    }

    fn make_endpoint(&mut self, address: F::Addr, endpoint: Endpoint) {
        if self.pending.insert(address) {
            let name = format!("kube-proxy endpoint {} {address}", self.state.facts.network);
            self.endpoints.push(Step::MakeEndpoint(address, Guid::named(&name), Box::new(endpoint)));
        }
    }

    /// These, the health checks that they have or had, and the load balancers that have to be made anew.
    fn with_health_checks(&self, order: &[FrontendKey<F>]) -> Vec<FrontendKey<F>> {
        let before = order.iter().filter_map(|key| self.state.entry(key)?.health_check);
        let after = order.iter().filter_map(|key| self.needs.get(key)?.health_check);
        let others: BTreeSet<FrontendKey<F>> =
            before.chain(after).chain(self.let_go.iter().copied()).collect();
        let is_other = |key: &FrontendKey<F>| !self.needs.contains_key(key);
        order.iter().copied().chain(others.into_iter().filter(is_other)).collect()
    }

    /// What should be there: what the frontend needs, else a health check.
    fn form(&self, key: &FrontendKey<F>) -> Option<Form<F>> {
        let of_frontend = match self.needs.get(key) {
            Some(needs) => needs.form.clone(),
            None => self.table.get(key).and_then(|frontend| self.needs_of(frontend).form),
        };
        of_frontend.or_else(|| self.health_check(key))
    }

    /// What brings a load balancer to what is wanted.
    fn balancer(&mut self, key: FrontendKey<F>, form: Option<Form<F>>) {
        let held = self.state.balancer(&key).filter(|_| !self.let_go.contains(&key));
        match (held, form) {
            (None, None) => {}
            (Some(held), None) => self.deletions.push(Step::Delete(key, held.id)),
            (None, Some(form)) => {
                let members = self.members(&form);
                self.makings.extend(self.state.dead.get(&key).map(|id| Step::DeleteStray(*id)));
                self.makings.push(Step::Make(key, balancer_id(&key), Box::new(form), members));
            }
            (Some(held), Some(form)) => self.change(key, held, form),
        }
    }

    fn change(&mut self, key: FrontendKey<F>, held: &HeldBalancer, form: Form<F>) {
        let members = self.members(&form);
        let is_same = form.is_as(&held.document);
        if is_same && known(&members).is_some_and(|ids| ids == held.document.host_compute_endpoints) {
            return;
        }
        if is_same && self.state.modify != Modify::Broken {
            let verify = self.state.modify == Modify::Untried;
            let (id, endpoints) = (held.id, held.document.host_compute_endpoints.clone());
            let modification = Modification { id, form, members, held: endpoints, verify };
            self.changes.push(Step::Modify(key, Box::new(modification)));
            return;
        }
        // A frontend can exist only once.
        self.changes.push(Step::Delete(key, held.id));
        self.changes.push(Step::Make(key, balancer_id(&key), Box::new(form), members));
    }

    fn members(&self, form: &Form<F>) -> Vec<Member<F>> {
        let member = |member: &Wanted<F>| match member {
            Wanted::Id(id) => Some(Member::Known(*id)),
            Wanted::Address(address) if self.pending.contains(address) => Some(Member::Pending(*address)),
            Wanted::Address(address) => self.state.endpoint(address).map(|held| Member::Known(held.id)),
        };
        form.members.iter().filter_map(member).collect()
    }

    /// The health check, if a frontend wants it.
    fn health_check(&self, check: &FrontendKey<F>) -> Option<Form<F>> {
        let planned = self.wanting.get(check).into_iter().flatten();
        let others = self.state.checked_by(check).filter(|key| !self.needs.contains_key(*key));
        let first = self.table.get(planned.chain(others).min()?)?;
        health_check_form(check, first.preserves_destination, &self.state.facts)
    }

    fn finish(mut self) -> Drafted<F> {
        let entry =
            |needs: &Needs<F>| Entry { addresses: needs.addresses(), health_check: needs.health_check };
        let entries: BTreeMap<_, _> = self.needs.iter().map(|(key, needs)| (*key, entry(needs))).collect();
        self.find_unused(&entries);
        let mut steps = self.endpoints;
        steps.extend(self.changes);
        // These may stand in the way of what is made.
        steps.extend(self.state.strays.iter().map(|id| Step::DeleteStray(*id)));
        steps.extend(self.makings);
        steps.extend(self.deletions);
        steps.extend(self.unused);
        Drafted { steps, entries }
    }

    /// Deletes remote endpoints that no Service knows any more: those that these frontends had, and those that are named.
    fn find_unused(&mut self, entries: &BTreeMap<FrontendKey<F>, Entry<F>>) {
        let state = self.state;
        let before = entries.keys().filter_map(|key| state.entry(key)).flat_map(|entry| &entry.addresses);
        let named = entries.keys().filter_map(named_endpoint);
        let candidates: BTreeSet<F::Addr> = before.copied().chain(named).collect();
        let planned: BTreeSet<F::Addr> =
            entries.values().flat_map(|entry| &entry.addresses).copied().collect();
        for address in candidates.difference(&planned) {
            let is_used = state.users(address).any(|key| !entries.contains_key(key));
            if let Some(held) = state.endpoint(address).filter(|held| !held.is_here() && !is_used) {
                self.delete_endpoint(*address, held.id);
            }
        }
        for (id, address) in &state.spare {
            self.delete_endpoint(*address, *id);
        }
    }
}

impl<F: Family> Draft<'_, F> {
    /// Deletes an endpoint, if all that leads to it is changed before. Else it has its turn when the last one has let go of it.
    fn delete_endpoint(&mut self, address: F::Addr, id: Guid) {
        let users = self.state.leading_to(&id);
        if users.iter().all(|key| self.needs.contains_key(key)) {
            self.unused.push(Step::DeleteEndpoint(address, id, users));
        }
    }
}

/// The endpoint that a key stands for; see [`endpoint_key`](crate::state::endpoint_key).
fn named_endpoint<F: Family>(key: &FrontendKey<F>) -> Option<F::Addr> {
    match key.address {
        FrontendAddress::Ip(address) if key.port == 0 => Some(address),
        _ => None,
    }
}

/// The ids of endpoints, sorted, if all are known.
fn known<F: Family>(members: &[Member<F>]) -> Option<Vec<Guid>> {
    let id = |member: &Member<F>| match member {
        Member::Known(id) => Some(*id),
        Member::Pending(_) => None,
    };
    let mut ids: Vec<Guid> = members.iter().map(id).collect::<Option<_>>()?;
    ids.sort_unstable();
    Some(ids)
}

/// The id that a load balancer of ours is given, so that it is known by it after a restart.
pub(crate) fn balancer_id<F: Family>(key: &FrontendKey<F>) -> Guid {
    let FrontendKey { address, protocol, port } = key;
    let family = F::FAMILY;
    Guid::named(&match address {
        FrontendAddress::Ip(address) => {
            format!("kube-proxy load balancer {family} {address} {protocol} {port}")
        }
        FrontendAddress::Node => format!("kube-proxy node port {family} {protocol} {port}"),
    })
}

fn remote_endpoint<F: Family>(address: F::Addr, state: &State<F>, provider: Option<IpAddr>) -> Endpoint {
    let endpoint =
        Endpoint::remote(address.into(), state.facts.network, Mac::of_remote(address.into()), provider);
    let prefix_length = match F::FAMILY {
        IpFamily::V4 => 32,
        IpFamily::V6 => 128,
    };
    let of = |found: &IpConfiguration| IpConfiguration { prefix_length, ..found.clone() };
    Endpoint { ip_configurations: endpoint.ip_configurations.iter().map(of).collect(), ..endpoint }
}
