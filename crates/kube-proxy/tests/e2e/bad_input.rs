//! Objects that can't be used are left out one by one, with their name and the reason; everything else is served.

use apiserver::Kind;
use fakes::objects;
use lab::client::Transport;
use lab::proxy::wait_until;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE, WEB_PORTS, WEB_V4, apply_endpoints, apply_web, check_listable, cluster, ip, start, wait_for,
};

/// Broken Services and slices, and what the log says of each. All of them pass the API server's own decoding.
fn broken() -> Vec<(Value, &'static str)> {
    let service = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut object = objects::service(name, &[ip("10.96.9.9")], &WEB_PORTS);
        change(&mut object);
        object
    };
    let slice = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut object =
            objects::slice("web", name, &WEB_PORTS, &[objects::Endpoint::ready(ip("10.244.9.9"), "x")]);
        change(&mut object);
        object
    };
    vec![
        (service("port-0", &|s| s["spec"]["ports"][0]["port"] = json!(0)), "default/port-0"),
        (service("port-70000", &|s| s["spec"]["ports"][0]["port"] = json!(70000)), "default/port-70000"),
        (service("port-minus", &|s| s["spec"]["ports"][0]["port"] = json!(-1)), "default/port-minus"),
        (service("node-port", &|s| s["spec"]["ports"][0]["nodePort"] = json!(99999)), "default/node-port"),
        (service("protocol", &|s| s["spec"]["ports"][0]["protocol"] = json!("ICMP")), "default/protocol"),
        (service("bad-ip", &|s| s["spec"]["clusterIPs"][0] = json!("10.96.0.999")), "default/bad-ip"),
        (service("long-ip", &|s| s["spec"]["externalIPs"] = json!(["9".repeat(1 << 20)])), "default/long-ip"),
        // Were it served, the node would lose its localhost.
        (service("loopback", &|s| s["spec"]["clusterIPs"] = json!(["127.0.0.1"])), "default/loopback"),
        (
            slice("loopback", &|s| s["endpoints"][0]["addresses"] = json!(["127.0.0.1"])),
            "default/web-loopback",
        ),
        (
            slice("bad-address", &|s| s["endpoints"][0]["addresses"] = json!(["nonsense"])),
            "default/web-bad-address",
        ),
        (slice("wrong-type", &|s| s["addressType"] = json!("IPv6")), "default/web-wrong-type"),
        (slice("port", &|s| s["ports"][0]["port"] = json!(65536)), "default/web-port"),
        (slice("unknown-type", &|s| s["addressType"] = json!("IPX")), "default/web-unknown-type"),
    ]
}

#[test]
fn broken_objects_are_named_and_the_rest_is_served() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    for (object, _) in broken() {
        cluster.apply(object).unwrap();
    }
    cluster.api.inject_raw(Kind::Service, "default", "garbage-json", &b"{]"[..], &b"\xff\xff\xff\xff"[..]);
    let proxy = start(&cluster);
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod0"));
    for (_, name) in broken() {
        let named = || proxy.log().iter().any(|line| line.contains("left out") && line.contains(name));
        assert!(wait_until(PATIENCE, named), "{name} is not in the log:\n{}", proxy.log().join("\n"));
    }
    let longest = proxy.log().iter().map(String::len).max();
    assert!(longest < Some(4096), "a line of {longest:?} bytes");

    // Changes go on, also of an object that becomes sound.
    let mut sound = broken().remove(1).0;
    sound["spec"]["ports"][0]["port"] = json!(81);
    cluster.apply(sound).unwrap();
    let endpoints = cluster.endpoints(false);
    cluster.apply(objects::slice("port-70000", "a", &WEB_PORTS, &endpoints)).unwrap();
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip("10.96.9.9"), 81).into(), &Ok("pod0"));
    apply_endpoints(&cluster, &endpoints, &cluster.endpoints(true));
    check_listable(&cluster);
}
