//! Clean-up in the real kernel, in network namespaces of the tests' own. Needs root, and `iptables` of both flavours, `ipset`
//! and `nft`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use fakes::upstream::{self, ServicePort};
use host::{Report, Root, clean_up_all, clean_up_nftables, clean_up_other_modes};
use lab::Namespace;
use lab::commits::Generation;
use tempfile::TempDir;

/// A flavour of iptables and a family.
#[derive(Clone, Copy, Debug)]
struct Tool {
    legacy: bool,
    v6: bool,
}

const TOOLS: [Tool; 4] = [
    Tool { legacy: true, v6: false },
    Tool { legacy: true, v6: true },
    Tool { legacy: false, v6: false },
    Tool { legacy: false, v6: true },
];

impl Tool {
    fn program(self, what: &str) -> String {
        let family = if self.v6 { "ip6tables" } else { "iptables" };
        let flavour = if self.legacy { "legacy" } else { "nft" };
        format!("{family}-{flavour}{what}")
    }

    fn load(self, host: &Host, rules: &str) {
        let restored =
            host.net.exec_with_input(&self.program("-restore"), &["--noflush", "--counters"], rules);
        restored.unwrap_or_else(|error| panic!("{error}\n{rules}"));
    }

    /// Everything, with counters, without the lines that say when it was saved.
    fn save(self, host: &Host) -> String {
        let saved = host.net.exec(&self.program("-save"), &["-c"]).unwrap();
        let lines: Vec<&str> = saved.lines().filter(|line| !line.starts_with('#')).collect();
        lines.join("\n")
    }

    fn run(self, host: &Host, args: &str) {
        let args: Vec<&str> = args.split_whitespace().collect();
        host.net.exec(&self.program(""), &args).unwrap();
    }

    fn leftovers(self) -> String {
        upstream::iptables(pods(self.v6), &services(self.v6))
    }
}

/// A network namespace, and a root folder whose `proc` and `sys` are the real ones, and whose lock is the test's own.
struct Host {
    net: Namespace,
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["proc", "sys"] {
            std::os::unix::fs::symlink(Path::new("/").join(name), dir.path().join(name)).unwrap();
        }
        std::fs::create_dir(dir.path().join("run")).unwrap();
        Self { net: Namespace::new("host").unwrap(), dir }
    }

    fn root(&self) -> Root {
        Root::new(self.dir.path())
    }

    fn clean_up(&self) -> Report {
        self.net.run(|| clean_up_other_modes(&self.root()))
    }

    #[track_caller]
    fn find_nothing(&self) {
        let report = self.clean_up();
        assert!(report.is_empty(), "{report:?}");
    }

    #[track_caller]
    fn clean_up_well(&self) -> Report {
        let report = self.clean_up();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        report
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pods(v6: bool) -> ipnet::IpNet {
    if v6 { "fd00:10:244::/56" } else { "10.244.0.0/16" }.parse().unwrap()
}

fn services(v6: bool) -> Vec<ServicePort> {
    let address = |v4: &str, v6_text: &str| ip(if v6 { v6_text } else { v4 });
    let pod = |n: u16| SocketAddr::new(address(&format!("10.244.0.{n}"), &format!("fd00:10:244::{n}")), 8080);
    let range = if v6 { "fd00:7::/64" } else { "203.0.113.0/24" };
    vec![
        ServicePort {
            name: "default/web:http",
            protocol: "tcp",
            cluster_ip: address("10.96.0.10", "fd00:10:96::a"),
            port: 80,
            node_port: Some(30080),
            load_balancer: Some((address("192.0.2.1", "fd00:192::1"), range.parse().unwrap())),
            endpoints: vec![pod(2), pod(3), pod(4)],
        },
        ServicePort {
            name: "kube-system/dns:dns",
            protocol: "udp",
            cluster_ip: address("10.96.0.53", "fd00:10:96::53"),
            port: 53,
            node_port: None,
            load_balancer: None,
            endpoints: vec![pod(5), pod(6)],
        },
        ServicePort {
            name: "default/empty",
            protocol: "tcp",
            cluster_ip: address("10.96.0.11", "fd00:10:96::b"),
            port: 80,
            node_port: None,
            load_balancer: None,
            endpoints: vec![],
        },
    ]
}

/// Rules of the kubelet and of others, before and behind upstream's, are saved byte for byte as if upstream's had never
/// been there, counters included.
#[test]
fn upstreams_rules_go_and_everything_else_stays_byte_for_byte() {
    for tool in TOOLS {
        let (expected, host) = (Host::new(), Host::new());
        for it in [&expected, &host] {
            tool.load(it, &upstream::foreign(tool.v6));
        }
        tool.load(&host, &tool.leftovers());
        for it in [&expected, &host] {
            tool.load(it, &upstream::kubelet(tool.v6));
            tool.run(it, "-t nat -A POSTROUTING -p tcp -j RETURN");
            tool.run(it, "-P FORWARD DROP");
        }
        assert!(tool.save(&host).contains("KUBE-SVC-"), "{tool:?}");
        let report = host.clean_up_well();
        assert_eq!(tool.save(&host), tool.save(&expected), "{tool:?}");
        assert!(report.kept.is_empty(), "{:?}", report.kept);
        let chains =
            report.removed.iter().flat_map(|removed| &removed.items).filter(|item| item.starts_with("chain"));
        assert_eq!(chains.count(), 6 + (5 + 3 + 3 + 2 + 2) + 1, "{:?}", report.removed);
        host.find_nothing();
    }
}

/// `portmap` jumps to upstream's chain for marking, and other rules to a Service's: these go on to work.
#[test]
fn chains_that_foreign_rules_use_stay_with_all_that_they_need() {
    for tool in TOOLS {
        let host = Host::new();
        tool.load(&host, &tool.leftovers());
        tool.run(&host, "-t nat -N CNI-HOSTPORT-SETMARK");
        tool.run(&host, "-t nat -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ");
        let saved = tool.save(&host);
        let to_external = saved.lines().find(|line| line.contains("--dport 30080 -j KUBE-EXT-")).unwrap();
        let external = to_external.rsplit(' ').next().unwrap();
        tool.run(&host, &format!("-t nat -A PREROUTING -d {} -g {external}", pods(tool.v6).addr()));
        // Not upstream's: without its comment.
        tool.run(&host, "-t filter -I INPUT -j KUBE-NODEPORTS");
        let report = host.clean_up_well();
        let after = tool.save(&host);
        let names = |text: &str| -> Vec<String> {
            text.lines()
                .filter_map(|line| Some(line.strip_prefix(':')?.split(' ').next()?.to_owned()))
                .collect()
        };
        let mut left: Vec<String> =
            names(&after).into_iter().filter(|name| name.starts_with("KUBE-")).collect();
        left.sort_unstable();
        let suffix = external.trim_start_matches("KUBE-EXT-");
        for name in ["KUBE-MARK-MASQ", "KUBE-NODEPORTS", external, &format!("KUBE-SVC-{suffix}")] {
            assert!(left.iter().any(|chain| chain == name), "{tool:?} {name} is not among {left:?}");
        }
        assert_eq!(left.iter().filter(|name| name.starts_with("KUBE-SEP-")).count(), 3, "{left:?}");
        assert_eq!(left.len(), 4 + 3, "{left:?}");
        assert_eq!(report.kept.len(), left.len(), "{:?}", report.kept);
        assert!(after.contains("-j KUBE-MARK-MASQ") && after.contains(&format!("-g {external}")));
        assert!(after.contains("--set-xmark 0x4000/0x4000"), "the chain for marking still marks:\n{after}");
    }
}

/// Elements of verdict maps refer to chains as well, which only `nft` can write.
#[test]
fn chains_that_a_verdict_map_uses_stay() {
    let tool = Tool { legacy: false, v6: false };
    let host = Host::new();
    tool.load(&host, &tool.leftovers());
    host.net
        .nft("add map ip nat m { type ipv4_addr : verdict; }; add element ip nat m { 192.0.2.9 : jump KUBE-MARK-MASQ }")
        .unwrap();
    let report = host.clean_up_well();
    assert_eq!(report.kept, ["chain KUBE-MARK-MASQ of table ip nat of iptables-nft"]);
    let listed = host.net.exec("nft", &["list", "ruleset"]).unwrap();
    assert!(listed.contains("jump KUBE-MARK-MASQ") && !listed.contains("KUBE-SVC-"), "{listed}");
}

/// Where nobody uses iptables there is no table afterwards, and no lock file.
#[test]
fn a_host_without_leftovers_stays_as_it_is() {
    let host = Host::new();
    host.find_nothing();
    let tables = "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names";
    assert_eq!(host.net.exec("sh", &["-c", tables]).unwrap(), "");
    assert_eq!(host.net.exec("nft", &["list", "ruleset"]).unwrap(), "");
    assert_eq!(std::fs::read_dir(host.dir.path().join("run")).unwrap().count(), 0);
    // With tables that hold nothing of upstream's.
    let tool = Tool { legacy: true, v6: false };
    tool.load(&host, &upstream::foreign(false));
    host.find_nothing();
    assert_eq!(std::fs::read_dir(host.dir.path().join("run")).unwrap().count(), 0);
}

/// The tools' lock is respected; what does not need it is cleaned all the same.
#[test]
fn nothing_is_replaced_while_somebody_else_holds_the_lock() {
    let host = Host::new();
    let (legacy, nft) = (TOOLS[0], TOOLS[2]);
    for tool in [legacy, nft] {
        tool.load(&host, &tool.leftovers());
    }
    let lock = std::fs::File::create(host.dir.path().join("run/xtables.lock")).unwrap();
    lock.lock().unwrap();
    let before = legacy.save(&host);
    let report = host.clean_up();
    let failures: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
    assert_eq!(failures.len(), 3, "one for each table: {failures:?}");
    assert!(failures[0].starts_with("somebody else holds the lock"), "{failures:?}");
    assert_eq!(legacy.save(&host), before);
    assert!(!nft.save(&host).contains("KUBE-"));
    drop(lock);
    host.clean_up_well();
    assert!(!legacy.save(&host).contains("KUBE-"));
}

/// Offsets beyond 64 KiB, chains in any order, and a foreign writer that adds rules meanwhile: it loses none.
#[test]
fn large_tables_and_concurrent_writers() {
    let tool = Tool { legacy: true, v6: false };
    let host = Host::new();
    let mut rules = String::from("*nat\n");
    for n in 0..3000 {
        writeln!(rules, ":OTHER-{n} - [0:0]\n:KUBE-SEP-{n:016} - [0:0]\n:KUBE-SVC-{n:016} - [0:0]").unwrap();
    }
    rules.push_str(":KUBE-SERVICES - [0:0]\n");
    for n in 0..3000 {
        writeln!(rules, "[{n}:{n}] -A OUTPUT -d 198.18.{}.{} -j OTHER-{n}", n / 250, n % 250).unwrap();
        writeln!(rules, "-A KUBE-SERVICES -j KUBE-SVC-{n:016}\n-A KUBE-SVC-{n:016} -j KUBE-SEP-{n:016}")
            .unwrap();
        writeln!(rules, "-A OTHER-{n} -p tcp -j DNAT --to-destination 198.18.0.1:{}", n + 1).unwrap();
    }
    rules.push_str(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n",
    );
    tool.load(&host, &rules);
    let wanted: Vec<String> =
        tool.save(&host).lines().filter(|line| !line.contains("KUBE-")).map(str::to_owned).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..10 {
                // A lock of its own file, so that only the kernel's check of the table stands between the two.
                let source = format!("198.19.0.{n}");
                let add = ["-t", "nat", "-A", "INPUT", "-s", &source, "-j", "ACCEPT"];
                // The tool gives up where the table changed under its hands, which happens a few times.
                let failed = || host.net.exec(&tool.program(""), &add).err();
                assert!((0..100).map_while(|_| failed()).count() < 100, "{source} is never added");
            }
        });
        host.clean_up_well();
        writer.join().unwrap();
    });
    let after = tool.save(&host);
    let (added, left): (Vec<&str>, Vec<&str>) = after.lines().partition(|line| line.contains("198.19.0."));
    assert!(!after.contains("KUBE-"));
    assert_eq!(left, wanted);
    assert_eq!(added.len(), 10, "{added:?}");
}

/// Sets of mode ipvs go once no rule refers to them; others' sets stay, as do those that others use.
#[test]
fn sets_go_unless_somebody_uses_them() {
    for tool in [TOOLS[0], TOOLS[2]] {
        let host = Host::new();
        host.net.exec_with_input(
            "ipset",
            &["restore"],
            "create KUBE-CLUSTER-IP hash:ip,port\nadd KUBE-CLUSTER-IP 10.96.0.10,tcp:80\n\
             create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6\ncreate KUBE-NODE-PORT-TCP bitmap:port range 0-65535\n\
             create KUBE-LOOP-BACK hash:ip,port,ip\ncreate mine hash:ip\n",
        )
        .unwrap();
        let rules = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n\
             -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\nCOMMIT\n\
             *filter\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-SOURCE-RANGES-FIREWALL - [0:0]\n\
             -A INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER\n\
             -A KUBE-IPVS-FILTER -m set --match-set KUBE-NODE-PORT-TCP dst -j RETURN\n\
             -A INPUT -m set --match-set KUBE-LOOP-BACK dst,dst,src -j ACCEPT\nCOMMIT\n";
        tool.load(&host, rules);
        let report = host.clean_up();
        let failures: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
        assert_eq!(failures, ["destroy set KUBE-LOOP-BACK"], "{tool:?}");
        let sets = host.net.exec("ipset", &["list", "-n"]).unwrap();
        assert_eq!(sets, "KUBE-LOOP-BACK\nmine\n");
        let saved = tool.save(&host);
        assert!(
            saved.contains("KUBE-LOOP-BACK") && !saved.contains("KUBE-SERVICES") && !saved.contains("IPVS"),
            "{saved}"
        );
    }
}

/// This kernel may have no dummy devices and no IPVS; a bridge will do for the device.
#[test]
fn the_device_of_mode_ipvs_goes() {
    let host = Host::new();
    host.net.exec("ip", &["link", "add", "kube-ipvs0", "type", "bridge"]).unwrap();
    host.net.exec("ip", &["addr", "add", "10.96.0.10/32", "dev", "kube-ipvs0"]).unwrap();
    host.net.exec("ip", &["link", "add", "other", "type", "bridge"]).unwrap();
    let report = host.clean_up_well();
    assert_eq!(report.removed[0].items, ["device kube-ipvs0"]);
    let links = host.net.exec("ip", &["-br", "link"]).unwrap();
    assert!(links.contains("other") && !links.contains("kube-ipvs0"), "{links}");
}

#[test]
fn everything_goes_with_our_own_tables() {
    let host = Host::new();
    for tool in TOOLS {
        tool.load(&host, &tool.leftovers());
    }
    host.net.nft(&upstream::nftables(pods(true), ip("fd00::1"), &services(true))).unwrap();
    host.net.nft(&upstream::nftables(pods(false), ip("192.168.50.1"), &services(false))).unwrap();
    host.net.nft("table ip kube-proxy-2 { chain c { }; }; table inet kube-proxy { chain c { }; }").unwrap();
    let clean = || host.net.run(|| clean_up_all(&host.root(), &["kube-proxy".into()]));
    let report = clean();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let listed = host.net.exec("nft", &["list", "tables"]).unwrap();
    assert!(
        !listed.contains("table ip kube-proxy\n") && !listed.contains("table ip6 kube-proxy\n"),
        "{listed}"
    );
    assert!(listed.contains("table ip kube-proxy-2") && listed.contains("table inet kube-proxy"), "{listed}");
    for tool in TOOLS {
        assert!(!tool.save(&host).contains("KUBE-"));
    }
    let report = clean();
    assert!(report.is_empty(), "{report:?}");
}

/// Mode iptables removes the chains that choose endpoints before the rest, and nothing else; upstream's tables have the same
/// chains.
#[test]
fn tables_of_mode_nftables_go_in_two_steps() {
    let host = Host::new();
    for tool in TOOLS {
        tool.load(&host, &tool.leftovers());
    }
    let saved = || TOOLS.map(|tool| tool.save(&host));
    let iptables = saved();
    host.net.nft(&upstream::nftables(pods(true), ip("fd00::1"), &services(true))).unwrap();
    host.net
        .nft("table ip kube-proxy { chain nat-output { }; }; table ip mine { chain nat-output { }; }")
        .unwrap();
    let generation = Generation::open(&host.net).unwrap();
    let commits = |work: &dyn Fn() -> Report| {
        let before = generation.read().unwrap();
        let report = work();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        (report.removed.len(), generation.read().unwrap() - before)
    };
    let choosing = ["nat-prerouting".into(), "nat-output".into()];
    let clean = || host.net.run(|| clean_up_nftables(&"kube-proxy".into(), &choosing, &nft::Family::ALL));
    // Two for IPv6; for IPv4 one, since a chain was missing.
    assert_eq!(commits(&clean), (2, 3));
    assert_eq!(commits(&clean), (0, 0));
    assert_eq!(saved(), iptables);
    let listed = host.net.exec("nft", &["list", "tables"]).unwrap();
    assert!(listed.contains("table ip mine") && !listed.contains("kube-proxy"), "{listed}");
}

/// What `check` wants to know, beside all clean-up.
#[test]
fn a_policy_of_iptables_legacy_that_drops_what_is_forwarded_is_found() {
    for (tool, family) in [(TOOLS[0], "IPv4"), (TOOLS[1], "IPv6")] {
        let host = Host::new();
        let found = || host.net.run(|| host::legacy_forward_drops(&host.root()));
        assert_eq!(found(), Vec::<String>::new());
        let names = if tool.v6 { "/proc/net/ip6_tables_names" } else { "/proc/net/ip_tables_names" };
        assert_eq!(host.net.exec("cat", &[names]).unwrap(), "", "to look must make no table");
        tool.run(&host, "-A FORWARD -p tcp -j DROP");
        assert_eq!(found(), Vec::<String>::new());
        tool.run(&host, "-P FORWARD DROP");
        assert_eq!(found(), [family]);
    }
}
