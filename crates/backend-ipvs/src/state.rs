//! What the kernel holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ipvs::{RealServerId, ServerId};
use model::{
    Destination, Family, FrontendAddress, FrontendKey, NodePortAddresses, Pool, Protocol, RuleSettings, Table,
};
use rustc_hash::FxBuildHasher;
use tokio::time::Instant;

/// How long a client stays with its endpoint.
pub(crate) type Seconds = Option<NonZeroU32>;

/// Which virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<F: Family> {
    pub(crate) address: F::Addr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// Which real server of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket<F: Family> {
    pub(crate) address: F::Addr,
    pub(crate) port: u16,
}

/// What a virtual server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An address of a Service, which has to be on the device.
    ServiceAddress,
    /// A node port.
    NodePort,
}

/// A frontend at one address, and the virtual server that serves it, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server<F: Family> {
    pub(crate) kind: Kind,
    /// Whether there is a virtual server.
    pub(crate) exists: bool,
    /// The endpoints that take new connections; sorted.
    pub(crate) pool: Arc<[Destination<F>]>,
    pub(crate) persistence: Seconds,
    /// Scheduler, flags or persistence are not what they should be.
    pub(crate) differs: bool,
}

/// An endpoint that goes when its connections are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    /// When they are looked up next; `None`: with whatever is planned next about its virtual server.
    pub(crate) check_at: Option<Instant>,
    /// How long after that again.
    pub(crate) pause: Duration,
}

/// How long after an endpoint was drained its connections are looked up, and at the longest apart: each time costs a reading of
/// its virtual server.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

impl Drain {
    /// By an earlier process.
    pub(crate) const BEGUN_EARLIER: Self = Self { check_at: None, pause: FIRST_PAUSE };

    pub(crate) fn begun(at: Instant) -> Self {
        Self { check_at: Some(at + FIRST_PAUSE), pause: FIRST_PAUSE }
    }

    /// There were connections left.
    pub(crate) fn busy(self, at: Instant) -> Self {
        Self { check_at: Some(at + self.pause), pause: (self.pause * 2).min(LONGEST_PAUSE) }
    }

    pub(crate) fn failed(self) -> Self {
        Self { check_at: None, ..self }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct State<F: Family> {
    servers: HashMap<Id<F>, Server<F>, FxBuildHasher>,
    /// How many frontends need an address on the device.
    uses: HashMap<F::Addr, u32, FxBuildHasher>,
    /// What is on the device.
    pub(crate) on_device: BTreeSet<F::Addr>,
    /// Addresses of the node's other devices at which node ports can be served.
    pub(crate) node_addresses: BTreeSet<F::Addr>,
    drains: BTreeMap<Id<F>, BTreeMap<Socket<F>, Drain>>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for State<F> {
    fn default() -> Self {
        Self {
            servers: HashMap::default(),
            uses: HashMap::default(),
            on_device: BTreeSet::new(),
            node_addresses: BTreeSet::new(),
            drains: BTreeMap::new(),
        }
    }
}

impl<F: Family> State<F> {
    pub(crate) fn server(&self, id: &Id<F>) -> Option<&Server<F>> {
        self.servers.get(id)
    }

    /// Sets or forgets a server.
    pub(crate) fn set(&mut self, id: Id<F>, server: Option<Server<F>>) {
        let needs = |server: &Server<F>| server.kind == Kind::ServiceAddress;
        let now = server.as_ref().is_some_and(needs);
        let before = match server {
            Some(server) => self.servers.insert(id, server),
            None => self.servers.remove(&id),
        };
        match (before.as_ref().is_some_and(needs), now) {
            (false, true) => *self.uses.entry(id.address).or_default() += 1,
            (true, false) => {
                let left = self.uses.remove(&id.address).unwrap_or_default().saturating_sub(1);
                if left > 0 {
                    self.uses.insert(id.address, left);
                }
            }
            _ => {}
        }
    }

    /// How many frontends need this address on the device.
    pub(crate) fn uses(&self, address: &F::Addr) -> u32 {
        self.uses.get(address).copied().unwrap_or_default()
    }

    /// The frontends at this address.
    pub(crate) fn keys_at(&self, address: F::Addr) -> impl Iterator<Item = FrontendKey<F>> {
        let at = self.servers.iter().filter(move |(id, _)| id.address == address);
        at.map(|(id, server)| id.key(server.kind))
    }

    /// The endpoints of the server that are being drained; sorted.
    pub(crate) fn draining(&self, id: &Id<F>) -> impl Iterator<Item = Socket<F>> {
        self.drains.get(id).into_iter().flat_map(|drains| drains.keys().copied())
    }

    pub(crate) fn is_draining(&self, id: &Id<F>, socket: &Socket<F>) -> bool {
        self.drains.get(id).is_some_and(|drains| drains.contains_key(socket))
    }

    /// How an endpoint is being drained.
    pub(crate) fn drain(&self, id: &Id<F>, socket: &Socket<F>) -> Option<&Drain> {
        self.drains.get(id).and_then(|drains| drains.get(socket))
    }

    /// Sets how an endpoint is being drained, or that it is not.
    pub(crate) fn set_drain(&mut self, id: Id<F>, socket: Socket<F>, drain: Option<Drain>) {
        match drain {
            Some(drain) => drop(self.drains.entry(id).or_default().insert(socket, drain)),
            None => {
                if let Some(drains) = self.drains.get_mut(&id) {
                    drains.remove(&socket);
                    if drains.is_empty() {
                        self.drains.remove(&id);
                    }
                }
            }
        }
    }

    /// Forgets what is drained of a server.
    pub(crate) fn forget_drains(&mut self, id: &Id<F>) {
        self.drains.remove(id);
    }

    /// All endpoints that are being drained.
    pub(crate) fn drains(&self) -> impl Iterator<Item = (Id<F>, Socket<F>, Drain)> {
        self.drains
            .iter()
            .flat_map(|(id, drains)| drains.iter().map(|(socket, drain)| (*id, *socket, *drain)))
    }

    /// The servers that a frontend is.
    pub(crate) fn ids(&self, key: &FrontendKey<F>, settings: &RuleSettings) -> Vec<Id<F>> {
        let FrontendKey { address, protocol, port } = *key;
        match address {
            FrontendAddress::Ip(address) => vec![Id { address, protocol, port }],
            FrontendAddress::Node => {
                let accepted = accepted(&self.node_addresses, &settings.node_ports);
                accepted.map(|address| Id { address, protocol, port }).collect()
            }
        }
    }

    /// What should be at this address, protocol and port.
    pub(crate) fn wanted(&self, id: &Id<F>, table: &Table<F>, settings: &RuleSettings) -> Option<Server<F>> {
        let Id { address, protocol, port } = *id;
        let at = |address| table.get(&FrontendKey { address, protocol, port });
        let (kind, frontend) = match at(FrontendAddress::Ip(address)) {
            Some(frontend) => (Kind::ServiceAddress, frontend),
            None if !is_accepted::<F>(&self.node_addresses, &settings.node_ports, address) => return None,
            None => (Kind::NodePort, at(FrontendAddress::Node)?),
        };
        let pool = match &frontend.pool {
            Pool::Endpoints(endpoints) => endpoints.clone(),
            Pool::Empty(_) => Arc::default(),
        };
        let seconds = |affinity: Duration| {
            NonZeroU32::new(u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
        };
        let persistence = frontend.affinity.map(|affinity| seconds(affinity.timeout));
        Some(Server { kind, exists: !pool.is_empty(), pool, persistence, differs: false })
    }
}

/// The node's addresses at which node ports are served.
pub(crate) fn accepted<'a, A: Copy + Into<IpAddr>>(
    addresses: &'a BTreeSet<A>,
    node_ports: &'a NodePortAddresses,
) -> impl Iterator<Item = A> + 'a {
    addresses.iter().copied().filter(|address| accepts(node_ports, (*address).into()))
}

fn is_accepted<F: Family>(
    addresses: &BTreeSet<F::Addr>,
    node_ports: &NodePortAddresses,
    address: F::Addr,
) -> bool {
    addresses.contains(&address) && accepts(node_ports, address.into())
}

fn accepts(node_ports: &NodePortAddresses, address: IpAddr) -> bool {
    match node_ports {
        NodePortAddresses::All => true,
        NodePortAddresses::Within(ranges) => ranges.iter().any(|range| range.contains(&address)),
    }
}

impl<F: Family> Server<F> {
    /// The endpoints as real servers; sorted.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = Socket<F>> {
        self.pool.iter().map(Socket::of)
    }
}

impl<F: Family> Id<F> {
    /// As IPVS has it.
    pub(crate) fn server_id(&self) -> ServerId {
        ServerId { address: self.address.into(), protocol: self.protocol.number(), port: self.port }
    }

    /// As IPVS has it, if it can be one of ours of this family.
    pub(crate) fn of(id: &ServerId) -> Option<Self> {
        let (address, protocol) = (F::narrow(id.address)?, Protocol::from_number(id.protocol)?);
        Some(Self { address, protocol, port: id.port })
    }

    /// The frontend that it is.
    pub(crate) fn key(&self, kind: Kind) -> FrontendKey<F> {
        let address = match kind {
            Kind::ServiceAddress => FrontendAddress::Ip(self.address),
            Kind::NodePort => FrontendAddress::Node,
        };
        FrontendKey { address, protocol: self.protocol, port: self.port }
    }
}

impl<F: Family> Socket<F> {
    pub(crate) fn of(destination: &Destination<F>) -> Self {
        Self { address: destination.address, port: destination.port }
    }

    pub(crate) fn real_id(&self) -> RealServerId {
        RealServerId { address: self.address.into(), port: self.port }
    }

    pub(crate) fn parse(id: &RealServerId) -> Option<Self> {
        Some(Self { address: F::narrow(id.address)?, port: id.port })
    }
}

impl<F: Family> fmt::Display for Id<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server_id().fmt(f)
    }
}

impl<F: Family> fmt::Display for Socket<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.real_id().fmt(f)
    }
}
