//! From what decides to what is told.

use std::net::SocketAddr;
use std::time::Duration;

use mode::{Counters, EndpointOutage, OutageCause};
use model::view::{self, EndpointExplanation, ListExplanation, PortExplanation, TopologyReason};
use model::{AskedBy, Family, Frontend, FrontendAddress, ServicePortName};
use tokio::time::Instant;

use super::{
    Address, AddressKind, AddressState, Basis, Conflict, Endpoint, Policy, Port, Rule, RuleCount, Traffic,
    TrafficPolicy, Usage, Use,
};
use crate::traffic::{Flow, Rates};

/// A port with what is known besides its explanation: its addresses and what went through.
pub(crate) fn port<F: Family>(
    explained: PortExplanation<F>,
    mut addresses: Vec<Address>,
    affinity_seconds: Option<u64>,
    proxying: Option<String>,
    outages: &[EndpointOutage],
    known: Option<&crate::traffic::Traffic>,
    now: Instant,
) -> Port {
    let service = explained.port.clone();
    let traffic = |known: &crate::traffic::Traffic, flow: Flow| {
        traffic(flow, now.saturating_duration_since(known.read_at))
    };
    let endpoint = |explained: EndpointExplanation<F>| {
        let address = SocketAddr::new(explained.address.into(), explained.port);
        let told = known.and_then(|known| Some(traffic(known, known.to(&service, &address)?)));
        Endpoint { out: out(outages, &service, address), ..endpoint(explained, address, told) }
    };
    addresses.extend(explained.unserved.iter().map(|address| Address {
        kind: AddressKind::ExternalIp,
        address: Some((*address).into()),
        port: explained.port_number,
        state: AddressState::NotAllowed,
        rules: Vec::new(),
    }));
    Port {
        service_port: explained.port.to_string(),
        protocol: explained.port.protocol.to_string(),
        addresses,
        affinity_seconds,
        proxying,
        policies: explained.lists.into_iter().map(policy).collect(),
        endpoints: explained.endpoints.into_iter().map(endpoint).collect(),
        traffic: known.map(|known| traffic(known, known.of(&service))),
    }
}

/// So many weights are told.
const MOST_WEIGHTS: usize = 16;

/// How workers of this node serve a Service port: the policy, who says so, and what the Service asks for besides.
pub(crate) fn proxying<F: Family>(policy: balance::Policy, by: AskedBy, frontend: &Frontend<F>) -> String {
    let mut words = vec![format!("{}, by {by}", policy.as_str())];
    if let Some(weights) = frontend.weights.as_deref().filter(|_| policy == balance::Policy::Weighted) {
        let weight = |((address, port), weight): (&(F::Addr, u16), &u32)| {
            format!("{}={weight}", SocketAddr::new((*address).into(), *port))
        };
        let more = if weights.len() > MOST_WEIGHTS { ",..." } else { "" };
        let told: Vec<String> = weights.iter().take(MOST_WEIGHTS).map(weight).collect();
        words.push(format!("weights {}{more}", told.join(",")));
    }
    words.extend(frontend.resilience.as_deref().map(ToString::to_string));
    words.join("; ")
}

/// Why an endpoint gets nothing for now.
fn out(outages: &[EndpointOutage], service: &ServicePortName, address: SocketAddr) -> Option<String> {
    let own = outages.iter().filter(|outage| outage.endpoint == address && outage.service == *service);
    let words: Vec<String> = own.map(in_words).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

fn in_words(outage: &EndpointOutage) -> String {
    let lasting = outage.lasting.map(|lasting| format!(" for {} s more", lasting.as_secs()));
    match outage.cause {
        OutageCause::Ejected => format!("ejected{}: {}", lasting.unwrap_or_default(), outage.why),
        OutageCause::CheckFails => format!("its health check fails: {}", outage.why),
    }
}

fn traffic(flow: Flow, age: Duration) -> Traffic {
    let Counters { connections, refused, dropped, packets, bytes, retries } = flow.total;
    let rate = |of: fn(&Rates) -> f64| flow.per_second.as_ref().map(of);
    Traffic {
        connections,
        refused,
        dropped,
        packets,
        bytes,
        retries,
        connections_per_second: rate(|rates| rates.connections),
        refused_per_second: rate(|rates| rates.refused),
        dropped_per_second: rate(|rates| rates.dropped),
        age_seconds: age.as_secs_f64(),
    }
}

/// The address of a frontend.
pub(crate) fn address<F: Family>(
    frontend: &Frontend<F>,
    state: AddressState,
    rules: Vec<mode::Rule>,
) -> Address {
    let rule = |mode::Rule { place, text }| Rule { place, text };
    Address {
        kind: match frontend.kind {
            model::AddressKind::ClusterIp => AddressKind::ClusterIp,
            model::AddressKind::LoadBalancerIp => AddressKind::LoadBalancerIp,
            model::AddressKind::ExternalIp => AddressKind::ExternalIp,
            model::AddressKind::NodePort => AddressKind::NodePort,
        },
        address: ip(frontend.key.address),
        port: frontend.key.port,
        state,
        rules: rules.into_iter().map(rule).collect(),
    }
}

/// A claim that loses.
pub(crate) fn conflict<F: Family>(loser: &Frontend<F>, winner: &Frontend<F>) -> Conflict {
    Conflict {
        family: F::FAMILY.to_string(),
        address: ip(loser.key.address),
        protocol: loser.key.protocol.to_string(),
        port: loser.key.port,
        winner: winner.service.to_string(),
        loser: loser.service.to_string(),
    }
}

/// A table's rules.
pub(crate) fn rule_count(count: mode::RuleCount) -> RuleCount {
    let mode::RuleCount { table, held, written } = count;
    RuleCount { table: table.to_owned(), held, written }
}

fn ip<F: Family>(address: FrontendAddress<F>) -> Option<std::net::IpAddr> {
    match address {
        FrontendAddress::Ip(address) => Some(address.into()),
        FrontendAddress::Node => None,
    }
}

fn policy(list: ListExplanation) -> Policy {
    Policy {
        policy: traffic_policy(list.policy),
        governs: list.addresses,
        endpoints: list.size,
        basis: basis(list.basis),
        drops: list.drops,
    }
}

fn endpoint<F: Family>(
    explained: EndpointExplanation<F>,
    address: SocketAddr,
    traffic: Option<Traffic>,
) -> Endpoint {
    let usage = |(policy, usage)| Use { policy: traffic_policy(policy), usage: self::usage(usage) };
    Endpoint {
        address,
        is_local: explained.local,
        is_ready: explained.conditions.ready,
        is_serving: explained.conditions.serving,
        is_terminating: explained.conditions.terminating,
        is_hinted: explained.hinted,
        slice: explained.slice,
        out: None,
        uses: explained.uses.into_iter().map(usage).collect(),
        traffic,
    }
}

fn traffic_policy(policy: model::TrafficPolicy) -> TrafficPolicy {
    match policy {
        model::TrafficPolicy::Cluster => TrafficPolicy::Cluster,
        model::TrafficPolicy::Local => TrafficPolicy::Local,
    }
}

fn basis(basis: view::Basis) -> Basis {
    match basis {
        view::Basis::Ready(TopologyReason::SameNode) => Basis::ReadySameNode,
        view::Basis::Ready(TopologyReason::SameZone) => Basis::ReadySameZone,
        view::Basis::Ready(TopologyReason::HintsIncomplete) => Basis::ReadyHintsIncomplete,
        view::Basis::Ready(TopologyReason::ZoneUnknown) => Basis::ReadyZoneUnknown,
        view::Basis::Ready(TopologyReason::NoneForThisZone) => Basis::ReadyNoneForThisZone,
        view::Basis::ReadyLocal => Basis::ReadyLocal,
        view::Basis::Terminating => Basis::Terminating,
        view::Basis::TerminatingLocal => Basis::TerminatingLocal,
        view::Basis::None => Basis::None,
        view::Basis::NoneLocal => Basis::NoneLocal,
    }
}

fn usage(usage: view::Use) -> Usage {
    match usage {
        view::Use::Serves => Usage::Serves,
        view::Use::OtherNode => Usage::OtherNode,
        view::Use::Terminating => Usage::Terminating,
        view::Use::NotReady => Usage::NotReady,
        view::Use::HintedElsewhere => Usage::HintedElsewhere,
    }
}
