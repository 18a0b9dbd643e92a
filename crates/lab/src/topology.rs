//! The plan of the laboratory as pure text: addresses, settings and the commands for `ip -batch`.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How many pods one node's /24 holds: host numbers 2 to 250.
pub(super) const MAX_PODS: usize = 249;

/// What to build.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods on `node`, 249 at most.
    pub pods: usize,
    /// Pods on `node2`, 249 at most.
    pub node2_pods: usize,
    /// Ranges that `outside` reaches through `node`. The default is the Service range (`10.96.0.0/12`,
    /// `fd00:10:96::/112`) and one for external and load-balancer addresses (`203.0.113.0/24`, `fd00:203::/64`).
    /// Add the pods' ranges (`10.244.0.0/16`, `fd00:10:244::/47`) to let `outside` receive answers that are not
    /// masqueraded.
    pub outside_routes: Vec<IpNet>,
    /// How long the laboratory may live; then the process is ended. The default is half an hour, which no test takes.
    pub time_limit: Option<Duration>,
}

impl Default for Config {
    /// Three pods on `node`, two on `node2`, the routes described at the field.
    fn default() -> Self {
        let time_limit = Some(Duration::from_mins(30));
        Self { pods: 3, node2_pods: 2, outside_routes: default_outside_routes(), time_limit }
    }
}

fn default_outside_routes() -> Vec<IpNet> {
    vec![
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112)),
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 0), 64)),
    ]
}

/// An IPv4 and an IPv6 address of the same host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) ip4: Ipv4Addr,
    pub(super) ip6: Ipv6Addr,
}

/// Addresses on the underlay. The IPv6 host part repeats the decimal digits of the IPv4 one, for the reader.
pub(super) const NODE: Addresses = underlay(1, 0x1);
pub(super) const NODE2: Addresses = underlay(2, 0x2);
pub(super) const OUTSIDE: Addresses = underlay(100, 0x100);

const fn underlay(host4: u8, host6: u16) -> Addresses {
    Addresses {
        ip4: Ipv4Addr::new(192, 168, 50, host4),
        ip6: Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, host6),
    }
}

/// One of the two nodes, which are built alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodePlan {
    pub(super) own: Addresses,
    peer: Addresses,
    /// Third byte of the pods' IPv4 addresses and fourth group of their IPv6 ones.
    subnet: u8,
}

/// The node under test.
pub(super) const NODE_PLAN: NodePlan = NodePlan { own: NODE, peer: NODE2, subnet: 0 };
/// The other node.
pub(super) const NODE2_PLAN: NodePlan = NodePlan { own: NODE2, peer: NODE, subnet: 1 };

impl NodePlan {
    /// The addresses of pod number `index` (from 0, below [`MAX_PODS`]).
    pub(super) fn pod(self, index: usize) -> Addresses {
        let host = host_number(index);
        Addresses {
            ip4: Ipv4Addr::new(10, 244, self.subnet, host),
            ip6: Ipv6Addr::new(0xfd00, 0x10, 0x244, self.subnet.into(), 0, 0, 0, host.into()),
        }
    }

    fn pod_mac(self, index: usize) -> String {
        format!("02:00:00:00:{:02x}:{:02x}", self.subnet, host_number(index))
    }
}

fn host_number(index: usize) -> u8 {
    u8::try_from(index + 2).expect("the number of pods was checked")
}

/// The hardware address of every node-side interface of a pod. One for all: each is alone on its link.
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// Settings of every namespace, as paths below `/proc/sys/net`.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    // Addresses are usable at once, and nothing but our commands configures the host.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    // Services make routes look asymmetric, and a hairpin leaves where it came in.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    // Every rejected packet gets its answer. An empty list of types frees ICMPv6 from the global limit as well.
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv6/icmp/ratemask", "\n"),
];

/// Additional settings of the nodes, which route.
pub(super) const NODE_SETTINGS: &[(&str, &str)] =
    &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// Additional settings of the switch, which is no IP host.
pub(super) const SWITCH_SETTINGS: &[(&str, &str)] =
    &[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")];

/// Appends formatted lines to a batch.
macro_rules! line {
    ($batch:expr, $($arg:tt)*) => {
        writeln!($batch, $($arg)*).expect("writing to a string succeeds")
    };
}

/// Commands for the switch: a bridge, and a cable to `eth0` of each host given by name and namespace path.
pub(super) fn switch_batch<'a>(hosts: impl IntoIterator<Item = (&'a str, &'a Path)>) -> String {
    let mut batch = String::new();
    // Snooping would withhold neighbour solicitations until listeners have reported themselves.
    line!(batch, "link add br0 type bridge mcast_snooping 0");
    line!(batch, "link set br0 up");
    for (name, path) in hosts {
        line!(batch, "link add {name} type veth peer name eth0 netns {}", path.display());
        line!(batch, "link set {name} master br0 up");
    }
    batch
}

/// Commands for a node, whose `eth0` exists: its addresses and routes, and a cable to each pod, given by the paths of
/// their namespaces in order.
pub(super) fn node_batch<'a>(plan: NodePlan, pods: impl IntoIterator<Item = (&'a str, &'a Path)>) -> String {
    let mut batch = underlay_batch(plan.own);
    line!(batch, "route add default via {}", OUTSIDE.ip4);
    line!(batch, "route add default via {}", OUTSIDE.ip6);
    let remote = 1 - plan.subnet;
    line!(batch, "route add 10.244.{remote}.0/24 via {}", plan.peer.ip4);
    line!(batch, "route add fd00:10:244:{remote}::/64 via {}", plan.peer.ip6);
    for (index, (name, path)) in pods.into_iter().enumerate() {
        let mac = plan.pod_mac(index);
        line!(
            batch,
            "link add {name} address {GATEWAY_MAC} type veth peer name eth0 address {mac} netns {}",
            path.display()
        );
        line!(batch, "link set {name} up");
        let (pod, own) = (plan.pod(index), plan.own);
        for (ip, source) in [(IpAddr::V4(pod.ip4), IpAddr::V4(own.ip4)), (pod.ip6.into(), own.ip6.into())] {
            line!(batch, "route add {ip} dev {name} src {source}");
            // Permanent: no packet ever waits for a neighbour to answer.
            line!(batch, "neigh add {ip} lladdr {mac} dev {name} nud permanent");
        }
    }
    batch
}

/// Commands for a pod, whose `eth0` exists.
pub(super) fn pod_batch(pod: Addresses) -> String {
    let mut batch = String::from("link set lo up\nlink set eth0 up\n");
    line!(batch, "addr add {}/32 dev eth0", pod.ip4);
    line!(batch, "addr add {}/128 dev eth0 nodad", pod.ip6);
    own_route(&mut batch, pod.ip6);
    for (gateway, onlink) in [("169.254.1.1", "onlink"), ("fe80::1", "")] {
        line!(batch, "neigh add {gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent");
        line!(batch, "route add default via {gateway} dev eth0 {onlink}");
    }
    batch
}

/// Commands for the client outside, whose `eth0` exists.
pub(super) fn outside_batch(routes: &[IpNet]) -> String {
    let mut batch = underlay_batch(OUTSIDE);
    for route in routes {
        let gateway = if route.addr().is_ipv4() { IpAddr::V4(NODE.ip4) } else { NODE.ip6.into() };
        line!(batch, "route add {route} via {gateway}");
    }
    batch
}

fn underlay_batch(own: Addresses) -> String {
    let mut batch = String::from("link set lo up\nlink set eth0 up\n");
    line!(batch, "addr add {}/24 dev eth0", own.ip4);
    line!(batch, "addr add {}/64 dev eth0 nodad", own.ip6);
    own_route(&mut batch, own.ip6);
    batch
}

/// The kernel makes the route to an IPv6 address of its own some time after the address (`addrconf_dad_start` of
/// `net/ipv6/addrconf.c` leaves that to a worker), and until then loses packets to it.
fn own_route(batch: &mut String, addr: Ipv6Addr) {
    line!(batch, "route add local {addr} dev eth0");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_numbered_from_two_in_their_nodes_subnet() {
        assert_eq!(NODE_PLAN.pod(0).ip4.to_string(), "10.244.0.2");
        assert_eq!(NODE2_PLAN.pod(9).ip4.to_string(), "10.244.1.11");
        assert_eq!(NODE2_PLAN.pod(9).ip6.to_string(), "fd00:10:244:1::b");
        assert_eq!(NODE_PLAN.pod(MAX_PODS - 1).ip4.to_string(), "10.244.0.250");
    }

    #[test]
    fn a_nodes_commands_name_its_own_source_and_the_other_nodes_pods() {
        let batch = node_batch(NODE2_PLAN, [("pod0", Path::new("/proc/1/fd/9"))]);
        assert!(batch.contains("route add 10.244.0.0/24 via 192.168.50.1\n"), "{batch}");
        assert!(batch.contains("route add 10.244.1.2 dev pod0 src 192.168.50.2\n"), "{batch}");
        assert!(batch.contains("02:00:00:00:01:02 netns /proc/1/fd/9\n"), "{batch}");
    }

    #[test]
    fn outside_reaches_services_but_not_pods_unless_asked() {
        let batch = outside_batch(&Config::default().outside_routes);
        assert!(batch.contains("route add 10.96.0.0/12 via 192.168.50.1\n"), "{batch}");
        assert!(batch.contains("route add fd00:10:96::/112 via fd00:50::1\n"), "{batch}");
        assert!(!batch.contains("10.244."), "{batch}");
    }
}
