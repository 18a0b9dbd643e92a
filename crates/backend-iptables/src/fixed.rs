//! What stands in the tables whatever Services there are.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use iptables::{AddrField, ChainName, Edit, Interface, Match, Negatable, Restore, Rule, TableName, Target};
use model::{Family, IpFamily, PodSource, ServiceName};

use crate::config::Config;
use crate::names::{
    CANARY, EXTERNAL_SERVICES, FIREWALL, FORWARD, FixedChain, MARK_MASQ, NODE_PORTS, POSTROUTING,
    PROXY_FIREWALL, SERVICES,
};
use crate::objects::{Objects, text};

/// A chain whose rules are single entries, and then some in a fixed order.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) table: TableName,
    pub(crate) chain: FixedChain,
    /// The rules after all entries.
    pub(crate) last: Vec<Rule>,
}

/// A rule in a chain that others write to as well. It is put in if it is missing, and left where it is.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: TableName,
    pub(crate) chain: ChainName,
    pub(crate) rule: Rule,
    pub(crate) place: Place,
}

/// Where a missing rule is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before all others of a built-in chain.
    First,
    /// Behind the others of a chain that is made if it is missing.
    Last,
}

/// The chains with entries.
pub(crate) fn dispatch<F: Family>(config: &Config) -> Vec<Dispatch> {
    let plain = |table, chain| Dispatch { table, chain, last: Vec::new() };
    vec![
        Dispatch { table: TableName::Filter, chain: SERVICES, last: vec![own_external()] },
        plain(TableName::Filter, EXTERNAL_SERVICES),
        plain(TableName::Filter, PROXY_FIREWALL),
        plain(TableName::Nat, NODE_PORTS),
        Dispatch { table: TableName::Nat, chain: SERVICES, last: to_node_ports::<F>(config) },
    ]
}

const EXTERNAL_PORTALS: &str = "kubernetes externally-visible service portals";

/// The node's own flows to external addresses that nobody serves are refused, not sent away. (Those to the node's own
/// addresses come in again, and are refused then.)
fn own_external() -> Rule {
    Rule::jump(EXTERNAL_SERVICES.name())
        .comment(EXTERNAL_PORTALS)
        .when(Match::IsLocal(Negatable::is(AddrField::Source)))
        .when(Match::IsLocal(Negatable::is_not(AddrField::Dest)))
}

/// The chains without, but for that of [`health_checks`].
pub(crate) fn chains(config: &Config) -> Objects {
    let mut objects = Objects::default();
    for table in TableName::ALL {
        objects.chain(table, ChainName::from_static(CANARY), vec![canary()]);
    }
    objects.chain(TableName::Filter, FORWARD.name(), forward(config));
    let mark = config.masquerade_mark;
    objects.chain(TableName::Nat, MARK_MASQ.name(), vec![Rule::to(Target::Mark { xor: mark, mask: mark })]);
    objects.chain(TableName::Nat, POSTROUTING.name(), masquerading(config));
    objects
}

/// A rule that does nothing: emptying a table leaves the chain, but not the rule.
fn canary() -> Rule {
    Rule::default().comment("kube-proxy writes its rules anew when this one is gone")
}

/// Hosts that forward nothing by default let through what is ours.
fn forward(config: &Config) -> Vec<Rule> {
    let invalid = Rule::to(Target::Drop).in_state(&["INVALID"]);
    let ours = Rule::to(Target::Accept)
        .comment("kubernetes forwarding rules")
        .when(Match::MarkBit(Negatable::is(config.masquerade_mark)));
    let known = Rule::to(Target::Accept)
        .comment("kubernetes forwarding conntrack rule")
        .in_state(&["RELATED", "ESTABLISHED"]);
    config.drop_invalid.then_some(invalid).into_iter().chain([ours, known]).collect()
}

/// The chain that lets packets to these `healthCheckNodePort`s in, where a host accepts nothing by default; each with the name
/// of its Service.
pub(crate) fn health_checks(ports: &BTreeMap<u16, ServiceName>) -> Objects {
    let accept = |(port, service): (&u16, &ServiceName)| {
        Rule::to(Target::Accept)
            .comment(&format!("{service} health check node port"))
            .to_port(model::Protocol::Tcp, *port)
    };
    let mut objects = Objects::default();
    objects.chain(TableName::Filter, NODE_PORTS.name(), ports.iter().map(accept).collect());
    objects
}

/// The mark is cleared, or a packet that is routed again (after encapsulation) would be masqueraded again.
fn masquerading(config: &Config) -> Vec<Rule> {
    let mark = config.masquerade_mark;
    vec![
        Rule::to(Target::Return).when(Match::MarkBit(Negatable::is_not(mark))),
        Rule::to(Target::Mark { xor: mark, mask: 0 }),
        Rule::to(Target::Masquerade).comment("kubernetes service traffic requiring SNAT"),
    ]
}

/// The rules that lead to node ports. Ranges are matched together with the routing table's "is local", so that an address
/// added to the node serves at once.
fn to_node_ports<F: Family>(config: &Config) -> Vec<Rule> {
    let comment = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
    let rule = |node| on_node(node, Rule::jump(NODE_PORTS.name()).comment(comment));
    node_addresses::<F>(config).into_iter().map(rule).collect()
}

/// Which of the host's own addresses serve node ports; a packet to any of these does.
pub(crate) fn node_addresses<F: Family>(config: &Config) -> Vec<Option<Negatable<IpNet>>> {
    let loopback = loopback::<F>();
    match config.node_ports.ranges::<F>() {
        None if config.serves_localhost::<F>() => vec![None],
        None => vec![Some(Negatable::is_not(loopback))],
        Some(ranges) if config.serves_localhost::<F>() => {
            ranges.into_iter().map(|range| Some(Negatable::is(range))).collect()
        }
        Some(ranges) => {
            let rest = ranges.into_iter().flat_map(|range| without(range, loopback));
            rest.map(|range| Some(Negatable::is(range))).collect()
        }
    }
}

/// Restricts a rule to packets to the host's own addresses, of these.
pub(crate) fn on_node(dest: Option<Negatable<IpNet>>, rule: Rule) -> Rule {
    Rule { dest, ..rule }.when(Match::IsLocal(Negatable::is(AddrField::Dest)))
}

fn loopback<F: Family>() -> IpNet {
    match F::FAMILY {
        IpFamily::V4 => IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpFamily::V6 => IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
    }
}

/// A range without a part of it, as ranges.
fn without(range: IpNet, part: IpNet) -> Vec<IpNet> {
    if part.contains(&range) {
        return Vec::new();
    }
    let halves = range.subnets(range.prefix_len() + 1);
    match halves {
        Ok(halves) if range.contains(&part) => halves.flat_map(|half| without(half, part)).collect(),
        _ => vec![range],
    }
}

/// Restricts a rule to packets from pods, or to all others; `None` if there are no such packets, or none can be told.
pub(crate) fn from_pods<F: Family>(config: &Config, negate: bool, rule: Rule) -> Option<Rule> {
    let interface = match config.pods.as_ref()? {
        PodSource::Cidr(net) if !F::owns(net) || negate && net.prefix_len() == 0 => return None,
        PodSource::Cidr(net) => {
            return Some(Rule { source: Some(Negatable { value: *net, negate }), ..rule });
        }
        PodSource::Interface(name) => Interface::Named(name.clone()),
        PodSource::InterfacePrefix(prefix) => Interface::Prefix(prefix.clone()),
    };
    Some(Rule { in_interface: Some(Negatable { value: interface, negate }), ..rule })
}

/// Asks whether what is there whatever the configuration is still there: the canaries, and the jumps without which nothing
/// else takes effect. It changes nothing, and is refused if something is missing.
pub fn presence() -> Restore {
    let canaries = TableName::ALL.map(|table| (table, ChainName::from_static(CANARY), canary()));
    let jumps = jumps().into_iter().map(|jump| (jump.table, jump.chain, jump.rule));
    let rules: Vec<_> = canaries.into_iter().chain(jumps).collect();
    let mut restore = Restore::default();
    for table in TableName::ALL {
        let of_table = rules.iter().filter(|(of, ..)| *of == table);
        restore
            .push(table, of_table.map(|(_, chain, rule)| Edit::Check(chain.clone(), text(rule))).collect());
    }
    restore
}

/// The rules in chains that others write to as well, in the order in which they are put in: the last one of a chain comes
/// first.
pub(crate) fn shared<F: Family>(config: &Config) -> Vec<Shared> {
    let mut shared = jumps();
    let covers_loopback =
        || node_addresses::<F>(config).iter().any(|addresses| covers_localhost(addresses.as_ref()));
    if config.serves_localhost::<F>() && covers_loopback() {
        shared.extend(localhost_firewall());
    }
    shared
}

/// The jumps from built-in chains.
///
/// As upstream's (`iptablesJumpChains`), and no others: upstream's clean-up can't delete a chain that one more rule jumps to.
fn jumps() -> Vec<Shared> {
    let jump = |table, from, to: FixedChain, new_only: bool, comment: &str| {
        let rule = Rule::jump(to.name());
        let rule = if new_only { rule.in_state(&["NEW"]) } else { rule };
        Shared {
            table,
            chain: ChainName::from_static(from),
            rule: rule.comment(comment),
            place: Place::First,
        }
    };
    let filter = |from, to, new_only, comment| jump(TableName::Filter, from, to, new_only, comment);
    let nat = |from, to, comment| jump(TableName::Nat, from, to, false, comment);
    let portals = "kubernetes service portals";
    let firewall = "kubernetes load balancer firewall";
    vec![
        filter("INPUT", EXTERNAL_SERVICES, true, EXTERNAL_PORTALS),
        filter("FORWARD", EXTERNAL_SERVICES, true, EXTERNAL_PORTALS),
        filter("INPUT", NODE_PORTS, false, "kubernetes health check service ports"),
        filter("FORWARD", SERVICES, true, portals),
        filter("OUTPUT", SERVICES, true, portals),
        filter("FORWARD", FORWARD, false, "kubernetes forwarding rules"),
        filter("INPUT", PROXY_FIREWALL, true, firewall),
        filter("OUTPUT", PROXY_FIREWALL, true, firewall),
        filter("FORWARD", PROXY_FIREWALL, true, firewall),
        nat("OUTPUT", SERVICES, portals),
        nat("PREROUTING", SERVICES, portals),
        nat("POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    ]
}

fn covers_localhost(addresses: Option<&Negatable<IpNet>>) -> bool {
    let overlaps = |net: &IpNet| {
        let loopback = loopback::<model::V4>();
        net.contains(&loopback) || loopback.contains(net)
    };
    addresses.is_none_or(|addresses| !addresses.negate && overlaps(&addresses.value))
}

/// Packets from elsewhere to loopback addresses, which the sysctl `route_localnet` would let in, are dropped. The kubelet
/// writes the same rule into the same chain.
fn localhost_firewall() -> [Shared; 3] {
    let loopback = loopback::<model::V4>();
    let block = Rule {
        source: Some(Negatable::is_not(loopback)),
        ..Rule::to(Target::Drop).to_net(loopback).comment("block incoming localnet connections")
    };
    let unknown = Match::CtState(Negatable::is_not(&["RELATED", "ESTABLISHED", "DNAT"]));
    let in_filter = |chain, rule, place| Shared { table: TableName::Filter, chain, rule, place };
    let jump = |from| in_filter(ChainName::from_static(from), Rule::jump(FIREWALL.name()), Place::First);
    [in_filter(FIREWALL.name(), block.when(unknown), Place::Last), jump("INPUT"), jump("OUTPUT")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{NodePortAddresses, V4, V6};

    #[track_caller]
    fn check(range: &str, expected: &[&str]) {
        let net: IpNet = range.parse().unwrap();
        let config = Config { node_ports: NodePortAddresses::Within(vec![net]), ..Config::default() };
        let found =
            if net.addr().is_ipv4() { node_addresses::<V4>(&config) } else { node_addresses::<V6>(&config) };
        let found: Vec<String> = found.into_iter().flatten().map(|net| net.value.to_string()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn ranges_of_node_ports_leave_loopback_out() {
        check("192.168.0.0/24", &["192.168.0.0/24"]);
        check("127.0.0.1/32", &[]);
        check("127.0.0.0/8", &[]);
        check("124.0.0.0/6", &["124.0.0.0/7", "126.0.0.0/8"]);
        check("::1/128", &[]);
        check("::/126", &["::/128", "::2/127"]);
    }

    #[test]
    fn on_localhost_ranges_are_taken_as_they_are() {
        let config = |range: &str| Config {
            node_ports: NodePortAddresses::Within(vec![range.parse().unwrap()]),
            localhost_node_ports: true,
            ..Config::default()
        };
        let has_firewall =
            |config: &Config| shared::<V4>(config).iter().any(|s| s.chain.as_str() == "KUBE-FIREWALL");
        assert!(has_firewall(&config("127.0.0.0/8")));
        assert!(has_firewall(&config("0.0.0.0/0")));
        assert!(!has_firewall(&config("192.168.0.0/24")));
        let v6 = Config { localhost_node_ports: true, ..Config::default() };
        assert!(!shared::<V6>(&v6).iter().any(|s| s.chain.as_str() == "KUBE-FIREWALL"));
    }
}
