//! `/healthz` and `/livez`.

use model::IpFamily;
use serde_json::Value;
use status::Server;

use crate::client::{Reply, ask, get};
use crate::support::{Bench, loopback};

fn body(reply: &Reply) -> Value {
    serde_json::from_str(&reply.body).unwrap()
}

#[track_caller]
fn check(bench: &Bench, situation: &str, healthz: u16, livez: u16) {
    let address = bench.address(Server::Health);
    for (path, status) in [("/healthz", healthz), ("/livez", livez)] {
        let reply = get(address, path);
        assert_eq!(reply.status, status, "{situation}: {path} says {}", reply.body);
        assert_eq!(reply.header("content-type"), "application/json");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        let body = body(&reply);
        assert_eq!(body["lastUpdated"] == body["currentTime"], status == 200, "{situation}: {}", reply.body);
        assert_eq!(body.get("nodeEligible").is_some(), path == "/healthz", "{situation}");
    }
}

#[test]
fn codes_by_situation() {
    let bench = Bench::start();
    check(&bench, "nothing has begun", 503, 200);
    bench.health.lock().started(IpFamily::V4, std::time::SystemTime::now());
    bench.health.lock().set_node_eligible(true);
    check(&bench, "no sync yet", 503, 200);
    bench.all_well();
    check(&bench, "all is well", 200, 200);
    bench.health.lock().set_node_eligible(false);
    check(&bench, "the node goes away", 503, 200);
    bench.all_well();
    bench.stuck();
    check(&bench, "a change is stuck", 503, 503);
    bench.all_well();
    check(&bench, "all is well again", 200, 200);
}

#[test]
fn bodies_name_what_is_wrong() {
    let bench = Bench::start();
    bench.all_well();
    let address = bench.address(Server::Health);
    let good = body(&get(address, "/healthz"));
    assert_eq!((good["healthy"].as_bool(), good["nodeEligible"].as_bool()), (Some(true), Some(true)));
    bench.health.lock().set_node_eligible(false);
    let drained = body(&get(address, "/healthz"));
    assert_eq!((drained["healthy"].as_bool(), drained["nodeEligible"].as_bool()), (Some(true), Some(false)));
    bench.stuck();
    let reply = get(address, "/livez");
    let stuck = body(&reply);
    assert_eq!(stuck["healthy"].as_bool(), Some(false));
    let families: Vec<_> =
        ["IPv4", "IPv6"].map(|family| stuck["status"][family]["healthy"].as_bool().unwrap()).into();
    assert_eq!(families, [true, false]);
    assert!(!reply.body.contains('\n'));
}

#[test]
fn answers_are_counted() {
    let bench = Bench::start();
    let address = bench.address(Server::Health);
    get(address, "/healthz");
    bench.all_well();
    get(address, "/healthz");
    get(address, "/healthz");
    get(address, "/livez");
    let page = get(bench.address(Server::Metrics), "/metrics").body;
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 2",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"503\"} 0",
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
    }
    let slis = get(bench.address(Server::Metrics), "/metrics/slis").body;
    for line in [
        "kubernetes_healthcheck{name=\"proxy\",type=\"healthz\"} 1",
        "kubernetes_healthcheck{name=\"proxy\",type=\"livez\"} 1",
        "kubernetes_healthchecks_total{name=\"proxy\",status=\"error\",type=\"healthz\"} 1",
        "kubernetes_healthchecks_total{name=\"proxy\",status=\"success\",type=\"healthz\"} 2",
    ] {
        assert!(slis.lines().any(|found| found == line), "no {line} in\n{slis}");
    }
}

#[test]
fn any_method_will_do_and_other_paths_are_not_there() {
    let bench = Bench::start();
    bench.all_well();
    let address = bench.address(Server::Health);
    for method in ["POST", "DELETE", "OPTIONS", "BREW"] {
        assert_eq!(ask(address, method, "/healthz", "", "").status, 200, "{method}");
    }
    let head = ask(address, "HEAD", "/livez", "", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for path in ["/", "/metrics", "/healthz/", "/healthz/ping"] {
        let reply = get(address, path);
        assert_eq!((reply.status, reply.body.as_str()), (404, "404 page not found\n"), "{path}");
    }
    assert_eq!(get(address, "/healthz?x=y").status, 200);
}

#[test]
fn a_port_that_is_taken_is_tried_again() {
    let taken = std::net::TcpListener::bind(loopback(0)).unwrap();
    let address = taken.local_addr().unwrap();
    let bench = Bench::start_with(|config| config.health_address = Some(address));
    // The other server does not mind.
    assert_eq!(get(bench.address(Server::Metrics), "/proxyMode").status, 200);
    drop(taken);
    assert_eq!(bench.address(Server::Health), address);
    assert_eq!(get(address, "/livez").status, 200);
}

#[test]
fn a_port_that_is_taken_may_be_the_end() {
    let taken = std::net::TcpListener::bind(loopback(0)).unwrap();
    let address = taken.local_addr().unwrap();
    let mut bench = Bench::start_with(|config| {
        config.metrics_address = Some(address);
        config.bind_hard_fail = true;
    });
    let error = bench.failed();
    assert_eq!((error.server, error.address), (Server::Metrics, address));
    assert_eq!(error.to_string(), format!("the metrics server can't serve on {address}"));
}

#[test]
fn both_can_be_switched_off() {
    let bench = Bench::start_with(|config| (config.metrics_address, config.health_address) = (None, None));
    bench.all_well();
}
