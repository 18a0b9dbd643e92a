//! What breaks Services in practice, looked for in what the host and the proxy tell. Pure.

use std::collections::BTreeSet;

use agent::snapshot::{AddressKind, AddressState, Basis, FamilyState, Overview, Service};
use host::Facts;
use nft::AnyChain;

use crate::document::{Finding, Severity};
use crate::select::ports;

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct Evidence<'a> {
    /// As `--proxy-mode` spells it.
    pub mode: &'a str,
    /// The host.
    pub facts: Facts,
    /// Everybody's chains in `nf_tables`.
    pub chains: Vec<AnyChain>,
    /// Rules that the proxy holds for the kernel's and that the kernel does not have: whose, and which.
    pub missing: Vec<(String, String)>,
    /// Families in which chain FORWARD of iptables-legacy drops what no rule accepts.
    pub legacy_forward_drops: Vec<String>,
    /// Whether the clock is kept right by somebody; none: the kernel does not tell.
    pub is_clock_synchronized: Option<bool>,
    /// What of that could not be read, and why.
    pub unread: Vec<String>,
}

fn finding(severity: Severity, id: &str, what: String, why: &str, mend: &str) -> Finding {
    let (id, why, mend) = (id.to_owned(), why.to_owned(), mend.to_owned());
    Finding { severity, id, what, why, mend }
}

/// What is wrong, or may become so.
pub fn findings(evidence: &Evidence<'_>, overview: &Overview, services: &[Service]) -> Vec<Finding> {
    let mut found = Vec::new();
    proxy(overview, &mut found);
    node(evidence, overview, &mut found);
    rules(evidence, &mut found);
    objects(overview, services, &mut found);
    sysctls(evidence, overview, &mut found);
    connection_tracking(evidence, &mut found);
    others(evidence, overview, &mut found);
    node_ports(evidence, services, &mut found);
    found
}

/// What was looked at, for people who want to know what nothing was found in.
pub fn checked(evidence: &Evidence<'_>) -> Vec<String> {
    let mut looked = vec![
        "the proxy's own state".to_owned(),
        "the Node object and the clock".to_owned(),
        "every rule against a reading of the kernel".to_owned(),
        "conflicts and endpoints".to_owned(),
        "sysctls".to_owned(),
        "connection tracking".to_owned(),
        "other proxies and leftovers".to_owned(),
        "node ports in use".to_owned(),
    ];
    looked.extend(evidence.unread.iter().map(|what| format!("not {what}")));
    looked
}

fn proxy(overview: &Overview, found: &mut Vec<Finding>) {
    if !overview.is_listed {
        found.push(finding(
            Severity::Error,
            "not-listed",
            "not every kind of object has been listed from the API server".to_owned(),
            "nothing is programmed before that; the kernel keeps what an earlier process left",
            "see the log for what the API server says; check its address, the credentials and the ClusterRole",
        ));
    }
    if overview.waits_for_pod_cidrs {
        found.push(finding(
            Severity::Error,
            "no-pod-cidrs",
            format!("the Node {} has no pod CIDRs", overview.node),
            "in detectLocalMode NodeCIDR nothing is programmed until it has",
            "set spec.podCIDRs (kube-controller-manager --allocate-node-cidrs), or use another detectLocalMode",
        ));
    }
    for family in &overview.families {
        family_state(family, found);
    }
}

fn family_state(family: &FamilyState, found: &mut Vec<Finding>) {
    if let Some(failure) = &family.failure {
        found.push(finding(
            Severity::Error,
            "rules-refused",
            format!("{}: the rules can't be put in force, {} times in a row: {}", family.family, failure.times, failure.error),
            "changes of Services and endpoints have no effect on this node",
            "the error names the object; a lack of CAP_NET_ADMIN or of a kernel module needs mending on the node",
        ));
    }
    if family.refused > 0 {
        found.push(finding(
            Severity::Warning,
            "addresses-refused",
            format!(
                "{}: {} addresses were refused by the kernel and are tried again",
                family.family, family.refused
            ),
            "packets to them go nowhere",
            "see the log for the reason of each",
        ));
    }
    if family.repairs.audit_divergences > 0 {
        found.push(finding(
            Severity::Warning,
            "rules-changed-by-others",
            format!(
                "{}: {} audits found rules that somebody else had changed",
                family.family, family.repairs.audit_divergences
            ),
            "until an audit finds it, packets go where the other one wants",
            "find who it is: nft monitor",
        ));
    }
}

fn node(evidence: &Evidence<'_>, overview: &Overview, found: &mut Vec<Finding>) {
    let name = &overview.node;
    if overview.is_listed && !overview.is_node_known {
        found.push(finding(
            Severity::Error,
            "no-node",
            format!("there is no Node {name}"),
            "endpoints of this node, its zone and its addresses are not recognised: policies Local find no endpoint, node ports no address",
            "kubectl get nodes; name this node's with --hostname-override or hostnameOverride, or leave that out if the host's name is right",
        ));
    } else if overview.is_node_known && overview.node_addresses.is_empty() {
        found.push(finding(
            Severity::Warning,
            "no-node-addresses",
            format!("the Node {name} has no addresses"),
            "with nodePortAddresses primary no node port is served, and stale flows to node ports are not forgotten",
            "set --node-ip of the kubelet, or find why the cloud provider tells none: kubectl get node -o yaml",
        ));
    }
    if evidence.is_clock_synchronized == Some(false) {
        found.push(finding(
            Severity::Info,
            "clock-not-synchronized",
            "the kernel says that nobody keeps the clock right (adjtimex)".to_owned(),
            "a clock that is wrong makes certificates and tokens invalid, and kubeproxy_network_programming_duration_seconds meaningless",
            "run chrony or systemd-timesyncd; on a virtual machine whose host keeps the clock there is nothing to do",
        ));
    }
}

fn rules(evidence: &Evidence<'_>, found: &mut Vec<Finding>) {
    for (whose, rule) in evidence.missing.iter().take(20) {
        found.push(finding(
            Severity::Error,
            "rule-missing",
            format!("{whose}: the kernel does not have {rule}"),
            "packets to that address go elsewhere or nowhere",
            "it is repaired by itself within a second if the kernel told of it, else by the next audit; a restart repairs it at once",
        ));
    }
}

fn objects(overview: &Overview, services: &[Service], found: &mut Vec<Finding>) {
    for conflict in overview.conflicts.iter().take(20) {
        let address = conflict.address.map_or_else(|| "node port".to_owned(), |ip| ip.to_string());
        found.push(finding(
            Severity::Warning,
            "conflict",
            format!(
                "{} claims {address} {}/{}, which {} has",
                conflict.loser, conflict.port, conflict.protocol, conflict.winner
            ),
            "packets go to the endpoints of the latter only",
            "give one of the two another address or port",
        ));
    }
    let empty: Vec<String> =
        services.iter().filter(|service| is_without_endpoints(service)).map(name).collect();
    if let Some(first) = empty.first() {
        found.push(finding(
            Severity::Info,
            "no-endpoints",
            format!("{} Services have no endpoint that takes new flows here, such as {first}", empty.len()),
            "packets to them are refused, or dropped where other nodes have endpoints",
            "kube-proxy list services --no-endpoints, then kube-proxy explain service NAMESPACE/NAME",
        ));
    }
    hints(services, found);
}

/// Whether something holds of a Service.
type Holds<'a> = &'a dyn Fn(&Service) -> bool;

/// Topology hints that nobody honours.
fn hints(services: &[Service], found: &mut Vec<Finding>) {
    let by_basis = |basis: Basis| {
        move |service: &Service| {
            ports(service).flat_map(|port| &port.policies).any(|policy| policy.basis == basis)
        }
    };
    let kinds: [(&str, &str, Holds<'_>); 3] = [
        (
            "hints-zone-unknown",
            "this node has no label topology.kubernetes.io/zone",
            &by_basis(Basis::ReadyZoneUnknown),
        ),
        (
            "hints-not-for-this-zone",
            "no endpoint is hinted for this node's zone",
            &by_basis(Basis::ReadyNoneForThisZone),
        ),
        ("hints-incomplete", "some ready endpoints have none", &has_some_hints),
    ];
    for (id, why, is_ignored) in kinds {
        let ignored: Vec<String> = services.iter().filter(|service| is_ignored(service)).map(name).collect();
        if let Some(first) = ignored.first() {
            found.push(finding(
                Severity::Warning,
                id,
                format!(
                    "{} Services have topology hints that nobody honours here, such as {first}: {why}",
                    ignored.len()
                ),
                "packets go to all zones, which costs latency and money",
                "label the node, or look at the hints: kubectl get endpointslices -o yaml",
            ));
        }
    }
}

/// Whether some port has hints for some of its ready endpoints, and not for others, so that they count for none.
fn has_some_hints(service: &Service) -> bool {
    ports(service).any(|port| {
        let mut ready = port.endpoints.iter().filter(|endpoint| endpoint.is_ready);
        let count = ready.clone().filter(|endpoint| endpoint.is_hinted).count();
        let is_basis = |policy: &agent::snapshot::Policy| policy.basis == Basis::ReadyHintsIncomplete;
        count > 0 && ready.any(|endpoint| !endpoint.is_hinted) && port.policies.iter().any(is_basis)
    })
}

fn name(service: &Service) -> String {
    format!("{}/{}", service.namespace, service.name)
}

fn is_without_endpoints(service: &Service) -> bool {
    let has_addresses = ports(service).any(|port| !port.addresses.is_empty());
    has_addresses && crate::rows::service_row(service).endpoints.serving == 0
}

fn sysctls(evidence: &Evidence<'_>, overview: &Overview, found: &mut Vec<Finding>) {
    // In a cluster of one family the other is served all the same, and has nothing.
    let serves =
        |name: &str| overview.families.iter().any(|family| family.family == name && family.frontends > 0);
    let forwarding = [
        ("IPv4", evidence.facts.forwards_v4, "net.ipv4.ip_forward"),
        ("IPv6", evidence.facts.forwards_v6, "net.ipv6.conf.all.forwarding"),
    ];
    for (family, forwards, sysctl) in forwarding {
        if forwards == Some(false) && serves(family) {
            found.push(finding(
                Severity::Error,
                "forwarding-off",
                format!("{sysctl} is 0"),
                "this node does not forward packets of pods and from outside, so their Services do not answer",
                &format!("sysctl -w {sysctl}=1"),
            ));
        }
    }
    if evidence.facts.has_bridges && evidence.facts.bridge_calls_iptables == Some(false) {
        found.push(finding(
            Severity::Warning,
            "bridge-netfilter-off",
            "net.bridge.bridge-nf-call-iptables is 0 and there are bridges".to_owned(),
            "where pods share a bridge, answers from a pod of this node to another one bypass connection tracking and keep the pod's address",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1",
        ));
    }
    if !evidence.facts.strict_interfaces.is_empty() {
        found.push(finding(
            Severity::Info,
            "rp-filter-strict",
            format!("rp_filter is strict (1) on {}", evidence.facts.strict_interfaces.join(", ")),
            "where answers leave by another interface than packets came in on, they are dropped without a word",
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose), if packets to Services get lost",
        ));
    }
}

fn connection_tracking(evidence: &Evidence<'_>, found: &mut Vec<Finding>) {
    let Some(conntrack) = evidence.facts.conntrack else { return };
    let percent = conntrack.count.saturating_mul(100).checked_div(conntrack.max).unwrap_or_default();
    if percent >= 80 {
        found.push(finding(
            if percent >= 95 { Severity::Error } else { Severity::Warning },
            "conntrack-full",
            format!("{} of {} tracked flows are in use ({percent} %)", conntrack.count, conntrack.max),
            "without room, packets of new flows are dropped, for everything on this node",
            "raise conntrack.maxPerCore in the configuration; find who opens so many: kube-proxy list flows",
        ));
    }
    if conntrack.drop > 0 {
        found.push(finding(
            Severity::Warning,
            "conntrack-dropped",
            format!("{} packets were dropped for lack of room in connection tracking", conntrack.drop),
            "new flows were lost, at some time since the node's start",
            "raise conntrack.maxPerCore in the configuration",
        ));
    }
    if conntrack.insert_failed > 0 {
        found.push(finding(
            Severity::Info,
            "conntrack-insert-failed",
            format!("{} flows could not be added to connection tracking", conntrack.insert_failed),
            "two packets of one UDP client at once (DNS over one socket) race for an entry, and one is dropped: resolvers wait 5 s",
            "options single-request-reopen in resolv.conf, or a DNS cache on the node",
        ));
    }
}

/// Upstream's chains, tables of another mode, and chains that drop what is forwarded.
fn others(evidence: &Evidence<'_>, overview: &Overview, found: &mut Vec<Finding>) {
    let chains_of = |table: &str| evidence.chains.iter().any(|chain| chain.table == table);
    let upstream = evidence.chains.iter().any(|chain| chain.name.starts_with("KUBE-SVC-"));
    if evidence.mode != "iptables" && upstream {
        found.push(leftover("chains KUBE-SVC-... of mode iptables are in nf_tables"));
    }
    // All modes of Linux but this one have a table of that name.
    if evidence.mode == "iptables" && chains_of("kube-proxy") {
        found.push(leftover("a table kube-proxy of mode nftables is there"));
    }
    if evidence.mode != "ipvs" && (evidence.facts.ipvs_servers > 0 || evidence.facts.has_ipvs_device) {
        found.push(leftover(&format!(
            "{} virtual servers of IPVS, or its device, are there",
            evidence.facts.ipvs_servers
        )));
    }
    dropping(evidence, found);
    nothing_served(overview, found);
}

/// Chains that drop what is forwarded.
fn dropping(evidence: &Evidence<'_>, found: &mut Vec<Finding>) {
    /// `NF_INET_FORWARD`
    const FORWARD: u32 = 2;
    let dropping = evidence.chains.iter().filter_map(|chain| {
        let hook = chain.hook.as_ref().filter(|hook| hook.hook == FORWARD && hook.drops)?;
        Some(format!("{} of table {} (priority {})", chain.name, chain.table, hook.priority))
    });
    let of_legacy = |family: &String| format!("FORWARD of table filter of iptables-legacy ({family})");
    let dropping: BTreeSet<String> =
        dropping.chain(evidence.legacy_forward_drops.iter().map(of_legacy)).collect();
    for chain in &dropping {
        found.push(finding(
            Severity::Warning,
            "forward-policy-drop",
            format!("chain {chain} drops what it is not told to let pass"),
            "packets between pods, and from outside to pods, are dropped unless a rule accepts them",
            "iptables -P FORWARD ACCEPT, or a rule of the network plugin that accepts pods",
        ));
    }
}

fn nothing_served(overview: &Overview, found: &mut Vec<Finding>) {
    if overview.services > 0
        && overview.families.iter().all(|family| family.frontends == 0)
        && overview.is_listed
    {
        found.push(finding(
            Severity::Warning,
            "nothing-served",
            "there are Services, and none has an address that is served here".to_owned(),
            "no Service works on this node",
            "kube-proxy list rejected; and look for label service.kubernetes.io/service-proxy-name on the Services",
        ));
    }
}

fn leftover(what: &str) -> Finding {
    finding(
        Severity::Warning,
        "other-proxy",
        what.to_owned(),
        "another proxy, or one of another mode, decides about packets as well; whichever chain comes first wins",
        "end the other proxy; leftovers are removed after our first sync, or by kube-proxy --cleanup while no proxy runs",
    )
}

/// Processes that listen where node ports are.
fn node_ports(evidence: &Evidence<'_>, services: &[Service], found: &mut Vec<Finding>) {
    let in_force = |service: &'_ Service| {
        let of_port = |port: &agent::snapshot::Port| {
            let addresses = port.addresses.iter().filter(|address| {
                address.kind == AddressKind::NodePort && address.state == AddressState::InForce
            });
            addresses
                .map(|address| (port.protocol.clone(), address.port, port.service_port.clone()))
                .collect::<Vec<_>>()
        };
        ports(service).flat_map(of_port).collect::<BTreeSet<_>>()
    };
    let wanted: BTreeSet<_> = services.iter().flat_map(in_force).collect();
    for (protocol, port, service_port) in wanted {
        let is_taken = |(listening, address): &&(&str, std::net::SocketAddr)| {
            *listening == protocol && address.port() == port && !address.ip().is_loopback()
        };
        if let Some((_, address)) = evidence.facts.listeners.iter().find(is_taken) {
            found.push(finding(
                Severity::Warning,
                "node-port-taken",
                format!(
                    "a process listens on {address}, which is the {protocol} node port of {service_port}"
                ),
                "packets go to the Service, so that process hears nothing from outside",
                &format!("ss -lnp 'sport = :{port}' tells which; give one of the two another port"),
            ));
        }
    }
}

#[cfg(test)]
mod tests;
