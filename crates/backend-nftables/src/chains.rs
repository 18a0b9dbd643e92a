//! The chains: fixed ones, and one for each way of balancing over N endpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{Family, FrontendAddress, IpFamily, Masquerade};
use nft::{AddrField, BaseChain, ChainType, Field, Hook, Name, Rule, Statement};

use crate::config::{Config, PodSource};
use crate::layout::{Map, hairpin_key, ip_key, port_key};

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainSpec {
    pub(crate) name: Name,
    pub(crate) base: Option<BaseChain>,
    pub(crate) rules: Vec<Rule>,
}

/// A chain that balances over a number of endpoints, shared by all frontends for which all three fields are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId {
    /// Whether the chain serves node ports (else virtual addresses).
    pub node_port: bool,
    /// Whether flows are masqueraded.
    pub masquerade: Masquerade,
    /// Number of endpoints; never 0.
    pub endpoints: u32,
}

/// `service-3`, `node-port-masq-3`: the name is the only thing that a chain is recognised by.
impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = if self.node_port { "node-port" } else { "service" };
        write!(f, "{target}{}-{}", masquerade_suffix(self.masquerade), self.endpoints)
    }
}

fn masquerade_suffix(masquerade: Masquerade) -> &'static str {
    match masquerade {
        Masquerade::UnlessFromPod => "",
        Masquerade::Always => "-masq",
        Masquerade::Never => "-nomasq",
    }
}

impl ChainId {
    /// The chain for a frontend with this address.
    pub(crate) fn new<F: Family>(
        address: FrontendAddress<F>,
        masquerade: Masquerade,
        endpoints: u32,
    ) -> Self {
        Self { node_port: address == FrontendAddress::Node, masquerade, endpoints }
    }

    pub(crate) fn name(self) -> Name {
        Name::new(&self.to_string()).expect("a short name of letters, digits and dashes")
    }

    /// The chain of this name, if it is one of this kind.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (_, count) = name.rsplit_once('-')?;
        let endpoints = count.parse().ok().filter(|n| *n > 0)?;
        let masquerades = [Masquerade::UnlessFromPod, Masquerade::Always, Masquerade::Never];
        let ids = [false, true]
            .into_iter()
            .flat_map(|node_port| masquerades.map(|masquerade| Self { node_port, masquerade, endpoints }));
        ids.into_iter().find(|id| id.to_string() == name)
    }

    pub(crate) fn spec<F: Family>(self, config: &Config) -> ChainSpec {
        let (map, mut key) =
            if self.node_port { (Map::NodePortEndpoints, port_key()) } else { (Map::Endpoints, ip_key()) };
        key.push(Field::NumgenRandom { modulus: self.endpoints });
        let mut rules = Vec::new();
        rules.extend(masquerade_rule::<F>(self.masquerade, config));
        rules.push(rule([Statement::DnatMap { key, map: map.name() }]));
        ChainSpec { name: self.name(), base: None, rules }
    }
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
        Masquerade::UnlessFromPod => not_from_pod::<F>(config.pods.as_ref()?).map(|test| rule([test, mark])),
    }
}

fn not_from_pod<F: Family>(pods: &PodSource) -> Option<Statement> {
    let interface =
        |name: &String, prefix| Statement::IfnameMatch { name: name.clone(), prefix, negate: true };
    match pods {
        PodSource::Cidr(net) if IpFamily::of(net.addr()) != F::FAMILY => None,
        PodSource::Cidr(net) => Some(addr_match(AddrField::Source, *net, true)),
        PodSource::Interface(name) => Some(interface(name, false)),
        PodSource::InterfacePrefix(name) => Some(interface(name, true)),
    }
}

fn addr_match(field: AddrField, net: IpNet, negate: bool) -> Statement {
    Statement::AddrMatch { field, net: (net.addr(), net.prefix_len()), negate }
}

/// Where a packet that nobody serves ends; elements of the `no-endpoint` maps go there.
pub(crate) fn reject_chain() -> Name {
    Name::from_static("reject-chain")
}

/// The chains that exist whatever Services there are.
pub(crate) fn fixed<F: Family>(config: &Config) -> Vec<ChainSpec> {
    let services = Name::from_static("services");
    let base = |name, kind, hook, priority, rules| ChainSpec {
        name: Name::from_static(name),
        base: Some(BaseChain { kind, hook, priority }),
        rules,
    };
    let dnat = |name, hook| {
        base(name, ChainType::Nat, hook, DSTNAT, vec![rule([Statement::Jump(services.clone())])])
    };
    let no_endpoints = rule([Statement::CtStateNew, vmap(ip_key(), Map::NoEndpointServices)]);
    let mut input = node_port_rules::<F>(config, Map::NoEndpointNodePorts);
    for rule in &mut input {
        rule.statements.insert(0, Statement::CtStateNew);
    }
    input.push(no_endpoints.clone());
    let mut dispatch = vec![rule([vmap(ip_key(), Map::ServiceIps)])];
    dispatch.extend(node_port_rules::<F>(config, Map::ServiceNodePorts));
    vec![
        ChainSpec { name: reject_chain(), base: None, rules: vec![rule([Statement::Reject])] },
        ChainSpec { name: services.clone(), base: None, rules: dispatch },
        dnat("nat-prerouting", Hook::Prerouting),
        dnat("nat-output", Hook::Output),
        base("nat-postrouting", ChainType::Nat, Hook::Postrouting, SRCNAT, masquerading(config)),
        base("filter-input", ChainType::Filter, Hook::Input, FILTER, input),
        base("filter-forward", ChainType::Filter, Hook::Forward, FILTER, vec![no_endpoints.clone()]),
        base("filter-output", ChainType::Filter, Hook::Output, FILTER, vec![no_endpoints]),
    ]
}

/// `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC` and `NF_IP_PRI_FILTER` (`linux/netfilter_ipv4.h`).
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
const FILTER: i32 = 0;

fn vmap(key: Vec<Field>, map: Map) -> Statement {
    Statement::Vmap { key, map: map.name() }
}

/// Dispatch of packets to accepted node addresses. Ranges are matched per packet together with the routing table's "is
/// local", so that an address added to the node serves at once.
fn node_port_rules<F: Family>(config: &Config, map: Map) -> Vec<Rule> {
    let loopback = match F::FAMILY {
        IpFamily::V4 => IpNet::from(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpFamily::V6 => IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
    };
    let tail = || {
        let not_loopback = addr_match(AddrField::Dest, loopback, true);
        [not_loopback, Statement::DestIsLocal, vmap(port_key(), map)]
    };
    match config.node_ports.ranges::<F>() {
        None => vec![rule(tail())],
        Some(ranges) => {
            let within = |range: &IpNet| {
                let mut statements = vec![addr_match(AddrField::Dest, *range, false)];
                statements.extend(tail());
                Rule { statements, comment: None }
            };
            ranges.iter().map(within).collect()
        }
    }
}

/// Source rewriting: marked flows, and flows of an endpoint to itself, which would otherwise be answered directly. The
/// mark is cleared, or a packet that is routed again (after encapsulation) would be masqueraded again.
fn masquerading(config: &Config) -> Vec<Rule> {
    let mask = config.masquerade_mark;
    let in_hairpin = Statement::InSet { key: hairpin_key(), set: Map::Hairpin.name(), negate: false };
    vec![
        rule([
            Statement::MarkBitSet { bit: mask, negate: false },
            Statement::XorMark(mask),
            Statement::MasqueradeFullyRandom,
        ]),
        rule([Statement::CtStatusDnat, in_hairpin, Statement::MasqueradeFullyRandom]),
    ]
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
    use super::*;

    #[test]
    fn chain_names_are_read_back() {
        for node_port in [false, true] {
            for masquerade in [Masquerade::Never, Masquerade::UnlessFromPod, Masquerade::Always] {
                let id = ChainId { node_port, masquerade, endpoints: 12 };
                assert_eq!(ChainId::parse(&id.to_string()), Some(id));
            }
        }
        for other in
            ["services", "service-0", "service-", "service-x-3", "reject-chain", "service-03", "-3", "3"]
        {
            assert_eq!(ChainId::parse(other), None, "{other}");
        }
    }
}
