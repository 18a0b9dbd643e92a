//! What a snapshot says, in the words of Kubernetes.

use std::fmt::Write as _;

use agent::snapshot::{
    Address, AddressKind, AddressState, Basis, Endpoint, Policy, Port, Service, Traffic, TrafficPolicy, Usage,
};

/// `cluster IP 10.96.0.10:80`, `node port 30080`.
pub fn address(address: &Address) -> String {
    match address.address {
        Some(ip) => format!("{} {}", address_kind(address.kind), std::net::SocketAddr::new(ip, address.port)),
        None => format!("{} {}", address_kind(address.kind), address.port),
    }
}

/// Which of a Service's addresses one is.
pub fn address_kind(kind: AddressKind) -> &'static str {
    match kind {
        AddressKind::ClusterIp => "cluster IP",
        AddressKind::LoadBalancerIp => "load-balancer IP",
        AddressKind::ExternalIp => "external IP",
        AddressKind::NodePort => "node port",
    }
}

/// `Cluster`, `Local`.
pub fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// Why these endpoints.
pub fn basis(basis: Basis) -> &'static str {
    match basis {
        Basis::ReadySameNode => "those that are ready and hinted for this node",
        Basis::ReadySameZone => "those that are ready and hinted for this node's zone",
        Basis::ReadyHintsIncomplete => {
            "those that are ready, wherever they are, since not every one has a hint"
        }
        Basis::ReadyZoneUnknown => {
            "those that are ready, wherever they are, since this node's zone is not known"
        }
        Basis::ReadyNoneForThisZone => {
            "those that are ready, wherever they are, since none is hinted for this node's zone"
        }
        Basis::ReadyLocal => "those of this node that are ready",
        Basis::Terminating => "none is ready, so those that still serve while they end",
        Basis::TerminatingLocal => {
            "none of this node is ready, so those of it that still serve while they end"
        }
        Basis::None => "no endpoint is usable",
        Basis::NoneLocal => "no endpoint of this node is usable",
    }
}

/// Whether an endpoint takes new flows, or why not.
pub fn usage(usage: Usage) -> &'static str {
    match usage {
        Usage::Serves => "takes new flows",
        Usage::OtherNode => "not used: it is on another node",
        Usage::Terminating => "not used: it is ending, and others are ready",
        Usage::NotReady => "not used: it is not ready",
        Usage::HintedElsewhere => "not used: it is hinted for elsewhere",
    }
}

/// How many endpoints a policy has and why, or what becomes of packets.
pub fn policy(policy: &Policy) -> String {
    let outcome = match (policy.endpoints, policy.drops) {
        (0, true) => "packets are dropped, since other nodes have endpoints".to_owned(),
        (0, false) => "packets are refused".to_owned(),
        (1, _) => "1 endpoint".to_owned(),
        (n, _) => format!("{n} endpoints"),
    };
    format!("{outcome}: {}", basis(policy.basis))
}

/// What keeps an address from being served as it should; empty if nothing does.
pub fn state(state: &AddressState) -> String {
    match state {
        AddressState::InForce => String::new(),
        AddressState::Waiting => "not in force yet".to_owned(),
        AddressState::Lost { winner } => format!("not served here: {winner} claims it, too"),
        AddressState::NotAllowed => {
            "not served: the configuration does not allow this external IP".to_owned()
        }
    }
}

/// A Service on this node: each address, policy and endpoint, with reasons. With `only`, that port alone, by its name.
pub fn service(service: &Service, only: Option<&str>) -> String {
    let mut text = String::new();
    for family in &service.families {
        if !family.has_cluster_ip {
            // Writing to a string can't fail.
            let _ok =
                writeln!(text, "{}: no cluster IP of this family, so it is not served in it", family.family);
        }
        let is_meant = |port: &&Port| {
            let name = port.service_port.rsplit_once(':').map_or("", |(_, name)| name);
            only.is_none_or(|only| only == name)
        };
        for port in family.ports.iter().filter(is_meant) {
            let _ok = writeln!(text, "{} {} {}", port.service_port, port.protocol, family.family);
            explain_port(&mut text, port);
        }
    }
    text
}

fn explain_port(text: &mut String, port: &Port) {
    for own in &port.addresses {
        let state = state(&own.state);
        let state = if state.is_empty() { state } else { format!(": {state}") };
        let _ok = writeln!(text, "  {}{state}", address(own));
    }
    if let Some(seconds) = port.affinity_seconds {
        let _ok = writeln!(
            text,
            "  affinity ClientIP: a client stays with its endpoint for {seconds} s after its last new flow"
        );
    }
    if let Some(proxying) = &port.proxying {
        let _ok = writeln!(text, "  through workers of this node: {proxying}");
    }
    for own in &port.policies {
        let _ok = writeln!(
            text,
            "  policy {}: {} ({})",
            policy_name(own.policy),
            policy(own),
            own.governs.join(", ")
        );
    }
    let all = port.traffic.map_or(0, |traffic| traffic.connections);
    for endpoint in &port.endpoints {
        let _ok = writeln!(text, "  endpoint {}{}", self::endpoint(endpoint), share(endpoint, all));
    }
    if let Some(traffic) = &port.traffic {
        let _ok = writeln!(text, "  counted: {}", self::traffic(traffic));
    }
}

/// What went through.
pub fn traffic(traffic: &Traffic) -> String {
    let rate = |per_second: Option<f64>| {
        let lately = per_second.filter(|rate| *rate > 0.0);
        lately.map(|rate| format!(" ({rate:.1}/s)")).unwrap_or_default()
    };
    format!(
        "{} new flows{}, {} packets refused{}, {} dropped{}",
        traffic.connections,
        rate(traffic.connections_per_second),
        traffic.refused,
        rate(traffic.refused_per_second),
        traffic.dropped,
        rate(traffic.dropped_per_second),
    ) + &carried(traffic)
}

/// What only some modes count.
fn carried(traffic: &Traffic) -> String {
    let part = |count: Option<u64>, what: &str| count.map(|count| format!(", {count} {what}"));
    let parts = [part(traffic.bytes, "bytes"), part(traffic.retries, "endpoints tried in vain")];
    parts.into_iter().flatten().collect()
}

/// An endpoint's part of all new flows; empty where nothing was counted.
fn share(endpoint: &Endpoint, all: u64) -> String {
    match endpoint.traffic {
        Some(traffic) if all > 0 => {
            #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
            let share = traffic.connections as f64 / all as f64 * 100.0;
            format!("; {} of {all} new flows ({share:.0} %)", traffic.connections)
        }
        _ => String::new(),
    }
}

/// An endpoint with its use under each policy.
pub fn endpoint(endpoint: &Endpoint) -> String {
    let place = if endpoint.is_local { "this node" } else { "another node" };
    let uses: Vec<String> = endpoint
        .uses
        .iter()
        .map(|used| format!("{}: {}", policy_name(used.policy), usage(used.usage)))
        .collect();
    let out = endpoint.out.as_ref().map(|why| format!("; gets nothing for now: {why}")).unwrap_or_default();
    format!("{} on {place} (slice {}): {}{out}", endpoint.address, endpoint.slice, uses.join("; "))
}
