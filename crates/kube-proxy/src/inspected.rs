//! What the API reads from this host: rules as they are in the kernel, tracked flows, and what may break the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ::mode::Rule;
use agent::snapshot::{Overview, Service};
use backend_ipvs::VirtualServers;
use config::Mode;
use conntrack::{Conntrack as _, Filter};
use host::{Facts, Root};
use inspect::document::{Finding, FlowList, FlowRow, Limit};
use inspect::findings::{self, Evidence};
use iptables::{Iptables as _, Saved};
use ipvs::Ipvs;
use kernel::iptables::{Programs, Tables};
use kernel::{KernelIpvs, TableReader};
use model::{IpFamily, Protocol};
use netlink::NetlinkError;
use nft::{Bytes, Element, Family, Kernel as _, Name, Ruleset, Set, SetKind};
use walk::nft::{Elements, InRuleset, Tracer};
use walk::{Packet, Paths};

use crate::limits::Limits;
use crate::platform;

/// The host, as the API sees it.
pub(crate) struct ThisHost {
    mode: Mode,
    limits: Limits,
    root: Root,
}

impl ThisHost {
    /// For a proxy of this mode, where this is switched off.
    pub(crate) fn new(mode: Mode, limits: Limits) -> Self {
        Self { mode, limits, root: Root::default() }
    }
}

impl inspect::Host for ThisHost {
    fn walk(&self, packet: &Packet, limit: usize) -> Result<Paths, String> {
        match self.mode {
            Mode::NfTables | Mode::Ebpf | Mode::Userspace => {
                paths(&own_table(packet, self.addresses())?, packet, limit)
            }
            Mode::Ipvs => {
                let servers =
                    VirtualServers::read(open_ipvs()?).map_err(|error| agent::with_causes(&error))?;
                let tracer = own_table(packet, self.addresses())?.beside(Arc::new(servers));
                paths(&tracer, packet, limit)
            }
            Mode::IpTables => walk_iptables(packet, self.addresses(), limit),
            other @ Mode::Kernelspace => Err(format!("rules of mode {other} can't be followed")),
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        platform::addresses().into_iter().flatten().map(|(_, address)| address).collect()
    }

    fn flows(&self, limit: usize) -> Result<FlowList, String> {
        flows(limit).map_err(|error| agent::with_causes(&error))
    }

    fn limits(&self) -> Vec<Limit> {
        let capable = rustix::thread::capabilities(None)
            .is_ok_and(|held| held.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN));
        let lacks = || Limit {
            what: "programming rules and forgetting stale flows".to_owned(),
            why: "the process lacks CAP_NET_ADMIN".to_owned(),
        };
        let mut limits = self.limits.all();
        limits.extend((!capable).then(lacks));
        limits
    }

    fn findings(&self, overview: &Overview, services: &[Service]) -> (Vec<Finding>, Vec<String>) {
        let mode = self.mode.to_string();
        let mut evidence = Evidence {
            mode: &mode,
            facts: Facts::read(&self.root),
            legacy_forward_drops: host::legacy_forward_drops(&self.root),
            is_clock_synchronized: kernel::is_clock_synchronized(),
            ..Evidence::default()
        };
        for family in Family::ALL {
            match TableReader::open().and_then(|mut reader| reader.all_chains(family)) {
                Ok(chains) => evidence.chains.extend(chains),
                Err(error) => {
                    evidence.unread.push(format!("chains of {family}: {}", agent::with_causes(&error)));
                }
            }
        }
        match self.mode {
            Mode::NfTables | Mode::Ebpf | Mode::Userspace => compare(services, &mut evidence),
            Mode::Ipvs => {
                compare(services, &mut evidence);
                compare_servers(services, &self.addresses(), &mut evidence);
            }
            Mode::IpTables => compare_iptables(services, overview, &mut evidence),
            Mode::Kernelspace => {}
        }
        (findings::findings(&evidence, overview, services), findings::checked(&evidence))
    }
}

/// The table in which rules choose endpoints, or IPVS is helped to.
fn own_table(packet: &Packet, addresses: Vec<IpAddr>) -> Result<Tracer, String> {
    let table = backend_nftables::table_name();
    let family = Family::of(packet.destination.ip());
    let tracer = nftables_tracer(table.clone(), packet, addresses)?;
    tracer.ok_or_else(|| format!("there is no table {family} {table}"))
}

/// A table, read as far as one packet needs it; `None`: there is none.
fn nftables_tracer(table: Name, packet: &Packet, addresses: Vec<IpAddr>) -> Result<Option<Tracer>, String> {
    let family = Family::of(packet.destination.ip());
    let told = |error: netlink::NetlinkError| agent::with_causes(&error);
    let mut reader = TableReader::open().map_err(told)?;
    let Some(rules) = reader.rules(family, &table).map_err(told)? else { return Ok(None) };
    let rules = Arc::new(rules);
    let elements = InKernel {
        family,
        table,
        networks: InRuleset::new(rules.clone(), family),
        state: Mutex::new((reader, BTreeMap::new())),
    };
    Ok(Some(Tracer::with_elements(rules, Arc::new(elements), family, addresses)))
}

fn paths(tracer: &Tracer, packet: &Packet, limit: usize) -> Result<Paths, String> {
    tracer.paths(packet, limit).map_err(|error| error.to_string())
}

fn open_ipvs() -> Result<Box<dyn Ipvs>, String> {
    let opened = KernelIpvs::open().map_err(|error| agent::with_causes(&error))?;
    Ok(Box::new(opened))
}

/// What was found for keys of sets.
type Found = BTreeMap<(Name, Bytes), Option<Element>>;

/// Elements that are asked of the kernel when they are needed, each once.
struct InKernel {
    family: Family,
    table: Name,
    /// The kernel finds no networks by an address in them; those were read with the rules.
    networks: InRuleset,
    state: Mutex<(TableReader, Found)>,
}

impl Elements for InKernel {
    fn find(&self, set: &Set, key: &Bytes) -> Result<Option<Element>, String> {
        if set.kind == SetKind::Networks {
            return self.networks.find(set, key);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (reader, known) = &mut *state;
        let place = (set.name.clone(), *key);
        if let Some(found) = known.get(&place) {
            return Ok(found.clone());
        }
        let found =
            reader.element(self.family, &self.table, set, key).map_err(|error| agent::with_causes(&error))?;
        known.insert(place, found.clone());
        Ok(found)
    }
}

/// What iptables' programs list of a family.
fn read_iptables(family: IpFamily) -> Result<Saved, String> {
    let told = |error: iptables::IptablesError| agent::with_causes(&error);
    let mut tables = Tables::new(Programs::find(family).map_err(told)?);
    tables.save(backend_iptables::PREFIX).map_err(told)
}

/// What is handed to a worker meets no rule of iptables that could translate it as well.
fn walk_iptables(packet: &Packet, addresses: Vec<IpAddr>, limit: usize) -> Result<Paths, String> {
    let workers = backend_nftables::workers_table_name();
    if let Some(tracer) = nftables_tracer(workers, packet, addresses.clone())? {
        let handed_over = paths(&tracer, packet, limit)?;
        let is_translated = |path: &walk::Path| matches!(path.outcome, walk::Outcome::Delivered { to, .. } if to != packet.destination);
        if handed_over.paths.iter().any(is_translated) {
            return Ok(handed_over);
        }
    }
    let saved = read_iptables(IpFamily::of(packet.destination.ip()))?;
    walk::iptables::Tracer::new(saved, addresses).paths(packet, limit).map_err(|error| error.to_string())
}

/// Flows that were directed to an endpoint, of both families.
fn flows(limit: usize) -> Result<FlowList, NetlinkError> {
    let mut list = FlowList::default();
    let mut conntrack = kernel::Flows::open()?;
    for family in Family::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let filter = Filter::new(family, protocol.number());
            let read = conntrack.each(&filter, &mut |flow| {
                if !flow.is_dnat() {
                    return;
                }
                list.truncated |= list.items.len() == limit;
                if list.items.len() < limit {
                    list.items.push(row(flow, protocol));
                }
            });
            match read {
                // What was visited is right.
                Err(NetlinkError::Interrupted) => list.truncated = true,
                other => other?,
            }
        }
    }
    Ok(list)
}

fn row(flow: &conntrack::Flow, protocol: Protocol) -> FlowRow {
    let (source, destination) = flow.orig.ends();
    FlowRow {
        protocol: protocol.to_string(),
        source,
        destination,
        endpoint: flow.answered_by(),
        replied: flow.is_replied(),
        masqueraded: flow.status & conntrack::status::SRC_NAT != 0,
    }
}

/// Looks for every rule that should be in force in a reading of the whole table.
fn compare(services: &[Service], evidence: &mut Evidence<'_>) {
    for ip_family in IpFamily::ALL {
        let table = backend_nftables::table_name();
        if let Some(held) = held_in(&table, ip_family.into(), evidence) {
            evidence.missing.extend(missing(services, ip_family, &held));
        }
    }
}

/// What a table of nftables has; `None`: it can't be read, which is evidence by itself.
fn held_in(table: &Name, family: Family, evidence: &mut Evidence<'_>) -> Option<BTreeSet<Rule>> {
    let read = || kernel::Nftables::open()?.read(family, table)?.whole();
    match read() {
        Ok(found) => Some(found.as_ref().map(|ruleset| texts(ruleset, family)).unwrap_or_default()),
        Err(error) => {
            evidence.unread.push(format!("table {family} {table}: {}", agent::with_causes(&error)));
            None
        }
    }
}

/// The same for rules of iptables, of the families that are served.
fn compare_iptables(services: &[Service], overview: &Overview, evidence: &mut Evidence<'_>) {
    let is_served = |family: &IpFamily| {
        let name = family.to_string();
        overview.families.iter().any(|served| served.family == name)
    };
    for family in IpFamily::ALL.into_iter().filter(is_served) {
        match read_iptables(family) {
            Ok(saved) => {
                let mut held = backend_iptables::rules_of(&saved);
                let workers = backend_nftables::workers_table_name();
                held.extend(held_in(&workers, family.into(), evidence).unwrap_or_default());
                evidence.missing.extend(missing(services, family, &held));
            }
            Err(error) => evidence.unread.push(format!("rules of iptables, {family}: {error}")),
        }
    }
}

/// Every element of every set, as its tool prints it.
fn texts(ruleset: &Ruleset, family: Family) -> BTreeSet<Rule> {
    let of = |state: &nft::SetState| {
        let place = format!("{} {}", state.set.keyword(), state.set.name);
        let text = |element| state.set.element_text(element, family).to_string();
        let rule = |element| Rule { place: place.clone(), text: text(element) };
        state.elements.iter().map(rule).collect::<Vec<_>>()
    };
    ruleset.sets.values().flat_map(of).collect()
}

/// What of Services is believed to be in the kernel and is not.
fn missing(services: &[Service], family: IpFamily, held: &BTreeSet<Rule>) -> Vec<(String, String)> {
    let name = family.to_string();
    services.iter().flat_map(|service| missing_of(service, &name, held)).collect()
}

fn missing_of(service: &Service, family: &str, held: &BTreeSet<Rule>) -> Vec<(String, String)> {
    let ports = service.families.iter().filter(|own| own.family == family).flat_map(|own| &own.ports);
    // What maps have is read from them; servers are compared by themselves.
    let elsewhere = [backend_ebpf::PLACE, backend_ipvs::PLACE];
    let is_missing = |rule: &&agent::snapshot::Rule| {
        let wanted = Rule { place: rule.place.clone(), text: rule.text.clone() };
        !elsewhere.contains(&&*rule.place) && !held.contains(&wanted)
    };
    let of_port = |port: &agent::snapshot::Port| {
        let in_force =
            port.addresses.iter().filter(|address| address.state == agent::snapshot::AddressState::InForce);
        let rules = in_force.flat_map(|address| &address.rules).filter(is_missing);
        rules
            .map(|rule| (port.service_port.clone(), format!("{} of {}", rule.text, rule.place)))
            .collect::<Vec<_>>()
    };
    ports.flat_map(of_port).collect()
}

/// Looks for every virtual and real server that should be there, and for the addresses that make them the host's.
fn compare_servers(services: &[Service], addresses: &[IpAddr], evidence: &mut Evidence<'_>) {
    let read = || -> Result<_, String> {
        backend_ipvs::read_pieces(&mut *open_ipvs()?).map_err(|error| agent::with_causes(&error))
    };
    let held = match read() {
        Ok(held) => held,
        Err(error) => return evidence.unread.push(format!("virtual servers: {error}")),
    };
    for port in services.iter().flat_map(|service| &service.families).flat_map(|family| &family.ports) {
        let in_force =
            port.addresses.iter().filter(|address| address.state == agent::snapshot::AddressState::InForce);
        for address in in_force {
            let servers = address.rules.iter().filter(|rule| rule.place == backend_ipvs::PLACE);
            let pieces = servers.clone().flat_map(|rule| backend_ipvs::pieces(&rule.text));
            let lacks = pieces.filter(|piece| !held.contains(piece));
            evidence.missing.extend(lacks.map(|piece| (port.service_port.clone(), piece)));
            let ip = address.address.filter(|ip| servers.count() > 0 && !addresses.contains(ip));
            let not_local = |ip| format!("address {ip} of device {}", backend_ipvs::DEVICE);
            evidence.missing.extend(ip.map(|ip| (port.service_port.clone(), not_local(ip))));
        }
    }
}
