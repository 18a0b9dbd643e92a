//! What Services ask of workers besides a policy: weights, time-outs, slow start, the PROXY protocol.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use fakes::objects::{self, Port};
use lab::Host;
use lab::client::Transport;
use lab::proxy::wait_until;
use serde_json::{Value, json};
use testkit::cluster::{Cluster, LINE_PORT, ProxyMode};

use super::{HTTP_PORT, ask, read_head, wait_for_notes};
use crate::support::{PATIENCE, apply_web, cluster_in, ip, start, told};

const LINE: Port = Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: None };
const SERVICE: [&str; 2] = ["10.96.0.61", "fd00:10:96::61"];

fn apply(cluster: &Cluster, port: Port, annotations: Value) {
    let mut service = objects::service("carried", &SERVICE.map(ip), &[port]);
    service["metadata"]["annotations"] = annotations;
    if port.target == HTTP_PORT {
        service["spec"]["ports"][0]["appProtocol"] = "http".into();
    }
    cluster.apply(service).unwrap();
}

fn apply_slices(cluster: &Cluster, port: Port, change: impl Fn(&mut Value)) {
    for (suffix, v6) in [("v4", false), ("v6", true)] {
        let mut slice = objects::slice("carried", suffix, &[port], &cluster.endpoints(v6));
        change(&mut slice);
        cluster.apply(slice).unwrap();
    }
}

fn explained(cluster: &Cluster) -> String {
    told(cluster.lab.node(), &["explain", "service", "default/carried"])
}

#[track_caller]
fn wait_until_explained(cluster: &Cluster, what: &str) {
    assert!(wait_until(PATIENCE, || explained(cluster).contains(what)), "{}", explained(cluster));
}

/// Who answers how many of so many connections.
fn shares(cluster: &Cluster, v6: bool, n: usize) -> BTreeMap<String, usize> {
    let to: SocketAddr = (ip(SERVICE[usize::from(v6)]), 80).into();
    let mut shares = BTreeMap::new();
    for _ in 0..n {
        *shares.entry(ask(cluster.lab.outside(), Transport::Tcp, to).name).or_default() += 1;
    }
    shares
}

/// By zone, as the Service says, and by pod, as slices say.
#[test]
fn endpoints_have_shares_by_weight() {
    let cluster = cluster_in(ProxyMode::Nftables, 2, 1).proxying();
    apply(
        &cluster,
        LINE,
        json!({ "kube-proxy/proxying": "weighted", "kube-proxy/weights": "zone:far=0,other=1" }),
    );
    let zoned = |slice: &mut Value| {
        for (n, endpoint) in slice["endpoints"].as_array_mut().unwrap().iter_mut().enumerate() {
            endpoint["zone"] = if n == 1 { "far" } else { "near" }.into();
            endpoint["targetRef"] = json!({ "kind": "Pod", "name": format!("pod-{n}") });
        }
    };
    apply_slices(&cluster, LINE, zoned);
    apply_web(&cluster);
    let proxy = start(&cluster);
    Cluster::wait_for_workers(&proxy).unwrap();
    wait_until_explained(&cluster, "weighted, by annotation kube-proxy/proxying; weights ");
    let names = cluster.pod_names();
    let gets = |v6: bool| {
        (0..3).map(|n| shares(&cluster, v6, 60).get(names[n]).copied().unwrap_or(0)).collect::<Vec<_>>()
    };
    for v6 in [false, true] {
        // Of two that are as likely, one is missed sixty times once in 10^18.
        assert!(wait_until(PATIENCE, || matches!(gets(v6)[..], [one, 0, other] if one > 0 && other > 0)));
    }
    apply_slices(&cluster, LINE, |slice| {
        zoned(slice);
        slice["metadata"]["annotations"] = json!({ "kube-proxy/weights": "pod:pod-1=1,other=0" });
    });
    for v6 in [false, true] {
        assert!(wait_until(PATIENCE, || gets(v6)[..] == [0, 60, 0]), "{:?}", gets(v6));
    }
}

/// A pod that tells what it received first, and then answers a request of HTTP; `wanted` bytes.
fn tell_beginning(pod: &Host, wanted: fn(&[u8]) -> bool) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let listener = pod.run(|| TcpListener::bind(("::", HTTP_PORT))).unwrap();
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender) = (stream.unwrap(), sender.clone());
            std::thread::spawn(move || {
                let mut beginning = Vec::new();
                while !wanted(&beginning) {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).is_err() {
                        return;
                    }
                    beginning.extend(byte);
                }
                sender.send(beginning).unwrap();
                while read_head(&stream).is_some() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    received
}

/// The header of version 2, for a connection between these.
fn header(client: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (family, len) = if client.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
    let fixed = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, family, 0, len]].concat();
    let ports = [client.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    [fixed, octets(client.ip()), octets(to.ip()), ports].concat()
}

/// Connections as bytes and by request, to the cluster IP, beside a first endpoint where nobody listens.
#[test]
fn endpoints_learn_whose_connections_are() {
    let cluster = cluster_in(ProxyMode::Nftables, 2, 0).proxying();
    let received = tell_beginning(cluster.lab.pod(1), |read| {
        read.len() > 15 && read.len() == 16 + usize::from(read[15])
    });
    let port = Port { target: HTTP_PORT, ..LINE };
    let asked = json!({ "kube-proxy/proxying": "round-robin", "kube-proxy/proxy-protocol": "v2" });
    apply(&cluster, port, asked);
    apply_slices(&cluster, port, |_| ());
    apply_web(&cluster);
    let proxy = start(&cluster);
    Cluster::wait_for_workers(&proxy).unwrap();
    wait_until_explained(&cluster, "PROXY protocol v2");
    for v6 in [false, true] {
        let to: SocketAddr = (ip(SERVICE[usize::from(v6)]), 80).into();
        for _ in 0..3 {
            let mut stream = cluster.lab.outside().run(|| TcpStream::connect(to)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            for _ in 0..3 {
                stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
                assert!(read_head(&stream).is_some_and(|head| head.starts_with("HTTP/1.1 200")));
            }
            let expected = header(stream.local_addr().unwrap(), to);
            assert_eq!(received.recv_timeout(PATIENCE).unwrap(), expected, "once for a client");
            assert!(received.try_recv().is_err(), "its other requests share the connection");
        }
    }
}

#[test]
fn a_request_has_its_time_and_people_see_which() {
    let cluster = cluster_in(ProxyMode::Userspace, 1, 0);
    // It takes connections, and says nothing.
    let _silent = cluster.lab.pod(0).run(|| TcpListener::bind(("::", HTTP_PORT))).unwrap();
    let port = Port { target: HTTP_PORT, ..LINE };
    apply(
        &cluster,
        port,
        json!({ "kube-proxy/timeouts": "request=300ms", "kube-proxy/slow-start": "window=1m" }),
    );
    apply_slices(&cluster, port, |_| ());
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_until_explained(
        &cluster,
        "round-robin, by mode userspace; time-outs request=300ms; slow start window=60s,first=10",
    );
    let to: SocketAddr = (ip(SERVICE[0]), 80).into();
    let mut stream = cluster.lab.outside().run(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    let head = read_head(&stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 504"), "{head}");
}

#[test]
fn what_nobody_understands_has_an_event_and_costs_nothing_else() {
    let cluster = cluster_in(ProxyMode::Nftables, 2, 0).proxying();
    let asked = json!({
        "kube-proxy/proxying": "weighted",
        "kube-proxy/weights": "zone:a=heavy",
        "kube-proxy/timeouts": "read=1s",
        "kube-proxy/slow-start": "first=5",
        "kube-proxy/proxy-protocol": "v3",
    });
    apply(&cluster, LINE, asked);
    apply_slices(&cluster, LINE, |slice| {
        slice["metadata"]["annotations"] = json!({ "kube-proxy/weights": "web-0=1" });
    });
    apply_web(&cluster);
    let proxy = start(&cluster);
    Cluster::wait_for_workers(&proxy).unwrap();
    assert_eq!(shares(&cluster, false, 60).len(), 2, "all have the same weight");
    let notes = [
        "zone:a is \"heavy\", not a number of 0 to 1000",
        "\"read\" is unknown",
        "window is missing",
        "\"v3\" is no version of it",
        "\"web-0\" is no endpoint",
    ];
    wait_for_notes(&cluster, &notes);
}
