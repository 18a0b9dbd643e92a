//! `/explain/NAMESPACE/NAME`: what the agent tells of a Service, as text for people.

use std::fmt::Write as _;

use agent::Telemetry;
use agent::snapshot::{
    Address, AddressState, Basis, Endpoint, Policy, Port, Service, ServiceFamily, TrafficPolicy, Usage,
};
use model::ServiceName;
use tokio::sync::oneshot;

/// Asks for a Service; the answer is `None` if there is no such one. To be called within a runtime.
pub(crate) fn explain(telemetry: &Telemetry, service: ServiceName) -> oneshot::Receiver<Option<String>> {
    let (answer, receiver) = oneshot::channel();
    let asked = telemetry.service(service);
    tokio::spawn(async move {
        // Without an answer its sender is dropped, which the receiver notices; and whoever asked may have gone.
        if let Ok(service) = asked.await {
            drop(answer.send(service.map(|service| text(&service))));
        }
    });
    receiver
}

fn text(service: &Service) -> String {
    let mut text = String::new();
    for family in &service.families {
        write_family(&mut text, family);
    }
    text
}

// Writing to a string does not fail.
fn write_family(text: &mut String, family: &ServiceFamily) {
    if !family.has_cluster_ip {
        _ = writeln!(text, "no cluster IP of family {}", family.family);
    }
    for port in &family.ports {
        _ = writeln!(text, "{} {}", port.service_port, family.family);
        port.policies.iter().for_each(|policy| write_policy(text, policy));
        port.endpoints.iter().for_each(|endpoint| write_endpoint(text, endpoint));
    }
    for port in &family.ports {
        port.addresses.iter().for_each(|address| write_lost(text, port, address));
    }
}

fn write_policy(text: &mut String, policy: &Policy) {
    let outcome = match (policy.endpoints, policy.drops) {
        (0, true) => "dropped".to_owned(),
        (0, false) => "refused".to_owned(),
        (1, _) => "1 endpoint".to_owned(),
        (n, _) => format!("{n} endpoints"),
    };
    let (name, why, addresses) = (policy_name(policy.policy), basis(policy.basis), policy.governs.join(", "));
    _ = writeln!(text, "  policy {name}: {outcome}: {why} ({addresses})");
}

fn write_endpoint(text: &mut String, endpoint: &Endpoint) {
    let place = if endpoint.is_local { "this node" } else { "another node" };
    let uses: Vec<String> = endpoint
        .uses
        .iter()
        .map(|one| format!("{}: {}", policy_name(one.policy), usage(one.usage)))
        .collect();
    let Endpoint { address, slice, .. } = endpoint;
    _ = writeln!(text, "  {address} on {place} (slice {slice}): {}", uses.join("; "));
}

fn write_lost(text: &mut String, port: &Port, address: &Address) {
    if let AddressState::Lost { winner } = &address.state {
        let at = address.address.map_or_else(|| "node port".to_owned(), |address| address.to_string());
        let (protocol, number) = (&port.protocol, address.port);
        _ = writeln!(text, "  {at} {protocol} {number} is not served here: {winner} claims it, too");
    }
}

fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn basis(basis: Basis) -> &'static str {
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
        Basis::Terminating => "none is ready, so those that still serve while they shut down",
        Basis::TerminatingLocal => {
            "none of this node is ready, so those of it that still serve while they shut down"
        }
        Basis::None => "no endpoint is usable",
        Basis::NoneLocal => "no endpoint of this node is usable",
    }
}

fn usage(usage: Usage) -> &'static str {
    match usage {
        Usage::Serves => "takes new flows",
        Usage::OtherNode => "not used, it is on another node",
        Usage::Terminating => "not used, it is shutting down",
        Usage::NotReady => "not used, it is not ready",
        Usage::HintedElsewhere => "not used, it is hinted for elsewhere",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent::snapshot::{AddressKind, Use};

    #[test]
    fn a_service_is_told_with_reasons() {
        let endpoint = |last: u8, usage| Endpoint {
            address: ([10, 244, 0, last], 80).into(),
            is_local: last == 1,
            is_ready: usage == Usage::Serves,
            is_serving: true,
            is_terminating: usage != Usage::Serves,
            slice: "a".to_owned(),
            uses: vec![Use { policy: TrafficPolicy::Cluster, usage }],
        };
        let policy = Policy {
            policy: TrafficPolicy::Cluster,
            governs: vec!["cluster IP 10.96.0.10".to_owned(), "node port 30080".to_owned()],
            endpoints: 1,
            basis: Basis::ReadySameZone,
            drops: false,
        };
        let address = Address {
            kind: AddressKind::NodePort,
            address: None,
            port: 30080,
            state: AddressState::Lost { winner: "a/b".to_owned() },
            rules: Vec::new(),
        };
        let port = Port {
            service_port: "shop/front".to_owned(),
            protocol: "TCP".to_owned(),
            addresses: vec![address],
            affinity_seconds: None,
            policies: vec![policy],
            endpoints: vec![endpoint(1, Usage::Serves), endpoint(2, Usage::Terminating)],
            traffic: None,
        };
        let family = |family: &str, ports: Vec<Port>| ServiceFamily {
            family: family.to_owned(),
            has_cluster_ip: !ports.is_empty(),
            ports,
            last_change: None,
        };
        let families = vec![family("IPv4", vec![port]), family("IPv6", Vec::new())];
        let service = Service { namespace: "shop".to_owned(), name: "front".to_owned(), families };
        let expected = "\
shop/front IPv4
  policy Cluster: 1 endpoint: those that are ready and hinted for this node's zone (cluster IP 10.96.0.10, node port 30080)
  10.244.0.1:80 on this node (slice a): Cluster: takes new flows
  10.244.0.2:80 on another node (slice a): Cluster: not used, it is shutting down
  node port TCP 30080 is not served here: a/b claims it, too
no cluster IP of family IPv6
";
        assert_eq!(text(&service), expected);
    }
}
