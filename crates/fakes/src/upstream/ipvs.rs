//! What mode ipvs leaves (`pkg/proxy/ipvs/proxier.go`, `ipset.go`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{ServicePort, line};

/// One family's part of what mode ipvs leaves on a node, as input for the tools that tell of it. The sets have to be there before the
/// rules.
#[derive(Clone, Debug)]
pub struct IpvsLeftovers {
    /// Addresses of the device `kube-ipvs0`.
    pub addresses: BTreeSet<IpAddr>,
    /// For `ipset restore`.
    pub sets: String,
    /// For `iptables-restore --noflush`, or its IPv6 twin.
    pub rules: String,
    /// For `ipvsadm --restore`.
    pub servers: String,
}

/// What mode ipvs leaves of Services without load balancers, where the node has this address.
pub fn ipvs(pods: IpNet, node: IpAddr, services: &[ServicePort]) -> IpvsLeftovers {
    let sets = Sets { v6: node.is_ipv6() };
    IpvsLeftovers {
        addresses: services.iter().map(|service| service.cluster_ip).collect(),
        sets: sets.restore(services),
        rules: format!("{}{}", sets.nat(pods), sets.filter()),
        servers: servers(node, services),
    }
}

fn servers(node: IpAddr, services: &[ServicePort]) -> String {
    let mut text = String::new();
    for service in services {
        let kind = if service.protocol == "udp" { "-u" } else { "-t" };
        let node_port = service.node_port.map(|port| (node, port));
        for (address, port) in std::iter::once((service.cluster_ip, service.port)).chain(node_port) {
            let server = SocketAddr::new(address, port);
            line!(text, "-A {kind} {server} -s rr");
            for endpoint in &service.endpoints {
                line!(text, "-a {kind} {server} -r {endpoint} -m -w 1");
            }
        }
    }
    text
}

/// The sets of one family.
#[derive(Clone, Copy)]
struct Sets {
    v6: bool,
}

/// Sets of address and port that have no members here.
const EMPTY: [&str; 6] = [
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "NODE-PORT-SCTP-HASH",
];
/// Sets of ports.
const BITMAPS: [&str; 5] = [
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "HEALTH-CHECK-NODE-PORT",
];

impl Sets {
    fn name(self, name: &str) -> String {
        format!("KUBE-{}{name}", if self.v6 { "6-" } else { "" })
    }

    fn restore(self, services: &[ServicePort]) -> String {
        let mut text = String::new();
        let family = if self.v6 { "inet6" } else { "inet" };
        let hash = format!("family {family} hashsize 1024 maxelem 65536");
        let (cluster_ip, loop_back, ips) =
            (self.name("CLUSTER-IP"), self.name("LOOP-BACK"), self.name("IPVS-IPS"));
        line!(text, "create {cluster_ip} hash:ip,port {hash}");
        line!(text, "create {loop_back} hash:ip,port,ip {hash}");
        line!(text, "create {ips} hash:ip {hash}");
        for name in EMPTY {
            line!(text, "create {} hash:ip,port {hash}", self.name(name));
        }
        for name in BITMAPS {
            line!(text, "create {} bitmap:port range 0-65535", self.name(name));
        }
        for service in services {
            let ServicePort { protocol, cluster_ip: address, port, .. } = service;
            line!(text, "add {cluster_ip} {address},{protocol}:{port}");
            line!(text, "add {ips} {address} -exist");
            if let Some(node_port) = service.node_port {
                line!(
                    text,
                    "add {} {node_port}",
                    self.name(&format!("NODE-PORT-{}", protocol.to_uppercase()))
                );
            }
            for endpoint in &service.endpoints {
                let (address, port) = (endpoint.ip(), endpoint.port());
                line!(text, "add {loop_back} {address},{protocol}:{port},{address} -exist");
            }
        }
        text
    }

    fn nat(self, pods: IpNet) -> String {
        let mut text = String::from(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n\
             :KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
        );
        for (from, comment, to) in [
            ("OUTPUT", "kubernetes service portals", "KUBE-SERVICES"),
            ("PREROUTING", "kubernetes service portals", "KUBE-SERVICES"),
            ("POSTROUTING", "kubernetes postrouting rules", "KUBE-POSTROUTING"),
        ] {
            line!(text, "-I {from} 1 -m comment --comment \"{comment}\" -j {to}");
        }
        let set = |name: &str, fields: &str| format!("-m set --match-set {} {fields}", self.name(name));
        let to_cluster_ip = set("CLUSTER-IP", "dst,dst");
        if !self.v6 {
            line!(text, "-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN");
        }
        line!(text, "-A KUBE-SERVICES {to_cluster_ip} ! -s {pods} -j KUBE-MARK-MASQ");
        line!(text, "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT");
        line!(text, "-A KUBE-SERVICES {to_cluster_ip} -j ACCEPT");
        for protocol in ["tcp", "udp"] {
            let in_set = set(&format!("NODE-PORT-{}", protocol.to_uppercase()), "dst");
            line!(text, "-A KUBE-NODE-PORT -p {protocol} {in_set} -j KUBE-MARK-MASQ");
        }
        line!(text, "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ");
        line!(text, "-A KUBE-POSTROUTING {} -j MASQUERADE", set("LOOP-BACK", "dst,dst,src"));
        text + "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
                -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
                -A KUBE-POSTROUTING -j MASQUERADE --random-fully\nCOMMIT\n"
    }

    fn filter(self) -> String {
        let mut text = String::from(
            "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
             :KUBE-SOURCE-RANGES-FIREWALL - [0:0]\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-IPVS-OUT-FILTER - [0:0]\n",
        );
        for (from, comment, to) in [
            ("INPUT", "kubernetes ipvs access filter", "KUBE-IPVS-FILTER"),
            ("OUTPUT", "kubernetes ipvs access filter", "KUBE-IPVS-OUT-FILTER"),
            ("INPUT", "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
            ("FORWARD", "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
            ("INPUT", "kubernetes health check rules", "KUBE-NODE-PORT"),
            ("FORWARD", "kubernetes forwarding rules", "KUBE-FORWARD"),
        ] {
            line!(text, "-I {from} 1 -m comment --comment \"{comment}\" -j {to}");
        }
        text.push_str(
            "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
             -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A KUBE-SOURCE-RANGES-FIREWALL -j DROP\n",
        );
        let set = |name: &str, fields: &str| format!("-m set --match-set {} {fields}", self.name(name));
        line!(text, "-A KUBE-NODE-PORT {} -j ACCEPT", set("HEALTH-CHECK-NODE-PORT", "dst"));
        line!(
            text,
            "-A KUBE-PROXY-FIREWALL {} -j KUBE-SOURCE-RANGES-FIREWALL",
            set("LOAD-BALANCER-FW", "dst,dst")
        );
        for served in ["LOAD-BALANCER", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL"] {
            line!(text, "-A KUBE-IPVS-FILTER {} -j RETURN", set(served, "dst,dst"));
        }
        line!(text, "-A KUBE-IPVS-FILTER {} -j RETURN", set("HEALTH-CHECK-NODE-PORT", "dst"));
        let new = set("IPVS-IPS", "dst");
        line!(text, "-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW {new} -j REJECT");
        text + "COMMIT\n"
    }
}
