//! The ruleset as an operator reads it: one Service in each situation, in both families.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test fails by panicking and says on the way what it tries"
)]

use std::collections::BTreeSet;

use backend_nftables::{Backend, Config, Extent, NodePortAddresses, PodSource};
use balance::Policy;
use model::{
    AddressKind, Affinity, Balancer, Destination, EndpointNode, Family, Frontend, FrontendAddress,
    FrontendKey, Masquerade, ObjectName, Pool, Protocol, Proxied, ServicePortName, Table, TrafficPolicy, V4,
    V6, Verdict,
};

fn frontend<F: Family>(
    service: &str,
    address: Option<&str>,
    protocol: Protocol,
    port: u16,
    endpoints: &[&str],
) -> Frontend<F> {
    let parse = |text: &str| F::narrow(text.parse().unwrap()).unwrap();
    let endpoints: BTreeSet<_> = endpoints
        .iter()
        .map(|ip| Destination {
            address: parse(ip),
            port: 8080,
            node: EndpointNode::this_if(ip.ends_with('1')),
        })
        .collect();
    let (kind, address, masquerade) = match address {
        Some(ip) => (AddressKind::ClusterIp, FrontendAddress::Ip(parse(ip)), Masquerade::UnlessFromPod),
        None => (AddressKind::NodePort, FrontendAddress::Node, Masquerade::Always),
    };
    Frontend {
        masquerade,
        ..Frontend::new(
            FrontendKey { address, protocol, port },
            kind,
            ServicePortName { service: ObjectName::new("shop", service), port: "main".into(), protocol },
            Pool::new(endpoints, Verdict::Reject),
        )
    }
}

fn text<F: Family>(config: &Config, services: Vec<Vec<Frontend<F>>>) -> String {
    let mut table = Table::default();
    for frontends in services {
        table.set_service(&frontends[0].service.service.clone(), frontends);
    }
    let text =
        Backend::new(config.clone()).repair(config, &table, None, Extent::Difference).transaction.to_string();
    text.lines().filter(|line| !is_of_unused_chain(line)).collect::<Vec<_>>().join("\n")
}

/// Chains for other numbers of endpoints are made in advance; the snapshots do without them.
fn is_of_unused_chain(line: &str) -> bool {
    let numbers = line.split_whitespace().filter_map(|word| {
        word.strip_prefix("affinity-").unwrap_or(word).strip_prefix("choice-")?.parse::<u32>().ok()
    });
    numbers.into_iter().any(|number| number > 2)
}

#[test]
fn ipv4() {
    let config = Config {
        node_ports: NodePortAddresses::Within(vec!["192.168.0.7/32".parse().unwrap()]),
        pods: Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        ..Config::default()
    };
    let web = ["10.244.0.1", "10.244.1.2"];
    let services = vec![
        vec![
            frontend::<V4>("web", Some("10.96.0.10"), Protocol::Tcp, 80, &web),
            frontend("web", None, Protocol::Tcp, 30080, &web),
        ],
        vec![
            frontend("gone", Some("10.96.0.11"), Protocol::Udp, 53, &[]),
            frontend("gone", None, Protocol::Udp, 30053, &[]),
        ],
    ];
    insta::assert_snapshot!(text(&config, services));
}

#[test]
fn ipv6_with_pods_told_by_interface() {
    let config = Config {
        node_ports: NodePortAddresses::All,
        pods: Some(PodSource::InterfacePrefix("cali".into())),
        ..Config::default()
    };
    let services =
        vec![vec![frontend::<V6>("web", Some("fd00:10:96::a"), Protocol::Sctp, 80, &["fd00:10:244::1"])]];
    insta::assert_snapshot!(text(&config, services));
}

#[test]
fn no_node_ports_and_all_masqueraded() {
    let config = Config {
        node_ports: NodePortAddresses::Within(Vec::new()),
        masquerade_all: true,
        ..Config::default()
    };
    let services = vec![vec![frontend::<V4>("web", Some("10.96.0.10"), Protocol::Tcp, 80, &["10.244.0.2"])]];
    insta::assert_snapshot!(text(&config, services));
}

#[test]
fn node_ports_on_localhost() {
    let config = Config { localhost_node_ports: true, ..Config::default() };
    let services = vec![vec![frontend::<V4>("web", None, Protocol::Udp, 30053, &["10.244.0.2"])]];
    insta::assert_snapshot!(text(&config, services));
}

/// Endpoints are IPVS's to choose, except for internal traffic to what only this node's endpoints serve.
#[test]
fn beside_ipvs() {
    insta::assert_snapshot!(text_beside_ipvs(None));
}

/// The same, where proxies are offered the flows of the Service that asks for them.
#[test]
fn beside_ipvs_and_proxies() {
    insta::assert_snapshot!(text_beside_ipvs(Some(Proxied::Asking)));
}

fn text_beside_ipvs(proxied: Option<Proxied>) -> String {
    let config = Config {
        node_ports: NodePortAddresses::Within(vec!["192.168.0.7/32".parse().unwrap()]),
        pods: Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        balancer: Balancer::Ipvs { node_addresses: vec!["192.168.0.7".parse().unwrap()], proxied },
        ..Config::default()
    };
    let web = ["10.244.0.1", "10.244.1.2", "192.168.0.7"];
    let proxying = proxied.map(|_| Policy::Random);
    let frontend = |name, address, protocol, port, endpoints: &[&str]| Frontend {
        proxying,
        ..frontend::<V4>(name, address, protocol, port, endpoints)
    };
    let cluster = frontend("web", Some("10.96.0.10"), Protocol::Tcp, 80, &web);
    let local = Frontend {
        kind: AddressKind::LoadBalancerIp,
        policy: TrafficPolicy::Local,
        pool: frontend("web", None, Protocol::Tcp, 80, &["10.244.0.1"]).pool,
        internal_pool: Some(cluster.pool.clone()),
        masquerade: Masquerade::Never,
        ..frontend("web", Some("203.0.113.5"), Protocol::Tcp, 80, &[])
    };
    let services = vec![
        vec![cluster, local, frontend("web", None, Protocol::Tcp, 30080, &web)],
        vec![frontend("gone", Some("10.96.0.11"), Protocol::Udp, 53, &[])],
    ];
    text(&config, services)
}

/// Proxies are to have TCP and UDP; rules choose endpoints without a lease, and for SCTP.
#[test]
fn beside_proxies() {
    let config = Config {
        node_ports: NodePortAddresses::Within(vec!["192.168.0.7/32".parse().unwrap()]),
        pods: Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
        balancer: Balancer::Proxies(Proxied::All),
        ..Config::default()
    };
    let web = ["10.244.0.1", "10.244.1.2"];
    let cluster = frontend::<V4>("web", Some("10.96.0.10"), Protocol::Tcp, 80, &web);
    let local = Frontend {
        kind: AddressKind::LoadBalancerIp,
        policy: TrafficPolicy::Local,
        pool: frontend::<V4>("web", None, Protocol::Tcp, 80, &["10.244.0.1"]).pool,
        internal_pool: Some(cluster.pool.clone()),
        masquerade: Masquerade::Never,
        ..frontend("web", Some("203.0.113.5"), Protocol::Tcp, 80, &[])
    };
    let services = vec![
        vec![cluster, local, frontend("web", None, Protocol::Udp, 30080, &web)],
        vec![frontend("signal", Some("10.96.0.12"), Protocol::Sctp, 80, &web)],
        vec![frontend("gone", Some("10.96.0.11"), Protocol::Udp, 53, &[])],
    ];
    insta::assert_snapshot!(text(&config, services));
}

/// Others' rules choose, refuse and restrict. These ones hand over what a Service has that asks for it, but not to whom it does not
/// let in.
#[test]
fn beside_other_rules() {
    let config = Config {
        node_ports: NodePortAddresses::Within(vec!["192.168.0.7/32".parse().unwrap()]),
        pods: Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
        balancer: Balancer::OtherRules(Proxied::Asking),
        ..Config::default()
    };
    let web = ["10.244.0.1", "10.244.1.2"];
    let asking = |frontend: Frontend<V4>| Frontend { proxying: Some(Policy::Random), ..frontend };
    let cluster = asking(frontend("web", Some("10.96.0.10"), Protocol::Tcp, 80, &web));
    let local = asking(Frontend {
        kind: AddressKind::LoadBalancerIp,
        policy: TrafficPolicy::Local,
        pool: frontend::<V4>("web", None, Protocol::Tcp, 80, &["10.244.0.1"]).pool,
        internal_pool: Some(cluster.pool.clone()),
        allowed_sources: Some(["198.51.100.0/24".parse().unwrap()].into()),
        ..frontend("web", Some("203.0.113.5"), Protocol::Tcp, 80, &[])
    });
    let services = vec![
        vec![cluster, local, asking(frontend("web", None, Protocol::Udp, 30080, &web))],
        vec![asking(frontend("signal", Some("10.96.0.12"), Protocol::Sctp, 80, &web))],
        vec![asking(frontend("gone", Some("10.96.0.11"), Protocol::Udp, 53, &[]))],
        vec![frontend("plain", Some("10.96.0.13"), Protocol::Tcp, 80, &web)],
    ];
    insta::assert_snapshot!(text(&config, services));
}

/// What is read from the kernel has lost its statements; in words it is the same as before.
#[track_caller]
fn check_rules_read_back<F: Family>(config: &Config, frontends: Vec<Frontend<F>>) {
    let mut table = Table::default();
    table.set_service(&frontends[0].service.service.clone(), frontends);
    let plan = Backend::new(config.clone()).repair(config, &table, None, Extent::Difference);
    let family = nft::Family::from(F::FAMILY);
    let rules = plan.transaction.ops.iter().filter_map(|op| match op {
        nft::Op::SetRules { rules, .. } => Some(rules),
        _ => None,
    });
    let mut n = 0;
    for rule in rules.flatten() {
        let written = nft::Rule::new(rule.statements.clone()).text(family).to_string();
        assert_eq!(nft::rule_text(&rule.compile(family), family), written);
        n += 1;
    }
    assert!(n > 20, "{n} rules are not a ruleset");
}

fn sticky<F: Family>(frontend: Frontend<F>) -> Frontend<F> {
    Frontend {
        affinity: Some(Affinity { timeout: std::time::Duration::from_hours(3), service: None }),
        ..frontend
    }
}

#[test]
fn rules_without_their_statements_read_the_same() {
    let pods = |text: &str| Some(PodSource::Cidr(text.parse().unwrap()));
    let within =
        |ranges: &[&str]| NodePortAddresses::Within(ranges.iter().map(|net| net.parse().unwrap()).collect());
    let v4 = Config {
        node_ports: within(&["192.168.0.7/32", "172.16.0.0/12"]),
        pods: pods("10.244.0.0/16"),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        localhost_node_ports: true,
        ..Config::default()
    };
    let web = ["10.244.0.1", "10.244.1.2"];
    let frontends = || {
        vec![
            sticky(frontend::<V4>("web", Some("10.96.0.10"), Protocol::Tcp, 80, &web)),
            sticky(frontend("web", None, Protocol::Tcp, 30080, &web)),
            frontend("web", Some("10.96.0.10"), Protocol::Udp, 53, &web),
        ]
    };
    check_rules_read_back(&v4, frontends());
    check_rules_read_back(
        &Config { pods: Some(PodSource::Interface("cni0".into())), ..v4.clone() },
        frontends(),
    );
    check_rules_read_back(
        &Config { pods: Some(PodSource::InterfacePrefix("veth".into())), ..v4 },
        frontends(),
    );
    let v6 = Config {
        pods: pods("fd00:10:244::/47"),
        service_cidrs: vec!["fd00:10:96::/112".parse().unwrap()],
        ..Config::default()
    };
    let web = ["fd00:10:244::1", "fd00:10:244::2"];
    check_rules_read_back(
        &v6,
        vec![
            sticky(frontend::<V6>("web", Some("fd00:10:96::a"), Protocol::Tcp, 80, &web)),
            frontend("web", None, Protocol::Sctp, 30080, &web),
        ],
    );
}
