//! `startupTaint`: pods come to a node only once Services work there.

use apiserver::Kind;
use fakes::objects;
use lab::client::Transport;
use lab::proxy::{Proxy, wait_until};
use serde_json::{Value, json};
use testkit::cluster::{Cluster, NODE};

use super::start_with;
use crate::support::{PATIENCE, WEB_V4, apply_web, ask, cluster, ip, program};

const KEY: &str = "kube-proxy.example/not-ready";

/// The Node with taints of these keys.
fn node(cluster: &Cluster, keys: &[&str]) -> Value {
    let node = cluster.lab.node();
    let mut object = objects::node(NODE, &[node.ip4().into(), node.ip6().into()]);
    let taint = |key: &&str| json!({ "key": key, "effect": "NoSchedule" });
    object["spec"]["taints"] = keys.iter().map(taint).collect();
    object
}

fn keys(cluster: &Cluster) -> Vec<String> {
    let node = cluster.api.get(Kind::Node, "", NODE).unwrap();
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_taint_goes_after_the_first_sync_and_whenever_it_is_back() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    cluster.apply(node(&cluster, &["a", KEY, "b"])).unwrap();
    // Nothing is known yet of one kind, so that nothing is programmed: the taint stays.
    let unavailable = apiserver::Fault::Status { code: 503, retry_after: None };
    cluster.api.faults().always(Kind::EndpointSlice, unavailable);
    let arguments = cluster.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--startup-taint", KEY]).collect();
    let mut proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    assert!(proxy.wait_for_log("Caches are synced", PATIENCE), "{}", proxy.log().join("\n"));
    assert!(proxy.wait_for_log("503", PATIENCE), "{}", proxy.log().join("\n"));
    assert_eq!(keys(&cluster), ["a", KEY, "b"]);

    cluster.api.faults().clear();
    assert!(
        wait_until(PATIENCE, || keys(&cluster) == ["a", "b"]),
        "{:?}: {}",
        keys(&cluster),
        proxy.log().join("\n")
    );
    assert_eq!(ask(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into()).as_deref(), Ok("pod0"));

    // The Node is made anew by its kubelet, with another taint before it.
    cluster.apply(node(&cluster, &["new", "a", KEY])).unwrap();
    assert!(wait_until(PATIENCE, || keys(&cluster) == ["new", "a"]), "{:?}", keys(&cluster));
}

#[test]
fn without_the_permission_it_stays_and_people_hear_of_it() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    cluster.apply(node(&cluster, &[KEY])).unwrap();
    let fault = apiserver::Fault::Status { code: 403, retry_after: None };
    let (kind, verb) = (Some(Kind::Node), Some(apiserver::Verb::Patch));
    cluster.api.faults().add(apiserver::Rule { kind, verb, times: None, fault });
    let _proxy = start_with(&cluster, &["--startup-taint", KEY]);
    let told = || {
        let events = cluster.api.list(Kind::Event);
        events.iter().any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["reason"] == "FailedToRemoveStartupTaint" && note.contains(KEY) && note.contains("403")
        })
    };
    assert!(wait_until(PATIENCE, told), "{:?}", cluster.api.events());
    assert_eq!(keys(&cluster), [KEY]);
    assert_eq!(ask(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into()).as_deref(), Ok("pod0"));
}

#[test]
fn without_the_option_no_taint_is_touched() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    cluster.apply(node(&cluster, &[KEY])).unwrap();
    let _proxy = start_with(&cluster, &[]);
    assert!(cluster.api.requests().iter().all(|request| request.method != "PATCH"));
    assert_eq!(keys(&cluster), [KEY]);
}
