//! Whose what rules have counted is: the rules say so themselves.
//!
//! A rule that translates the destination counts new flows to an endpoint, since only their first packets pass table `nat`; one that
//! refuses or drops for want of endpoints counts these packets. Counters begin anew whenever their chain is written.

use std::collections::HashMap;
use std::net::SocketAddr;

use iptables::{CountedRule, TableName};
use mode::{Counters, Meter};
use model::{ObjectName, Protocol, ServicePortName};
use rustc_hash::FxBuildHasher;

use crate::names::{EXTERNAL_SERVICES, NODE_PORTS, PROXY_FIREWALL, SERVICES, is_of_service, kind_and_suffix};

/// Chains whose rules tell something.
pub(crate) fn is_wanted(table: TableName, chain: &str) -> bool {
    let entries = [SERVICES, EXTERNAL_SERVICES, NODE_PORTS, PROXY_FIREWALL];
    is_of_service(table, chain) || entries.iter().any(|entry| entry.name().as_str() == chain)
}

/// The counters that are somebody's, but for those that say nothing yet.
pub(crate) fn meters(rules: &[CountedRule]) -> Vec<Meter> {
    let owners = owners(rules);
    rules.iter().filter(|rule| rule.packets > 0).filter_map(|rule| meter(rule, &owners)).collect()
}

/// Service ports by what their chains' names end with.
type Owners<'a> = HashMap<&'a str, ServicePortName, FxBuildHasher>;

/// From the rules that lead to a Service port's chains, which have its name as a comment.
fn owners(rules: &[CountedRule]) -> Owners<'_> {
    let entries =
        rules.iter().filter(|rule| rule.table == TableName::Nat && !is_of_service(rule.table, &rule.chain));
    entries.filter_map(|rule| Some((kind_and_suffix(target(&rule.text)?)?.1, service_port(rule)?))).collect()
}

fn meter(rule: &CountedRule, owners: &Owners<'_>) -> Option<Meter> {
    let packets = rule.packets;
    if let Some(endpoint) = translated_to(&rule.text) {
        let (is_endpoint, suffix) = kind_and_suffix(&rule.chain)?;
        // The chain of an endpoint has a name that is made of more than the Service port's.
        let service = if is_endpoint { service_port(rule)? } else { owners.get(suffix)?.clone() };
        let counters = Counters::connections(packets);
        return Some(Meter { service, endpoint: Some(endpoint), id: id(rule), counters });
    }
    let counters = if is_about(rule, " has no endpoints") {
        Counters { refused: packets, ..Counters::default() }
    } else if [" has no local endpoints", " traffic not accepted by "].iter().any(|why| is_about(rule, why)) {
        Counters { dropped: packets, ..Counters::default() }
    } else {
        return None;
    };
    Some(Meter { service: service_port(rule)?, endpoint: None, id: id(rule), counters })
}

fn is_about(rule: &CountedRule, what: &str) -> bool {
    comment(&rule.text).is_some_and(|comment| comment.contains(what))
}

/// The Service port that a rule's comment begins with, with the rule's protocol.
fn service_port(rule: &CountedRule) -> Option<ServicePortName> {
    let name = comment(&rule.text)?.split(' ').next()?;
    let (namespace, rest) = name.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    let protocol = after(&rule.text, "-p ")?.to_uppercase().parse::<Protocol>().ok()?;
    Some(ServicePortName { service: ObjectName::new(namespace, service), port: port.into(), protocol })
}

fn comment(text: &str) -> Option<&str> {
    text.split_once("--comment \"")?.1.split('"').next()
}

fn translated_to(text: &str) -> Option<SocketAddr> {
    after(text, "-j DNAT --to-destination ")?.parse().ok()
}

fn target(text: &str) -> Option<&str> {
    after(text, "-j ")
}

/// The word that follows.
fn after<'a>(text: &'a str, option: &str) -> Option<&'a str> {
    text.split_once(option)?.1.split(' ').next()
}

/// A number for a rule: it is the same one while its chain and text are.
fn id(rule: &CountedRule) -> u64 {
    use std::hash::BuildHasher;
    FxBuildHasher.hash_one((rule.table, &rule.chain, &rule.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(table: TableName, text: &str, packets: u64) -> CountedRule {
        let (chain, text) = text.split_once(' ').unwrap();
        CountedRule { table, chain: chain.into(), text: text.into(), packets }
    }

    /// Rules as in the snapshots of rulesets.
    #[test]
    fn rules_say_whose_they_are() {
        let nat = |text, packets| rule(TableName::Nat, text, packets);
        let filter = |text, packets| rule(TableName::Filter, text, packets);
        let rules = [
            nat(
                "KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment \"shop/web:main external IP\" -m tcp --dport 80 -j KUBE-EXT-62GZHOJW2PQVC6NE",
                0,
            ),
            nat(
                "KUBE-SEP-JC4OK3VUFYUBETJS -s 10.244.0.1/32 -m comment --comment \"shop/web:main\" -j KUBE-MARK-MASQ",
                9,
            ),
            nat(
                "KUBE-SEP-JC4OK3VUFYUBETJS -p tcp -m comment --comment \"shop/web:main\" -m tcp -j DNAT --to-destination 10.244.0.1:8080",
                3,
            ),
            nat(
                "KUBE-SVC-62GZHOJW2PQVC6NE -m comment --comment \"shop/web:main -> 10.244.0.1:8080\" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-JC4OK3VUFYUBETJS",
                3,
            ),
            nat("KUBE-SVC-62GZHOJW2PQVC6NE -p tcp -j DNAT --to-destination 10.244.1.3:8080", 4),
            nat("KUBE-SVC-62GZHOJW2PQVC6NE -p tcp -j DNAT --to-destination 10.244.1.4:8080", 0),
            nat("KUBE-SVC-NOBODYSNOBODYSNO -p tcp -j DNAT --to-destination 10.244.1.5:8080", 4),
            filter(
                "KUBE-SERVICES -d 10.96.0.11/32 -p udp -m comment --comment \"shop/gone:main has no endpoints\" -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable",
                5,
            ),
            filter(
                "KUBE-EXTERNAL-SERVICES -d 203.0.113.9/32 -p tcp -m comment --comment \"shop/far has no local endpoints\" -m tcp --dport 80 -j DROP",
                6,
            ),
        ];
        let found: Vec<String> = meters(&rules)
            .into_iter()
            .map(|Meter { service, endpoint, counters, .. }| {
                let Counters { connections, refused, dropped, .. } = counters;
                let endpoint = endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
                format!("{service} {} {endpoint} {connections} {refused} {dropped}", service.protocol)
            })
            .collect();
        let expected = [
            "shop/web:main TCP 10.244.0.1:8080 3 0 0",
            "shop/web:main TCP 10.244.1.3:8080 4 0 0",
            "shop/gone:main UDP  0 5 0",
            "shop/far TCP  0 0 6",
        ];
        assert_eq!(found, expected);
    }
}
