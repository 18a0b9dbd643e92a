//! What the programs are to serve.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::{
    AddressKind, Family, Frontend, FrontendKey, Masquerade, NodePortAddresses, Protocol, RuleSettings,
    ServicePortName, Table, TrafficPolicy,
};

/// What is set for this mode alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Ports that are left to the rules: those of clients inside the kernel (NFS, SMB, iSCSI, Ceph), which older kernels have
    /// keep the endpoint's address instead of the Service's, so that they come back to an endpoint that is gone.
    pub excluded_ports: BTreeSet<u16>,
    /// UDP is served, too.
    pub datagrams: bool,
}

impl Options {
    /// Whether frontends of this protocol can be served.
    pub(crate) fn serve(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => true,
            Protocol::Udp => self.datagrams,
            Protocol::Sctp => false,
        }
    }
}

/// An endpoint's address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Socket<F: Family> {
    pub(crate) address: F::Addr,
    pub(crate) port: u16,
}

/// The endpoints of a Service port under a policy: all frontends that have both have the same.
pub(crate) type PoolName = (ServicePortName, TrafficPolicy);

/// A frontend that the programs serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served<F: Family> {
    pub(crate) pool: PoolName,
    /// Sorted, without duplicates, never empty.
    pub(crate) endpoints: Arc<[Socket<F>]>,
    /// Only for sockets in the host's network namespace: those of pods would have to be masqueraded.
    pub(crate) host_only: bool,
}

impl<F: Family> Served<F> {
    /// How the programs are to serve a frontend; `None`: the rules do alone.
    ///
    /// They serve TCP, and UDP if asked to, without affinity and without source ranges, since both ask for the client's address, which a socket gets
    /// only afterwards. Frontends without endpoints are refused or dropped by the rules. The clients of this node take the short
    /// cut where there is one.
    pub fn of(frontend: &Frontend<F>, settings: &RuleSettings, options: &Options) -> Option<Self> {
        let is_simple = options.serve(frontend.key.protocol)
            && !settings.balancer.leaves_to_proxies(frontend)
            && frontend.affinity.is_none()
            && frontend.allowed_sources.is_none()
            && !options.excluded_ports.contains(&frontend.key.port);
        let (pool, policy) = match &frontend.internal_pool {
            Some(pool) => (pool, TrafficPolicy::Cluster),
            None => (&frontend.pool, frontend.policy),
        };
        let all = pool.endpoints().iter();
        let endpoints: BTreeSet<_> =
            all.map(|endpoint| Socket { address: endpoint.address, port: endpoint.port }).collect();
        if !is_simple || endpoints.is_empty() {
            return None;
        }
        let is_masqueraded = frontend.masquerade == Masquerade::Always
            || settings.masquerade_all && frontend.kind == AddressKind::ClusterIp;
        Some(Self {
            pool: (frontend.service.clone(), policy),
            endpoints: endpoints.into_iter().collect(),
            host_only: is_masqueraded && frontend.internal_pool.is_none(),
        })
    }
}

/// What is to be made of the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<F: Family> {
    /// These frontends differ; `None`: not served.
    Some(BTreeMap<FrontendKey<F>, Option<Served<F>>>),
    /// Everything is to be as this, whatever is there.
    All(Wanted<F>),
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<F: Family> {
    /// What is served.
    pub frontends: BTreeMap<FrontendKey<F>, Served<F>>,
    /// On which of the node's addresses node ports are.
    pub node_ports: NodePortAddresses,
    /// Node ports are on loopback addresses too, for the host itself.
    pub localhost_node_ports: bool,
}

impl<F: Family> Wanted<F> {
    /// All of a table.
    pub fn of(table: &Table<F>, settings: &RuleSettings, options: &Options) -> Self {
        let served = table
            .iter()
            .filter_map(|frontend| Some((frontend.key, Served::of(frontend, settings, options)?)));
        Self {
            frontends: served.collect(),
            node_ports: settings.node_ports.clone(),
            localhost_node_ports: settings.localhost_node_ports,
        }
    }

    /// Which of the node's addresses have node ports; true: only for the host itself.
    pub(crate) fn node_addresses(&self, all: &BTreeSet<IpAddr>) -> BTreeMap<F::Addr, bool> {
        let ranges = self.node_ports.ranges::<F>();
        let is_within = |address: IpAddr| ranges.as_ref().is_none_or(|ranges| contains(ranges, address));
        let accepted = all.iter().filter_map(|address| {
            let own = F::narrow(*address)?;
            if address.is_loopback() {
                return self.localhost_node_ports.then_some((own, true));
            }
            (is_within(*address) && model::special_use(*address).is_none()).then_some((own, false))
        });
        accepted.take(MOST_ADDRESSES).collect()
    }
}

/// For which there is room in the map.
const MOST_ADDRESSES: usize = 256;

fn contains(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

impl<F: Family> fmt::Display for Change<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Some(frontends) => write!(f, "{} frontends in the maps", frontends.len()),
            Self::All(wanted) => write!(f, "all {} frontends in the maps", wanted.frontends.len()),
        }
    }
}
