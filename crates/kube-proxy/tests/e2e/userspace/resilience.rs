//! Endpoints that fail, and Services that ask for workers to do something about it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apiserver::Kind;
use fakes::objects::{self, Port};
use lab::Host;
use lab::proxy::{Proxy, wait_until};
use serde_json::{Value, json};
use testkit::cluster::Cluster;

use super::{HTTP_PORT, cluster, read_head, wait_for_capture, wait_for_notes};
use crate::status::wait_for_answer;
use crate::support::{PATIENCE, apply_web, ip, program, start, told};

const PORT: Port = Port { name: "web", protocol: "TCP", port: 80, target: HTTP_PORT, node_port: None };
const SERVICE: &str = "10.96.0.51";

/// A pod that answers each request with its number: with 200, or with 500 while it fails. What asks for `/healthz` hears the same.
fn serve(pod: &Host, n: usize) -> Arc<AtomicBool> {
    let listener = pod.run(|| TcpListener::bind(("::", HTTP_PORT))).unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    let serve = move |stream: TcpStream| {
        while read_head(&stream).is_some() {
            let status = if failing.load(Ordering::Relaxed) { "500 Bad" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nx-pod: {n}\r\n\r\n");
            // A check may be over when it has its status.
            drop((&stream).write_all(answer.as_bytes()));
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            std::thread::spawn(move || serve(stream));
        }
    });
    fails
}

fn apply(cluster: &Cluster, annotations: Value) {
    let mut service = objects::service("resilient", &[ip(SERVICE)], &[PORT]);
    service["spec"]["ports"][0]["appProtocol"] = "http".into();
    service["metadata"]["annotations"] = annotations;
    cluster.apply(service).unwrap();
    cluster.apply(objects::slice("resilient", "v4", &[PORT], &cluster.endpoints(false))).unwrap();
}

/// The pods that answer, each of them once in turn.
fn met(cluster: &Cluster) -> BTreeSet<String> {
    let to: SocketAddr = (ip(SERVICE), 80).into();
    let stream = cluster.lab.outside().run(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let answer = |_| {
        (&stream).write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        let head = read_head(&stream).expect("an answer");
        head.lines().find_map(|line| line.strip_prefix("x-pod: ")).unwrap().to_owned()
    };
    (0..12).map(answer).collect()
}

fn pods(numbers: &[usize]) -> BTreeSet<String> {
    numbers.iter().map(ToString::to_string).collect()
}

/// What people see of an endpoint that gets nothing.
fn check_seen(cluster: &Cluster, cause: &str, why: &str) {
    let node = cluster.lab.node();
    let endpoint = cluster.endpoints(false)[0].ip;
    let explained = || told(node, &["explain", "service", "default/resilient"]);
    let is_explained = || {
        let explained = explained();
        let mut lines = explained.lines().filter(|line| line.contains(&format!("endpoint {endpoint}:")));
        lines.any(|line| line.contains("gets nothing for now") && line.contains(why))
    };
    assert!(wait_until(PATIENCE, is_explained), "{}", explained());
    let listed = told(node, &["list", "endpoints", "resilient"]);
    let out: Vec<&str> = listed.lines().filter(|line| line.contains(" Out ")).collect();
    assert!(matches!(&*out, [line] if line.contains(&endpoint.to_string())), "{listed}");
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10249));
    let wanted = format!("kubeproxy_worker_endpoints_out{{cause=\"{cause}\",ip_family=\"IPv4\"}} 1");
    let is_counted = || wait_for_answer(node, metrics, "/metrics", 200, PATIENCE).body.contains(&wanted);
    assert!(wait_until(PATIENCE, is_counted), "{wanted}");
    let is_told = || {
        let events = cluster.api.list(Kind::Event);
        events.iter().any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["reason"] == "EndpointEjected" && note.contains(&endpoint.to_string())
        })
    };
    assert!(wait_until(PATIENCE, is_told), "{:?}", cluster.api.list(Kind::Event));
}

#[test]
fn an_endpoint_whose_answers_fail_is_ejected_and_people_see_it() {
    let cluster = cluster(3, 0);
    let fails: Vec<_> = (0..3).map(|n| serve(cluster.lab.pod(n), n)).collect();
    apply(&cluster, json!({ "kube-proxy/ejection": "failures=3,share=0,time=1h,longest=1h" }));
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    assert_eq!(met(&cluster), pods(&[0, 1, 2]));
    fails[0].store(true, Ordering::Relaxed);
    assert!(met(&cluster).contains("0"), "its first failures are answers");
    assert_eq!(met(&cluster), pods(&[1, 2]));
    check_seen(&cluster, "ejection", "3 failures in a row");
    // Two of three would be too many.
    fails[1].store(true, Ordering::Relaxed);
    assert!(met(&cluster).contains("1"));
    assert_eq!(met(&cluster), pods(&[1, 2]));
    // Without the annotation all is as before.
    apply(&cluster, json!({}));
    assert!(wait_until(PATIENCE, || met(&cluster) == pods(&[0, 1, 2])));
}

/// Of all Services, and of each.
#[test]
fn requests_are_counted_with_their_codes_and_times() {
    let cluster = cluster(2, 0);
    let fails: Vec<_> = (0..2).map(|n| serve(cluster.lab.pod(n), n)).collect();
    apply(&cluster, json!({}));
    apply_web(&cluster);
    let arguments = [cluster.arguments(), vec!["--service-metrics=all".to_owned()]].concat();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    wait_for_capture(&cluster, true);
    assert!(wait_until(PATIENCE, || cluster
        .lab
        .outside()
        .run(|| TcpStream::connect((ip(SERVICE), 80)))
        .is_ok()));
    met(&cluster);
    for fails in &fails {
        fails.store(true, Ordering::Relaxed);
    }
    met(&cluster);
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10249));
    let page = || wait_for_answer(cluster.lab.node(), metrics, "/metrics", 200, PATIENCE).body;
    let own = "ip_family=\"IPv4\",namespace=\"default\",port=\"web\",service=\"resilient\"";
    let timed = "ip_family=\"IPv4\",namespace=\"default\",service=\"resilient\",port=\"web\"";
    let wanted = [
        "kubeproxy_requests_total{code=\"2xx\",ip_family=\"IPv4\"} 12".to_owned(),
        "kubeproxy_requests_total{code=\"5xx\",ip_family=\"IPv4\"} 12".to_owned(),
        format!("kubeproxy_service_requests_total{{code=\"5xx\",{own}}} 12"),
        format!("kubeproxy_service_request_duration_seconds_count{{{timed}}} 24"),
    ];
    let are_told = || wanted.iter().all(|line| page().lines().any(|found| found == line));
    assert!(wait_until(PATIENCE, are_told), "{}", page());
}

#[test]
fn an_endpoint_whose_health_check_fails_gets_nothing_until_it_succeeds() {
    let cluster = cluster(2, 0);
    let fails: Vec<_> = (0..2).map(|n| serve(cluster.lab.pod(n), n)).collect();
    fails[0].store(true, Ordering::Relaxed);
    let check = "http,path=/healthz,interval=100ms,failures=2,successes=1";
    apply(&cluster, json!({ "kube-proxy/health-check": check }));
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    assert!(wait_until(PATIENCE, || met(&cluster) == pods(&[1])));
    check_seen(&cluster, "health-check", "it answers 500");
    fails[0].store(false, Ordering::Relaxed);
    assert!(wait_until(PATIENCE, || met(&cluster) == pods(&[0, 1])));
    let explained = || told(cluster.lab.node(), &["explain", "service", "default/resilient"]);
    assert!(wait_until(PATIENCE, || !explained().contains("gets nothing")), "{}", explained());
}

#[test]
fn what_a_service_asks_for_and_nobody_understands_has_an_event() {
    let cluster = cluster(2, 0);
    (0..2).for_each(|n| drop(serve(cluster.lab.pod(n), n)));
    apply(&cluster, json!({ "kube-proxy/limits": "connections=many", "kube-proxy/health-check": "icmp" }));
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    assert_eq!(met(&cluster), pods(&[0, 1]));
    wait_for_notes(&cluster, &["connections is \"many\", not a number", "\"icmp\" is no check"]);
}
