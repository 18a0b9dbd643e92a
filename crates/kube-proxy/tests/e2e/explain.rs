//! `/explain/NAMESPACE/NAME`: where a Service's packets go on this node, and why.

use fakes::objects::{self, Endpoint};
use lab::proxy::wait_until;
use testkit::cluster::NODE2;

use crate::support::{PATIENCE, WEB_PORTS, WEB_V4, apply_web, cluster, ip, start};

#[test]
fn a_service_is_explained() {
    let cluster = cluster(1, 1);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    let ask = |path: &str| {
        let url = format!("http://127.0.0.1:10249/explain/{path}");
        cluster.lab.node().exec("curl", &["--silent", &url]).unwrap()
    };
    let mut last = String::new();
    let served = wait_until(PATIENCE, || {
        last = ask("default/web");
        last.contains("2 endpoints: those that are ready")
    });
    assert!(served, "{last}");
    let (local, remote) = (cluster.lab.pod(0).ip4(), cluster.lab.node2_pod(0).ip4());
    for line in [
        "default/web:line TCP IPv4".to_owned(),
        format!("  endpoint {local}:8080 on this node (slice web-v4): Cluster: takes new flows"),
        format!("  endpoint {remote}:8080 on another node (slice web-v4): Cluster: takes new flows"),
        "default/web:line TCP IPv6".to_owned(),
    ] {
        assert!(last.lines().any(|found| found == line), "no {line}\n{last}");
    }
    // What is not used is there with the reason, and who claims what another Service has is told so.
    let not_ready = Endpoint { ready: false, ..Endpoint::ready(remote.into(), NODE2) };
    cluster.apply(objects::slice("web", "v4", &WEB_PORTS, &[not_ready])).unwrap();
    cluster.apply(objects::service("yours", &[ip(WEB_V4)], &WEB_PORTS[..1])).unwrap();
    let wanted = wait_until(PATIENCE, || {
        last = ask("default/web") + &ask("default/yours");
        last.contains("Cluster: not used: it is not ready")
            && last.contains("cluster IP 10.96.0.10:80: not served here: default/web:line claims it, too")
    });
    assert!(wanted, "{last}");
    assert_eq!(ask("default/none"), r#"{"error":"there is no such Service, or none that is served here"}"#);
}
