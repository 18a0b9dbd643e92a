//! What mode ipvs left beside rules: virtual servers, the device that holds their addresses, sets.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use cleanup::ipvs::{Own, VirtualServer, delete_server, family, request_family, request_servers, server};
use cleanup::upstream::{IPVS_DEVICE, NODE_PORT_SETS, ipsets};
use cleanup::{ipset, link};
use kernel::{Netlink, NetlinkError, Protocol};

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
    let found = open(Protocol::Route).and_then(|mut route| device(&mut route));
    !matches!(found, Ok(None))
}

fn try_remove_servers(root: &Root, report: &mut Report) -> Result<(), CleanupError> {
    let mut route = open(Protocol::Route)?;
    let Some(index) = device(&mut route)? else { return Ok(()) };
    let mut own = Own { node_ports: node_ports(root)?, ..Own::default() };
    let asked = route.ask(link::request_addresses, |message| match link::address(message) {
        Some((number, address)) if number == index => drop(own.addresses.insert(address)),
        Some((_, address)) => drop(own.node_addresses.insert(address)),
        None => {}
    });
    // An address that was left out is only a virtual server that stays.
    ignoring(asked, |error| matches!(error, NetlinkError::Interrupted))
        .map_err(failed("read the addresses of the devices".to_owned()))?;
    // The device goes even if a server does not: it is what makes the addresses the host's own.
    let servers = delete_servers(&own, report);
    route
        .ask(|seq| link::delete(IPVS_DEVICE, seq), |_| ())
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

/// Number of upstream's device.
fn device(route: &mut Netlink) -> Result<Option<u32>, CleanupError> {
    let mut index = None;
    let asked =
        route.ask(|seq| link::request(IPVS_DEVICE, seq), |message| index = link::index(message).or(index));
    match asked {
        Err(error) if error.refusal() == Some(ENODEV) => Ok(None),
        Err(error) => Err(failed(format!("look for device {IPVS_DEVICE}"))(error)),
        Ok(()) => Ok(index),
    }
}

fn delete_servers(own: &Own, report: &mut Report) -> Result<(), CleanupError> {
    let mut generic = open(Protocol::Generic)?;
    let mut ipvs = None;
    match generic.ask(request_family, |message| ipvs = family(message).or(ipvs)) {
        // The kernel has no IPVS.
        Err(error) if error.refusal() == Some(ENOENT) => return Ok(()),
        other => other.map_err(failed("look for IPVS".to_owned()))?,
    }
    let Some(ipvs) = ipvs else { return Ok(()) };
    let mut servers: BTreeSet<VirtualServer> = BTreeSet::new();
    let asked = generic.ask(|seq| request_servers(ipvs, seq), |message| servers.extend(server(message)));
    asked.map_err(failed("read the virtual servers of IPVS".to_owned()))?;
    let mut deleted = Vec::new();
    for server in servers.iter().filter(|server| own.has(server)) {
        let name =
            format!("virtual server {} port {} protocol {}", server.address, server.port, server.protocol);
        match generic.ask(|seq| delete_server(ipvs, server, seq), |_| ()) {
            Ok(()) => deleted.push(name),
            Err(error) => report.fail(failed(format!("delete {name}"))(error)),
        }
    }
    report.removed("IPVS", deleted);
    Ok(())
}

/// Protocols and numbers of the node ports, from the sets that hold them.
fn node_ports(root: &Root) -> Result<BTreeSet<(u16, u16)>, CleanupError> {
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
    use testkit::lab::Namespace;

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
