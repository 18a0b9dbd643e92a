//! The chains where IPVS chooses endpoints.
//!
//! A packet to a virtual server is local to the host, so it comes through prerouting and input. There IPVS takes it, behind all
//! filters (`NF_IP_PRI_NAT_SRC - 1`), and sends it out through output and postrouting with the endpoint's address; the host's own
//! it takes in output before filters (`NF_IP_PRI_NAT_DST + 2`). Hence:
//!
//! - what is to be masqueraded is marked where the packet still has the address that it was sent to, and the mark is seen in
//!   postrouting as in mode nftables. Flows that IPVS directs have no translation by rules, so conntrack's status says nothing;
//! - what the host itself sends to a Service's address has that address as its source as well, since it is local: it is always
//!   masqueraded;
//! - a proxy of this node that has a [lease] has the flows of its Services before IPVS sees them;
//! - the other ports of such addresses would be those of the host, and are closed;
//! - internal flows that take the short cut of `externalTrafficPolicy: Local` have another choice of endpoints than others of
//!   the same address, which no virtual server can have. Rules direct them, before IPVS sees them.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{Family, Masquerade};
use nft::{AddrField, Field, Name, Rule, Statement};

use crate::chains::{ChainSpec, addr_match, from_pod, node_port_rules, rule};
use crate::config::Config;
use crate::layout::{IpvsMasquerade, Map, frontend_key, hairpin_key};
use crate::lease;

/// Makes the chains by which rules choose endpoints those beside IPVS.
pub(crate) fn adapt<F: Family>(chains: &mut Vec<ChainSpec>, config: &Config, node_addresses: &[IpAddr]) {
    let is_offered = config.balancer.proxied().is_some();
    chains.retain(|chain| is_offered || &*chain.name != "services");
    for chain in chains.iter_mut() {
        match &*chain.name {
            "nat-prerouting" | "nat-output" if is_offered => {}
            "nat-prerouting" | "nat-output" => chain.rules.retain(|rule| !is_jump(rule, "services")),
            "nat-postrouting" => chain.rules = masquerading(config),
            "filter-prerouting-pre-dnat" => chain.rules.push(new_flows("ipvs-masquerade")),
            "filter-output-pre-dnat" => chain.rules.push(new_flows("ipvs-masquerade-own")),
            "filter-input" => chain.rules.push(new_flows("virtual-ips-check")),
            // Behind the refusals, before what is dropped of ranges.
            "filter-output" => {
                chain.rules.insert(1, new_flows("virtual-ips-check"));
                if is_offered {
                    chain.rules.splice(0..0, lease::unmark(config.masquerade_mark));
                }
            }
            _ => {}
        }
    }
    let chain = |name, rules| ChainSpec { name: Name::from_static(name), base: None, rules };
    chains.extend([
        chain("ipvs-masquerade", marking::<F>(config, false)),
        chain("ipvs-masquerade-own", marking::<F>(config, true)),
        chain("virtual-ips-check", virtual_ips_check(node_addresses)),
    ]);
}

fn new_flows(chain: &'static str) -> Rule {
    rule([Statement::CtStateNew, Statement::Jump(Name::from_static(chain))])
}

fn is_jump(rule: &Rule, to: &str) -> bool {
    matches!(rule.statements.last(), Some(Statement::Jump(chain)) if &**chain == to)
}

fn in_set(when: IpvsMasquerade, by_node_port: bool) -> Statement {
    let set = Map::Ipvs(when, by_node_port).name();
    Statement::InSet { key: frontend_key(by_node_port), set, negate: false }
}

/// Marks what is to be masqueraded, of the node's own packets or of others.
fn marking<F: Family>(config: &Config, own: bool) -> Vec<Rule> {
    let mark = Statement::SetMarkBit(config.masquerade_mark);
    let not_from_pod = config.pods.as_ref().and_then(|pods| from_pod::<F>(pods, true));
    let mut rules = Vec::new();
    for when in IpvsMasquerade::ALL {
        let action = match when.0 {
            _ if own => vec![mark.clone()],
            Masquerade::Always => vec![mark.clone()],
            Masquerade::UnlessFromPod if config.masquerade_all => vec![mark.clone()],
            Masquerade::UnlessFromPod => match &not_from_pod {
                Some(test) => vec![test.clone(), mark.clone()],
                None => continue,
            },
            Masquerade::Never => continue,
        };
        let statements = [vec![in_set(when, false)], action.clone()].concat();
        rules.push(Rule { statements, comment: None });
        rules.extend(node_port_rules::<F>(config, &[vec![in_set(when, true)], action].concat()));
    }
    rules
}

/// Refuses what is sent to a virtual server's address, but to no port that it serves. Whatever the node has at addresses of its
/// own stays reachable.
fn virtual_ips_check(node_addresses: &[IpAddr]) -> Vec<Rule> {
    let own = node_addresses
        .iter()
        .map(|address| rule([addr_match(AddrField::Dest, IpNet::from(*address), false), Statement::Return]));
    let to_virtual_ip =
        Statement::InSet { key: vec![Field::DestAddr], set: Map::VirtualIps.name(), negate: false };
    let closed = rule([to_virtual_ip, Statement::Reject]);
    let served = IpvsMasquerade::ALL.into_iter().map(|when| rule([in_set(when, false), Statement::Return]));
    served.chain(own).chain([closed]).collect()
}

/// As in mode nftables, but whatever translated the destination. What the node sends to itself is no hairpin: it went to a
/// Service and is marked, or it did not.
fn masquerading(config: &Config) -> Vec<Rule> {
    let mask = config.masquerade_mark;
    let in_hairpin = Statement::InSet { key: hairpin_key(), set: Map::Hairpin.name(), negate: false };
    vec![
        rule([
            Statement::MarkBitSet { bit: mask, negate: false },
            Statement::XorMark(mask),
            Statement::MasqueradeFullyRandom,
        ]),
        rule([Statement::SourceIsLocal, Statement::Return]),
        rule([in_hairpin, Statement::MasqueradeFullyRandom]),
    ]
}
