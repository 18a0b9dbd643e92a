//! What people are told: Events in the API, records in the log.

use std::time::Duration;

use apiserver::{Auth, Config, Kind};
use fakes::objects;
use lab::client::Transport;
use lab::proxy::{Proxy, wait_until};
use lab::{Config as LabConfig, Lab};
use serde_json::{Value, json};
use testkit::cluster::{Cluster, NODE};

use crate::support::{PATIENCE, WEB_PORTS, WEB_V4, apply_web, cluster, ip, program, start, wait_for};

/// The events with this reason, once there are any.
#[track_caller]
fn events(cluster: &Cluster, reason: &str) -> Vec<Value> {
    let found = || -> Vec<Value> {
        cluster.api.list(Kind::Event).into_iter().filter(|event| event["reason"] == reason).collect()
    };
    assert!(wait_until(PATIENCE, || !found().is_empty()), "no {reason} in {:?}", cluster.api.events());
    found()
}

#[test]
fn the_api_has_events_about_the_node_and_what_is_wrong() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    // Both want the address of `web` in IPv4, with the same ports.
    for late in ["web-2", "web-3"] {
        let mut service = objects::service(late, &[ip(WEB_V4)], &WEB_PORTS[..1]);
        service["spec"]["ports"][0]["nodePort"] = json!(null);
        service["spec"]["type"] = json!("ClusterIP");
        cluster.apply(service).unwrap();
    }
    let mut broken = objects::service("broken", &[ip("10.96.9.9")], &WEB_PORTS[..1]);
    broken["spec"]["ports"][0]["port"] = json!(0);
    cluster.apply(broken).unwrap();
    let mut proxy = start(&cluster);

    let starting = events(&cluster, "Starting");
    assert_eq!(starting[0]["regarding"]["name"], NODE);
    assert_eq!(
        (&starting[0]["type"], &starting[0]["reportingController"]),
        (&json!("Normal"), &json!("kube-proxy"))
    );
    let conflicts = || events(&cluster, "FrontendConflict");
    assert!(wait_until(PATIENCE, || conflicts().len() == 2), "{:?}", conflicts());
    for event in conflicts() {
        let loser = event["regarding"]["name"].as_str().unwrap();
        let stored = cluster.api.get(Kind::Service, "default", loser).unwrap();
        assert_eq!(event["regarding"]["uid"], stored["metadata"]["uid"]);
        assert!(["web-2", "web-3"].contains(&loser), "{event}");
        let note = event["note"].as_str().unwrap();
        assert!(note.contains("10.96.0.10 port 80/TCP") && note.contains("default/web,"), "{note}");
    }
    let invalid = events(&cluster, "InvalidObject");
    assert_eq!(invalid[0]["regarding"]["name"], "broken");
    assert!(invalid[0]["note"].as_str().unwrap().contains("spec.ports[0].port"), "{invalid:?}");

    // A restart says nothing twice, except that it starts.
    assert_eq!(proxy.terminate(Duration::from_secs(2)).unwrap().code(), Some(0));
    let before = cluster.api.count(Kind::Event);
    let _proxy = start(&cluster);
    assert!(wait_until(PATIENCE, || events(&cluster, "Starting").len() == 2));
    let refused = || cluster.api.requests().iter().filter(|r| r.method == "POST" && r.status == 409).count();
    assert!(wait_until(PATIENCE, || refused() == 3), "{:?}", cluster.api.requests());
    assert_eq!(cluster.api.count(Kind::Event), before + 1);
}

/// The API may forbid events; nothing else suffers.
#[test]
fn events_that_are_forbidden_disturb_nothing() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let forbidden = apiserver::Fault::Status { code: 403, retry_after: None };
    cluster.api.faults().always(Kind::Event, forbidden);
    let mut proxy = start(&cluster);
    assert!(proxy.wait_for_log("An event could not be written", PATIENCE), "{:?}", proxy.log());
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod0"));
}

/// The records that people and their tools look for, in klog's form.
#[test]
fn the_log_is_klogs() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let proxy = start(&cluster);
    let lines = proxy.log();
    let mut rest = lines.iter();
    for record in [
        "\"Version info\" version=",
        "\"Using nftables Proxier\"",
        "\"Starting service config controller\"",
        "\"Starting node config controller\"",
        "\"Successfully retrieved NodeIPs\"",
        "\"kube-proxy running in dual-stack mode\" primary ipFamily=\"IPv4\"",
    ] {
        assert!(
            rest.any(|line| line.contains(record)),
            "{record} is not there, or not in order:\n{}",
            lines.join("\n")
        );
    }
    for controller in ["service config", "endpoint slice config", "serviceCIDR config", "node config"] {
        let record = format!("\"Caches are synced\" controller=\"{controller}\"");
        assert!(lines.iter().any(|line| line.contains(&record)), "{record}:\n{}", lines.join("\n"));
    }
    for line in lines {
        assert!(is_klog(&line), "{line}");
    }
}

/// `I0102 15:04:05.123456   12345 file.rs:123] "Message"...`
fn is_klog(line: &str) -> bool {
    let shape = "Idddd dd:dd:dd.dddddd ";
    let fits = |(byte, shape): (u8, u8)| match shape {
        b'I' => matches!(byte, b'I' | b'W' | b'E'),
        b'd' => byte.is_ascii_digit(),
        shape => byte == shape,
    };
    let rest = line.get(shape.len()..).unwrap_or_default();
    let (place, message) = rest.split_once("] ").unwrap_or_default();
    line.bytes().zip(shape.bytes()).all(fits) && place.contains(".rs:") && message.starts_with('"')
}

/// Not even where everything is logged, and not when the server refuses them.
#[test]
fn credentials_are_never_logged() {
    let secrets = ["token-that-nobody-may-see", "another-token-that-nobody-may-see"];
    let lab = Lab::new(&LabConfig { pods: 1, node2_pods: 0, ..LabConfig::default() }).unwrap();
    let auth = Auth::Token(secrets[0].to_owned());
    let cluster = Cluster::with(lab, Config { auth, tls: true, ..Config::default() }).unwrap();
    apply_web(&cluster);
    let mut arguments = cluster.arguments();
    arguments.extend(["-v", "9"].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    assert!(proxy.wait_for_log("brought the kernel's rules up to date", PATIENCE), "{:?}", proxy.log());
    // The server takes another one, which the program does not know at first.
    cluster.api.set_token(secrets[1]);
    cluster.api.faults().drop_watches();
    assert!(proxy.wait_for_log("401", PATIENCE), "{}", proxy.log().join("\n"));
    cluster.api.kubeconfig(cluster.dir()).unwrap();
    assert!(cluster.api.wait_for_watches(Kind::Service, 1, PATIENCE));
    let lines = proxy.log();
    assert!(lines.iter().any(|line| line.contains("Running nftables transaction")), "everything is logged");
    for line in lines {
        assert!(!secrets.iter().any(|secret| line.contains(secret)), "{line}");
        assert!(!line.to_lowercase().contains("bearer"), "{line}");
    }
}
