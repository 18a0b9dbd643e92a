//! Rules in the shapes of upstream's kube-proxy, as it would have left them on a node, and those of its neighbours.
//!
//! From the contract of v1.36 (`pkg/proxy/iptables/proxier.go`, `pkg/proxy/nftables/proxier.go`): which tables, chains, jumps
//! and comments there are, what they contain, and how they decide. Suffixes of chain names are as long as upstream's, but
//! another hash.

mod nftables;

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

pub use nftables::nftables;

/// A Service port of one family.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// `NAMESPACE/NAME:PORT`.
    pub name: &'static str,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Cluster IP.
    pub cluster_ip: IpAddr,
    /// Port of the Service.
    pub port: u16,
    /// Port on all addresses of the node.
    pub node_port: Option<u16>,
    /// Address of a load balancer, and who may use it.
    pub load_balancer: Option<(IpAddr, IpNet)>,
    /// Ready endpoints.
    pub endpoints: Vec<SocketAddr>,
}

/// Appends formatted lines.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {
        writeln!($text, $($arg)*).expect("writing to a string succeeds")
    };
}
use line;

impl ServicePort {
    fn chain(&self, prefix: &str) -> String {
        format!("KUBE-{prefix}-{}", suffix(&format!("{}{}", self.name, self.protocol)))
    }

    fn endpoint_chain(&self, endpoint: SocketAddr) -> String {
        format!("KUBE-SEP-{}", suffix(&format!("{}{}{endpoint}", self.name, self.protocol)))
    }

    /// The protocol, as module and as selector.
    fn proto(&self) -> String {
        format!("-m {0} -p {0}", self.protocol)
    }

    fn to(&self, address: IpAddr) -> String {
        format!("{} -d {address} --dport {}", self.proto(), self.port)
    }
}

/// Sixteen letters and digits of base32, by FNV-1a.
fn suffix(text: &str) -> String {
    let hash =
        |seed: u64| text.bytes().fold(seed, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let bits = u128::from(hash(0xcbf2_9ce4_8422_2325)) << 64 | u128::from(hash(0x1234_5678_9abc_def1));
    let letter =
        |idx: u32| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[(bits >> (5 * idx) & 31) as usize]);
    (0..16).map(letter).collect()
}

/// What mode iptables leaves in one family: input for `iptables-restore --noflush` of either flavour, or for its IPv6 twin.
/// Packets that are not from `pods` to a cluster IP are masqueraded.
pub fn iptables(pods: IpNet, services: &[ServicePort]) -> String {
    format!("{}{}*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n", filter(services), nat(pods, services))
}

fn filter(services: &[ServicePort]) -> String {
    let mut text = String::from(
        "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n",
    );
    let new = "-m conntrack --ctstate NEW ";
    let external = "kubernetes externally-visible service portals";
    for (from, state, comment, to) in [
        ("INPUT", new, external, "KUBE-EXTERNAL-SERVICES"),
        ("FORWARD", new, external, "KUBE-EXTERNAL-SERVICES"),
        ("INPUT", "", "kubernetes health check service ports", "KUBE-NODEPORTS"),
        ("FORWARD", new, "kubernetes service portals", "KUBE-SERVICES"),
        ("OUTPUT", new, "kubernetes service portals", "KUBE-SERVICES"),
        ("FORWARD", "", "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("INPUT", new, "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
        ("OUTPUT", new, "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
        ("FORWARD", new, "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
    ] {
        line!(text, "-I {from} 1 {state}-m comment --comment \"{comment}\" -j {to}");
    }
    text.push_str(
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate \
         RELATED,ESTABLISHED -j ACCEPT\n",
    );
    for service in services {
        if service.endpoints.is_empty() {
            let to = service.to(service.cluster_ip);
            line!(
                text,
                "-A KUBE-SERVICES -m comment --comment \"{} has no endpoints\" {to} -j REJECT",
                service.name
            );
        } else if let Some((address, _)) = service.load_balancer {
            let comment = format!("{} traffic not accepted by {}", service.name, service.chain("FW"));
            line!(
                text,
                "-A KUBE-PROXY-FIREWALL -m comment --comment \"{comment}\" {} -j DROP",
                service.to(address)
            );
        }
    }
    text + "COMMIT\n"
}

fn nat(pods: IpNet, services: &[ServicePort]) -> String {
    let mut text = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-PROXY-CANARY - [0:0]\n",
    );
    for service in services.iter().filter(|service| !service.endpoints.is_empty()) {
        declare(&mut text, service);
    }
    text.push_str(
        "-I OUTPUT 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I PREROUTING 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I POSTROUTING 1 -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE \
         --random-fully\n-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for service in services.iter().filter(|service| !service.endpoints.is_empty()) {
        dispatch(&mut text, service);
        balance(&mut text, pods, service);
    }
    let loopback = if pods.addr().is_ipv4() { "127.0.0.0/8" } else { "::1/128" };
    line!(
        text,
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this \
         chain\" -m addrtype --dst-type LOCAL ! -d {loopback} -j KUBE-NODEPORTS"
    );
    text + "COMMIT\n"
}

fn declare(text: &mut String, service: &ServicePort) {
    for prefix in ["SVC", "EXT"] {
        line!(text, ":{} - [0:0]", service.chain(prefix));
    }
    if service.load_balancer.is_some() {
        line!(text, ":{} - [0:0]", service.chain("FW"));
    }
    for endpoint in &service.endpoints {
        line!(text, ":{} - [0:0]", service.endpoint_chain(*endpoint));
    }
}

/// From the addresses of the Service to its chains.
fn dispatch(text: &mut String, service: &ServicePort) {
    let (name, svc, ext) = (service.name, service.chain("SVC"), service.chain("EXT"));
    let cluster_ip = service.to(service.cluster_ip);
    line!(text, "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" {cluster_ip} -j {svc}");
    if let Some((address, range)) = service.load_balancer {
        let (to, fw) = (service.to(address), service.chain("FW"));
        line!(text, "-A KUBE-SERVICES -m comment --comment \"{name} loadbalancer IP\" {to} -j {fw}");
        line!(text, "-A {fw} -m comment --comment \"{name} loadbalancer IP\" -s {range} -j {ext}");
        let dropped = format!("other traffic to {name} will be dropped by KUBE-PROXY-FIREWALL");
        line!(text, "-A {fw} -m comment --comment \"{dropped}\"");
    }
    if let Some(port) = service.node_port {
        line!(
            text,
            "-A KUBE-NODEPORTS -m comment --comment {name} {} --dport {port} -j {ext}",
            service.proto()
        );
    }
    let masquerade = format!("masquerade traffic for {name} external destinations");
    line!(text, "-A {ext} -m comment --comment \"{masquerade}\" -j KUBE-MARK-MASQ");
    line!(text, "-A {ext} -j {svc}");
}

/// From the Service's chain to its endpoints.
fn balance(text: &mut String, pods: IpNet, service: &ServicePort) {
    let (name, svc, cluster_ip) = (service.name, service.chain("SVC"), service.to(service.cluster_ip));
    line!(
        text,
        "-A {svc} -m comment --comment \"{name} cluster IP\" {cluster_ip} ! -s {pods} -j KUBE-MARK-MASQ"
    );
    for (idx, endpoint) in service.endpoints.iter().enumerate() {
        let (sep, left) = (service.endpoint_chain(*endpoint), service.endpoints.len() - idx);
        let chance = match left {
            1 => String::new(),
            #[expect(clippy::cast_precision_loss, reason = "a handful of endpoints")]
            left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
        };
        line!(text, "-A {svc} -m comment --comment \"{name} -> {endpoint}\" {chance}-j {sep}");
        line!(text, "-A {sep} -m comment --comment {name} -s {} -j KUBE-MARK-MASQ", endpoint.ip());
        let proto = service.proto();
        line!(text, "-A {sep} -m comment --comment {name} {proto} -j DNAT --to-destination {endpoint}");
    }
}

/// What the kubelet writes beside kube-proxy: input for `iptables-restore --noflush`.
pub fn kubelet(v6: bool) -> String {
    let mut text = String::from(
        "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
         *nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
         *filter\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-FIREWALL - [0:0]\n\
         -I INPUT 1 -j KUBE-FIREWALL\n-I OUTPUT 1 -j KUBE-FIREWALL\n",
    );
    if !v6 {
        text.push_str(
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
             -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n",
        );
    }
    text + "COMMIT\n"
}

/// Foreign rules, with counters, in the tables that kube-proxy uses and in others: input for `iptables-restore --noflush
/// --counters`. They do no harm to traffic.
pub fn foreign(v6: bool) -> String {
    let (net, host) = if v6 { ("fd00:99::/64", "fd00:99::7") } else { ("198.51.100.0/24", "198.51.100.7") };
    let port = if v6 { format!("[{host}]:9000") } else { format!("{host}:9000") };
    format!(
        "*raw\n[7:420] -A PREROUTING -s {net} -j NOTRACK\nCOMMIT\n\
         *mangle\n:AGENT - [0:0]\n[1:60] -A PREROUTING -m comment --comment \"not kube-proxy\" -j AGENT\n\
         [3:180] -A AGENT -s {net} -j MARK --set-xmark 0x100/0x100\nCOMMIT\n\
         *nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n\
         [11:660] -A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m multiport --dports 9000,9001 -j CNI-HOSTPORT-DNAT\n\
         [12:720] -A CNI-HOSTPORT-DNAT -s {net} -j CNI-HOSTPORT-SETMARK\n\
         [13:780] -A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 9000 -j DNAT --to-destination {port}\n\
         [14:840] -A CNI-HOSTPORT-SETMARK -m comment --comment \"kubernetes service portals\"\n\
         [15:900] -A POSTROUTING -s {net} ! -o lo -j MASQUERADE\nCOMMIT\n\
         *filter\n:AGENT-FORWARD - [0:0]\n:EMPTY - [0:0]\n\
         [21:1260] -A FORWARD -g AGENT-FORWARD\n\
         [22:1320] -A AGENT-FORWARD -s {net} -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" \
         -j EMPTY\n\
         [23:1380] -A AGENT-FORWARD -m limit --limit 5/min -p udp -m udp --sport 9 -j DROP\n\
         [24:1440] -A INPUT -p tcp -m tcp --dport 9 -m comment --comment \"discard\" -j REJECT\nCOMMIT\n"
    )
}
