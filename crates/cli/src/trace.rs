//! `trace`: packets of Services as they pass the rules, from the kernel's own tracing.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agent::snapshot::Service;
use inspect::Selector;
use inspect::document::{ServiceList, TracedPacket, TracedVerdict};
use nft::Name;
use nft::trace::{Ends, Event, Traced, Traces, Verdict, What};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use crate::Endings;
use crate::client::{ClientError, Server};
use crate::command::TraceQuestion;
use crate::table::printable;

/// What only a program on the node itself can do.
pub trait Local {
    /// Has the kernel trace packets to these, so many a second of each, for as long as what is given back lives.
    ///
    /// # Errors
    /// There is no permission, or the kernel can't; why.
    fn trace(&self, table: &Name, traced: &[Traced], per_second: u32) -> Result<Box<dyn Packets>, String>;
}

/// Traced packets.
pub trait Packets: Send {
    /// Waits for so long for something to happen to one.
    ///
    /// # Errors
    /// The kernel tells no more; why.
    fn wait(&mut self, limit: Duration) -> Result<Traces, String>;
}

/// A packet of which nothing was heard for so long has gone its way.
const SILENCE: Duration = Duration::from_millis(200);
/// Each address is two rules that packets of everybody pass.
const MAX_ADDRESSES: usize = 500;
/// The proxy's table.
const TABLE: &str = "kube-proxy";

/// Traces until there were enough packets, the time is over, or somebody ends it.
pub(crate) async fn run(
    server: &Server,
    local: &dyn Local,
    question: &TraceQuestion,
    as_json: bool,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    let addresses = Addresses::of(&services(server, question).await?);
    if addresses.0.len() > MAX_ADDRESSES {
        let why = format!("there are {} addresses of Services; name a Service", addresses.0.len());
        return Err(ClientError::Trace(why));
    }
    let told = begin(local, &addresses, question.per_second)?;
    tokio::select! {
        result = print_all(told, &addresses, question.count, as_json, out) => result,
        () = interrupted() => Ok(()),
        () = after(question.seconds) => Ok(()),
    }
}

/// Begins to trace; what is told comes from a thread that waits for the kernel.
fn begin(local: &dyn Local, addresses: &Addresses, per_second: u32) -> Result<Receiver<Heard>, ClientError> {
    // Several may trace at once.
    let table = Name::from(format!("{TABLE}-trace-{}", std::process::id()));
    let traced: Vec<Traced> = addresses.0.keys().copied().collect();
    let packets = local.trace(&table, &traced, per_second).map_err(ClientError::Trace)?;
    let (sender, told) = channel(64);
    let thread = std::thread::Builder::new().name("trace".into());
    thread.spawn(move || listen(packets, &table, &sender)).map_err(ClientError::Terminal)?;
    Ok(told)
}

async fn print_all(
    mut told: Receiver<Heard>,
    addresses: &Addresses,
    count: usize,
    as_json: bool,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    let mut printed = 0;
    while printed < count
        && let Some(heard) = told.recv().await
    {
        match heard.map_err(ClientError::Trace)? {
            Told::Packet(packet) => {
                print(out, &addresses.describe(&packet), as_json).map_err(ClientError::Terminal)?;
                printed += 1;
            }
            Told::Lost => {
                drop(writeln!(std::io::stderr(), "Some packets were not told: there were too many at once."));
            }
        }
    }
    Ok(())
}

/// Somebody wants the program to end.
async fn interrupted() {
    match Endings::handle(false) {
        Ok(mut endings) => endings.recv().await,
        // The system's own way ends it as well, and the kernel cleans up.
        Err(_) => std::future::pending().await,
    }
}

async fn after(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}

async fn services(server: &Server, question: &TraceQuestion) -> Result<Vec<Service>, ClientError> {
    let get = async |namespace: &str, name: &str| server.get(&format!("services/{namespace}/{name}")).await;
    if let Some((namespace, name)) = &question.service {
        return Ok(vec![get(namespace, name).await?]);
    }
    let list: ServiceList = server.get(&format!("services?{}", Selector::default().to_query())).await?;
    let mut services = Vec::new();
    for row in list.items.iter().take(MAX_ADDRESSES) {
        services.push(get(&row.namespace, &row.name).await?);
    }
    Ok(services)
}

fn print(out: &mut impl Write, packet: &TracedPacket, as_json: bool) -> std::io::Result<()> {
    if as_json {
        writeln!(out, "{}", serde_json::to_string(packet).unwrap_or_default())?;
    } else {
        writeln!(out, "{}", printable(&line(packet)))?;
    }
    out.flush()
}

fn line(packet: &TracedPacket) -> String {
    let to = packet.endpoint.map(|endpoint| format!(" -> {endpoint}")).unwrap_or_default();
    let verdict = match packet.verdict {
        TracedVerdict::Passed => "passed on".to_owned(),
        TracedVerdict::Refused => "refused: there is no endpoint".to_owned(),
        TracedVerdict::Dropped => "dropped".to_owned(),
    };
    let by = packet.by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
    let service = packet.service_port.as_deref().unwrap_or("?");
    format!("{service} {} {} -> {}{to}: {verdict}{by}", packet.protocol, packet.source, packet.destination)
}

/// What the listening thread tells; an error, after which it tells no more, why.
type Heard = Result<Told, String>;

/// Something to print.
enum Told {
    Packet(Packet),
    Lost,
}

/// Gathers what happens to each packet until nothing more does. Ends with the channel, and then the tracing does.
///
/// Only packets that began to be traced here count. One that a node sends to itself is seen again when it arrives, under another
/// number.
fn listen(mut packets: Box<dyn Packets>, table: &Name, sender: &Sender<Heard>) {
    let mut under_way: BTreeMap<u32, (Packet, Instant)> = BTreeMap::new();
    while !sender.is_closed() {
        let events = match packets.wait(SILENCE / 4) {
            Ok(Traces::Events(events)) => events,
            Ok(Traces::Nothing) => Vec::new(),
            Ok(Traces::Lost) => {
                drop(sender.blocking_send(Ok(Told::Lost)));
                Vec::new()
            }
            Err(error) => return drop(sender.blocking_send(Err(error))),
        };
        let now = Instant::now();
        for event in events {
            if event.begins(table) {
                under_way.insert(event.id, (Packet::default(), now));
            }
            if let Some((packet, heard)) = under_way.get_mut(&event.id) {
                packet.take(&event);
                *heard = now;
            }
        }
        let is_over = |_: &u32, (_, heard): &mut (Packet, Instant)| now.duration_since(*heard) >= SILENCE;
        let over: Vec<_> = under_way.extract_if(.., is_over).collect();
        for (_, (packet, _)) in over {
            if sender.blocking_send(Ok(Told::Packet(packet))).is_err() {
                return;
            }
        }
    }
}

/// What happened to a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Packet {
    first: Option<Ends>,
    last: Option<Ends>,
    /// Table and chain that ended it.
    dropped_by: Option<(String, String)>,
}

impl Packet {
    fn take(&mut self, event: &Event) {
        if let Some(ends) = event.ends {
            self.first.get_or_insert(ends);
            self.last = Some(ends);
        }
        let drops = match event.what {
            What::Rule { verdict, .. } => verdict == Verdict::Drop,
            What::Policy { drops } => drops,
            What::Return => false,
        };
        if drops {
            self.dropped_by = Some((event.table.clone(), event.chain.clone()));
        }
    }
}

/// What is at an address: the Service port, and whether its packets are refused or dropped for want of endpoints.
#[derive(Clone, Debug)]
struct Target {
    service_port: String,
    drops: bool,
}

/// Addresses of Services.
struct Addresses(BTreeMap<Traced, Target>);

impl Addresses {
    fn of(services: &[Service]) -> Self {
        let mut addresses = BTreeMap::new();
        for port in services.iter().flat_map(|service| &service.families).flat_map(|family| &family.ports) {
            let Some(protocol) = protocol_number(&port.protocol) else { continue };
            for address in &port.addresses {
                let words = inspect::words::address(address);
                let governing = |policy: &&agent::snapshot::Policy| {
                    policy.governs.iter().any(|governed| words.starts_with(governed.as_str()))
                };
                let drops = port.policies.iter().find(governing).is_some_and(|policy| policy.drops);
                let traced = Traced { address: address.address, protocol, port: address.port };
                addresses.insert(traced, Target { service_port: port.service_port.clone(), drops });
            }
        }
        Self(addresses)
    }

    fn find(&self, ends: &Ends) -> Option<&Target> {
        let at = |address: Option<IpAddr>| {
            let port = ends.destination.port();
            self.0.get(&Traced { address, protocol: ends.protocol, port })
        };
        at(Some(ends.destination.ip())).or_else(|| at(None))
    }

    fn describe(&self, packet: &Packet) -> TracedPacket {
        let nowhere = SocketAddr::from(([0; 4], 0));
        let unknown = Ends { protocol: 0, source: nowhere, destination: nowhere };
        let first = packet.first.unwrap_or(unknown);
        let target = self.find(&first);
        let (verdict, by) = match &packet.dropped_by {
            None => (TracedVerdict::Passed, None),
            Some((table, chain)) if table == TABLE && chain.ends_with("-check") => match chain.as_str() {
                "firewall-check" => (
                    TracedVerdict::Dropped,
                    Some("the source is in none of loadBalancerSourceRanges".to_owned()),
                ),
                _ if target.is_some_and(|target| target.drops) => {
                    (TracedVerdict::Dropped, Some("its endpoints are on other nodes".to_owned()))
                }
                _ => (TracedVerdict::Refused, None),
            },
            Some((table, chain)) => (TracedVerdict::Dropped, Some(format!("chain {chain} of table {table}"))),
        };
        let last = packet.last.map(|last| last.destination);
        TracedPacket {
            service_port: target.map(|target| target.service_port.clone()),
            protocol: protocol_name(first.protocol).to_owned(),
            source: first.source,
            destination: first.destination,
            endpoint: last.filter(|last| *last != first.destination),
            verdict,
            by,
        }
    }
}

fn protocol_number(name: &str) -> Option<u8> {
    name.parse::<model::Protocol>().ok().map(model::Protocol::number)
}

fn protocol_name(number: u8) -> &'static str {
    match model::Protocol::from_number(number) {
        Some(model::Protocol::Tcp) => "TCP",
        Some(model::Protocol::Udp) => "UDP",
        Some(model::Protocol::Sctp) => "SCTP",
        None => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(destination: &str) -> Ends {
        let (source, destination) = ("10.244.0.9:40000".parse().unwrap(), destination.parse().unwrap());
        Ends { protocol: 6, source, destination }
    }

    fn event(table: &str, chain: &str, what: What, destination: Option<&str>) -> Event {
        let ends = destination.map(ends);
        Event { id: 7, table: table.into(), chain: chain.into(), what, ends, input: None, output: None }
    }

    fn addresses(drops: bool) -> Addresses {
        let cluster_ip = Some("10.96.0.10".parse().unwrap());
        let target = Target { service_port: "shop/web:http".into(), drops };
        let at = |address, port| Traced { address, protocol: 6, port };
        Addresses([(at(cluster_ip, 80), target.clone()), (at(None, 30080), target)].into())
    }

    #[track_caller]
    fn check(drops: bool, events: &[Event], expected: &str) {
        let mut packet = Packet::default();
        for event in events {
            packet.take(event);
        }
        assert_eq!(line(&addresses(drops).describe(&packet)), expected);
    }

    const MATCHED: What = What::Rule { handle: 1, verdict: Verdict::Continue };
    const DROPPED: What = What::Rule { handle: 1, verdict: Verdict::Drop };

    #[test]
    fn packets_are_told_in_the_words_of_kubernetes() {
        let begun = event("kube-proxy-trace-1", "prerouting", MATCHED, Some("10.96.0.10:80"));
        let translated =
            event(TABLE, "filter-forward", What::Policy { drops: false }, Some("10.244.0.2:8080"));
        let way = "shop/web:http TCP 10.244.0.9:40000 -> 10.96.0.10:80";
        check(false, &[begun.clone(), translated.clone()], &format!("{way} -> 10.244.0.2:8080: passed on"));
        let refused = event(TABLE, "services-check", DROPPED, None);
        check(false, &[begun.clone(), refused.clone()], &format!("{way}: refused: there is no endpoint"));
        check(true, &[begun.clone(), refused], &format!("{way}: dropped (its endpoints are on other nodes)"));
        let foreign = event("filter", "FORWARD", What::Policy { drops: true }, Some("10.244.0.2:8080"));
        let dropped = format!("{way} -> 10.244.0.2:8080: dropped (chain FORWARD of table filter)");
        check(false, &[begun, translated, foreign], &dropped);
        let node_port = event(TABLE, "filter-prerouting-pre-dnat", MATCHED, Some("192.168.0.1:30080"));
        let way = "shop/web:http TCP 10.244.0.9:40000 -> 192.168.0.1:30080";
        check(false, &[node_port], &format!("{way}: passed on"));
    }
}
