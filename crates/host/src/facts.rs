//! What of the host decides whether Services work, besides our own rules. Read on demand; nothing is changed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::file::Root;

/// The host at a moment. What could not be read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `net.ipv4.ip_forward`
    pub forwards_v4: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`
    pub forwards_v6: Option<bool>,
    /// `net.bridge.bridge-nf-call-iptables`; none: the module is not loaded.
    pub bridge_calls_iptables: Option<bool>,
    /// There are bridges.
    pub has_bridges: bool,
    /// Interfaces whose `rp_filter` is strict in effect.
    pub strict_interfaces: Vec<String>,
    /// Connection tracking.
    pub conntrack: Option<ConntrackFacts>,
    /// What processes listen on: protocol (`TCP`, `UDP`) and address.
    pub listeners: BTreeSet<(&'static str, SocketAddr)>,
    /// Virtual servers of IPVS.
    pub ipvs_servers: usize,
    /// The device that mode ipvs keeps virtual addresses on.
    pub has_ipvs_device: bool,
}

/// Connection tracking, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackFacts {
    /// Flows.
    pub count: u64,
    /// Most flows.
    pub max: u64,
    /// Flows that could not be added, since the namespace was made.
    pub insert_failed: u64,
    /// Packets dropped for lack of room, since the namespace was made.
    pub drop: u64,
}

impl Facts {
    /// Reads the host's network namespace.
    pub fn read(root: &Root) -> Self {
        let number = |path: &str| number(&root.path(path));
        let switch = |path: &str| Some(number(path)? != 0);
        let interfaces = interfaces(root);
        Self {
            forwards_v4: switch("proc/sys/net/ipv4/ip_forward"),
            forwards_v6: switch("proc/sys/net/ipv6/conf/all/forwarding"),
            bridge_calls_iptables: switch("proc/sys/net/bridge/bridge-nf-call-iptables"),
            has_bridges: interfaces
                .iter()
                .any(|name| root.path(&format!("sys/class/net/{name}/bridge")).exists()),
            strict_interfaces: strict_interfaces(root, &interfaces),
            conntrack: conntrack(root),
            listeners: listeners(root),
            ipvs_servers: ipvs_servers(root),
            has_ipvs_device: interfaces.iter().any(|name| name == "kube-ipvs0"),
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn interfaces(root: &Root) -> Vec<String> {
    let entries = std::fs::read_dir(root.path("proc/sys/net/ipv4/conf")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "all" && name != "default");
    names.sort_unstable();
    names
}

/// The larger of the interface's own setting and that of all counts (`IN_DEV_RPFILTER`); 1 is strict.
fn strict_interfaces(root: &Root, interfaces: &[String]) -> Vec<String> {
    let of = |name: &str| {
        number(&root.path(&format!("proc/sys/net/ipv4/conf/{name}/rp_filter"))).unwrap_or_default()
    };
    let all = of("all");
    interfaces.iter().filter(|name| *name != "lo" && of(name).max(all) == 1).cloned().collect()
}

fn conntrack(root: &Root) -> Option<ConntrackFacts> {
    let setting = |name: &str| number(&root.path(&format!("proc/sys/net/netfilter/{name}")));
    let statistics = std::fs::read_to_string(root.path("proc/net/stat/nf_conntrack")).unwrap_or_default();
    let sum = |column| sum_of_column(&statistics, column);
    Some(ConntrackFacts {
        count: setting("nf_conntrack_count")?,
        max: setting("nf_conntrack_max")?,
        insert_failed: sum("insert_failed"),
        drop: sum("drop"),
    })
}

/// A line of headings, then a line of hexadecimal numbers for each processor.
fn sum_of_column(text: &str, column: &str) -> u64 {
    let mut lines = text.lines();
    let at = lines.next().and_then(|line| line.split_whitespace().position(|heading| heading == column));
    let value = |line: &str| u64::from_str_radix(line.split_whitespace().nth(at?)?, 16).ok();
    lines.filter_map(value).sum()
}

fn listeners(root: &Root) -> BTreeSet<(&'static str, SocketAddr)> {
    /// `TCP_LISTEN`; an unconnected UDP socket is in state `TCP_CLOSE`.
    const STATES: [(&str, &str, &str); 4] =
        [("tcp", "TCP", "0A"), ("tcp6", "TCP", "0A"), ("udp", "UDP", "07"), ("udp6", "UDP", "07")];
    let of = |(file, protocol, state): (&str, &'static str, &'static str)| {
        let text = std::fs::read_to_string(root.path(&format!("proc/net/{file}"))).unwrap_or_default();
        let sockets: Vec<_> = text.lines().skip(1).filter_map(|line| socket(line, state)).collect();
        sockets.into_iter().map(move |address| (protocol, address))
    };
    STATES.into_iter().flat_map(of).collect()
}

/// `  0: 0100007F:1F90 00000000:0000 0A ...`: the address is in host byte order, word by word.
fn socket(line: &str, wanted_state: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = words.next()?.split_once(':')?;
    let state = words.nth(1)?;
    if state != wanted_state {
        return None;
    }
    let word =
        |start: usize| Some(u32::from_str_radix(address.get(start..start + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = if address.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        Ipv6Addr::from(<[u8; 16]>::try_from(words.as_flattened()).ok()?).into()
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Three lines of headings, then servers, which begin with their protocol, and their endpoints.
fn ipvs_servers(root: &Root) -> usize {
    let text = std::fs::read_to_string(root.path("proc/net/ip_vs")).unwrap_or_default();
    text.lines()
        .filter(|line| ["TCP", "UDP", "SCTP", "FWM"].iter().any(|kind| line.starts_with(kind)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let root = Root::new(dir.path());
        (dir, root)
    }

    #[test]
    fn what_is_not_there_is_absent() {
        let (_dir, root) = root(&[]);
        assert_eq!(Facts::read(&root), Facts::default());
    }

    #[test]
    fn a_host_is_read() {
        let tcp = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 0A 0\n   1: 0100007F:1F91 0100007F:1F90 01 0\n";
        let udp6 = "  sl  local_address\n 1: 00000000000000000000000000000000:0035 0:0000 07 0\n";
        let (_dir, root) = root(&[
            ("proc/sys/net/ipv4/ip_forward", "0\n"),
            ("proc/sys/net/ipv6/conf/all/forwarding", "1\n"),
            ("proc/sys/net/bridge/bridge-nf-call-iptables", "0\n"),
            ("proc/sys/net/ipv4/conf/all/rp_filter", "1\n"),
            ("proc/sys/net/ipv4/conf/default/rp_filter", "1\n"),
            ("proc/sys/net/ipv4/conf/lo/rp_filter", "0\n"),
            ("proc/sys/net/ipv4/conf/eth0/rp_filter", "2\n"),
            ("proc/sys/net/ipv4/conf/cni0/rp_filter", "0\n"),
            ("proc/sys/net/ipv4/conf/kube-ipvs0/rp_filter", "2\n"),
            ("sys/class/net/cni0/bridge/bridge_id", "x"),
            ("proc/sys/net/netfilter/nf_conntrack_count", "99\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "100\n"),
            (
                "proc/net/stat/nf_conntrack",
                "entries  insert_failed drop\n00000063 0000000a 00000001\n00000063 00000010 00000000\n",
            ),
            ("proc/net/tcp", tcp),
            ("proc/net/udp6", udp6),
            (
                "proc/net/ip_vs",
                "IP Virtual Server\nProt LocalAddress\n  -> RemoteAddress\nTCP  0A60000A:0050 rr\n  -> 0AF40001:1F90 Masq\n",
            ),
        ]);
        let facts = Facts::read(&root);
        assert_eq!((facts.forwards_v4, facts.forwards_v6), (Some(false), Some(true)));
        assert_eq!((facts.bridge_calls_iptables, facts.has_bridges), (Some(false), true));
        assert_eq!(facts.strict_interfaces, ["cni0"]);
        assert_eq!(facts.conntrack, Some(ConntrackFacts { count: 99, max: 100, insert_failed: 26, drop: 1 }));
        let listeners = [("TCP", "127.0.0.1:8080".parse().unwrap()), ("UDP", "[::]:53".parse().unwrap())];
        assert_eq!(facts.listeners, listeners.into());
        assert_eq!((facts.ipvs_servers, facts.has_ipvs_device), (1, true));
    }
}
