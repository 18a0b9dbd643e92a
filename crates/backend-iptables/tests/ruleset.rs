//! The rules as an operator reads them: one Service in each situation, in both families.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use backend_iptables::{Backend, Config, Extent, NodePortAddresses, PREFIX, PodSource};
use iptables::{Iptables, Saved};
use kernel::iptables::{Programs, Tables};
use lab::Namespace;
use model::{
    AddressKind, Affinity, Destination, EndpointNode, Family, Frontend, FrontendAddress, FrontendKey,
    IpFamily, Masquerade, ObjectName, Pool, Protocol, ServicePortName, Table, V4, V6, Verdict,
};

struct Service<F: Family> {
    name: &'static str,
    protocol: Protocol,
    pool: Pool<F>,
    affinity: Option<Affinity>,
}

impl<F: Family> Service<F> {
    /// Endpoints whose addresses end with `1` are on this node.
    fn new(name: &'static str, protocol: Protocol, endpoints: &[&str]) -> Self {
        Self { name, protocol, pool: pool(endpoints, Verdict::Reject), affinity: None }
    }

    fn frontend(&self, kind: AddressKind, ip: &str, port: u16) -> Frontend<F> {
        let address = match kind {
            AddressKind::NodePort => FrontendAddress::Node,
            _ => FrontendAddress::Ip(parse::<F>(ip)),
        };
        let is_internal = kind == AddressKind::ClusterIp;
        Frontend {
            affinity: self.affinity,
            masquerade: if is_internal { Masquerade::UnlessFromPod } else { Masquerade::Always },
            ..Frontend::new(
                FrontendKey { address, protocol: self.protocol, port },
                kind,
                ServicePortName {
                    service: ObjectName::new("shop", self.name),
                    port: "main".into(),
                    protocol: self.protocol,
                },
                self.pool.clone(),
            )
        }
    }
}

fn parse<F: Family>(text: &str) -> F::Addr {
    F::narrow(text.parse().unwrap()).unwrap()
}

fn pool<F: Family>(endpoints: &[&str], when_empty: Verdict) -> Pool<F> {
    let destination = |ip: &&str| Destination {
        address: parse::<F>(ip),
        port: 8080,
        node: EndpointNode::this_if(ip.ends_with('1')),
    };
    Pool::new(endpoints.iter().map(destination).collect::<BTreeSet<_>>(), when_empty)
}

/// The input that makes the rules, which both flavours of the tools take and print as it was written.
fn text<F: Family>(config: &Config, services: Vec<Vec<Frontend<F>>>) -> String {
    text_of(config, &with(services))
}

fn with<F: Family>(services: Vec<Vec<Frontend<F>>>) -> Table<F> {
    let mut table = Table::default();
    for frontends in services {
        table.set_service(&frontends[0].service.service.clone(), frontends);
    }
    table
}

fn text_of<F: Family>(config: &Config, table: &Table<F>) -> String {
    let backend = Backend::new(config.clone());
    let restore = |found: &Saved| backend.repair(config, table, found, Extent::Difference).restore;
    let fresh = restore(&Saved::default());
    for flavour in ["nft", "legacy"] {
        let name = match F::FAMILY {
            IpFamily::V4 => format!("iptables-{flavour}"),
            IpFamily::V6 => format!("ip6tables-{flavour}"),
        };
        let left = Namespace::new("ruleset").unwrap().run(|| {
            let mut tables = Tables::new(Programs::named(&name).unwrap());
            tables.restore(&fresh).unwrap();
            restore(&tables.save(PREFIX).unwrap())
        });
        assert!(left.is_empty(), "{name} prints something else:\n{left}");
    }
    fresh.to_string()
}

#[test]
fn ipv4() {
    let config = Config {
        node_ports: NodePortAddresses::All,
        localhost_node_ports: true,
        pods: Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
        ..Config::default()
    };
    let web = Service::<V4>::new("web", Protocol::Tcp, &["10.244.0.1", "10.244.1.2", "10.244.1.3"]);
    let gone = Service::<V4>::new("gone", Protocol::Udp, &[]);
    let services = vec![
        vec![
            web.frontend(AddressKind::ClusterIp, "10.96.0.10", 80),
            web.frontend(AddressKind::ExternalIp, "203.0.113.10", 80),
            web.frontend(AddressKind::NodePort, "", 30_080),
        ],
        vec![
            gone.frontend(AddressKind::ClusterIp, "10.96.0.11", 53),
            gone.frontend(AddressKind::NodePort, "", 30_053),
        ],
    ];
    let mut table = with(services);
    table.set_health_check_port(&ObjectName::new("shop", "local"), Some(32_000));
    insta::assert_snapshot!(text_of(&config, &table));
}

/// `externalTrafficPolicy: Local` with source ranges, and affinity.
#[test]
fn local_policy_and_affinity() {
    let config = Config {
        node_ports: NodePortAddresses::Within(vec!["192.168.0.7/32".parse().unwrap()]),
        pods: Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
        ..Config::default()
    };
    let all = ["10.244.0.1", "10.244.1.2"];
    let sticky = Service {
        affinity: Some(Affinity { timeout: Duration::from_mins(10), service: None }),
        ..Service::<V4>::new("sticky", Protocol::Tcp, &all)
    };
    let local = Service::<V4>::new("local", Protocol::Tcp, &all);
    let external = |kind, ip: &str, port| Frontend {
        pool: pool(&all[..1], Verdict::Drop),
        internal_pool: Some(local.pool.clone()),
        masquerade: Masquerade::Never,
        ..local.frontend(kind, ip, port)
    };
    let balancer = Frontend {
        allowed_sources: Some(["198.51.100.0/24".parse().unwrap()].into()),
        ..external(AddressKind::LoadBalancerIp, "203.0.113.12", 80)
    };
    let services = vec![
        vec![sticky.frontend(AddressKind::ClusterIp, "10.96.0.10", 80)],
        vec![
            local.frontend(AddressKind::ClusterIp, "10.96.0.12", 80),
            balancer,
            external(AddressKind::NodePort, "", 30_081),
        ],
    ];
    insta::assert_snapshot!(text(&config, services));
}

#[test]
fn ipv6_with_pods_told_by_interface() {
    let config = Config {
        pods: Some(PodSource::InterfacePrefix("cali".into())),
        drop_invalid: false,
        ..Config::default()
    };
    let web = Service::<V6>::new("web", Protocol::Sctp, &["fd00:10:244::1"]);
    let services = vec![vec![
        web.frontend(AddressKind::ClusterIp, "fd00:10:96::a", 80),
        web.frontend(AddressKind::NodePort, "", 30_080),
    ]];
    insta::assert_snapshot!(text(&config, services));
}
