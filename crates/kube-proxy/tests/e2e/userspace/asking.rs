//! Services that a rule of the configuration selects, whatever they say themselves.

use std::net::SocketAddr;

use fakes::objects;
use lab::client::Transport;
use lab::proxy::Proxy;
use serde_json::json;
use testkit::cluster::{CLUSTER_CIDR, Cluster, NODE, ProxyMode};

use super::{ask, own_ip, wait_for_capture};
use crate::support::{WEB_PORTS, WEB_V4, WEB_V6, apply_endpoints, cluster_in, ip, program, told};

const PLAIN: &str = "10.96.0.41";
const ANNOTATED: &str = "10.96.0.42";

/// The proxy of a cluster, by a file with rules and without flags.
fn start(cluster: &Cluster, dir: &std::path::Path) -> Proxy {
    let arguments = cluster.arguments();
    let at = arguments.iter().position(|argument| argument == "--kubeconfig").unwrap() + 1;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": CLUSTER_CIDR,
        "hostnameOverride": NODE,
        "clientConnection": { "kubeconfig": arguments[at] },
        "logging": { "verbosity": 2 },
        "serviceProxying": { "rules": [
            { "selector": { "matchLabels": { "tier": "back" } }, "policy": "maglev" },
            { "selector": { "matchLabels": { "tier": "front" } }, "namespaces": ["default"], "policy": "random" },
        ] },
    });
    let file = dir.join("config.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    Proxy::start(cluster.lab.node(), program(), &["--config", &file.to_string_lossy()]).unwrap()
}

#[test]
fn services_that_a_rule_selects_go_through_workers() {
    let cluster = cluster_in(ProxyMode::Nftables, 2, 0);
    let mut web = objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS);
    web["metadata"]["labels"] = json!({ "tier": "front", "app": "web" });
    cluster.apply(web).unwrap();
    apply_endpoints(&cluster, &cluster.endpoints(false), &cluster.endpoints(true));
    let plain = objects::service("plain", &[ip(PLAIN)], &WEB_PORTS[..1]);
    let annotated =
        objects::proxied(objects::service("annotated", &[ip(ANNOTATED)], &WEB_PORTS[..1]), "random");
    for (name, object) in [("plain", plain), ("annotated", annotated)] {
        cluster.apply(object).unwrap();
        // The other pod alone: a client that met itself would see the node.
        cluster.apply(objects::slice(name, "v4", &WEB_PORTS[..1], &cluster.endpoints(false)[..1])).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let proxy = start(&cluster, dir.path());
    Cluster::wait_for_workers(&proxy).unwrap();
    wait_for_capture(&cluster, true);
    let pod = cluster.lab.pod(1);
    for address in [PLAIN, ANNOTATED] {
        let to: SocketAddr = (ip(address), WEB_PORTS[0].port).into();
        let reply = ask(pod, Transport::Tcp, to);
        assert_eq!(reply.client.ip(), own_ip(pod, false), "{address} goes by rules");
    }
    let explained = |service: &str| told(cluster.lab.node(), &["explain", "service", service]);
    let web = explained("default/web");
    assert!(web.contains("through workers of this node: random, by serviceProxying.rules[1]"), "{web}");
    let annotated = explained("default/annotated");
    assert!(!annotated.contains("through workers"), "annotations are not asked for: {annotated}");
}
