//! `canary.service`: a data path that is broken shows, and is told from a Service that is.

use fakes::objects::Endpoint;
use lab::proxy::wait_until;
use serde_json::Value;
use testkit::cluster::{Cluster, NODE};

use super::{start_with, told};
use crate::support::{PATIENCE, apply_endpoints, apply_web, cluster, ip};

/// What the health server says of the canary in both families.
fn canary(cluster: &Cluster) -> [String; 2] {
    let body =
        cluster.lab.node().exec("curl", &["--silent", "http://127.0.0.1:10256/livez"]).unwrap_or_default();
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    ["IPv4", "IPv6"].map(|family| body["canary"][family].as_str().unwrap_or_default().to_owned())
}

#[track_caller]
fn wait_for(cluster: &Cluster, v4: &str, v6: &str) {
    let mut last = canary(cluster);
    let reached = wait_until(PATIENCE, || {
        last = canary(cluster);
        last == [v4, v6]
    });
    assert!(reached, "wanted {v4} and {v6}, last got {last:?}");
}

fn told_events(cluster: &Cluster, reason: &str) -> usize {
    let events = cluster.api.list(apiserver::Kind::Event);
    events.iter().filter(|event| event["reason"] == reason && event["regarding"]["name"] == NODE).count()
}

#[test]
fn a_broken_data_path_shows_and_is_told_from_a_broken_service() {
    let cluster = cluster(1, 0);
    let _proxy = start_with(&cluster, &["--canary-service", "default/web", "--canary-period", "1s"]);
    wait_for(&cluster, "idle", "idle");
    apply_web(&cluster);
    wait_for(&cluster, "answers", "answers");
    let status = told(&cluster, &["status"]);
    assert!(status.contains("IPv4 answers, IPv6 answers"), "{status}");

    // Somebody's rules swallow what goes to the Service; endpoints can be reached.
    let swallow = "table ip others { chain output { type filter hook output priority -300; ip daddr 10.96.0.10 drop; }; }";
    cluster.lab.node().nft(swallow).unwrap();
    wait_for(&cluster, "unreachable", "answers");
    assert!(
        wait_until(PATIENCE, || told_events(&cluster, "CanaryFailed") == 1),
        "{:?}",
        cluster.api.events()
    );
    let status = told(&cluster, &["status"]);
    assert!(status.contains("IPv4: the canary does not answer through its Service"), "{status}");
    let metrics = cluster.lab.node().exec("curl", &["--silent", "http://127.0.0.1:10249/metrics"]).unwrap();
    let counted = |result: &str| {
        let name = format!("kubeproxy_canary_probes_total{{ip_family=\"IPv4\",result=\"{result}\"}} ");
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{metrics}"));
        line.parse::<u64>().unwrap()
    };
    assert!(counted("unreachable") >= 2 && counted("answers") >= 1, "{metrics}");

    cluster.lab.node().nft("delete table ip others").unwrap();
    wait_for(&cluster, "answers", "answers");
    assert!(
        wait_until(PATIENCE, || told_events(&cluster, "CanaryAnswers") == 1),
        "{:?}",
        cluster.api.events()
    );

    // Nobody has this address.
    apply_endpoints(&cluster, &[Endpoint::ready(ip("10.244.0.99"), NODE)], &cluster.endpoints(true));
    wait_for(&cluster, "endpoints-silent", "answers");
    assert_eq!(told_events(&cluster, "CanaryFailed"), 1);
}

/// Nothing of it is seen where nobody asks for it.
#[test]
fn without_the_option_there_is_no_canary() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let _proxy = start_with(&cluster, &[]);
    let body = cluster.lab.node().exec("curl", &["--silent", "http://127.0.0.1:10256/livez"]).unwrap();
    assert!(body.contains("healthy") && !body.contains("canary"), "{body}");
}
