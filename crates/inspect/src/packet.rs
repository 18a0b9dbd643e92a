//! What becomes of a packet: the rules as they are in the kernel, and the same in the words of Kubernetes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use agent::snapshot::{Address, AddressState, Policy, Port, Service, TrafficPolicy, Wanted};
use model::Protocol;
use walk::nft::BALANCER_CHAIN;
use walk::{Origin, Outcome, Packet, Paths, Step};

use crate::api::{Api, ApiError};
use crate::document::{Ending, PacketQuestion, PacketReport, Place, RuleStep, Verdict};
use crate::query::{Query, QueryError};
use crate::select::ports;
use crate::words;

/// Paths that are looked at; there are as many as endpoints.
const MAX_PATHS: usize = 1024;
/// A port that a client may well have.
const SOME_PORT: u16 = 40_000;

/// Answers `GET /api/v1/packet`.
pub(crate) async fn answer(api: &Api, query: Query) -> Result<PacketReport, ApiError> {
    let local = api.on_host(|host| Ok(host.addresses())).await?;
    let question = question(query, &local)?;
    let packet = packet(&question)?;
    let paths = api.on_host(move |host| host.walk(&packet, MAX_PATHS)).await?;
    let mut named = paths.paths.iter().find_map(|path| named_port(&path.steps));
    if named.is_none() && paths.paths.iter().any(|path| is_balanced(&path.steps)) {
        named = claimant(api, question.destination, &question.protocol).await?;
    }
    let service = match named.as_deref().and_then(service_of) {
        Some((namespace, name)) => api.service(namespace, name).await.ok(),
        None => None,
    };
    let mut strangers = Vec::new();
    if named.is_none() {
        strangers = not_ours(api, question.destination, &question.protocol).await?;
    }
    Ok(report(question, &paths, named, service.as_ref(), strangers))
}

fn question(mut query: Query, local: &[IpAddr]) -> Result<PacketQuestion, QueryError> {
    let destination = query
        .parsed::<SocketAddr>("destination", "an address and port")?
        .ok_or(QueryError::Missing("destination"))?;
    let source = query.text("source").ok_or(QueryError::Missing("source"))?;
    let unusable = || QueryError::Value {
        name: "source",
        value: source.clone(),
        wanted: "an address of the destination's family",
    };
    let source: SocketAddr = source
        .parse()
        .or_else(|_no_port| source.parse().map(|ip: IpAddr| SocketAddr::new(ip, SOME_PORT)))
        .map_err(|_unusable| unusable())?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(unusable());
    }
    let protocol = query.text("protocol").unwrap_or_else(|| "TCP".to_owned()).to_uppercase();
    let interface = query.text("interface");
    let from = match query.text("from").as_deref() {
        Some("pod") => Place::Pod,
        Some("node") => Place::Node,
        Some("outside") => Place::Outside,
        Some(other) => {
            let value = other.to_owned();
            return Err(QueryError::Value { name: "from", value, wanted: "pod, node or outside" });
        }
        None if source.ip().is_loopback() || local.contains(&source.ip()) => Place::Node,
        None => Place::Outside,
    };
    query.end()?;
    Ok(PacketQuestion { source, destination, protocol, from, interface })
}

fn packet(question: &PacketQuestion) -> Result<Packet, QueryError> {
    let protocol: Protocol = question.protocol.parse().map_err(|_unknown| QueryError::Value {
        name: "protocol",
        value: question.protocol.clone(),
        wanted: "TCP, UDP or SCTP",
    })?;
    // A name that no interface has: rules that ask for one do not match.
    let interface = || question.interface.clone().unwrap_or_else(|| "?".to_owned());
    let origin = match question.from {
        Place::Node => Origin::Host,
        Place::Pod | Place::Outside => Origin::Interface(interface()),
    };
    let PacketQuestion { source, destination, .. } = *question;
    Ok(Packet { source, destination, protocol: protocol.number(), origin })
}

/// The Service port that a rule or an element on the way is commented with.
fn named_port(steps: &[Step]) -> Option<String> {
    let mut texts = steps.iter().flat_map(|step| step.found.iter().chain([&step.rule]));
    texts.find_map(|text| commented(text))
}

/// `comment "default/web:http cluster IP"`
fn commented(text: &str) -> Option<String> {
    let comment = text.split_once("comment \"")?.1;
    let first = comment.split(['"', ' ']).next()?;
    service_of(first).map(|_| first.to_owned())
}

fn service_of(port: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = port.split_once('/')?;
    let name = rest.split_once(':').map_or(rest, |(name, _)| name);
    (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then_some((namespace, name))
}

/// Whether a virtual server took the packet.
fn is_balanced(steps: &[Step]) -> bool {
    steps.iter().any(|step| step.chain == BALANCER_CHAIN)
}

/// The Service port that has an address: virtual servers have no names, and not all of them go with rules that do.
async fn claimant(api: &Api, to: SocketAddr, protocol: &str) -> Result<Option<String>, ApiError> {
    let mut named = None;
    api.each_of(related(to), &mut |service| {
        let has = |port: &&Port| {
            let is_it = |address: &Address| {
                address.state == AddressState::InForce
                    && address.port == to.port()
                    && address.address.is_none_or(|ip| ip == to.ip())
            };
            port.protocol == protocol && port.addresses.iter().any(is_it)
        };
        if named.is_none() {
            named = ports(&service).find(has).map(|port| port.service_port.clone());
        }
    })
    .await?;
    Ok(named)
}

/// The Services that have something to do with an address.
fn related(to: SocketAddr) -> Wanted {
    Wanted { address: Some(to.ip()), node_port: Some(to.port()), after: None }
}

/// Why a packet is no Service's, as far as the Services tell.
async fn not_ours(api: &Api, to: SocketAddr, protocol: &str) -> Result<Vec<String>, ApiError> {
    let mut words = Vec::new();
    api.each_of(related(to), &mut |service: Service| {
        if words.len() < 8 {
            words.extend(relation(&service, to, protocol));
        }
    })
    .await?;
    if words.is_empty() {
        words.push(format!("No Service has the address {}, and none has an endpoint of it.", to.ip()));
    }
    Ok(words)
}

/// What a Service has to do with an address that it does not serve.
fn relation(service: &Service, to: SocketAddr, protocol: &str) -> Option<String> {
    let name = format!("{}/{}", service.namespace, service.name);
    let all = || ports(service).flat_map(|port| port.addresses.iter().map(move |address| (port, address)));
    let at_address: Vec<_> = all().filter(|(_, address)| address.address == Some(to.ip())).collect();
    if let Some((port, address)) =
        at_address.iter().find(|(port, address)| address.port == to.port() && port.protocol == protocol)
    {
        let state = words::state(&address.state);
        let state = if state.is_empty() {
            "the rules should have it: run `kube-proxy check`".to_owned()
        } else {
            state
        };
        return Some(format!(
            "{to}/{protocol} is a {} of {}; {state}.",
            words::address_kind(address.kind),
            port.service_port
        ));
    }
    if !at_address.is_empty() {
        let mut own: Vec<String> =
            at_address.iter().map(|(port, address)| format!("{}/{}", address.port, port.protocol)).collect();
        own.dedup();
        return Some(format!(
            "{name} has the address {}, but no port {}/{protocol}; it has {}.",
            to.ip(),
            to.port(),
            own.join(", ")
        ));
    }
    let serves = |port: &&Port| port.endpoints.iter().any(|endpoint| endpoint.address == to);
    let port = ports(service).find(|port| serves(port) && port.protocol == protocol)?;
    Some(format!(
        "{to} is an endpoint of {}: it is reached directly, without the Service.",
        port.service_port
    ))
}

fn report(
    packet: PacketQuestion,
    paths: &Paths,
    named: Option<String>,
    service: Option<&Service>,
    strangers: Vec<String>,
) -> PacketReport {
    let endings = endings(paths, packet.destination);
    let mut words = strangers;
    if let Some(name) = &named {
        let port = service.and_then(|service| port_of(service, name, &packet));
        words.extend(decision(name, port, &packet));
    }
    words.extend(endings_in_words(&endings));
    words.extend(source_in_words(&endings, &packet));
    let rules =
        paths.paths.first().map(|path| path.steps.iter().map(rule_step).collect()).unwrap_or_default();
    PacketReport { unknown: unknown(&packet, paths), packet, endings, service_port: named, words, rules }
}

fn rule_step(step: &Step) -> RuleStep {
    RuleStep {
        hook: step.hook.to_owned(),
        table: step.table.to_owned(),
        chain: step.chain.clone(),
        rule: step.rule.clone(),
        found: step.found.clone(),
    }
}

/// Paths that come to the same are one ending.
fn endings(paths: &Paths, destination: SocketAddr) -> Vec<Ending> {
    let mut shares: BTreeMap<(bool, Outcome), f64> = BTreeMap::new();
    for path in &paths.paths {
        *shares.entry((is_proxied(&path.steps), path.outcome)).or_default() += path.probability;
    }
    let ending = |((is_proxied, outcome), share): ((bool, Outcome), f64)| {
        let (verdict, to, masqueraded) = match outcome {
            Outcome::Delivered { .. } if is_proxied => (Verdict::Proxied, None, false),
            Outcome::Delivered { to, masqueraded } if to == destination => {
                (Verdict::Untouched, Some(to), masqueraded)
            }
            Outcome::Delivered { to, masqueraded } => (Verdict::Translated, Some(to), masqueraded),
            Outcome::Refused => (Verdict::Refused, None, false),
            Outcome::Dropped => (Verdict::Dropped, None, false),
        };
        Ending { verdict, to, masqueraded, share }
    };
    let mut endings: Vec<Ending> = shares.into_iter().map(ending).collect();
    endings.sort_by(|a, b| b.share.total_cmp(&a.share));
    endings
}

/// Whether a rule translated to where a worker of this node listens (`backend-nftables`: `lease`).
fn is_proxied(steps: &[Step]) -> bool {
    let hands_over = ["map @proxies", "map @internal-proxies"];
    steps.iter().any(|step| hands_over.iter().any(|end| step.rule.ends_with(end)))
}

/// The port of the Service that the packet is for, in the packet's family.
fn port_of<'a>(
    service: &'a Service,
    name: &str,
    packet: &PacketQuestion,
) -> Option<(&'a Port, Option<&'a Address>)> {
    let family = if packet.destination.is_ipv4() { "IPv4" } else { "IPv6" };
    let own = service.families.iter().filter(|own| own.family == family).flat_map(|own| &own.ports);
    let mut own = own.filter(|port| port.service_port == name && port.protocol == packet.protocol);
    let port = own.next()?;
    let to = packet.destination;
    let is_meant =
        |address: &&Address| address.port == to.port() && address.address.is_none_or(|ip| ip == to.ip());
    Some((port, port.addresses.iter().find(is_meant)))
}

/// What the Service says about the packet.
fn decision(name: &str, port: Option<(&Port, Option<&Address>)>, packet: &PacketQuestion) -> Vec<String> {
    let to = packet.destination;
    let Some((port, address)) = port else {
        return vec![format!(
            "{to}/{} belongs to {name}, of which the proxy itself knows nothing (any more).",
            packet.protocol
        )];
    };
    let Some(address) = address else {
        return vec![format!("{to}/{} is caught by a rule for {name}.", packet.protocol)];
    };
    let mut words = vec![match address.address {
        Some(_) => {
            format!("{to}/{} is the {} of {name}.", packet.protocol, words::address_kind(address.kind))
        }
        None => format!(
            "{} is the node port of {name}, on every address of this node that serves node ports.",
            to.port()
        ),
    }];
    let state = words::state(&address.state);
    if !state.is_empty() {
        words.push(format!("It is {state}."));
    }
    if let Some((policy, why)) = governing(port, address, packet.from) {
        words.push(format!("{why}{}: {}.", words::policy_name(policy.policy), words::policy(policy)));
    }
    if let Some(seconds) = port.affinity_seconds {
        words.push(format!("With affinity ClientIP a client comes back to the endpoint it was given within the last {seconds} s."));
    }
    words
}

/// The policy for packets to an address from a place, and why that.
fn governing<'a>(port: &'a Port, address: &Address, from: Place) -> Option<(&'a Policy, &'static str)> {
    use agent::snapshot::AddressKind::ClusterIp;
    let of = |wanted: TrafficPolicy| port.policies.iter().find(|policy| policy.policy == wanted);
    let kind = words::address_kind(address.kind);
    let own = port
        .policies
        .iter()
        .find(|policy| policy.governs.iter().any(|governed| governed.starts_with(kind)))?;
    if address.kind == ClusterIp {
        return Some((own, "internalTrafficPolicy is "));
    }
    let is_inside = from != Place::Outside;
    if own.policy == TrafficPolicy::Local && is_inside {
        let short_cut =
            "externalTrafficPolicy is Local, but pods and the node itself may use all endpoints, as under ";
        return of(TrafficPolicy::Cluster).map(|policy| (policy, short_cut));
    }
    Some((own, "externalTrafficPolicy is "))
}

fn endings_in_words(endings: &[Ending]) -> Vec<String> {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let word = |ending: &Ending| match (ending.verdict, ending.to) {
        (Verdict::Translated, Some(to)) if endings.len() == 1 => format!("The packet goes to {to}."),
        (Verdict::Translated, Some(to)) => {
            format!("The packet goes to {to} in {} of the cases.", percent(ending.share))
        }
        (Verdict::Proxied, _) => {
            "A worker of this node takes the flow, and carries it to an endpoint of its choice.".to_owned()
        }
        (Verdict::Refused, _) => "The packet is refused with an ICMP error.".to_owned(),
        (Verdict::Dropped, _) => "The packet is dropped.".to_owned(),
        (Verdict::Untouched | Verdict::Translated, _) => {
            "The rules of Services leave the packet alone: it goes where routes and others' rules send it."
                .to_owned()
        }
    };
    endings.iter().map(word).collect()
}

fn source_in_words(endings: &[Ending], packet: &PacketQuestion) -> Option<String> {
    if endings.iter().any(|ending| ending.verdict == Verdict::Proxied) {
        return Some(
            "The endpoint sees an address of this node as source, which is the worker's.".to_owned(),
        );
    }
    let translated = || endings.iter().filter(|ending| ending.verdict == Verdict::Translated);
    translated().next()?;
    let seen = if translated().all(|ending| ending.masqueraded) {
        "The endpoint sees an address of this node as source (masqueraded), so that its answer comes back this way."
    } else if translated().any(|ending| ending.masqueraded) {
        "An endpoint that is the client itself sees an address of this node as source; any other sees the client."
    } else {
        return Some(format!("The endpoint sees the client's address {} as source.", packet.source.ip()));
    };
    Some(seen.to_owned())
}

/// So many rules of others are named.
const MAX_OTHERS: usize = 10;

fn unknown(packet: &PacketQuestion, paths: &Paths) -> Vec<String> {
    let mut unknown = vec![
        "Routes, network policies and the rules of others: they may send it elsewhere or drop it.".to_owned(),
        "Whether the endpoint answers.".to_owned(),
    ];
    if packet.from != Place::Node && packet.interface.is_none() {
        unknown.push(
            "The interface that it arrives on (--in): rules that ask for one were taken not to match."
                .to_owned(),
        );
    }
    if paths.paths.iter().any(|path| is_balanced(&path.steps)) {
        unknown.push(
            "Which endpoint IPVS's scheduler chooses: each was taken to be as probable as any other."
                .to_owned(),
        );
    }
    if !paths.complete {
        unknown.push(format!("There are more paths than the {} that were looked at.", paths.paths.len()));
    }
    let others = paths.passed_over.iter().take(MAX_OTHERS);
    unknown.extend(others.map(|rule| format!("What a rule of others does: {rule}")));
    unknown.push(
        "It is about the first packet of a flow: those behind it go where the first one went.".to_owned(),
    );
    unknown
}
