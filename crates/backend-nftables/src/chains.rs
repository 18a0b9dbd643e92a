//! The chains: fixed ones, and one for each way of balancing over N endpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{Family, IpFamily, Masquerade, PodSource};
use nft::{
    AddrField, BaseChain, Bytes, ChainType, Data, Element, Field, Hook, Name, Rule, Statement, Verdict,
};

use crate::config::Config;
use crate::layout::{Map, Scope, Way, client_key, hairpin_key, ip_key, port_key, source_key};
use crate::programmed::MapElement;

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainSpec {
    pub(crate) name: Name,
    pub(crate) base: Option<BaseChain>,
    pub(crate) rules: Vec<Rule>,
}

/// A chain that balances over a number of endpoints, shared by all frontends for which all fields are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId {
    way: Way,
    masquerade: Masquerade,
    /// Seconds that a client stays with its endpoint.
    affinity: Option<u32>,
    /// Never 0.
    endpoints: u32,
}

/// Most Services have no more endpoints than this.
const PREPARED: u32 = 16;

/// Bits of a chain's number: the way of masquerading, and with affinity the seconds (the API allows 86,400).
const MASQUERADE_SHIFT: u32 = 29;
const WITH_AFFINITY: u32 = 1 << 31;
const SECONDS_SHIFT: u32 = 12;
const MAX_SECONDS: u32 = (1 << (MASQUERADE_SHIFT - SECONDS_SHIFT)) - 1;
/// Endpoints that take part where there is affinity, and where there is none.
const MAX_STICKY_ENDPOINTS: u32 = (1 << SECONDS_SHIFT) - 1;
const MAX_ENDPOINTS: u32 = (1 << MASQUERADE_SHIFT) - 1;

/// How many endpoints of one frontend can take part.
pub(crate) const fn max_endpoints(affinity: bool) -> u32 {
    if affinity { MAX_STICKY_ENDPOINTS } else { MAX_ENDPOINTS }
}

/// `service-3`, `node-port-masq-3`, `inside-service-3`, `service-sticky-10800-3`: the name is the only thing that a chain is
/// recognised by.
impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.way.scope {
            Scope::Everywhere => "",
            Scope::Inside => "inside-",
        })?;
        f.write_str(if self.way.node_port { "node-port" } else { "service" })?;
        f.write_str(match self.masquerade {
            Masquerade::UnlessFromPod => "",
            Masquerade::Always => "-masq",
            Masquerade::Never => "-nomasq",
        })?;
        if let Some(seconds) = self.affinity {
            write!(f, "-sticky-{seconds}")?;
        }
        write!(f, "-{}", self.endpoints)
    }
}

impl ChainId {
    /// With as many endpoints as can take part, and the longest time if there is affinity for longer.
    pub(crate) fn new(way: Way, masquerade: Masquerade, affinity: Option<u32>, endpoints: u32) -> Self {
        let affinity = affinity.map(|seconds| seconds.min(MAX_SECONDS));
        Self { way, masquerade, affinity, endpoints: endpoints.min(max_endpoints(affinity.is_some())) }
    }

    /// The number that stands for the chain among those of its way. It depends on nothing but the chain, so that it means
    /// the same after a restart.
    pub(crate) fn number(self) -> u32 {
        let masquerade: u32 = match self.masquerade {
            Masquerade::UnlessFromPod => 0,
            Masquerade::Always => 1,
            Masquerade::Never => 2,
        };
        let affinity = self.affinity.map_or(0, |seconds| WITH_AFFINITY | seconds << SECONDS_SHIFT);
        affinity | masquerade << MASQUERADE_SHIFT | self.endpoints
    }

    /// The slots that a chain of this number balances over, and whether it is one with affinity.
    pub(crate) fn slots_of(number: u32) -> (u32, bool) {
        let sticky = number & WITH_AFFINITY != 0;
        (number & max_endpoints(sticky), sticky)
    }

    /// The element that leads to the chain.
    pub(crate) fn element(self) -> MapElement {
        let data = Data::Verdict(Verdict::Goto(self.name()));
        let element = Element { key: Bytes::new().index(self.number()), data, comment: None };
        MapElement { map: Map::Chains(self.way), element }
    }

    pub(crate) fn name(self) -> Name {
        Name::new(&self.to_string()).expect("a short name of letters, digits and dashes")
    }

    /// The chain of this name, if it is one of this kind.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (head, count) = name.rsplit_once('-')?;
        let endpoints = count.parse().ok().filter(|n| *n > 0)?;
        let affinity = match head.rsplit_once("-sticky-") {
            Some((_, seconds)) => Some(seconds.parse().ok()?),
            None => None,
        };
        Self::all_with(affinity, endpoints).find(|id| id.to_string() == name)
    }

    /// Chains that are made before anybody needs them, while the slot maps are empty and it costs nothing: those of the
    /// usual frontends with up to [`PREPARED`] endpoints.
    pub(crate) fn prepared() -> impl Iterator<Item = Self> {
        let usual = [(false, Masquerade::UnlessFromPod), (true, Masquerade::Always)];
        (1..=PREPARED).flat_map(move |endpoints| {
            usual.map(|(node_port, masquerade)| {
                Self::new(Way { scope: Scope::Everywhere, node_port }, masquerade, None, endpoints)
            })
        })
    }

    fn all_with(affinity: Option<u32>, endpoints: u32) -> impl Iterator<Item = Self> {
        let masquerades = [Masquerade::UnlessFromPod, Masquerade::Always, Masquerade::Never];
        Way::ALL.into_iter().flat_map(move |way| {
            masquerades.map(|masquerade| Self::new(way, masquerade, affinity, endpoints))
        })
    }

    pub(crate) fn spec<F: Family>(self, config: &Config) -> ChainSpec {
        let masquerade = match self.way.scope {
            Scope::Everywhere => masquerade_rule::<F>(self.masquerade, config),
            Scope::Inside => {
                Some(rule([Statement::SourceIsLocal, Statement::SetMarkBit(config.masquerade_mark)]))
            }
        };
        let mut random_slot = self.way.key();
        random_slot.push(Field::NumgenRandom { modulus: self.endpoints });
        let choice = match self.affinity {
            None => vec![rule([Statement::DnatMap { key: random_slot, map: Map::Slots(self.way).name() }])],
            Some(seconds) => sticky_choice(self.way, random_slot, seconds),
        };
        ChainSpec { name: self.name(), base: None, rules: masquerade.into_iter().chain(choice).collect() }
    }
}

/// Choice of the endpoint with affinity. The packet's priority carries an endpoint's number from one rule to the next.
///
/// A client that is remembered goes to its endpoint and is remembered anew, unless the endpoint is gone: then the first rule
/// ends at its last statement, and the client is forgotten and given another one. When the map is full, only remembering
/// fails.
fn sticky_choice(way: Way, random_slot: Vec<Field>, timeout_secs: u32) -> Vec<Rule> {
    let (map, client) = (Map::Affinity(way.node_port).name(), client_key(way.node_port));
    let data = vec![Field::Priority];
    let learn =
        || Statement::Learn { map: map.clone(), key: client.clone(), data: data.clone(), timeout_secs };
    let numbered = [way.key(), data.clone()].concat();
    let go = || Statement::DnatMap { key: numbered.clone(), map: Map::AffinityEndpoints(way).name() };
    vec![
        rule([Statement::SetPriority { key: client.clone(), map: map.clone() }, learn(), go()]),
        rule([Statement::Forget { map: map.clone(), key: client.clone(), data: data.clone() }]),
        rule([Statement::SetPriority { key: random_slot, map: Map::AffinitySlots(way).name() }]),
        rule([learn()]),
        rule([go()]),
    ]
}

/// Takes back what [`dispatch`] and [`sticky_choice`] did to the priority, before a queue sees the packet.
fn clear_priority() -> Rule {
    rule([Statement::CtStateNew, Statement::CtStatusDnat, Statement::ClearPriority])
}

fn rule<const N: usize>(statements: [Statement; N]) -> Rule {
    Rule { statements: statements.into(), comment: None }
}

/// The rule that marks a flow for postrouting.
fn masquerade_rule<F: Family>(masquerade: Masquerade, config: &Config) -> Option<Rule> {
    let mark = Statement::SetMarkBit(config.masquerade_mark);
    match masquerade {
        Masquerade::Never => None,
        Masquerade::Always => Some(rule([mark])),
        Masquerade::UnlessFromPod if config.masquerade_all => Some(rule([mark])),
        Masquerade::UnlessFromPod => {
            from_pod::<F>(config.pods.as_ref()?, true).map(|test| rule([test, mark]))
        }
    }
}

/// The test for packets from pods, or for all others.
fn from_pod<F: Family>(pods: &PodSource, negate: bool) -> Option<Statement> {
    let interface = |name: &String, prefix| Statement::IfnameMatch { name: name.clone(), prefix, negate };
    match pods {
        PodSource::Cidr(net) if !F::owns(net) => None,
        PodSource::Cidr(net) => Some(addr_match(AddrField::Source, *net, negate)),
        PodSource::Interface(name) => Some(interface(name, false)),
        PodSource::InterfacePrefix(name) => Some(interface(name, true)),
    }
}

fn addr_match(field: AddrField, net: IpNet, negate: bool) -> Statement {
    Statement::AddrMatch { field, net: (net.addr(), net.prefix_len()), negate }
}

/// The chains that exist whatever Services there are.
pub(crate) fn fixed<F: Family>(config: &Config) -> Vec<ChainSpec> {
    let chain = |name, rules| ChainSpec { name: Name::from_static(name), base: None, rules };
    let base = |name, kind, hook, priority, rules| ChainSpec {
        name: Name::from_static(name),
        base: Some(BaseChain { kind, hook, priority }),
        rules,
    };
    let nat = |name, hook, rules| base(name, ChainType::Nat, hook, DSTNAT, rules);
    let filter = |name, hook, rules| base(name, ChainType::Filter, hook, FILTER, rules);
    let jump = |to| rule([Statement::Jump(Name::from_static(to))]);
    let new_flows = |to| rule([Statement::CtStateNew, Statement::Jump(Name::from_static(to))]);
    let leaving = || vec![new_flows("services-check"), new_flows("cluster-ips-check"), clear_priority()];
    let early = |name, hook, rules: Vec<Rule>| {
        let rules = rules.into_iter().chain([new_flows("firewall-check")]).collect();
        base(name, ChainType::Filter, hook, BEFORE_DSTNAT, rules)
    };
    vec![
        chain("services", dispatch::<F>(config, Scope::Everywhere)),
        chain("inside-services", dispatch::<F>(config, Scope::Inside)),
        chain("firewall-check", vec![firewall()]),
        chain("services-check", refusals(&ip_key(), false)),
        chain("node-ports-check", node_port_rules::<F>(config, &[go_to("accepted-node-ports-check")])),
        chain("accepted-node-ports-check", refusals(&port_key(), true)),
        chain("cluster-ips-check", cluster_ips_check(config)),
        early("filter-prerouting-pre-dnat", Hook::Prerouting, foreign_loopback::<F>(config)),
        early("filter-output-pre-dnat", Hook::Output, Vec::new()),
        nat("nat-prerouting", Hook::Prerouting, prerouting::<F>(config)),
        // Whatever comes this way is from the node itself.
        nat("nat-output", Hook::Output, vec![jump("inside-services"), jump("services")]),
        base("nat-postrouting", ChainType::Nat, Hook::Postrouting, SRCNAT, masquerading::<F>(config)),
        filter("filter-input", Hook::Input, vec![new_flows("node-ports-check"), new_flows("services-check")]),
        filter("filter-forward", Hook::Forward, leaving()),
        filter("filter-output", Hook::Output, leaving()),
    ]
}

/// Choice of the endpoint for what arrives from elsewhere: pods may take the short cut.
fn prerouting<F: Family>(config: &Config) -> Vec<Rule> {
    let from_pods = config.pods.as_ref().and_then(|pods| from_pod::<F>(pods, false));
    let short_cut = from_pods.map(|test| rule([test, Statement::Jump(Name::from_static("inside-services"))]));
    short_cut.into_iter().chain([rule([Statement::Jump(Name::from_static("services"))])]).collect()
}

/// Dispatch of packets to virtual addresses, then to node ports. The packet's priority carries the number of the chain from
/// one map to the next; it is cleared before the packet leaves ([`clear_priority`]).
fn dispatch<F: Family>(config: &Config, scope: Scope) -> Vec<Rule> {
    let balance = |node_port| {
        let way = Way { scope, node_port };
        let number = Statement::SetPriority { key: way.key(), map: Map::Dispatch(way).name() };
        [number, Statement::Vmap { key: vec![Field::Priority], map: Map::Chains(way).name() }]
    };
    let mut rules = vec![rule(balance(false))];
    rules.extend(node_port_rules::<F>(config, &balance(true)));
    rules
}

/// What nobody serves: refused, or dropped where endpoints are elsewhere.
fn refusals(key: &[Field], node_port: bool) -> Vec<Rule> {
    let refusal = |map: Map, verdict| {
        rule([Statement::InSet { key: key.to_vec(), set: map.name(), negate: false }, verdict])
    };
    vec![
        refusal(Map::Rejected(node_port), Statement::Reject),
        refusal(Map::Dropped(node_port), Statement::Drop),
    ]
}

/// New flows to a load-balancer address from outside of its source ranges. Seen before an endpoint is chosen, since the
/// packet must still have the address that it was sent to.
fn firewall() -> Rule {
    let restricted = Statement::InSet { key: ip_key(), set: Map::Restricted.name(), negate: false };
    let not_allowed = Statement::InSet { key: source_key(), set: Map::AllowedSources.name(), negate: true };
    rule([restricted, not_allowed, Statement::Drop])
}

/// What is sent to a cluster IP and no frontend took: a port or a protocol that the Service does not have is refused, an
/// address that no Service has is dropped. (Where a frontend took a packet, it has the endpoint's address by now.)
fn cluster_ips_check(config: &Config) -> Vec<Rule> {
    let to_cluster_ip =
        Statement::InSet { key: vec![Field::DestAddr], set: Map::ClusterIps.name(), negate: false };
    let unused = |range: &IpNet| rule([addr_match(AddrField::Dest, *range, false), Statement::Drop]);
    let refuse = rule([to_cluster_ip, Statement::Reject]);
    std::iter::once(refuse).chain(config.service_cidrs.iter().map(unused)).collect()
}

/// `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC` and `NF_IP_PRI_FILTER` (`linux/netfilter_ipv4.h`).
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
const BEFORE_DSTNAT: i32 = DSTNAT - 10;
const FILTER: i32 = 0;

fn go_to(chain: &'static str) -> Statement {
    Statement::Goto(Name::from_static(chain))
}

/// What is done with packets to accepted node addresses. Ranges are matched per packet together with the routing table's
/// "is local", so that an address added to the node serves at once.
fn node_port_rules<F: Family>(config: &Config, action: &[Statement]) -> Vec<Rule> {
    let rule_for = |conditions: &[Statement]| Rule {
        statements: [conditions, &[Statement::DestIsLocal], action].concat(),
        comment: None,
    };
    let not_loopback = addr_match(AddrField::Dest, loopback::<F>(), true);
    let mut rules = match config.node_ports.ranges::<F>() {
        None => vec![rule_for(&[not_loopback])],
        Some(ranges) => {
            let within = |range: &IpNet| addr_match(AddrField::Dest, *range, false);
            ranges.iter().map(|range| rule_for(&[within(range), not_loopback.clone()])).collect()
        }
    };
    if serves_localhost::<F>(config) {
        rules.push(rule_for(&[addr_match(AddrField::Dest, loopback::<F>(), false)]));
    }
    rules
}

fn loopback<F: Family>() -> IpNet {
    match F::FAMILY {
        IpFamily::V4 => IpNet::from(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpFamily::V6 => IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
    }
}

/// Whether node ports are served on loopback addresses ([`Config::localhost_node_ports`]).
fn serves_localhost<F: Family>(config: &Config) -> bool {
    config.localhost_node_ports && F::FAMILY == IpFamily::V4
}

/// `route_localnet` has the kernel take in packets with loopback addresses from the network, which would reach whatever
/// listens on them (CVE-2020-8558). Answers to our own flows have the node's address here, and are no new flows.
fn foreign_loopback<F: Family>(config: &Config) -> Vec<Rule> {
    let foreign = |field| {
        let not_lo = Statement::IfnameMatch { name: "lo".into(), prefix: false, negate: true };
        rule([Statement::CtStateNew, not_lo, addr_match(field, loopback::<F>(), false), Statement::Drop])
    };
    if serves_localhost::<F>(config) {
        vec![foreign(AddrField::Dest), foreign(AddrField::Source)]
    } else {
        Vec::new()
    }
}

/// Source rewriting: marked flows, and flows of an endpoint to itself, which would otherwise be answered directly. The
/// mark is cleared, or a packet that is routed again (after encapsulation) would be masqueraded again. A loopback address
/// means nothing to an endpoint, whatever the policies say.
fn masquerading<F: Family>(config: &Config) -> Vec<Rule> {
    let mask = config.masquerade_mark;
    let in_hairpin = Statement::InSet { key: hairpin_key(), set: Map::Hairpin.name(), negate: false };
    let mut rules = vec![
        rule([
            Statement::MarkBitSet { bit: mask, negate: false },
            Statement::XorMark(mask),
            Statement::MasqueradeFullyRandom,
        ]),
        rule([Statement::CtStatusDnat, in_hairpin, Statement::MasqueradeFullyRandom]),
    ];
    if serves_localhost::<F>(config) {
        let from_loopback = addr_match(AddrField::Source, loopback::<F>(), false);
        rules.push(rule([Statement::CtStatusDnat, from_loopback, Statement::MasqueradeFullyRandom]));
    }
    rules
}

/// All chains: the fixed ones and one for each of `balancing`.
pub(crate) fn all<F: Family>(
    config: &Config,
    balancing: impl Iterator<Item = ChainId>,
) -> BTreeMap<Name, ChainSpec> {
    let chains = fixed::<F>(config).into_iter().chain(balancing.map(|id| id.spec::<F>(config)));
    chains.map(|chain| (chain.name.clone(), chain)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_chains_of_a_way_have_the_same_number() {
        let counts = [1, 2, 4095, 4096, 70_000];
        let affinities = [None, Some(1), Some(2), Some(86_400)];
        let ids = counts
            .into_iter()
            .flat_map(|n| affinities.into_iter().flat_map(move |a| ChainId::all_with(a, n)));
        let ids: BTreeSet<ChainId> = ids.filter(|id| id.way == Way::ALL[0]).collect();
        let numbers: BTreeSet<u32> = ids.iter().map(|id| id.number()).collect();
        assert_eq!(numbers.len(), ids.len());
        for id in &ids {
            assert_eq!(ChainId::slots_of(id.number()), (id.endpoints, id.affinity.is_some()));
        }
        assert!(!numbers.contains(&0), "0 is what a packet has that nobody gave a number");
    }

    #[test]
    fn the_chains_that_choose_are_known() {
        let before_routing = [Hook::Prerouting, Hook::Output];
        let chooses = |chain: &ChainSpec| {
            let base = chain.base.as_ref();
            base.is_some_and(|base| base.kind == ChainType::Nat && before_routing.contains(&base.hook))
        };
        let chains = fixed::<model::V4>(&Config::default()).into_iter().filter(chooses);
        let names: Vec<Name> = chains.map(|chain| chain.name).collect();
        assert_eq!(names, crate::choosing_chains());
    }

    #[test]
    fn chain_names_are_read_back() {
        let ids: Vec<ChainId> =
            ChainId::all_with(None, 12).chain(ChainId::all_with(Some(10_800), 3)).collect();
        assert_eq!(ids.len(), 24);
        for id in ids {
            assert_eq!(ChainId::parse(&id.to_string()), Some(id));
        }
        for other in [
            "services",
            "service-0",
            "service-",
            "service-x-3",
            "accepted-node-ports-check",
            "service-03",
            "service-sticky-3",
            "-3",
            "3",
        ] {
            assert_eq!(ChainId::parse(other), None, "{other}");
        }
    }
}
