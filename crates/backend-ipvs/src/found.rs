//! From whatever the kernel holds to what it should hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipvs::{Flags, Forwarding, Timeouts};
use mode::{Cause, NeedsReading, PlanOf, Target};
use model::{Destination, EndpointNode, Family, Protocol, RuleSettings, Table};

use crate::change::Change;
use crate::plan::{IpvsPlanner, Pending};
use crate::rules::Rules;
use crate::state::{Drain, Id, Kind, Server, Socket, State};
use crate::target::{Found, FoundServer};

/// Changes that are being gathered.
#[derive(Debug)]
pub(crate) struct Difference<F: Family> {
    pub(crate) changes: Vec<Change<F>>,
    /// What is there afterwards, where that differs.
    pub(crate) servers: BTreeMap<Id<F>, Option<Server<F>>>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Difference<F> {
    fn default() -> Self {
        Self { changes: Vec::new(), servers: BTreeMap::new() }
    }
}

impl<F: Family, R: Rules<F>> IpvsPlanner<F, R> {
    /// What turns the servers that were found into those that are wanted. Endpoints keep their connections.
    pub(crate) fn found<T>(
        &self,
        table: &Table<F>,
        settings: &RuleSettings,
        found: &Found<T>,
    ) -> Pending<F, R::Held> {
        let mut state = addresses_found(found);
        let mut difference = Difference::default();
        let mut servers: BTreeMap<Id<F>, &FoundServer> =
            found.servers.iter().filter_map(|server| Some((Id::of(&server.settings.id)?, server))).collect();
        let keys = table.iter().map(|frontend| frontend.key);
        let ids: BTreeSet<Id<F>> = keys.flat_map(|key| state.ids(&key, settings)).collect();
        let mut addresses = BTreeSet::new();
        for id in ids {
            let Some(wanted) = state.wanted(&id, table, settings) else { continue };
            if wanted.kind == Kind::ServiceAddress {
                addresses.insert(id.address);
            }
            self.server_found(&mut state, &mut difference, id, &wanted, servers.remove(&id));
            difference.server(&state, id, Some(wanted));
        }
        for (id, server) in servers {
            if self.is_own(&state, &id, server) {
                state.set(id, Some(leftover()));
                difference.server(&state, id, None);
            }
        }
        let unused = state.on_device.difference(&addresses).copied();
        let unused = unused.chain(addresses.intersection(&state.node_addresses).copied()).collect();
        difference.addresses(&state, &addresses, &unused);
        if differs(found.timeouts, self.options.timeouts) {
            difference.changes.push(Change::SetTimeouts(self.options.timeouts));
        }
        difference.into_pending(Some(Box::new((state, settings.clone()))))
    }

    pub(crate) fn rules_for_found(
        &self,
        table: &Table<F>,
        pending: &Pending<F, R::Held>,
        cause: Cause<'_, F, <R::Target as Target>::Found>,
    ) -> Result<PlanOf<R, F>, NeedsReading> {
        let (state, settings) = pending.found.as_deref().ok_or(NeedsReading)?;
        self.rules.plan(table, &self.rule_settings(state, settings), cause)
    }

    /// Takes note of what was found of a server that is wanted, and gathers what is wrong with single endpoints.
    fn server_found(
        &self,
        state: &mut State<F>,
        difference: &mut Difference<F>,
        id: Id<F>,
        wanted: &Server<F>,
        found: Option<&FoundServer>,
    ) {
        let Some(found) = found else {
            state.set(id, Some(Server { exists: false, pool: Arc::default(), ..wanted.clone() }));
            return;
        };
        let mut serving = BTreeSet::new();
        for (real, _) in &found.reals {
            let Some(socket) = Socket::parse(&real.id) else { continue };
            let is_wanted = wanted.pool.binary_search_by_key(&socket, Socket::of).is_ok();
            let is_right = real.weight == 1 && real.forwarding == Forwarding::Masquerade;
            if is_wanted && !is_right {
                difference.changes.push(Change::RestoreReal(id, socket));
            }
            if is_wanted || real.weight != 0 || id.protocol == Protocol::Udp {
                serving.insert(socket);
            } else {
                state.set_drain(id, socket, Some(Drain::BEGUN_EARLIER));
            }
        }
        let settings = self.options.virtual_server(&id, wanted.persistence);
        let pool = pool_of(&serving, wanted);
        let differs = found.settings != settings;
        state.set(
            id,
            Some(Server { kind: wanted.kind, exists: true, pool, persistence: wanted.persistence, differs }),
        );
    }

    /// Whether a server that nobody wants is ours to delete: by its flag, or, as one that upstream left, by its address.
    fn is_own(&self, state: &State<F>, id: &Id<F>, server: &FoundServer) -> bool {
        server.settings.flags.contains(Flags::OWN)
            || state.on_device.contains(&id.address) && !self.options.excludes::<F>(id.address)
    }
}

/// The addresses, and no servers yet.
fn addresses_found<F: Family, T>(found: &Found<T>) -> State<F> {
    let of_family = |addresses: &BTreeSet<IpAddr>| -> BTreeSet<F::Addr> {
        addresses.iter().filter_map(|address| F::narrow(*address)).collect()
    };
    let mut state = State::default();
    state.on_device = of_family(&found.addresses.device);
    state.node_addresses = of_family(&found.addresses.others);
    state.node_addresses.retain(|address: &F::Addr| can_serve_node_ports((*address).into()));
    state
}

/// A virtual server of ours that no frontend is.
pub(crate) fn leftover<F: Family>() -> Server<F> {
    Server { kind: Kind::NodePort, exists: true, pool: Arc::default(), persistence: None, differs: false }
}

/// The endpoints that were found to serve; the wanted ones themselves where they are the same.
fn pool_of<F: Family>(serving: &BTreeSet<Socket<F>>, wanted: &Server<F>) -> Arc<[Destination<F>]> {
    if serving.iter().copied().eq(wanted.sockets()) {
        return wanted.pool.clone();
    }
    let destination = |socket: &Socket<F>| Destination {
        address: socket.address,
        port: socket.port,
        node: EndpointNode::Other,
    };
    serving.iter().map(destination).collect()
}

/// Upstream's choice: not loopback, and not link-local IPv6.
fn can_serve_node_ports(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !is_link_local
}

/// Whether a time-out that is wanted is not as found.
fn differs(found: Timeouts, wanted: Timeouts) -> bool {
    let pairs = [(found.tcp, wanted.tcp), (found.tcp_fin, wanted.tcp_fin), (found.udp, wanted.udp)];
    pairs.into_iter().any(|(found, wanted)| wanted != 0 && found != wanted)
}
