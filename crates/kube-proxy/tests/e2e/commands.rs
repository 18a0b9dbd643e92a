//! The commands of the same program, on a small cluster that is always the same: what each of them prints.

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use apiserver::Auth;
use fakes::objects::{self, Endpoint};
use lab::client::Transport;
use lab::proxy::{Lines, Proxy, wait_until};
use serde_json::json;
use testkit::cluster::{Cluster, NODE, NODE2, ProxyMode};

use crate::support::{
    PATIENCE, WEB_PORTS, WEB_V4, WEB_V6, apply_endpoints, apply_web, ask, cluster, cluster_in, in_every_mode,
    ip, program, start,
};

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
    with_objects(cluster(1, 1))
}

fn with_objects(cluster: Cluster) -> Cluster {
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

in_every_mode!(commands_work_in_every_mode);

mod userspace {
    #[test]
    fn commands_work_in_every_mode() {
        super::commands_work_in_every_mode(testkit::cluster::ProxyMode::Userspace);
    }
}

/// `check` reads the kernel in each mode, and misses nothing where all is well; flows and endpoints that are ending are listed. In
/// mode iptables nobody tells of a rule that is gone, and it is not looked for within half a minute, so there `check` can be seen to
/// find it.
fn commands_work_in_every_mode(mode: ProxyMode) {
    let cluster = cluster_in(mode, 1, 1);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    let unread = |text: &str| -> Vec<String> {
        let found: serde_json::Value = serde_json::from_str(text).unwrap();
        let checked = found["checked"].as_array().unwrap().iter().filter_map(|what| what.as_str());
        checked.filter(|what| what.starts_with("not ")).map(str::to_owned).collect()
    };
    let mut text = String::new();
    let is_well = wait_until(PATIENCE, || {
        let output = run(&cluster, "check -o json");
        text = String::from_utf8(output.stdout).unwrap();
        unread(&text).is_empty() && !text.contains("rule-missing") && !text.contains("other-proxy")
    });
    assert!(is_well, "{text}");
    flows_and_drains_are_listed(&cluster);
    let ProxyMode::Iptables(flavour) = mode else { return };
    cluster
        .lab
        .node()
        .exec(&format!("iptables-{}", flavour.suffix()), &["-t", "nat", "-F", "KUBE-NODEPORTS"])
        .unwrap();
    text = told(&cluster, "check -o wide");
    for what in ["default/web:line: the kernel does not have ", " of chain KUBE-NODEPORTS of table nat"] {
        assert!(text.contains(what), "no {what}:\n{text}");
    }
    assert!(text.ends_with("[exit 1]"), "{text}");
}

fn flows_and_drains_are_listed(cluster: &Cluster) {
    let client = cluster.lab.outside();
    let service = SocketAddr::new(ip(WEB_V4), 80);
    let answered = ask(client, Transport::Tcp, service);
    assert!(answered.is_ok(), "{answered:?}");
    let flows = told(cluster, "list flows");
    let (from, to) = (format!("{}:", client.ip4()), service.to_string());
    let is_it = |line: &str| line.contains(&from) && line.contains(&to) && line.contains("yes");
    assert!(flows.lines().any(is_it), "{flows}");
    let local = cluster.lab.pod(0).ip4();
    let mut slice = objects::slice("web", "v4", &WEB_PORTS, &cluster.endpoints(false));
    slice["endpoints"][0]["conditions"] = json!({ "ready": false, "serving": true, "terminating": true });
    cluster.apply(slice).unwrap();
    let drains = || told(cluster, "list drains");
    let is_ending =
        || drains().lines().any(|line| line.contains("web:line") && line.contains(&local.to_string()));
    assert!(wait_until(PATIENCE, is_ending), "{}", drains());
}

#[test]
fn status_says_what_is_switched_off_and_why() {
    let cluster = cluster_in(ProxyMode::Ebpf, 1, 0);
    apply_web(&cluster);
    let mut arguments = cluster.arguments();
    let place = arguments.iter().position(|argument| argument == "--ebpf-bpffs").unwrap();
    arguments[place + 1] = cluster.dir().display().to_string();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    let mut text = String::new();
    let is_told = wait_until(PATIENCE, || {
        text = told(&cluster, "status");
        let about = |family| format!("switched off: translation at the socket, {family}: ");
        let told = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let told: Vec<String> = told.collect();
        ["IPv4", "IPv6"].iter().all(|family| told.iter().any(|line| line.starts_with(&about(family))))
    });
    assert!(is_told, "{text}");
}

#[test]
fn watching_goes_on_and_prints_what_differs() {
    let cluster = cluster(1, 1);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    let mut command = cluster.lab.node().command(&program().to_string_lossy());
    let command = command.args(["list", "endpoints", "web", "--watch", "-o", "name"]).stdout(Stdio::piped());
    let mut watching = command.spawn().unwrap();
    let lines = Lines::of(watching.stdout.take().unwrap());
    // TCP and UDP, in both families.
    let begun: Vec<String> = (0..8).map_while(|_| lines.next(PATIENCE)).collect();
    let new = Endpoint::ready(ip("10.244.1.99"), NODE2);
    apply_endpoints(&cluster, &[&cluster.endpoints(false)[..], &[new]].concat(), &cluster.endpoints(true));
    let line = lines.next(PATIENCE);
    watching.kill().unwrap();
    watching.wait().unwrap();
    let line = line.expect("a line");
    assert!(line.starts_with("10.244.1.99:") && !begun.contains(&line), "{line} after {begun:#?}");
}

#[test]
fn a_dump_holds_everything_and_nothing_secret() {
    // What nobody but the API server may be told: the credential, and what somebody wrote to a Service.
    const SECRETS: [&str; 2] = ["credential-of-the-proxy", "password-in-an-annotation"];
    let lab = lab::Lab::new(&lab::Config { pods: 1, node2_pods: 1, ..lab::Config::default() }).unwrap();
    let auth = Auth::Token(SECRETS[0].to_owned());
    let cluster =
        Cluster::with(lab, apiserver::Config { auth, tls: true, ..apiserver::Config::default() }).unwrap();
    let cluster = with_objects(cluster);
    let mut noted = objects::service("noted", &[ip("10.96.0.13")], &WEB_PORTS[..1]);
    noted["spec"]["ports"][0]["nodePort"] = json!(null);
    noted["metadata"]["annotations"] = json!({ "example.com/password": SECRETS[1] });
    cluster.apply(noted).unwrap();
    let _proxy = start(&cluster);
    let is_known = || told(&cluster, "list services noted -o name").contains("default/noted");
    assert!(wait_until(PATIENCE, is_known), "{}", told(&cluster, "list services"));
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
    // Nothing in it is compressed.
    let archive = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    assert!(archive.contains("default/noted") || archive.contains("\"noted\""), "the Service is in it");
    for secret in SECRETS {
        assert!(!archive.contains(secret), "{secret} is in it");
    }
}

#[test]
fn scripts_can_tell_what_happened() {
    let code = |arguments: &[&str]| Command::new(program()).args(arguments).output().unwrap().status.code();
    assert_eq!(code(&["status", "--server=http://127.0.0.1:1"]), Some(3));
    assert_eq!(code(&["list", "services", "--bogus"]), Some(2));
    assert_eq!(code(&["explain", "packet", "10.0.0.1", "nowhere"]), Some(2));
    assert_eq!(code(&["list", "--help"]), Some(0));
}
