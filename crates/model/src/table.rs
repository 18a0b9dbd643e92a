//! The load-balancing table: what the kernel of this node has to do, in terms that every backend shares.
//!
//! Every rule of Kubernetes has been decided when a [`Frontend`] exists. A backend reads frontends and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustc_hash::FxBuildHasher;

use crate::capacity::shrink_if_sparse;
use crate::conflicts::{ConflictChange, Conflicts};
use crate::{Family, Protocol, ServiceName, ServicePortName, TrafficPolicy, Uid};

/// Which of a Service's addresses a frontend is. The order is that of precedence when two Services claim the same
/// address, protocol and port: the first wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    /// `clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancerIp,
    /// `externalIPs`.
    ExternalIp,
    /// `ports[].nodePort`, on every address of the node that is accepted for node ports.
    NodePort,
}

/// The address that packets are captured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress<F: Family> {
    /// A virtual address.
    Ip(F::Addr),
    /// Any address of the node that is accepted for node ports.
    Node,
}

impl<F: Family> std::fmt::Display for FrontendAddress<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(addr) => {
                let addr: std::net::IpAddr = (*addr).into();
                addr.fmt(f)
            }
            Self::Node => f.write_str("node port"),
        }
    }
}

/// What a packet must match to belong to a frontend. At most one frontend has each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey<F: Family> {
    /// Destination address.
    pub address: FrontendAddress<F>,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port, in host byte order.
    pub port: u16,
}

/// One endpoint as packets see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination<F: Family> {
    /// Address.
    pub address: F::Addr,
    /// Port, in host byte order.
    pub port: u16,
    /// Whether the endpoint runs on this node.
    pub local: bool,
}

/// What happens to a new flow that finds no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Refused with ICMP port unreachable: no node has a usable endpoint.
    Reject,
    /// Silently dropped: other nodes have usable endpoints and a load balancer should look there (`Local` policy).
    Drop,
}

/// Where new flows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pool<F: Family> {
    /// To one of these, each as likely as any other. Sorted, without duplicates, never empty.
    Endpoints(Arc<[Destination<F>]>),
    /// Nowhere.
    Empty(Verdict),
}

impl<F: Family> Pool<F> {
    /// A pool of these endpoints, or the verdict when there are none.
    pub fn new(endpoints: BTreeSet<Destination<F>>, when_empty: Verdict) -> Self {
        if endpoints.is_empty() {
            Self::Empty(when_empty)
        } else {
            Self::Endpoints(endpoints.into_iter().collect())
        }
    }

    /// The endpoints; empty when there are none.
    pub fn endpoints(&self) -> &[Destination<F>] {
        match self {
            Self::Endpoints(endpoints) => endpoints,
            Self::Empty(_) => &[],
        }
    }
}

/// When the source address of a flow is rewritten to one of this node's, besides the flows that return to their own
/// sender (hairpin), which always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Never: the endpoint sees the client.
    Never,
    /// Unless the client is a pod, as far as the node can tell one: replies to others must come back through this node.
    UnlessFromPod,
    /// Always.
    Always,
}

/// `sessionAffinity: ClientIP` of a Service port: a client stays with its endpoint, by whichever address it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// For how long after its last new flow.
    pub timeout: Duration,
    /// The Service, so that another one of the same name does not inherit its clients. `None` if it has no usable UID.
    pub service: Option<Uid>,
}

/// One captured address, protocol and port, and everything that decides where its packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend<F: Family> {
    /// What packets match.
    pub key: FrontendKey<F>,
    /// Which of the Service's addresses this is.
    pub kind: AddressKind,
    /// The Service's port that it serves.
    pub service: ServicePortName,
    /// Where new flows go.
    pub pool: Pool<F>,
    /// Which of the Service's endpoints `pool` has: all frontends of a Service port whose policy is the same have the same
    /// pool.
    pub policy: TrafficPolicy,
    /// Where new flows from pods and from this node itself go, where that differs from `pool`: the short cut of
    /// `externalTrafficPolicy: Local`. It is the pool of policy `Cluster`.
    pub internal_pool: Option<Pool<F>>,
    /// `ClientIP` affinity.
    pub affinity: Option<Affinity>,
    /// Source address rewriting.
    pub masquerade: Masquerade,
    /// `loadBalancerSourceRanges`: new flows from elsewhere are dropped. `None`: no restriction.
    pub allowed_sources: Option<Arc<[IpNet]>>,
    /// UDP and SCTP: the endpoints that existing flows may stay with, which are all that serve, whatever policies and hints
    /// say. Flows to others have to be forgotten, or they would go nowhere for as long as their client sends. Sorted;
    /// empty for TCP, whose flows end by themselves.
    pub flow_endpoints: Arc<[Destination<F>]>,
}

/// What differs in a table, to be looked up there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<F: Family> {
    /// Keys of frontends that are other ones, or gone.
    pub frontends: BTreeSet<FrontendKey<F>>,
    /// `healthCheckNodePort`s that are another Service's, or gone.
    pub health_check_ports: BTreeSet<u16>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Changed<F> {
    fn default() -> Self {
        Self { frontends: BTreeSet::new(), health_check_ports: BTreeSet::new() }
    }
}

impl<F: Family> Changed<F> {
    /// Only these frontends.
    pub fn frontends(keys: impl IntoIterator<Item = FrontendKey<F>>) -> Self {
        Self { frontends: keys.into_iter().collect(), health_check_ports: BTreeSet::new() }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.health_check_ports.is_empty()
    }

    /// How many things differ.
    pub fn len(&self) -> usize {
        self.frontends.len() + self.health_check_ports.len()
    }

    /// Adds what else differs.
    pub fn extend(&mut self, other: &Self) {
        self.frontends.extend(&other.frontends);
        self.health_check_ports.extend(&other.health_check_ports);
    }
}

/// All frontends of one family, and what else Services ask of a node.
///
/// Several Services may claim one key (the API does not prevent it); the claim of the best [`AddressKind`], then of the
/// first Service by name, is in force, and the next one takes over when it goes.
#[derive(Clone, Debug)]
pub struct Table<F: Family> {
    /// Boxed, since a hash table is up to half empty, and claims are large.
    frontends: HashMap<FrontendKey<F>, Box<Claims<F>>, FxBuildHasher>,
    by_service: BTreeMap<ServiceName, Box<[FrontendKey<F>]>>,
    conflicts: Conflicts<F>,
    /// Who claims each; never empty.
    health_check_ports: BTreeMap<u16, BTreeSet<ServiceName>>,
    health_check_port_of: BTreeMap<ServiceName, u16>,
}

#[derive(Clone, Debug)]
struct Claims<F: Family> {
    winner: Frontend<F>,
    /// Sorted; nearly always empty.
    others: Vec<Frontend<F>>,
}

impl<F: Family> Default for Table<F> {
    fn default() -> Self {
        Self {
            frontends: HashMap::default(),
            by_service: BTreeMap::new(),
            conflicts: Conflicts::default(),
            health_check_ports: BTreeMap::new(),
            health_check_port_of: BTreeMap::new(),
        }
    }
}

impl<F: Family> Table<F> {
    /// Sets the frontends of a Service, replacing all that it had; returns the keys whose frontend in force differs
    /// from before. Of two frontends with one key the better by precedence, then the first, counts.
    pub fn set_service(
        &mut self,
        service: &ServiceName,
        frontends: Vec<Frontend<F>>,
    ) -> BTreeSet<FrontendKey<F>> {
        let new = dedup(frontends);
        let old = self.by_service.remove(service).unwrap_or_default();
        let mut changed = BTreeSet::new();
        for key in old.iter().filter(|key| !new.contains_key(key)) {
            if self.withdraw(service, key) {
                changed.insert(*key);
            }
        }
        let keys: Box<[_]> = new.keys().copied().collect();
        for frontend in new.into_values() {
            let key = frontend.key;
            if self.claim(frontend) {
                changed.insert(key);
            }
        }
        if !keys.is_empty() {
            self.by_service.insert(service.clone(), keys);
        }
        changed
    }

    /// Sets the `healthCheckNodePort` of a Service; returns the ports that are another Service's than before, or gone. Of several
    /// Services with one port, the first by name has it.
    pub fn set_health_check_port(&mut self, service: &ServiceName, port: Option<u16>) -> BTreeSet<u16> {
        let before = match port {
            Some(port) => self.health_check_port_of.insert(service.clone(), port),
            None => self.health_check_port_of.remove(service),
        };
        if before == port {
            return BTreeSet::new();
        }
        let mut changed = BTreeSet::new();
        if let Some(port) = before
            && let Some(claims) = self.health_check_ports.get_mut(&port)
        {
            let was_first = claims.first() == Some(service);
            claims.remove(service);
            if claims.is_empty() {
                self.health_check_ports.remove(&port);
            }
            changed.extend(was_first.then_some(port));
        }
        if let Some(port) = port {
            let claims = self.health_check_ports.entry(port).or_default();
            claims.insert(service.clone());
            changed.extend((claims.first() == Some(service)).then_some(port));
        }
        changed
    }

    /// Whose `healthCheckNodePort` this is: hosts that let nothing in by default have to accept packets to it.
    pub fn health_check_port(&self, port: u16) -> Option<&ServiceName> {
        self.health_check_ports.get(&port).and_then(BTreeSet::first)
    }

    /// All `healthCheckNodePort`s, in their order, and whose they are.
    pub fn health_check_ports(&self) -> impl Iterator<Item = (u16, &ServiceName)> {
        self.health_check_ports.iter().filter_map(|(port, claims)| Some((*port, claims.first()?)))
    }

    /// The frontend in force for a key.
    pub fn get(&self, key: &FrontendKey<F>) -> Option<&Frontend<F>> {
        self.frontends.get(key).map(|claims| &claims.winner)
    }

    /// The claims for a key that lost against the one in force.
    pub fn conflicts(&self, key: &FrontendKey<F>) -> &[Frontend<F>] {
        self.frontends.get(key).map_or(&[], |claims| &claims.others)
    }

    /// How many frontends are in force.
    pub fn len(&self) -> usize {
        self.frontends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// The claims that lose, each with the one in force, in the order of the Services that have that.
    pub fn lost_claims(&self) -> impl Iterator<Item = (&Frontend<F>, &Frontend<F>)> {
        let is_contested = self.conflict_count() > 0;
        let winners = is_contested.then(|| self.iter()).into_iter().flatten();
        winners.flat_map(|winner| self.conflicts(&winner.key).iter().map(move |loser| (loser, winner)))
    }

    /// How many claims lose against another Service's now.
    pub fn conflict_count(&self) -> usize {
        self.conflicts.count()
    }

    /// What changed about conflicts since this was last asked. What came and went again is not in it.
    pub fn take_conflict_changes(&mut self) -> Vec<ConflictChange<F>> {
        self.conflicts.take()
    }

    /// All frontends in force, in the order of their Services' names.
    pub fn iter(&self) -> impl Iterator<Item = &Frontend<F>> {
        let keys =
            self.by_service.iter().flat_map(|(service, keys)| keys.iter().map(move |key| (service, key)));
        keys.filter_map(|(service, key)| {
            self.get(key).filter(|frontend| frontend.service.service == *service)
        })
    }

    /// The frontends of a Service that are in force.
    pub fn of_service(&self, service: &ServiceName) -> impl Iterator<Item = &Frontend<F>> {
        let keys = self.by_service.get(service).map_or(&[][..], |keys| keys);
        let winners = keys.iter().filter_map(|key| self.get(key));
        winners.filter(move |frontend| frontend.service.service == *service)
    }

    /// Adds or updates a claim; true if the frontend in force differs afterwards.
    fn claim(&mut self, frontend: Frontend<F>) -> bool {
        let Some(claims) = self.frontends.get_mut(&frontend.key) else {
            self.frontends.insert(frontend.key, Box::new(Claims { winner: frontend, others: Vec::new() }));
            return true;
        };
        if claims.others.is_empty() && same_owner(&claims.winner, &frontend) {
            let differs = claims.winner != frontend;
            claims.winner = frontend;
            return differs;
        }
        let before = claims.winner.clone();
        let others_before = std::mem::take(&mut claims.others);
        let mut all = others_before.clone();
        all.push(before.clone());
        all.retain(|known| !same_owner(known, &frontend));
        all.push(frontend);
        all.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
        claims.winner = all.remove(0);
        claims.others = all;
        self.conflicts.note((&before, &others_before), Some((&claims.winner, &claims.others)));
        claims.winner != before
    }

    /// Removes a Service's claim; true if the frontend in force differs afterwards.
    fn withdraw(&mut self, service: &ServiceName, key: &FrontendKey<F>) -> bool {
        let Some(claims) = self.frontends.get_mut(key) else { return false };
        let is_in_force = claims.winner.service.service == *service;
        if is_in_force && claims.others.is_empty() {
            self.frontends.remove(key);
            shrink_if_sparse(&mut self.frontends);
            return true;
        }
        let before = claims.clone();
        if is_in_force {
            claims.winner = claims.others.remove(0);
        } else {
            claims.others.retain(|other| other.service.service != *service);
        }
        self.conflicts.note((&before.winner, &before.others), Some((&claims.winner, &claims.others)));
        is_in_force
    }
}

fn same_owner<F: Family>(a: &Frontend<F>, b: &Frontend<F>) -> bool {
    a.service.service == b.service.service
}

fn precedence<F: Family>(frontend: &Frontend<F>) -> (AddressKind, &ServicePortName) {
    (frontend.kind, &frontend.service)
}

fn dedup<F: Family>(frontends: Vec<Frontend<F>>) -> BTreeMap<FrontendKey<F>, Frontend<F>> {
    let mut by_key: BTreeMap<FrontendKey<F>, Frontend<F>> = BTreeMap::new();
    for frontend in frontends {
        let better = by_key.get(&frontend.key).is_none_or(|known| precedence(&frontend) < precedence(known));
        if better {
            by_key.insert(frontend.key, frontend);
        }
    }
    by_key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ObjectName, V4};

    fn frontend(service: &str, kind: AddressKind, ip: &str, endpoint: u16) -> Frontend<V4> {
        let destination =
            Destination { address: "10.244.0.1".parse().unwrap(), port: endpoint, local: false };
        Frontend {
            key: FrontendKey {
                address: FrontendAddress::Ip(ip.parse().unwrap()),
                protocol: Protocol::Tcp,
                port: 80,
            },
            kind,
            service: ServicePortName {
                service: ObjectName::new("ns", service),
                port: "http".into(),
                protocol: Protocol::Tcp,
            },
            pool: Pool::new(BTreeSet::from([destination]), Verdict::Reject),
            policy: TrafficPolicy::Cluster,
            internal_pool: None,
            affinity: None,
            masquerade: Masquerade::UnlessFromPod,
            allowed_sources: None,
            flow_endpoints: Arc::default(),
        }
    }

    fn set(table: &mut Table<V4>, service: &str, frontends: Vec<Frontend<V4>>) -> usize {
        table.set_service(&ObjectName::new("ns", service), frontends).len()
    }

    /// `loser: winner before -> winner now`.
    fn changes(table: &mut Table<V4>) -> Vec<String> {
        let name = |winner: Option<ServicePortName>| {
            winner.map_or_else(|| "None".to_owned(), |winner| winner.service.name.to_string())
        };
        let changes = table.take_conflict_changes().into_iter();
        changes
            .map(|change| {
                format!("{}: {} -> {}", change.loser.service.name, name(change.before), name(change.now))
            })
            .collect()
    }

    #[test]
    fn a_conflict_that_lasts_is_reported_once() {
        let mut table = Table::default();
        let (a, b) = (
            frontend("a", AddressKind::ClusterIp, "10.96.0.1", 1),
            frontend("b", AddressKind::ClusterIp, "10.96.0.1", 2),
        );
        set(&mut table, "a", vec![a.clone()]);
        set(&mut table, "b", vec![b.clone()]);
        assert_eq!(changes(&mut table), ["b: None -> a"]);
        // Other endpoints on either side are no news.
        set(&mut table, "b", vec![frontend("b", AddressKind::ClusterIp, "10.96.0.1", 3)]);
        set(&mut table, "a", vec![frontend("a", AddressKind::ClusterIp, "10.96.0.1", 4)]);
        assert_eq!((changes(&mut table), table.conflict_count()), (vec![], 1));
        // Away and back.
        set(&mut table, "a", vec![]);
        set(&mut table, "a", vec![a]);
        assert_eq!(changes(&mut table), [""; 0]);
        set(&mut table, "b", vec![]);
        assert_eq!((changes(&mut table), table.conflict_count()), (vec!["b: a -> None".to_owned()], 0));
    }

    #[test]
    fn memory_is_given_back_when_services_go() {
        let mut table = Table::default();
        let one = |n: u32| {
            let mut frontend = frontend("a", AddressKind::ClusterIp, "10.96.0.1", 80);
            frontend.service.service = ObjectName::new("ns", &format!("svc-{n}"));
            frontend.key.address = FrontendAddress::Ip(std::net::Ipv4Addr::from(0x0a60_0000 + n));
            frontend
        };
        for n in 0..20_000 {
            table.set_service(&one(n).service.service.clone(), vec![one(n)]);
        }
        let full = table.frontends.capacity();
        for n in 0..20_000 {
            table.set_service(&one(n).service.service, Vec::new());
        }
        assert!(table.is_empty() && table.frontends.capacity() < full / 8, "{}", table.frontends.capacity());
    }

    #[test]
    fn a_health_check_port_is_the_first_services_by_name() {
        let mut table = Table::<V4>::default();
        let mut set = |service: &str, port| {
            let changed = table.set_health_check_port(&ObjectName::new("ns", service), port);
            let owner = table.health_check_port(7).map(|owner| owner.name.to_string());
            (changed.into_iter().collect::<Vec<_>>(), owner)
        };
        assert_eq!(set("b", Some(7)), (vec![7], Some("b".to_owned())));
        assert_eq!(set("b", Some(7)), (vec![], Some("b".to_owned())));
        assert_eq!(set("c", Some(7)), (vec![], Some("b".to_owned())));
        assert_eq!(set("a", Some(7)), (vec![7], Some("a".to_owned())));
        assert_eq!(set("a", Some(8)), (vec![7, 8], Some("b".to_owned())));
        assert_eq!(set("c", None), (vec![], Some("b".to_owned())));
        assert_eq!(set("b", None), (vec![7], None));
        assert_eq!(table.health_check_ports().map(|(port, _)| port).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn only_differences_are_reported() {
        let mut table = Table::default();
        let one = || frontend("a", AddressKind::ClusterIp, "10.96.0.1", 8080);
        assert_eq!(set(&mut table, "a", vec![one()]), 1);
        assert_eq!(set(&mut table, "a", vec![one()]), 0);
        assert_eq!(set(&mut table, "a", vec![frontend("a", AddressKind::ClusterIp, "10.96.0.1", 8081)]), 1);
        assert_eq!(set(&mut table, "a", vec![frontend("a", AddressKind::ClusterIp, "10.96.0.2", 8081)]), 2);
        assert_eq!(set(&mut table, "a", vec![]), 1);
        assert_eq!(table.iter().count(), 0);
    }

    #[test]
    fn a_conflict_has_one_winner_in_any_order_and_the_next_takes_over() {
        let claims = [
            frontend("b", AddressKind::ClusterIp, "10.96.0.1", 1),
            frontend("a", AddressKind::ExternalIp, "10.96.0.1", 2),
            frontend("c", AddressKind::ClusterIp, "10.96.0.1", 3),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]] {
            let mut table = Table::default();
            for i in order {
                set(&mut table, &claims[i].service.service.name, vec![claims[i].clone()]);
            }
            assert_eq!(table.get(&claims[0].key), Some(&claims[0]));
            assert_eq!(table.conflicts(&claims[0].key), [claims[2].clone(), claims[1].clone()]);
            assert_eq!(table.iter().count(), 1);
            assert_eq!(table.conflict_count(), 2);
            assert_eq!(changes(&mut table), ["a: None -> b", "c: None -> b"], "whatever was between");
            assert_eq!(set(&mut table, "b", vec![]), 1);
            assert_eq!(changes(&mut table), ["a: b -> c", "c: b -> None"]);
            assert_eq!(table.get(&claims[0].key), Some(&claims[2]));
            assert_eq!(set(&mut table, "a", vec![]), 0);
            assert_eq!((changes(&mut table), table.conflict_count()), (vec!["a: c -> None".to_owned()], 0));
            assert_eq!(set(&mut table, "c", vec![]), 1);
            assert_eq!((table.get(&claims[0].key), table.conflict_count()), (None, 0));
        }
    }
}
