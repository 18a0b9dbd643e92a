//! The packet contract beside others who program the same node: CNIs, firewalls, agents. Their rules are replayed as they commit them
//! (`neighbours/`), before ours and once more while ours are at work; ours leave them as they are. `docs/cnis.md` has the results.

mod programs;

use lab::Host;
use lab::client::Transport;
use lab::echo::{EchoServer, Mode};
use testkit::cluster::{Flavour, ProxyMode};

use fakes::objects::{self, Port};

use crate::matrix::check_contract;
use crate::support::{PATIENCE, ask, clean_up, cluster_in, ip, start, wait_for};

/// What somebody programs on the node.
#[derive(Clone, Copy)]
struct Neighbour {
    /// Input of `ipset restore`.
    sets: &'static str,
    /// Input of `iptables-restore --noflush`.
    v4: &'static str,
    /// Input of `ip6tables-restore --noflush`.
    v6: &'static str,
    /// Input of `nft -f`.
    nft: &'static str,
}

const NOTHING: Neighbour = Neighbour { sets: "", v4: "", v6: "", nft: "" };

const FLANNEL: Neighbour = Neighbour {
    v4: include_str!("neighbours/flannel.iptables"),
    v6: include_str!("neighbours/flannel.ip6tables"),
    ..NOTHING
};
const FLANNEL_NFTABLES: Neighbour = Neighbour { nft: include_str!("neighbours/flannel.nft"), ..NOTHING };
const CALICO: Neighbour = Neighbour {
    sets: include_str!("neighbours/calico.sets"),
    v4: include_str!("neighbours/calico.iptables"),
    ..NOTHING
};
const CILIUM: Neighbour = Neighbour {
    sets: include_str!("neighbours/cilium.sets"),
    v4: include_str!("neighbours/cilium.iptables"),
    ..NOTHING
};
const AWS_VPC_CNI: Neighbour = Neighbour { v4: include_str!("neighbours/aws-vpc-cni.iptables"), ..NOTHING };
const KUBE_ROUTER: Neighbour = Neighbour {
    sets: include_str!("neighbours/kube-router.sets"),
    v4: include_str!("neighbours/kube-router.iptables"),
    ..NOTHING
};
const ISTIO_AMBIENT: Neighbour = Neighbour {
    sets: include_str!("neighbours/istio-ambient.sets"),
    v4: include_str!("neighbours/istio-ambient.iptables"),
    ..NOTHING
};
const IP_MASQ_AGENT: Neighbour =
    Neighbour { v4: include_str!("neighbours/ip-masq-agent.iptables"), ..NOTHING };
const DOCKER: Neighbour = Neighbour { v4: include_str!("neighbours/docker.iptables"), ..NOTHING };
const TAILSCALE: Neighbour = Neighbour { v4: include_str!("neighbours/tailscale.iptables"), ..NOTHING };
const FIREWALLD: Neighbour = Neighbour { nft: include_str!("neighbours/firewalld.nft"), ..NOTHING };
/// With the pods in a trusted zone, as they have to be for reaching each other without Services.
const FIREWALLD_TRUSTING_PODS: Neighbour = Neighbour {
    nft: concat!(
        include_str!("neighbours/firewalld.nft"),
        "insert rule inet firewalld filter_FORWARD iifname \"pod*\" accept\n"
    ),
    ..NOTHING
};
const NODELOCALDNS: Neighbour = Neighbour { v4: include_str!("neighbours/nodelocaldns.iptables"), ..NOTHING };

/// Defines the tests of each neighbour: in each mode the whole contract. What is translated at the socket meets it untranslated.
macro_rules! beside {
    ($($module:ident: $neighbour:expr;)+) => { beside! { $($module: $neighbour, untranslated: $neighbour;)+ } };
    ($($module:ident: $neighbour:expr, untranslated: $at_socket:expr;)+) => {$(
        mod $module {
            use testkit::cluster::{Flavour, ProxyMode};
            #[test]
            #[ignore = "part of make neighbours"]
            fn nftables() { super::the_contract_holds(ProxyMode::Nftables, &mut { $neighbour }); }
            #[test]
            #[ignore = "part of make neighbours"]
            fn iptables() { super::the_contract_holds(ProxyMode::Iptables(Flavour::Nft), &mut { $neighbour }); }
            #[test]
            #[ignore = "part of make neighbours"]
            fn ebpf() { super::the_contract_holds(ProxyMode::Ebpf, &mut { $at_socket }); }
            #[test]
            #[ignore = "part of make neighbours"]
            fn userspace() { super::the_contract_holds(ProxyMode::Userspace, &mut { $neighbour }); }
        }
    )+};
}

beside! {
    flannel: super::FLANNEL;
    flannel_nftables: super::FLANNEL_NFTABLES;
    calico: super::CALICO;
    cilium: super::CILIUM;
    aws_vpc_cni: super::AWS_VPC_CNI;
    kube_router: super::KUBE_ROUTER;
    istio_ambient: super::ISTIO_AMBIENT;
    ip_masq_agent: super::IP_MASQ_AGENT;
    docker: super::DOCKER;
    tailscale: super::TAILSCALE;
}

beside! {
    firewalld: super::FIREWALLD, untranslated: super::FIREWALLD_TRUSTING_PODS;
}

/// The one that is part of `make check`.
#[test]
fn the_contract_holds_beside_flannel() {
    the_contract_holds(ProxyMode::Nftables, &mut { FLANNEL });
}

impl Neighbour {
    /// It programs its rules, as after a start of its own. What is there of it already is made anew.
    fn program(self, node: &Host) {
        self.withdraw(node);
        let inputs = [
            ("ipset", &["restore"][..], self.sets),
            ("iptables-nft-restore", &["--noflush"], self.v4),
            ("ip6tables-nft-restore", &["--noflush"], self.v6),
            ("nft", &["-f", "-"], self.nft),
        ];
        for (program, arguments, input) in inputs.iter().filter(|(.., input)| !input.is_empty()) {
            node.exec_with_input(program, arguments, input).unwrap();
        }
    }

    /// Its rules go, and nobody else's.
    fn withdraw(self, node: &Host) {
        for (program, input) in [("iptables-nft-restore", self.v4), ("ip6tables-nft-restore", self.v6)] {
            // Without its chains there is nothing to withdraw.
            drop(node.exec_with_input(program, &["--noflush"], &without(input)));
        }
        for set in self.sets.lines().filter_map(|line| line.strip_prefix("create ")) {
            drop(node.exec("ipset", &["destroy", set.split(' ').next().unwrap_or_default()]));
        }
        for table in self.tables() {
            drop(node.exec("nft", &[&["delete", "table"], &table[..]].concat()));
        }
    }

    /// Family and name of each of its tables of nftables.
    fn tables(self) -> impl Iterator<Item = Vec<&'static str>> {
        let tables = self.nft.lines().filter_map(|line| line.strip_prefix("table "));
        tables.map(|table| table.trim_end_matches(" {").split(' ').collect())
    }
}

/// Somebody who programs the node as well.
trait Beside {
    fn start(&mut self, node: &Host);

    /// It is started again, or told to program what it programs once more.
    fn start_again(&mut self, node: &Host);

    /// Its rules as they are in the kernel, in their order.
    fn rules(&self, node: &Host) -> Vec<String>;
}

impl Beside for Neighbour {
    fn start(&mut self, node: &Host) {
        self.program(node);
    }

    fn start_again(&mut self, node: &Host) {
        self.program(node);
    }

    fn rules(&self, node: &Host) -> Vec<String> {
        let mut rules = rules_of_iptables(node);
        for table in self.tables() {
            rules.push(node.exec("nft", &[&["-s", "list", "table"], &table[..]].concat()).unwrap());
        }
        rules
    }
}

/// All but ours.
fn rules_of_iptables(node: &Host) -> Vec<String> {
    let saved = ["iptables-nft-save", "ip6tables-nft-save"].map(|program| node.exec(program, &[]).unwrap());
    let theirs =
        |line: &&str| line.starts_with("-A ") && !line.contains("KUBE-") && !line.contains("kubernetes");
    saved.iter().flat_map(|text| text.lines().filter(theirs).map(str::to_owned)).collect()
}

/// Input of iptables-restore that deletes what another input adds: rules of built-in chains one by one, chains of its own whole.
fn without(input: &str) -> String {
    let tables = input.split_inclusive("COMMIT\n");
    tables.flat_map(without_table).map(|line| line + "\n").collect()
}

fn without_table(table: &str) -> Vec<String> {
    let own: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix(':')?.strip_suffix(" - [0:0]")).collect();
    let chain = |rule: &str| rule.split(' ').next().unwrap_or_default().to_owned();
    let undo = |line: &str| match line.strip_prefix("-A ") {
        Some(rule) if own.contains(&chain(rule).as_str()) => vec![],
        Some(rule) => vec![format!("-D {rule}")],
        None if line == "COMMIT" => {
            own.iter().map(|chain| format!("-X {chain}")).chain([line.to_owned()]).collect()
        }
        // A policy stays. A chain that is declared is emptied.
        None if line.ends_with(" DROP [0:0]") => vec![],
        None => vec![line.to_owned()],
    };
    table.lines().filter(|line| !line.starts_with('#')).flat_map(undo).collect()
}

/// Every line of the contract holds, whoever comes first, and ours change nothing of theirs.
fn the_contract_holds(mode: ProxyMode, neighbour: &mut dyn Beside) {
    let cluster = cluster_in(mode, 2, 1);
    let node = cluster.lab.node();
    neighbour.start(node);
    let mut proxy = start(&cluster);
    check_contract(&cluster);
    // They start again, and their rules are now behind ours or before them.
    neighbour.start_again(node);
    let theirs = neighbour.rules(node);
    assert!(!theirs.is_empty(), "it has no rules");
    check_contract(&cluster);
    // So do we.
    proxy.kill().unwrap();
    let mut proxy = start(&cluster);
    check_contract(&cluster);
    proxy.terminate(PATIENCE).unwrap();
    let arguments = cluster.arguments();
    clean_up(&cluster, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(neighbour.rules(node), theirs);
}

/// `NodeLocal DNSCache` answers at the DNS Service's own address: untracked packets are not translated, and once it is gone
/// the Service is served again.
#[test]
fn a_local_cache_takes_the_services_address_and_gives_it_back() {
    for mode in [ProxyMode::Nftables, ProxyMode::Iptables(Flavour::Nft), ProxyMode::Userspace] {
        let cluster = cluster_in(mode, 2, 1);
        let node = cluster.lab.node();
        let ports = [Port {
            name: "dns",
            protocol: "UDP",
            port: 53,
            target: testkit::cluster::UDP_PORT,
            node_port: None,
        }];
        let dns = ip("10.96.0.250");
        cluster.apply(objects::service("dns", &[dns], &ports)).unwrap();
        cluster.apply(objects::slice("dns", "v4", &ports, &cluster.endpoints(false)[..1])).unwrap();
        let _proxy = start(&cluster);
        let pod = cluster.lab.pod(1);
        wait_for(pod, Transport::Udp, (dns, 53).into(), &Ok("pod0"));
        NODELOCALDNS.program(node);
        node.exec("ip", &["address", "add", "10.96.0.250/32", "dev", "lo"]).unwrap();
        {
            let _cache = EchoServer::start(node, "cache", &[(53, Mode::Udp)]).unwrap();
            wait_for(pod, Transport::Udp, (dns, 53).into(), &Ok("cache"));
            assert_eq!(ask(node, Transport::Udp, (dns, 53).into()).as_deref(), Ok("cache"), "{mode:?}");
        }
        NODELOCALDNS.withdraw(node);
        node.exec("ip", &["address", "delete", "10.96.0.250/32", "dev", "lo"]).unwrap();
        wait_for(pod, Transport::Udp, (dns, 53).into(), &Ok("pod0"));
    }
}
