//! `sessionAffinity: ClientIP`: a client stays with its endpoint.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use apiserver::Kind;
use lab::Host;
use lab::client::{Transport, spread};
use lab::proxy::wait_until;
use serde_json::json;
use testkit::cluster::{Cluster, ProxyMode};
use tokio::time::Instant;

use crate::support::{
    NODE_PORT, PATIENCE, WEB_V4, WEB_V6, apply_endpoints, apply_web, ask, cluster_in, in_modes_of_rules, ip,
    listing, start,
};

in_modes_of_rules!(
    a_client_stays_with_its_endpoint,
    a_client_has_one_endpoint_by_all_addresses_of_a_service_port,
    affinities_end
);

/// In mode ipvs the kernel remembers a client for as long as it remembers a connection of it, so affinities end later; and for each
/// virtual server by itself.
mod ipvs {
    #[test]
    #[ignore = "needs a kernel with IPVS"]
    fn a_client_stays_with_its_endpoint() {
        super::a_client_stays_with_its_endpoint(testkit::cluster::ProxyMode::Ipvs);
    }
}

const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Udp];

fn set_affinity(cluster: &Cluster, timeout_secs: Option<u32>) {
    let mut service = cluster.api.get(Kind::Service, "default", "web").unwrap();
    service["spec"]["sessionAffinity"] = json!(if timeout_secs.is_some() { "ClientIP" } else { "None" });
    service["spec"]["sessionAffinityConfig"] =
        timeout_secs.map_or(json!(null), |secs| json!({ "clientIP": { "timeoutSeconds": secs } }));
    cluster.apply(service).unwrap();
}

fn targets(cluster: &Cluster) -> [SocketAddr; 4] {
    let node = cluster.lab.node();
    [
        (ip(WEB_V4), 80).into(),
        (ip(WEB_V6), 80).into(),
        (node.ip4(), NODE_PORT).into(),
        (node.ip6(), NODE_PORT).into(),
    ]
}

/// Who answers a number of requests.
fn answers(client: &Host, to: SocketAddr, transport: Transport) -> BTreeSet<String> {
    client.run(|| spread(12, to, transport)).map(|counts| counts.into_keys().collect()).unwrap_or_default()
}

/// The one endpoint that answers; waits until it is one.
#[track_caller]
fn the_one(client: &Host, to: SocketAddr, transport: Transport) -> String {
    let mut last = BTreeSet::new();
    let sticky = wait_until(PATIENCE, || {
        last = answers(client, to, transport);
        last.len() == 1
    });
    assert!(sticky, "{} -> {to} {transport:?}: {last:?} answer", client.name());
    last.pop_first().unwrap()
}

fn a_client_stays_with_its_endpoint(mode: ProxyMode) {
    let cluster = cluster_in(mode, 4, 1);
    let mut proxy = start(&cluster);
    apply_web(&cluster);
    set_affinity(&cluster, Some(600));
    let clients = [cluster.lab.outside(), cluster.lab.node(), cluster.lab.node2_pod(0), cluster.lab.pod(3)];
    let reachable = |client: &Host, to: &SocketAddr| {
        // The other node has no rules, so its pods reach only node ports.
        client.name() != "node2-pod0" || to.port() == NODE_PORT
    };
    let all = || {
        let mut chosen = Vec::new();
        for client in clients {
            for to in targets(&cluster).iter().filter(|to| reachable(client, to)) {
                for transport in BOTH {
                    chosen.push(the_one(client, *to, transport));
                }
            }
        }
        chosen
    };
    let before = all();
    let met: BTreeSet<&String> = before.iter().collect();
    assert!(met.len() > 1, "28 choices among five endpoints: {before:?}");

    proxy.kill().unwrap();
    let _proxy = start(&cluster);
    assert_eq!(all(), before, "after a restart of the proxy");

    // One endpoint goes: its clients move, all others stay.
    let (mut v4, mut v6) = (cluster.endpoints(false), cluster.endpoints(true));
    let gone = before[0].clone();
    let at = cluster.pod_names().iter().position(|name| *name == gone).unwrap();
    v4.remove(at);
    v6.remove(at);
    apply_endpoints(&cluster, &v4, &v6);
    let to = targets(&cluster);
    let moved = |to: &SocketAddr| {
        wait_until(PATIENCE, || !answers(cluster.lab.outside(), *to, Transport::Tcp).contains(&gone))
    };
    assert!(to.iter().all(moved), "{gone} still answers");
    for (old, new) in before.iter().zip(all()) {
        assert_ne!(new, gone);
        assert!(*old == gone || *old == new, "from {old} to {new} without need");
    }
    listing(&cluster);
}

/// By cluster IP, external IP, load-balancer IP and node port a client meets the same endpoint.
fn a_client_has_one_endpoint_by_all_addresses_of_a_service_port(mode: ProxyMode) {
    let cluster = cluster_in(mode, 4, 1);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    set_affinity(&cluster, Some(600));
    let mut service = cluster.api.get(Kind::Service, "default", "web").unwrap();
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalIPs"] = json!(["203.0.113.7", "fd00:203::7"]);
    service["status"]["loadBalancer"]["ingress"] =
        json!([{ "ip": "203.0.113.107" }, { "ip": "fd00:203::1:7" }]);
    cluster.apply(service).unwrap();
    let [web4, web6, node4, node6] = targets(&cluster);
    let at = |text| SocketAddr::new(ip(text), 80);
    let ways = [
        [web4, at("203.0.113.7"), at("203.0.113.107"), node4],
        [web6, at("fd00:203::7"), at("fd00:203::1:7"), node6],
    ];
    for client in [cluster.lab.outside(), cluster.lab.node(), cluster.lab.pod(3)] {
        for (ways, transport) in ways.iter().flat_map(|ways| BOTH.map(|transport| (ways, transport))) {
            let chosen = ways.map(|to| the_one(client, to, transport));
            assert!(chosen.iter().all(|one| *one == chosen[0]), "{}: {ways:?}: {chosen:?}", client.name());
        }
    }
    listing(&cluster);
}

/// An affinity ends some time after the last new flow, not after the first one, and at once when it is switched off.
fn affinities_end(mode: ProxyMode) {
    let cluster = cluster_in(mode, 4, 0);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    let (client, to) = (cluster.lab.outside(), targets(&cluster)[0]);
    let limit = [2, 8, 32].into_iter().find(|secs| {
        be_free(&cluster, client, to);
        set_affinity(&cluster, Some(*secs));
        comes_back(client, to, Duration::from_secs((*secs).into()))
    });
    let limit = Duration::from_secs(limit.expect("a machine that is fast enough to see it").into());
    let mut later = BTreeSet::new();
    for _ in 0..12 {
        std::thread::sleep(limit + Duration::from_millis(600));
        later.insert(ask(client, Transport::Tcp, to).unwrap());
        if later.len() > 1 {
            break;
        }
    }
    assert!(later.len() > 1, "always {later:?}");
    be_free(&cluster, client, to);
    listing(&cluster);
}

#[track_caller]
fn be_free(cluster: &Cluster, client: &Host, to: SocketAddr) {
    set_affinity(cluster, None);
    let free = wait_until(PATIENCE, || answers(client, to, Transport::Tcp).len() > 1);
    assert!(free, "still sticky");
}

/// Whether a client asked in time all along, which a busy machine may not let it; then the same endpoint answered.
#[track_caller]
fn comes_back(client: &Host, to: SocketAddr, limit: Duration) -> bool {
    let chosen = the_one(client, to, Transport::Tcp);
    let mut asked = Instant::now();
    assert_eq!(ask(client, Transport::Tcp, to).unwrap(), chosen);
    for _ in 0..6 {
        std::thread::sleep(limit / 3);
        let (began, answer) = (Instant::now(), ask(client, Transport::Tcp, to).unwrap());
        if asked.elapsed() >= limit {
            return false;
        }
        assert_eq!(answer, chosen, "each new flow counts");
        asked = began;
    }
    true
}
