//! Large and odd clusters.

use std::net::IpAddr;

use fakes::objects::{self, Endpoint, Port};
use lab::client::{FailureClass, Transport};
use lab::proxy::wait_until;
use testkit::cluster::{LINE_PORT, NODE2};

use crate::support::{
    PATIENCE, WEB_V4, WEB_V6, apply_web, ask, check_listable, cluster, ip, program, start, wait_for,
};

const PORT: Port = Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: None };

/// A thousand endpoints over ten slices, of which one is in two slices, and a thousand ports in one Service.
#[test]
fn large_services_are_served_whole() {
    let cluster = cluster(1, 0);
    let _proxy = start(&cluster);
    cluster.apply(objects::service("large", &[ip("10.96.0.40")], &[PORT])).unwrap();
    let endpoint = |n: u16| {
        let [high, low] = n.to_be_bytes();
        Endpoint::ready(IpAddr::from([10, 245, high, low]), NODE2)
    };
    for slice in 0..10u16 {
        // The first endpoint of each slice is the last one of the slice before, too.
        let first = (slice * 100).saturating_sub(1);
        let endpoints: Vec<Endpoint> = (first..slice * 100 + 100).map(endpoint).collect();
        cluster.apply(objects::slice("large", &format!("s{slice}"), &[PORT], &endpoints)).unwrap();
    }
    let names: Vec<&'static str> = (0..1000).map(|n| &*format!("p{n}").leak()).collect();
    let ports: Vec<Port> =
        (0..1000u16).map(|n| Port { name: names[usize::from(n)], port: 1000 + n, ..PORT }).collect();
    cluster.apply(objects::service("ports", &[ip("10.96.0.41")], &ports)).unwrap();
    cluster.apply(objects::slice("ports", "s", &ports, &cluster.endpoints(false))).unwrap();
    let whole = || {
        let text = check_listable(&cluster);
        text.contains("comment \"default/large:line\" : 1000")
            && text.matches(" : 10.245.").count() == 1000
            && text.matches("10.96.0.41 . tcp . ").count() == 1000
    };
    assert!(wait_until(PATIENCE, whole));
    for port in [1000, 1500, 1999] {
        wait_for(cluster.lab.outside(), Transport::Tcp, (ip("10.96.0.41"), port).into(), &Ok("pod0"));
    }
}

/// A Service may change its addresses, families and ports in one update, and a slice its Service.
#[test]
fn everything_may_change_at_once() {
    let cluster = cluster(2, 0);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    let client = cluster.lab.outside();
    let served = |address: IpAddr, port: u16| ask(client, Transport::Tcp, (address, port).into()).is_ok();
    assert!(wait_until(PATIENCE, || served(ip(WEB_V4), 80) && served(ip(WEB_V6), 80)));

    let moved = Port { port: 8000, node_port: Some(31999), ..PORT };
    cluster.apply(objects::service("web", &[ip("fd00:10:96::b")], &[moved])).unwrap();
    assert!(wait_until(PATIENCE, || served(ip("fd00:10:96::b"), 8000)));
    assert!(served(cluster.lab.node().ip6().into(), 31999));
    let text = check_listable(&cluster);
    assert!(!text.contains("10.96.0.10 ") && !text.contains("fd00:10:96::a "), "{text}");

    let (one, other) = (cluster.endpoints(false)[..1].to_vec(), cluster.endpoints(false)[1..].to_vec());
    for (name, address) in [("one", "10.96.0.51"), ("other", "10.96.0.52")] {
        cluster.apply(objects::service(name, &[ip(address)], &[PORT])).unwrap();
    }
    cluster.apply(objects::slice("one", "own", &[PORT], &one)).unwrap();
    let mut slice = objects::slice("other", "moving", &[PORT], &other);
    cluster.apply(slice.clone()).unwrap();
    wait_for(client, Transport::Tcp, (ip("10.96.0.52"), 80).into(), &Ok("pod1"));
    // The slice is given to the first Service: the other one is left without endpoints.
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = "one".into();
    cluster.apply(slice).unwrap();
    wait_for(client, Transport::Tcp, (ip("10.96.0.52"), 80).into(), &Err(FailureClass::Refused));
    let both =
        || check_listable(&cluster).contains("10.96.0.51 . tcp . 80 comment \"default/one:line\" : 20:");
    assert!(wait_until(PATIENCE, both), "{}", check_listable(&cluster));
}

/// A node without IPv6 serves IPv4.
#[test]
fn one_family_may_be_missing() {
    let cluster = cluster(1, 0);
    cluster.lab.node().set_sysctls(&[("ipv6/conf/all/disable_ipv6", "1")]).unwrap();
    apply_web(&cluster);
    let _proxy = cluster.start_proxy(program()).unwrap();
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod0"));
    assert!(!check_listable(&cluster).contains("table ip6 kube-proxy"));
}
