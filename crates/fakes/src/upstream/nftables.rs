//! What upstream's mode nftables leaves: the tables that ours take over.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{ServicePort, line, suffix};

/// The table of one family, for `nft -f -`. Node ports are served on `node`.
pub fn nftables(pods: IpNet, node: IpAddr, services: &[ServicePort]) -> String {
    let ip = if pods.addr().is_ipv4() { "ip" } else { "ip6" };
    let mut text = format!("table {ip} kube-proxy {{\n comment \"rules for kube-proxy\"\n");
    sets(&mut text, ip);
    for service in services.iter().filter(|service| !service.endpoints.is_empty()) {
        service_chains(&mut text, ip, pods, service);
    }
    fixed_chains(&mut text, ip, pods);
    text.push_str("}\n");
    elements(&mut text, ip, node, services);
    text
}

fn sets(text: &mut String, ip: &str) {
    let addr = if ip == "ip" { "ipv4_addr" } else { "ipv6_addr" };
    for (name, kind) in [
        ("cluster-ips", addr.to_owned()),
        ("nodeport-ips", addr.to_owned()),
        ("hairpin-connections", format!("{addr} . {addr} . inet_proto . inet_service")),
    ] {
        line!(text, " set {name} {{ type {kind}; }}");
    }
    let by_address = format!("{addr} . inet_proto . inet_service");
    for name in ["service-ips", "no-endpoint-services", "firewall-ips"] {
        line!(text, " map {name} {{ type {by_address} : verdict; }}");
    }
    for name in ["service-nodeports", "no-endpoint-nodeports"] {
        line!(text, " map {name} {{ type inet_proto . inet_service : verdict; }}");
    }
}

fn fixed_chains(text: &mut String, ip: &str, pods: IpNet) {
    let loopback = if ip == "ip" { "127.0.0.0/8" } else { "::1" };
    let (key, port) = (format!("{ip} daddr . meta l4proto . th dport"), "meta l4proto . th dport");
    let node_port =
        format!("fib daddr type local {ip} daddr != {loopback} {ip} daddr @nodeport-ips {port} vmap");
    let new = "ct state new jump";
    for (name, head, rules) in [
        ("reject-chain", "", vec!["reject".to_owned()]),
        ("mark-for-masquerade", "", vec!["meta mark set meta mark or 0x4000".to_owned()]),
        ("firewall-check", "", vec![format!("{key} vmap @firewall-ips")]),
        ("nodeport-endpoints-check", "", vec![format!("{node_port} @no-endpoint-nodeports")]),
        ("service-endpoints-check", "", vec![format!("{key} vmap @no-endpoint-services")]),
        ("cluster-ips-check", "", vec![format!("{ip} daddr @cluster-ips reject")]),
        (
            "services",
            "",
            vec![
                format!("{ip} daddr @cluster-ips {ip} saddr != {pods} jump mark-for-masquerade"),
                format!("{key} vmap @service-ips"),
                format!("{node_port} @service-nodeports"),
            ],
        ),
        (
            "masquerading",
            "",
            vec![
                "meta mark & 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random"
                    .to_owned(),
                format!(
                    "ct status dnat {ip} saddr . {ip} daddr . {port} @hairpin-connections masquerade fully-random"
                ),
            ],
        ),
        (
            "filter-prerouting-pre-dnat",
            "filter hook prerouting priority -110",
            vec![format!("{new} firewall-check")],
        ),
        ("filter-output-pre-dnat", "filter hook output priority -110", vec![format!("{new} firewall-check")]),
        (
            "filter-input",
            "filter hook input priority 0",
            vec![format!("{new} nodeport-endpoints-check"), format!("{new} service-endpoints-check")],
        ),
        (
            "filter-forward",
            "filter hook forward priority 0",
            vec![format!("{new} service-endpoints-check"), format!("{new} cluster-ips-check")],
        ),
        (
            "filter-output",
            "filter hook output priority 0",
            vec![format!("{new} service-endpoints-check"), format!("{new} cluster-ips-check")],
        ),
        ("nat-prerouting", "nat hook prerouting priority -100", vec!["jump services".to_owned()]),
        ("nat-output", "nat hook output priority -100", vec!["jump services".to_owned()]),
        ("nat-postrouting", "nat hook postrouting priority 100", vec!["jump masquerading".to_owned()]),
    ] {
        let head = if head.is_empty() { String::new() } else { format!(" type {head}; policy accept;\n ") };
        line!(text, " chain {name} {{\n {head} {}\n }}", rules.join("\n  "));
    }
}

/// `ns/name/proto/port` behind eight characters of a hash.
fn chain_name(service: &ServicePort) -> String {
    let (owner, port) = service.name.split_once(':').unwrap_or((service.name, ""));
    let name = format!("{owner}/{}/{port}", service.protocol);
    format!("{}-{name}", &suffix(&name)[..8])
}

fn service_chains(text: &mut String, ip: &str, pods: IpNet, service: &ServicePort) {
    let (name, protocol) = (chain_name(service), service.protocol);
    let endpoint =
        |(idx, endpoint): (usize, &SocketAddr)| format!("{idx} : {} . {}", endpoint.ip(), endpoint.port());
    let endpoints: Vec<String> = service.endpoints.iter().enumerate().map(endpoint).collect();
    let (n, map) = (endpoints.len(), endpoints.join(", "));
    line!(
        text,
        " chain service-{name} {{\n  meta l4proto {protocol} dnat {ip} to numgen random mod {n} map {{ {map} }}\n }}"
    );
    line!(text, " chain external-{name} {{\n  meta mark set meta mark or 0x4000\n  goto service-{name}\n }}");
    if let Some((_, range)) = service.load_balancer {
        line!(text, " chain firewall-{name} {{\n  {ip} saddr != {{ {range} }} drop\n }}");
    }
    // With affinity there would be one of these for each endpoint, and a set.
    let pod = service.endpoints[0];
    let (addr, endpoint) = (if ip == "ip" { "ipv4_addr" } else { "ipv6_addr" }, endpoint_name(&name, pod));
    line!(text, " set affinity-{endpoint} {{ type {addr}; flags dynamic,timeout; timeout 3h; }}");
    line!(
        text,
        " chain endpoint-{endpoint} {{\n  {ip} saddr {pods} update @affinity-{endpoint} {{ {ip} saddr }}\n  \
         meta l4proto {protocol} dnat {ip} to {pod}\n }}"
    );
}

fn endpoint_name(service: &str, endpoint: SocketAddr) -> String {
    format!("{service}__{}/{}", endpoint.ip().to_string().replace(':', "."), endpoint.port())
}

fn elements(text: &mut String, ip: &str, node: IpAddr, services: &[ServicePort]) {
    let mut add =
        |set: &str, element: String| line!(text, "add element {ip} kube-proxy {set} {{ {element} }}");
    add("nodeport-ips", node.to_string());
    for service in services {
        let (name, protocol, port) = (chain_name(service), service.protocol, service.port);
        let key = |address: IpAddr| format!("{address} . {protocol} . {port}");
        add("cluster-ips", service.cluster_ip.to_string());
        if service.endpoints.is_empty() {
            let comment = service.name;
            let element = format!("{} comment \"{comment}\" : goto reject-chain", key(service.cluster_ip));
            add("no-endpoint-services", element);
            continue;
        }
        add("service-ips", format!("{} : goto service-{name}", key(service.cluster_ip)));
        if let Some((address, _)) = service.load_balancer {
            add("service-ips", format!("{} : goto external-{name}", key(address)));
            add("firewall-ips", format!("{} : goto firewall-{name}", key(address)));
        }
        if let Some(port) = service.node_port {
            add("service-nodeports", format!("{protocol} . {port} : goto external-{name}"));
        }
        for endpoint in &service.endpoints {
            let pod = endpoint.ip();
            add("hairpin-connections", format!("{pod} . {pod} . {protocol} . {}", endpoint.port()));
        }
    }
}
