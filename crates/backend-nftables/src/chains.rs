//! The chains that exist whatever Services there are.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{Balancer, Family, IpFamily, Masquerade, PodSource};
use nft::{
    AddrField, BaseChain, Bytes, ChainType, Data, Element, Field, Hook, Name, Rule, Statement, Verdict,
};

use crate::affinity;
use crate::beside;
use crate::config::Config;
use crate::ipvs;
use crate::layout::{
    Map, MapElement, Traffic, frontend_key, hairpin_key, ip_key, port_key, slot_key, source_key,
};
use crate::lease;
use crate::priority::{
    self, ChoiceChain, MAX_AFFINITY_ENDPOINTS, MAX_ENDPOINTS, MasqueradeWhen, POOL, PROXIED,
    PROXIED_INTERNAL, Slots,
};

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainSpec {
    pub(crate) name: Name,
    pub(crate) base: Option<BaseChain>,
    pub(crate) rules: Vec<Rule>,
}

/// How often a slot is drawn from twice as many as there might be endpoints, before it is drawn from those alone that surely
/// have one.
const TRIES: usize = 8;

/// The numbers of slots to draw from, one after the other until there is an endpoint in the slot.
///
/// `numgen` draws below a constant, and a chain for each number of endpoints would be made and left behind as Services grow
/// and shrink, which is dear: the kernel walks a whole map when a rule is bound to it (`nf_tables_bind_set`). So there are
/// chains for powers of two alone. More than half of their slots have an endpoint, each as likely as any other; after
/// [`TRIES`] in vain (one flow in 256 at worst) the lower half is drawn from, all of which has.
pub(crate) fn tries(slots: Slots) -> impl Iterator<Item = Slots> {
    match slots.count() {
        // Then each slot has one.
        1 | 2 => std::iter::repeat_n(slots, 1).chain(None),
        _ => std::iter::repeat_n(slots, TRIES).chain(Some(slots.half())),
    }
}

/// The chain that translates to an endpoint of the pool whose number the packet's priority has.
fn choice(slots: Slots) -> ChainSpec {
    let draws = tries(slots).map(|slots| rule([Statement::Jump(draw_name(slots))]));
    let rules = std::iter::once(rule([Statement::MaskPriority(POOL)])).chain(draws).collect();
    ChainSpec { name: choice_name(slots), base: None, rules }
}

fn choice_name(slots: Slots) -> Name {
    Name::new(&format!("choice-{}", slots.count())).expect("a short name of letters, digits and a dash")
}

/// The chain that draws a slot, and comes back if there is no endpoint in it.
///
/// It is a chain of its own, since for each new element of a map the kernel looks at all rules that translate by the map
/// (`nft_add_set_elem`): with a rule for each try a cold start took three times as long.
fn draw(slots: Slots) -> ChainSpec {
    let key = slot_key(Field::NumgenRandom { modulus: slots.count() });
    let rules = vec![rule([Statement::DnatMap { key, map: Map::Endpoints.name() }])];
    ChainSpec { name: draw_name(slots), base: None, rules }
}

fn draw_name(slots: Slots) -> Name {
    Name::new(&format!("draw-{}", slots.count())).expect("a short name of letters, digits and a dash")
}

/// The elements that lead to chains of choice.
pub(crate) fn choice_elements() -> impl Iterator<Item = MapElement> {
    let element = |chain: ChoiceChain, name| {
        let data = Data::Verdict(Verdict::Goto(name));
        let element = Element { key: Bytes::new().index(chain.bits()), data, comment: None };
        MapElement::new(Map::Chains, element)
    };
    let random =
        Slots::up_to(MAX_ENDPOINTS).map(move |slots| element(ChoiceChain::Random(slots), choice_name(slots)));
    random.chain([element(ChoiceChain::Affinity, Name::from_static("affinity"))])
}

/// What is done with packets of Services: handed to a proxy that has a lease, or marked if they are to be masqueraded, then sent to the chain of their choice. The
/// packet's priority says both ([`crate::priority`]).
fn balance<F: Family>(config: &Config) -> Vec<Rule> {
    let mark = Statement::SetMarkBit(config.masquerade_mark);
    let when = |masquerade: MasqueradeWhen| Statement::PriorityBitsAre {
        mask: priority::MASQUERADE,
        value: masquerade.bits(),
    };
    let always = rule([when(MasqueradeWhen::Frontend(Masquerade::Always)), mark.clone()]);
    let unless_from_pod = when(MasqueradeWhen::Frontend(Masquerade::UnlessFromPod));
    let unless_from_pod = if config.masquerade_all {
        Some(rule([unless_from_pod, mark.clone()]))
    } else {
        let not_from_pod = config.pods.as_ref().and_then(|pods| from_pod::<F>(pods, true));
        not_from_pod.map(|test| rule([unless_from_pod, test, mark.clone()]))
    };
    let from_node = rule([when(MasqueradeWhen::FromNode), Statement::SourceIsLocal, mark]);
    let (proxied, chain) = match config.balancer.proxied() {
        Some(_) => (lease::rules(&config.balancer), priority::CHAIN & !PROXIED & !PROXIED_INTERNAL),
        None => (Vec::new(), priority::CHAIN),
    };
    let chain = Field::PriorityBits { mask: chain };
    let choose = rule([Statement::Vmap { key: vec![chain], map: Map::Chains.name() }]);
    proxied.into_iter().chain([always]).chain(unless_from_pod).chain([from_node, choose]).collect()
}

/// To the chain of the pool itself, which knows its clients.
fn affinity_dispatch() -> Vec<Rule> {
    let own_chain = Statement::Vmap { key: vec![Field::Priority], map: Map::AffinityChains.name() };
    vec![rule([Statement::MaskPriority(POOL), own_chain])]
}

/// Takes back what [`dispatch`] and the chains behind it did to the priority, before a queue sees the packet.
fn clear_priority() -> Rule {
    rule([Statement::CtStateNew, Statement::CtStatusDnat, Statement::ClearPriority])
}

pub(crate) fn rule<const N: usize>(statements: [Statement; N]) -> Rule {
    Rule { statements: statements.into(), comment: None }
}

/// The test for packets from pods, or for all others.
pub(crate) fn from_pod<F: Family>(pods: &PodSource, negate: bool) -> Option<Statement> {
    let interface = |name: &String, prefix| Statement::IfnameMatch { name: name.clone(), prefix, negate };
    match pods {
        PodSource::Cidr(net) if !F::owns(net) => None,
        PodSource::Cidr(net) => Some(addr_match(AddrField::Source, *net, negate)),
        PodSource::Interface(name) => Some(interface(name, false)),
        PodSource::InterfacePrefix(name) => Some(interface(name, true)),
    }
}

pub(crate) fn addr_match(field: AddrField, net: IpNet, negate: bool) -> Statement {
    Statement::AddrMatch { field, net: (net.addr(), net.prefix_len()), negate }
}

/// The chains that exist whatever Services there are.
pub(crate) fn fixed<F: Family>(config: &Config) -> Vec<ChainSpec> {
    let mut chains = balancing::<F>(config);
    match &config.balancer {
        Balancer::Rules | Balancer::Proxies(_) => {}
        Balancer::Ipvs { node_addresses, .. } => ipvs::adapt::<F>(&mut chains, config, node_addresses),
        Balancer::OtherRules(_) => beside::adapt(&mut chains),
    }
    chains
}

/// The chains with which the rules themselves choose endpoints.
fn balancing<F: Family>(config: &Config) -> Vec<ChainSpec> {
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
    let mut chains = vec![
        chain("services", dispatch::<F>(config, Traffic::Any)),
        chain("internal-services", dispatch::<F>(config, Traffic::Internal)),
        chain("balance", balance::<F>(config)),
        chain("affinity", affinity_dispatch()),
        affinity::dnat(),
        chain("firewall-check", vec![firewall()]),
        chain("services-check", refusals(&ip_key(), false)),
        chain("node-ports-check", node_port_rules::<F>(config, &[go_to("accepted-node-ports-check")])),
        chain("accepted-node-ports-check", refusals(&port_key(), true)),
        chain("cluster-ips-check", cluster_ips_check(config)),
        early("filter-prerouting-pre-dnat", Hook::Prerouting, foreign_loopback::<F>(config)),
        early("filter-output-pre-dnat", Hook::Output, Vec::new()),
        nat("nat-prerouting", Hook::Prerouting, prerouting::<F>(config)),
        // Whatever comes this way is from the node itself.
        nat("nat-output", Hook::Output, vec![jump("internal-services"), jump("services")]),
        base("nat-postrouting", ChainType::Nat, Hook::Postrouting, SRCNAT, masquerading::<F>(config)),
        filter("filter-input", Hook::Input, vec![new_flows("node-ports-check"), new_flows("services-check")]),
        filter("filter-forward", Hook::Forward, leaving()),
        filter("filter-output", Hook::Output, leaving()),
    ];
    chains.extend(Slots::up_to(MAX_ENDPOINTS).flat_map(|slots| [choice(slots), draw(slots)]));
    chains.extend(Slots::up_to(MAX_AFFINITY_ENDPOINTS).map(affinity::choice));
    chains
}

/// Choice of the endpoint for what arrives from elsewhere: pods may take the short cut.
fn prerouting<F: Family>(config: &Config) -> Vec<Rule> {
    let from_pods = config.pods.as_ref().and_then(|pods| from_pod::<F>(pods, false));
    let short_cut =
        from_pods.map(|test| rule([test, Statement::Jump(Name::from_static("internal-services"))]));
    short_cut.into_iter().chain([rule([Statement::Jump(Name::from_static("services"))])]).collect()
}

/// Dispatch of packets to virtual addresses, then to node ports. The packet's priority carries what the one map yields to
/// the next; it is cleared before the packet leaves ([`clear_priority`]).
fn dispatch<F: Family>(config: &Config, traffic: Traffic) -> Vec<Rule> {
    let balance = |by_node_port| {
        let map = Map::Frontends(traffic, by_node_port).name();
        [Statement::SetPriority { key: frontend_key(by_node_port), map }, go_to("balance")]
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
    let counted = Statement::InSet { key: ip_key(), set: Map::SourceDropped.name(), negate: false };
    rule([restricted, not_allowed, counted, Statement::Drop])
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
pub(crate) const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
const BEFORE_DSTNAT: i32 = DSTNAT - 10;
const FILTER: i32 = 0;

fn go_to(chain: &'static str) -> Statement {
    Statement::Goto(Name::from_static(chain))
}

/// What is done with packets to accepted node addresses. Ranges are matched per packet together with the routing table's
/// "is local", so that an address added to the node serves at once.
pub(crate) fn node_port_rules<F: Family>(config: &Config, action: &[Statement]) -> Vec<Rule> {
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

/// All chains: those that exist whatever Services there are, and one for each pool with affinity.
pub(crate) fn all<F: Family>(
    config: &Config,
    affinity: impl Iterator<Item = ChainSpec>,
) -> BTreeMap<Name, ChainSpec> {
    fixed::<F>(config).into_iter().chain(affinity).map(|chain| (chain.name.clone(), chain)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
