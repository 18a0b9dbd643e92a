//! From what was read to what is held.

use std::collections::{BTreeSet, HashMap};

use hcn::{Guid, LoadBalancer};
use model::{Family, RuleSettings};
use rustc_hash::FxBuildHasher;

use crate::draft::balancer_id;
use crate::facts::Facts;
use crate::form::{is_of_family, key_of};
use crate::plan::Made;
use crate::state::{HeldBalancer, HeldEndpoint, Modify, Place, State};
use crate::target::Found;

/// What network plug-ins call the endpoint whose address is the source VIP.
const SOURCE_VIP_NAMES: [&str; 3] = ["sourcevip", "source_vip", "Calico_ep"];

/// What is held, with nothing known yet of who uses it.
pub(crate) fn state_of<F: Family>(
    found: &Found,
    settings: &RuleSettings,
    made: &HashMap<Guid, Made, FxBuildHasher>,
    modify_is_broken: bool,
) -> State<F> {
    let mut state = State::new(facts(found, settings), found.at);
    if modify_is_broken {
        state.modify = Modify::Broken;
    }
    endpoints(&mut state, found);
    let ours: BTreeSet<Guid> = on_network(found).map(|(id, _)| *id).collect();
    let all: BTreeSet<Guid> = found.endpoints.iter().map(|(id, _)| *id).collect();
    for (id, document) in &found.balancers {
        if is_of_family::<F>(document) {
            balancer(&mut state, *id, document, made.get(id), &ours, &all);
        }
    }
    state
}

fn facts<F: Family>(found: &Found, settings: &RuleSettings) -> Facts<F> {
    let node = settings.node_address.and_then(F::narrow);
    Facts {
        version: found.version,
        network: found.network,
        kind: found.kind,
        subnets: found.subnets.clone(),
        remote_subnets: found.remote_subnets.clone(),
        node,
        node_mac: node.and_then(|node| found.adapters.get(&node.into()).copied()),
        source_vip: found.source_vip.or_else(|| named_source_vip(found)).and_then(F::narrow),
        root_endpoint: found.root_endpoint,
    }
}

/// The address of the endpoint that a network plug-in made for this.
pub(crate) fn named_source_vip(found: &Found) -> Option<std::net::IpAddr> {
    let is_named = |name: &str| SOURCE_VIP_NAMES.iter().any(|known| name.eq_ignore_ascii_case(known));
    let named = on_network(found).find(|(_, endpoint)| is_named(&endpoint.name));
    named.and_then(|(_, endpoint)| endpoint.addresses().next())
}

fn on_network(found: &Found) -> impl Iterator<Item = &(Guid, hcn::Endpoint)> {
    found.endpoints.iter().filter(|(_, endpoint)| endpoint.host_compute_network == Some(found.network))
}

/// Of two endpoints with one address, one of this node counts.
fn endpoints<F: Family>(state: &mut State<F>, found: &Found) {
    let mut sorted: Vec<_> = on_network(found).collect();
    sorted.sort_by_key(|(id, endpoint)| (endpoint.is_remote(), *id));
    for (id, endpoint) in sorted {
        let place =
            if endpoint.is_remote() { Place::Elsewhere(endpoint.provider_address()) } else { Place::Here };
        for address in endpoint.addresses().filter_map(F::narrow) {
            if state.endpoint(&address).is_some() {
                state.spare.extend(endpoint.is_remote().then_some((*id, address)));
            } else {
                state.set_endpoint(address, Some(HeldEndpoint { id: *id, place }));
            }
        }
    }
}

/// Ours is what this process made, what has the id that its frontend is given, and what leads to endpoints of our network alone, as
/// far as these are there.
fn balancer<F: Family>(
    state: &mut State<F>,
    id: Guid,
    document: &LoadBalancer,
    made: Option<&Made>,
    on_network: &BTreeSet<Guid>,
    on_host: &BTreeSet<Guid>,
) {
    let members = &document.host_compute_endpoints;
    let is_own = |id: &Guid| on_network.contains(id) || state.facts.root_endpoint == Some(*id);
    // What is gone from the host is nobody's.
    let leads_to_ours =
        members.iter().any(is_own) && members.iter().all(|id| is_own(id) || !on_host.contains(id));
    let is_dead = !members.iter().any(|member| on_host.contains(member));
    let key = key_of::<F>(document);
    let is_ours = made.is_some() || leads_to_ours || key.is_some_and(|key| balancer_id(&key) == id);
    match (is_ours, key) {
        (true, Some(key)) => {
            let document = as_asked(document, made);
            if let Some(other) = state.set_balancer(key, Some(HeldBalancer::new(id, document))) {
                state.strays.insert(other.id);
            }
        }
        (true, None) => drop(state.strays.insert(id)),
        (false, Some(key)) if is_dead => drop(state.dead.insert(key, id)),
        (false, Some(key)) => drop(state.foreign.insert(key, id)),
        (false, None) => {}
    }
}

/// What HNS made of a document when it took it is as good as what was asked for.
fn as_asked(document: &LoadBalancer, made: Option<&Made>) -> LoadBalancer {
    let found = without_endpoints(document);
    match made.filter(|made| made.answered == found) {
        Some(made) => LoadBalancer {
            host_compute_endpoints: document.host_compute_endpoints.clone(),
            ..made.asked.clone()
        },
        None => document.clone(),
    }
}

/// All that is asked for besides endpoints.
pub(crate) fn without_endpoints(document: &LoadBalancer) -> LoadBalancer {
    LoadBalancer { id: None, host_compute_endpoints: Vec::new(), ..document.clone() }
}

/// What is left of what was made.
pub(crate) fn still_there<F: Family>(made: &mut HashMap<Guid, Made, FxBuildHasher>, state: &State<F>) {
    let there: BTreeSet<Guid> = state.balancers().values().map(|held| held.id).collect();
    made.retain(|id, _| there.contains(id) || state.strays.contains(id));
}
