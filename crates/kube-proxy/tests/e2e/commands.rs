//! The commands of the same program, on a small cluster that is always the same: what each of them prints.

use std::process::{Command, Output};

use fakes::objects::{self, Endpoint};
use lab::proxy::wait_until;
use serde_json::json;
use testkit::cluster::{Cluster, NODE, NODE2};

use crate::support::{PATIENCE, WEB_PORTS, WEB_V4, WEB_V6, cluster, ip, program, start};

/// Runs a command on the node.
fn run(cluster: &Cluster, arguments: &str) -> Output {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    cluster.lab.node().run(|| Command::new(program()).args(arguments).output().unwrap())
}

/// A command with what it prints and its exit code.
fn told(cluster: &Cluster, arguments: &str) -> String {
    let output = run(cluster, arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (printed, complained) = (text(&output.stdout), text(&output.stderr));
    format!("$ kube-proxy {arguments}\n{printed}{complained}[exit {}]", output.status.code().unwrap())
}

/// `web` with an endpoint here, one elsewhere, one that is ending and one that is not ready; `yours` that claims its address;
/// and one that can't be used.
fn fixed_cluster() -> Cluster {
    let cluster = cluster(1, 1);
    let mut web = objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS);
    web["spec"]["type"] = json!("LoadBalancer");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    web["spec"]["externalIPs"] = json!(["203.0.113.7"]);
    web["spec"]["healthCheckNodePort"] = json!(32000);
    cluster.apply(web).unwrap();
    let (local, remote) = (cluster.lab.pod(0).ip4().into(), cluster.lab.node2_pod(0).ip4().into());
    let (ending, sick) =
        (Endpoint::ready(ip("10.244.1.77"), NODE2), Endpoint::ready(ip("10.244.0.78"), NODE));
    let v4 = [Endpoint::ready(local, NODE), Endpoint::ready(remote, NODE2), ending, sick];
    let mut slice = objects::slice("web", "v4", &WEB_PORTS, &v4);
    slice["endpoints"][2]["conditions"] = json!({ "ready": false, "serving": true, "terminating": true });
    slice["endpoints"][3]["conditions"] = json!({ "ready": false, "serving": false });
    cluster.apply(slice).unwrap();
    cluster.apply(objects::slice("web", "v6", &WEB_PORTS, &cluster.endpoints(true))).unwrap();
    let mut yours = objects::service("yours", &[ip("10.96.0.11")], &WEB_PORTS[..1]);
    yours["spec"]["externalIPs"] = json!(["203.0.113.7"]);
    yours["spec"]["ports"][0]["nodePort"] = json!(null);
    cluster.apply(yours).unwrap();
    let mut bad = objects::service("bad", &[ip("10.96.0.12")], &WEB_PORTS[..1]);
    bad["spec"]["clusterIP"] = json!("10.96.0.999");
    bad["spec"]["clusterIPs"] = json!(["10.96.0.999"]);
    cluster.apply(bad).unwrap();
    cluster
}

/// What differs from run to run.
const FILTERS: [(&str, &str); 5] = [
    (r"running for:  \S+", "running for:  [time]"),
    (r"v1\.36\S+", "[version]"),
    (r"(?m)^\S+( +)(IPv[46]   default/\S+ +)\S+$", "[age]$1$2[latency]"),
    (r"\d{10}\.\d+", "[now]"),
    (r#""ageSeconds": [0-9.e-]+"#, r#""ageSeconds": "[age]""#),
];

#[test]
fn every_command_prints_what_there_is() {
    let cluster = fixed_cluster();
    let _proxy = start(&cluster);
    let settled = wait_until(PATIENCE, || {
        let list = told(&cluster, "list services");
        list.contains("4/6") && list.contains("Conflict") && !list.contains("Waiting")
    });
    assert!(settled, "{}", told(&cluster, "list services"));
    // Rates are known from the second reading on, of each family.
    let endpoints = || told(&cluster, "list endpoints -n default web -o wide");
    let is_counted = wait_until(PATIENCE, || endpoints().matches("0.0/s").count() == 12);
    assert!(is_counted, "{}", endpoints());
    let commands = [
        ("status", "status"),
        ("list-services", "list services -o wide"),
        ("list-services-selected", "list services default/w* --address 203.0.113.7 --no-headers"),
        ("list-services-name", "list services -o name"),
        ("list-services-json", "list services web -o json"),
        ("list-services-yaml", "list services yours -o yaml"),
        ("list-services-no-endpoints", "list services --no-endpoints"),
        ("list-services-node-port", "list services --node-port 30080 --no-headers"),
        ("list-services-endpoint", "list services --endpoint 10.244.1.77 -o name"),
        ("list-endpoints", "list endpoints -n default web -o wide"),
        ("list-endpoints-one", "list endpoints --endpoint 10.244.1.77 -o json"),
        ("list-conflicts", "list conflicts"),
        ("list-rejected", "list rejected"),
        ("list-drains", "list drains"),
        ("list-flows", "list flows"),
        ("top", "top"),
        ("top-json", "top -o json"),
        ("explain-service", "explain service default/web:line"),
        ("explain-endpoint", "explain endpoint 10.244.1.77:8080"),
        ("explain-endpoint-nobodys", "explain endpoint 192.0.2.9"),
        ("explain-packet-pod", "explain packet 10.244.0.99 203.0.113.7:80 --from pod"),
        ("explain-packet-outside", "explain packet 192.168.50.100 203.0.113.7:80"),
        ("explain-packet-refused", "explain packet 192.168.50.100 10.96.0.11:80"),
        ("explain-packet-foreign", "explain packet 192.168.50.100 8.8.8.8:53/UDP"),
        ("explain-nothing", "explain service default/none"),
    ];
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_path("commands");
    for (pattern, with) in FILTERS {
        settings.add_filter(pattern, with);
    }
    settings.bind(|| {
        for (name, command) in commands {
            insta::assert_snapshot!(name, told(&cluster, command));
        }
    });
}

/// What breaks the node is found, by the program on a node that is broken so.
#[test]
fn check_finds_what_is_wrong() {
    let cluster = fixed_cluster();
    let _proxy = start(&cluster);
    let node = cluster.lab.node();
    let found = |what: &str| {
        let mut last = String::new();
        let is_found = wait_until(PATIENCE, || {
            last = told(&cluster, "check -o name");
            last.lines().any(|line| line == what)
        });
        assert!(is_found, "no {what}:\n{last}");
    };
    found("conflict");
    found("no-endpoints");
    node.exec("sysctl", &["-w", "net.ipv4.ip_forward=0"]).unwrap();
    found("forwarding-off");
    node.exec("sysctl", &["-w", "net.ipv4.ip_forward=1"]).unwrap();
    let theirs = "add table ip theirs; add chain ip theirs forward { type filter hook forward priority 0; policy drop; }";
    node.exec("nft", &[theirs]).unwrap();
    found("forward-policy-drop");
    node.exec("nft", &["delete table ip theirs"]).unwrap();
    let text = told(&cluster, "check");
    for gone in ["ip_forward", "theirs", "does not have"] {
        assert!(!text.contains(gone), "{gone}:\n{text}");
    }
}

#[test]
fn a_dump_holds_everything_and_nothing_secret() {
    let cluster = fixed_cluster();
    let _proxy = start(&cluster);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump.tar");
    let output = run(&cluster, &format!("dump {}", path.display()));
    assert!(output.status.success(), "{output:?}");
    let listed = Command::new("tar").arg("tf").arg(&path).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    for name in ["status.json", "services.json", "findings.json", "flows.json", "configz.json", "metrics.txt"]
    {
        assert!(names.contains(&format!("kube-proxy-dump/{name}\n")), "{names}");
    }
    assert!(!names.contains(".error"), "{names}");
}

#[test]
fn scripts_can_tell_what_happened() {
    let code = |arguments: &[&str]| Command::new(program()).args(arguments).output().unwrap().status.code();
    assert_eq!(code(&["status", "--server=http://127.0.0.1:1"]), Some(3));
    assert_eq!(code(&["list", "services", "--bogus"]), Some(2));
    assert_eq!(code(&["explain", "packet", "10.0.0.1", "nowhere"]), Some(2));
    assert_eq!(code(&["list", "--help"]), Some(0));
}
