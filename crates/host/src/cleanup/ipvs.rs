//! What mode ipvs left beside rules: virtual servers, the device that holds their addresses, sets.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use ::ipvs::{Command, Ipvs as _, device};
use cleanup::ipset;
use cleanup::ipvs::Own;
use cleanup::upstream::{IPVS_DEVICE, NODE_PORT_SETS, ipsets};
use kernel::{KernelIpvs, Netlink, Protocol};
use netlink::NetlinkError;

use super::{CleanupError, Report};
use crate::file::Root;

const ENOENT: i32 = 2;
const ENODEV: i32 = 19;

/// How long a set may be in use after the rules that referred to it: the kernel frees those of `nf_tables` a little later.
const SET_ATTEMPTS: u32 = 20;
const SET_PAUSE: Duration = Duration::from_millis(50);

/// Deletes upstream's virtual servers, and its device. Without the device nothing is asked for, so that the module stays
/// unloaded where nobody uses it. Virtual servers of others stay.
pub(super) fn remove_servers(root: &Root, report: &mut Report) {
    if let Err(error) = try_remove_servers(root, report) {
        report.fail(error);
    }
}

/// Whether the device is there, or that can't be told.
pub(super) fn is_left() -> bool {
    let found = open(Protocol::Route).and_then(|mut route| device_index(&mut route));
    !matches!(found, Ok(None))
}

fn try_remove_servers(root: &Root, report: &mut Report) -> Result<(), CleanupError> {
    let mut route = open(Protocol::Route)?;
    let Some(index) = device_index(&mut route)? else { return Ok(()) };
    let mut own = Own { node_ports: node_ports(root)?, ..Own::default() };
    let asked = route.ask(device::request_addresses, |message| match device::address(message) {
        Some(found) if found.index == index => drop(own.addresses.insert(found.address)),
        Some(found) => drop(own.node_addresses.insert(found.address)),
        None => {}
    });
    // An address that was left out is only a virtual server that stays.
    ignoring(asked, |error| matches!(error, NetlinkError::Interrupted))
        .map_err(failed("read the addresses of the devices".to_owned()))?;
    wait_for_connections(&own);
    // The device goes even if a server does not: it is what makes the addresses the host's own.
    let servers = delete_servers(&own, report);
    route
        .ask(|seq| device::delete(IPVS_DEVICE, seq), |_| ())
        .map_err(failed(format!("delete device {IPVS_DEVICE}")))?;
    report.removed("IPVS", vec![format!("device {IPVS_DEVICE}")]);
    servers
}

fn open(protocol: Protocol) -> Result<Netlink, CleanupError> {
    Netlink::open(protocol).map_err(failed("look for leftovers of mode ipvs".to_owned()))
}

fn failed(action: String) -> impl FnOnce(NetlinkError) -> CleanupError {
    move |source| CleanupError::Ipvs { action, source }
}

fn ignoring(
    result: Result<(), NetlinkError>,
    what: impl Fn(&NetlinkError) -> bool,
) -> Result<(), NetlinkError> {
    result.or_else(|error| if what(&error) { Ok(()) } else { Err(error) })
}

/// How long connections through virtual servers have time to end, and how often that is looked up.
const CONNECTIONS_LIMIT: Duration = Duration::from_secs(10);
const CONNECTIONS_PAUSE: Duration = Duration::from_millis(200);

/// Gives connections time to end: they end with their virtual server. New ones are directed by rules by now, before IPVS sees
/// them.
fn wait_for_connections(own: &Own) {
    let looks = CONNECTIONS_LIMIT.as_millis() / CONNECTIONS_PAUSE.as_millis();
    for _ in 0..looks {
        // What can't be read is told when it is deleted.
        if !has_connections(own).unwrap_or(false) {
            return;
        }
        thread::sleep(CONNECTIONS_PAUSE);
    }
}

fn has_connections(own: &Own) -> Result<bool, NetlinkError> {
    let mut ipvs = KernelIpvs::open()?;
    for server in ipvs.virtual_servers()?.iter().filter(|server| own.has(server)) {
        let reals = ipvs.real_servers(&server.id)?;
        if reals.iter().any(|(_, connections)| connections.active > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Number of upstream's device, which is ours too.
fn device_index(route: &mut Netlink) -> Result<Option<u32>, CleanupError> {
    let mut found = None;
    let asked = route.ask(
        |seq| device::request(IPVS_DEVICE, seq),
        |message| found = device::device(message).or(found.take()),
    );
    match asked {
        Err(error) if error.refusal() == Some(ENODEV) => Ok(None),
        Err(error) => Err(failed(format!("look for device {IPVS_DEVICE}"))(error)),
        Ok(()) => Ok(found.map(|device| device.index)),
    }
}

fn delete_servers(own: &Own, report: &mut Report) -> Result<(), CleanupError> {
    let mut ipvs = match KernelIpvs::open() {
        Err(error) if error.is_missing() => return Ok(()),
        opened => opened.map_err(CleanupError::VirtualServers)?,
    };
    let servers = ipvs.virtual_servers().map_err(CleanupError::VirtualServers)?;
    let ids: BTreeSet<_> = servers.iter().filter(|server| own.has(server)).map(|server| server.id).collect();
    let commands: Vec<Command> = ids.iter().copied().map(Command::DeleteVirtual).collect();
    let mut deleted = Vec::new();
    for (id, result) in ids.iter().zip(ipvs.apply(&commands)) {
        match result {
            Ok(()) => deleted.push(format!("virtual server {id}")),
            Err(error) => report.fail(CleanupError::VirtualServers(error)),
        }
    }
    report.removed("IPVS", deleted);
    Ok(())
}

/// Protocols and numbers of the node ports, from the sets that hold them.
fn node_ports(root: &Root) -> Result<BTreeSet<(u8, u16)>, CleanupError> {
    let mut ports = BTreeSet::new();
    if !has_sets(root) {
        return Ok(ports);
    }
    let mut netfilter = open(Protocol::Netfilter)?;
    for (name, protocol) in NODE_PORT_SETS {
        let asked = netfilter.ask(
            |seq| ipset::request(name, seq),
            |message| ports.extend(ipset::ports(message).map(|port| (protocol, port))),
        );
        ignoring(asked, |error| error.refusal() == Some(ENOENT))
            .map_err(failed(format!("read set {name}")))?;
    }
    Ok(ports)
}

/// Whether the kernel has sets in use. To ask it for one would load the module.
fn has_sets(root: &Root) -> bool {
    root.path("sys/module/ip_set").exists()
}

/// Destroys upstream's sets, if the kernel has sets in use at all.
pub(super) fn remove_sets(root: &Root, report: &mut Report) {
    if !has_sets(root) {
        return;
    }
    let mut netfilter = match open(Protocol::Netfilter) {
        Ok(netfilter) => netfilter,
        Err(error) => return report.fail(error),
    };
    let mut destroyed = Vec::new();
    for name in ipsets() {
        match destroy(&mut netfilter, &name) {
            Ok(true) => destroyed.push(format!("set {name}")),
            Ok(false) => {}
            Err(error) => report.fail(failed(format!("destroy set {name}"))(error)),
        }
    }
    report.removed("ipset", destroyed);
}

/// Destroys a set; false if there is none.
fn destroy(netfilter: &mut Netlink, name: &str) -> Result<bool, NetlinkError> {
    for _ in 1..SET_ATTEMPTS {
        match netfilter.ask(|seq| ipset::destroy(name, seq), |_| ()) {
            Ok(()) => return Ok(true),
            Err(error) if error.refusal() == Some(ENOENT) => return Ok(false),
            Err(error) if error.refusal() == Some(ipset::BUSY) => thread::sleep(SET_PAUSE),
            Err(error) => return Err(error),
        }
    }
    netfilter.ask(|seq| ipset::destroy(name, seq), |_| ()).map(|()| true)
}

#[cfg(test)]
mod tests {
    use lab::Namespace;

    use super::*;

    /// In the real kernel; needs root and `ipset`.
    #[test]
    fn node_ports_are_read_from_the_sets() {
        let host = Namespace::new("host").unwrap();
        let read = || host.run(|| node_ports(&Root::default()).unwrap());
        assert_eq!(read(), BTreeSet::new());
        let sets = "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535\nadd KUBE-NODE-PORT-TCP 30080\n\
                    add KUBE-NODE-PORT-TCP 30443\ncreate KUBE-NODE-PORT-SCTP-HASH hash:ip,port\n\
                    add KUBE-NODE-PORT-SCTP-HASH 192.168.0.1,sctp:30099\ncreate KUBE-6-NODE-PORT-UDP bitmap:port range 0-65535\n\
                    add KUBE-6-NODE-PORT-UDP 30053\ncreate mine bitmap:port range 0-65535\nadd mine 7\n";
        host.exec_with_input("ipset", &["restore"], sets).unwrap();
        assert_eq!(read(), BTreeSet::from([(6, 30080), (6, 30443), (132, 30099), (17, 30053)]));
        // More than one message holds.
        host.exec("ipset", &["add", "KUBE-NODE-PORT-TCP", "1000-20000"]).unwrap();
        assert_eq!(read().len(), 4 + 19_001);
    }
}
