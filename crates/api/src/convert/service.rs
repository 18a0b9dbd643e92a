//! Services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use balance::{
    Ejection, HealthCheck, Limits, Policy, ProxyProtocol, Resilience, SlowStart, Timeouts, Weights,
};
use ipnet::IpNet;
use model::{
    AppProtocol, Interner, IpFamily, Label, Object, ObjectName, Service, ServicePort, TrafficPolicy, Uid,
};

use super::{Converted, Refusal, annotation, cidrs, item_name, port_number, protocol, served_address};
use crate::raw;
use crate::report::{IgnoreReason, Notes, quoted};

/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u64 = 10_800;
/// The API's limit for the same.
const MAX_AFFINITY_SECONDS: u64 = 86_400;

pub(super) fn convert(
    raw: &raw::Service<'_>,
    name: ObjectName,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Converted {
    let (spec, annotations) = (&raw.spec, &raw.metadata.annotations);
    if let Some(reason) = ignored(raw) {
        return Err(Refusal::Ignore(reason));
    }
    let external_policy = if accepts_external_traffic(spec) {
        policy(&spec.external_traffic_policy)
    } else {
        TrafficPolicy::Cluster
    };
    Ok(Object::Service(Service {
        cluster_ips: cluster_ips(spec, notes)?.into(),
        ports: ports(&spec.ports, interner, notes).into(),
        external_ips: external_ips(&spec.external_ips, notes).into(),
        load_balancer_ips: load_balancer_ips(&raw.status.load_balancer.ingress, notes).into(),
        source_ranges: source_ranges(&spec.load_balancer_source_ranges, notes).into(),
        affinity: affinity(spec, notes),
        internal_policy: policy(&spec.internal_traffic_policy),
        external_policy,
        uid: Uid::parse(&raw.metadata.uid),
        health_check_node_port: health_check_node_port(spec, external_policy, notes),
        labels: labels(&raw.metadata.labels, interner).into(),
        proxying: annotation(raw::ANNOTATION_PROXYING, annotations.proxying.as_ref(), named_policy, notes),
        resilience: resilience(annotations, notes),
        weights: annotation(raw::ANNOTATION_WEIGHTS, annotations.weights.as_ref(), Weights::parse, notes)
            .map(Arc::new),
        resets_connections: resets_connections(annotations, notes),
        preserves_destination: annotations.preserves_destination,
        name,
    }))
}

/// The labels by which a rule may select the Service, sorted. Of a key that is there twice the last counts.
fn labels(raw: &raw::Labels<'_>, interner: &mut Interner) -> Vec<Label> {
    let by_key: BTreeMap<&str, &str> = raw.others.iter().map(|(key, value)| (&**key, &**value)).collect();
    by_key.into_iter().map(|(key, value)| (interner.intern(key), interner.intern(value))).collect()
}

/// What proxies are to do besides choosing.
fn resilience(raw: &raw::Annotations<'_>, notes: &mut Notes) -> Option<Arc<Resilience>> {
    let limits = annotation(raw::ANNOTATION_LIMITS, raw.limits.as_ref(), Limits::parse, notes);
    let ejection = annotation(raw::ANNOTATION_EJECTION, raw.ejection.as_ref(), Ejection::parse, notes);
    let health_check =
        annotation(raw::ANNOTATION_HEALTH_CHECK, raw.health_check.as_ref(), HealthCheck::parse, notes);
    let timeouts = annotation(raw::ANNOTATION_TIMEOUTS, raw.timeouts.as_ref(), Timeouts::parse, notes);
    let slow_start = annotation(raw::ANNOTATION_SLOW_START, raw.slow_start.as_ref(), SlowStart::parse, notes);
    let proxy_protocol =
        annotation(raw::ANNOTATION_PROXY_PROTOCOL, raw.proxy_protocol.as_ref(), ProxyProtocol::parse, notes);
    let (limits, timeouts) = (limits.unwrap_or_default(), timeouts.unwrap_or_default());
    let resilience = Resilience { limits, ejection, health_check, timeouts, slow_start, proxy_protocol };
    (!resilience.is_none()).then(|| Arc::new(resilience))
}

fn named_policy(name: &str) -> Result<Policy, String> {
    Policy::named(name).ok_or_else(|| {
        let known = Policy::ALL.map(Policy::as_str).join(", ");
        format!("{} is no policy; there are {known}", quoted(name))
    })
}

/// Not, if it says neither yes nor no.
fn resets_connections(raw: &raw::Annotations<'_>, notes: &mut Notes) -> bool {
    let text = raw.resets_connections.as_ref();
    annotation(raw::ANNOTATION_RESET_CONNECTIONS, text, yes_or_no, notes).unwrap_or_default()
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "" | "false" => Ok(false),
        other => Err(format!("{} is neither \"true\" nor \"false\"", quoted(other))),
    }
}

fn ignored(raw: &raw::Service<'_>) -> Option<IgnoreReason> {
    let cluster_ip = &*raw.spec.cluster_ip;
    if raw.metadata.labels.proxy_name {
        Some(IgnoreReason::OtherProxy)
    } else if &*raw.spec.r#type == "ExternalName" {
        Some(IgnoreReason::ExternalName)
    } else if cluster_ip.is_empty() || cluster_ip == "None" {
        Some(IgnoreReason::NoClusterIp)
    } else {
        None
    }
}

/// The cluster IP of each family: `clusterIPs[i]` where `ipFamilies[i]` is the family; `clusterIP` alone from servers
/// that don't know `ipFamilies` (`pkg/proxy/util/utils.go`, `GetClusterIPByFamily`).
///
/// No address because none was given makes the Service one to ignore; no address because none can be used makes it one
/// to reject, so that a slip does not take a working Service away.
fn cluster_ips(spec: &raw::ServiceSpec<'_>, notes: &mut Notes) -> Result<Vec<IpAddr>, Refusal> {
    if spec.ip_families.is_empty() {
        return match served_address(&spec.cluster_ip) {
            Ok(addr) => Ok(vec![addr]),
            Err(reason) => Err(Refusal::Reject { path: "spec.clusterIP", reason }),
        };
    }
    let (mut addrs, mut last_fault) = (Vec::new(), None);
    for (i, family) in spec.ip_families.iter().enumerate() {
        match cluster_ip(spec, i, family) {
            Ok(Some(addr)) if !addrs.iter().any(|known| IpFamily::of(*known) == IpFamily::of(addr)) => {
                addrs.push(addr);
            }
            Ok(_) => {}
            Err(reason) => {
                notes.add(format_args!("spec.clusterIPs[{i}]"), &reason);
                last_fault = Some(reason);
            }
        }
    }
    match (addrs.is_empty(), last_fault) {
        (false, _) => Ok(addrs),
        (true, Some(reason)) => Err(Refusal::Reject { path: "spec.clusterIPs", reason }),
        (true, None) => Err(Refusal::Ignore(IgnoreReason::NoClusterIp)),
    }
}

fn cluster_ip(spec: &raw::ServiceSpec<'_>, i: usize, family: &str) -> Result<Option<IpAddr>, String> {
    let family = match family {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        other => return Err(format!("its family {} is neither IPv4 nor IPv6", quoted(other))),
    };
    let Some(text) = spec.cluster_ips.get(i).filter(|text| !text.is_empty()) else { return Ok(None) };
    let addr = served_address(text)?;
    if IpFamily::of(addr) == family {
        Ok(Some(addr))
    } else {
        Err(format!("{} is not an {family} address", quoted(text)))
    }
}

/// Ports in the object's order. Of two with the same name and protocol the last wins, as upstream.
fn ports(raw: &[raw::ServicePort<'_>], interner: &mut Interner, notes: &mut Notes) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(raw.len());
    for (i, raw) in raw.iter().enumerate() {
        let Some(port) = service_port(raw, i, interner, notes) else { continue };
        match ports.iter_mut().find(|known| known.name == port.name && known.protocol == port.protocol) {
            Some(known) => {
                notes.add(format_args!("spec.ports[{i}]"), "replaces another of the same name and protocol");
                *known = port;
            }
            None => ports.push(port),
        }
    }
    ports
}

fn service_port(
    raw: &raw::ServicePort<'_>,
    i: usize,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Option<ServicePort> {
    let name = item_name(&raw.name, format_args!("spec.ports[{i}].name"), interner, notes)?;
    let protocol = protocol(&raw.protocol, format_args!("spec.ports[{i}].protocol"), notes)?;
    let port = port_number(raw.port, format_args!("spec.ports[{i}].port"), notes)?;
    let node_port = match raw.node_port {
        0 => None,
        // A bad node port takes only itself away; the port stays reachable at the cluster IP.
        number => port_number(number, format_args!("spec.ports[{i}].nodePort"), notes),
    };
    let app_protocol = AppProtocol::named(&raw.app_protocol);
    Some(ServicePort { name, protocol, port, node_port, app_protocol })
}

/// External IPs without repeats. Blank entries are skipped silently, as upstream.
fn external_ips(texts: &[raw::Text<'_>], notes: &mut Notes) -> Vec<IpAddr> {
    let mut addrs = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        match served_address(text) {
            Ok(addr) if addrs.contains(&addr) => {}
            Ok(addr) => addrs.push(addr),
            Err(error) => notes.add(format_args!("spec.externalIPs[{i}]"), error),
        }
    }
    addrs
}

/// Load-balancer IPs without repeats. Host names and `ipMode: Proxy` are left to the load balancer.
fn load_balancer_ips(ingress: &[raw::Ingress<'_>], notes: &mut Notes) -> Vec<IpAddr> {
    let is_vip = |mode: &Option<raw::Text<'_>>| mode.as_ref().is_none_or(|mode| &**mode == "VIP");
    let mut addrs = Vec::with_capacity(ingress.len());
    for (i, ingress) in ingress.iter().enumerate() {
        if ingress.ip.is_empty() || !is_vip(&ingress.ip_mode) {
            continue;
        }
        match served_address(&ingress.ip) {
            Ok(addr) if addrs.contains(&addr) => {}
            Ok(addr) => addrs.push(addr),
            Err(error) => notes.add(format_args!("status.loadBalancer.ingress[{i}].ip"), error),
        }
    }
    addrs
}

/// Source ranges; a range that holds the whole family lifts the restriction for that family.
fn source_ranges(texts: &[raw::Text<'_>], notes: &mut Notes) -> Vec<IpNet> {
    let mut ranges = cidrs(texts, "spec.loadBalancerSourceRanges", notes);
    let all = |ranges: &[IpNet], v4: bool| {
        ranges.iter().any(|range| range.prefix_len() == 0 && range.addr().is_ipv4() == v4)
    };
    let (all_v4, all_v6) = (all(&ranges, true), all(&ranges, false));
    ranges.retain(|range| if range.addr().is_ipv4() { !all_v4 } else { !all_v6 });
    ranges
}

fn affinity(spec: &raw::ServiceSpec<'_>, notes: &mut Notes) -> Option<Duration> {
    match &*spec.session_affinity {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            notes.add("spec.sessionAffinity", format_args!("{} is not an affinity", quoted(other)));
            return None;
        }
    }
    let valid = |seconds: i64| {
        u64::try_from(seconds).ok().filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds))
    };
    let seconds = match spec.session_affinity_config.client_ip.timeout_seconds {
        None => DEFAULT_AFFINITY_SECONDS,
        Some(given) => valid(given).unwrap_or_else(|| {
            let reason = format_args!("{given} is not in 1..={MAX_AFFINITY_SECONDS}, the default is used");
            notes.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason);
            DEFAULT_AFFINITY_SECONDS
        }),
    };
    Some(Duration::from_secs(seconds))
}

fn policy(text: &str) -> TrafficPolicy {
    if text == "Local" { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// Whether the API's definition lets traffic in from outside, so that `externalTrafficPolicy` counts.
fn accepts_external_traffic(spec: &raw::ServiceSpec<'_>) -> bool {
    matches!(&*spec.r#type, "LoadBalancer" | "NodePort") || !spec.external_ips.is_empty()
}

fn health_check_node_port(
    spec: &raw::ServiceSpec<'_>,
    external_policy: TrafficPolicy,
    notes: &mut Notes,
) -> Option<u16> {
    let wanted = &*spec.r#type == "LoadBalancer" && external_policy == TrafficPolicy::Local;
    wanted
        .then(|| port_number(spec.health_check_node_port, format_args!("spec.healthCheckNodePort"), notes))
        .flatten()
}
