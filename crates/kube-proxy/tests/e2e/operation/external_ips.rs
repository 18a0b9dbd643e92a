//! `allowedExternalIPs`: nobody gets the traffic for an address by claiming it (CVE-2020-8554).

use fakes::objects;
use lab::client::Transport;
use lab::proxy::wait_until;
use serde_json::json;
use testkit::cluster::Cluster;

use super::{start_with, told};
use crate::support::{PATIENCE, WEB_PORTS, apply_web, ask, cluster, ip, listing, wait_for};

const ALLOWED: &str = "198.51.100.7";
const CLAIMED: &str = "203.0.113.9";

/// Service `web` with these external IPs besides.
fn claim(cluster: &Cluster, addresses: &[&str]) {
    let mut web = objects::service("web", &[ip("10.96.0.10"), ip("fd00:10:96::a")], &WEB_PORTS);
    web["spec"]["externalIPs"] = json!(addresses);
    cluster.apply(web).unwrap();
}

fn notes(cluster: &Cluster) -> Vec<String> {
    let events = cluster.api.list(apiserver::Kind::Event);
    let own = events.iter().filter(|event| event["reason"] == "ExternalIPNotAllowed");
    own.map(|event| {
        assert_eq!(event["regarding"]["name"], "web");
        assert!(event["regarding"]["uid"].is_string(), "{event}");
        event["note"].as_str().unwrap().to_owned()
    })
    .collect()
}

#[test]
fn only_allowed_ones_are_served_and_the_others_are_told() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    claim(&cluster, &[ALLOWED, CLAIMED]);
    let _proxy = start_with(&cluster, &["--allowed-external-ips", "198.51.100.0/24,fd00:198::/64"]);
    wait_for(cluster.lab.node(), Transport::Tcp, (ip(ALLOWED), 80).into(), &Ok("pod0"));
    let rules = listing(&cluster);
    assert!(rules.contains(ALLOWED) && !rules.contains(CLAIMED), "{rules}");
    assert!(ask(cluster.lab.node(), Transport::Tcp, (ip(CLAIMED), 80).into()).is_err());

    let told_of = || notes(&cluster).iter().filter(|note| note.contains(CLAIMED)).count();
    assert!(wait_until(PATIENCE, || told_of() == 1), "{:?}", cluster.api.events());
    assert_eq!(notes(&cluster).len(), 1);
    let explained = told(&cluster, &["explain", "service", "default/web"]);
    let line =
        format!("external IP {CLAIMED}:80: not served: the configuration does not allow this external IP");
    assert!(explained.contains(&line), "{explained}");
    let rejected = told(&cluster, &["list", "rejected"]);
    assert!(rejected.contains(CLAIMED) && !rejected.contains(ALLOWED), "{rejected}");

    // The Service gives it up, and takes another one that is not allowed.
    claim(&cluster, &[ALLOWED]);
    assert!(wait_until(PATIENCE, || !told(&cluster, &["list", "rejected"]).contains(CLAIMED)));
    claim(&cluster, &["203.0.113.10"]);
    assert!(wait_until(PATIENCE, || !listing(&cluster).contains(ALLOWED)));
    assert!(!listing(&cluster).contains("203.0.113.10"));
}

/// As upstream.
#[test]
fn without_the_option_all_are_served() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    claim(&cluster, &[ALLOWED, CLAIMED]);
    let _proxy = start_with(&cluster, &[]);
    for address in [ALLOWED, CLAIMED] {
        wait_for(cluster.lab.node(), Transport::Tcp, (ip(address), 80).into(), &Ok("pod0"));
    }
    assert_eq!(notes(&cluster), Vec::<String>::new());
}
