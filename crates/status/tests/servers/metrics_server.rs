//! The paths of the metrics server.

use serde_json::{Value, json};
use status::Server;

use crate::client::{Reply, ask, get};
use crate::support::Bench;

fn accept(bench: &Bench, path: &str, accept: &str) -> Reply {
    ask(bench.address(Server::Metrics), "GET", path, &format!("accept: {accept}\r\n"), "")
}

#[track_caller]
fn check(reply: &Reply, content_type: &str, body: &str) {
    assert_eq!((reply.status, reply.body.as_str()), (200, body));
    assert_eq!(reply.header("content-type"), content_type);
    assert_eq!(reply.header("x-content-type-options"), "nosniff");
}

#[test]
fn plain_pages() {
    let bench = Bench::start();
    let address = bench.address(Server::Metrics);
    let text = "text/plain; charset=utf-8";
    check(&get(address, "/healthz"), text, "ok");
    check(&get(address, "/healthz/ping"), text, "ok");
    check(&get(address, "/healthz?verbose"), text, "[+]ping ok\nhealthz check passed\n");
    check(&get(address, "/proxyMode"), text, "nftables");
    check(
        &get(address, "/configz"),
        "application/json",
        r#"{"kubeproxy.config.k8s.io":{"mode":"nftables"}}"#,
    );
    for path in ["/", "/metrics/", "/livez", "/debug", "/debug/other"] {
        let reply = get(address, path);
        assert_eq!((reply.status, reply.body.as_str()), (404, "404 page not found\n"), "{path}");
    }
}

#[test]
fn metrics_are_text() {
    let bench = Bench::start();
    let reply = get(bench.address(Server::Metrics), "/metrics");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let value = |name: &str| -> f64 {
        let line = reply.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_start_time_seconds") > 1.7e9);
    assert!(value("process_open_fds") > 3.0);
}

#[test]
fn slis_can_be_reset() {
    let bench = Bench::start();
    let address = bench.address(Server::Metrics);
    get(address, "/healthz");
    let page = get(address, "/metrics/slis");
    assert_eq!(page.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let ping = "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1";
    assert!(page.body.contains(ping) && page.body.contains("process_start_time_seconds 1"), "{}", page.body);
    let reset = ask(address, "DELETE", "/metrics/slis", "", "");
    assert_eq!((reset.status, reset.body.as_str()), (200, "metrics reset\n"));
    assert!(!get(address, "/metrics/slis").body.contains("ping"));
}

#[test]
fn flagz_is_negotiated() {
    let bench = Bench::start();
    let lines = |reply: &Reply| reply.body.lines().map(str::to_owned).collect::<Vec<_>>();
    for range in ["*/*", "text/plain"] {
        let reply = accept(&bench, "/flagz", range);
        assert_eq!((reply.status, reply.header("content-type")), (200, "text/plain; charset=utf-8"));
        let lines = lines(&reply);
        assert_eq!((lines[0].as_str(), lines[1].as_str(), lines[3].as_str()), ("", "kube-proxy flagz", ""));
        assert_eq!(lines[4..], ["config=", "proxy-mode=nftables", "v=2"]);
    }
    assert_eq!(get(bench.address(Server::Metrics), "/flagz").status, 200);

    let expected = |version: &str| {
        json!({
            "kind": "Flagz", "apiVersion": format!("config.k8s.io/{version}"), "metadata": {"name": "kube-proxy"},
            "flags": {"config": "", "proxy-mode": "nftables", "v": "2"},
        })
    };
    let beta = accept(&bench, "/flagz", "application/json;as=Flagz;v=v1beta1;g=config.k8s.io");
    assert_eq!(
        (beta.status, beta.header("content-type"), beta.header("warning")),
        (200, "application/json", "")
    );
    assert_eq!(serde_json::from_str::<Value>(&beta.body).unwrap(), expected("v1beta1"));
    let alpha = accept(&bench, "/flagz", "application/json;as=Flagz;v=v1alpha1;g=config.k8s.io");
    assert_eq!(serde_json::from_str::<Value>(&alpha.body).unwrap(), expected("v1alpha1"));
    assert!(alpha.header("warning").starts_with("299 - \""), "{alpha:?}");
    let yaml = accept(&bench, "/flagz", "application/yaml;as=Flagz;v=v1beta1;g=config.k8s.io");
    assert_eq!(yaml.header("content-type"), "application/yaml");
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml.body).unwrap(), expected("v1beta1"), "{}", yaml.body);

    let refused = accept(&bench, "/flagz", "application/json");
    assert_eq!((refused.status, refused.header("content-type")), (406, "application/json"));
    let status: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(
        (&status["kind"], &status["reason"], &status["code"]),
        (&json!("Status"), &json!("NotAcceptable"), &json!(406))
    );
}

#[test]
fn statusz_is_negotiated() {
    let bench = Bench::start();
    let text = accept(&bench, "/statusz", "text/plain").body;
    assert!(text.starts_with("\nkube-proxy statusz\n"), "{text}");
    for line in
        ["Up: 0 hr 00 min ", "Binary version: v1.2.3", "Paths: /configz /flagz /healthz /metrics /proxyMode"]
    {
        assert!(text.lines().any(|found| found.starts_with(line)), "no {line} in {text}");
    }
    let reply = accept(&bench, "/statusz", "application/json;as=Statusz;v=v1beta1;g=config.k8s.io");
    let status: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(
        (&status["kind"], &status["apiVersion"]),
        (&json!("Statusz"), &json!("config.k8s.io/v1beta1"))
    );
    assert_eq!(status["paths"], json!(["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"]));
    assert_eq!(status["binaryVersion"], "v1.2.3");
    assert!(status["uptimeSeconds"].as_u64().unwrap() < 3600);
    assert!(status["startTime"].as_str().unwrap().starts_with("20"), "{status}");
    assert_eq!(accept(&bench, "/statusz", "application/json;as=Flagz;v=v1beta1;g=config.k8s.io").status, 406);
}

#[test]
fn verbosity_can_be_set() {
    let bench = Bench::start();
    let address = bench.address(Server::Metrics);
    let put = |body: &str| {
        let reply = ask(address, "PUT", "/debug/flags/v", "", body);
        (reply.status, reply.body)
    };
    assert_eq!(put("4"), (200, "successfully set klog.logging.verbosity to 4\n".into()));
    assert_eq!(*bench.verbosity.lock().unwrap(), Some(4));
    assert_eq!(put(" 5\n").0, 200);
    for bad in ["", "five", "99999999999", "11", "1".repeat(1000).as_str()] {
        let (status, text) = put(bad);
        assert_eq!(status, 400, "{bad}: {text}");
        assert!(text.starts_with("failed to set klog.logging.verbosity: "), "{text}");
    }
    assert_eq!(*bench.verbosity.lock().unwrap(), Some(5));
    assert_eq!(get(address, "/debug/flags/v").status, 406);
    let list = get(address, "/debug/flags/");
    assert_eq!((list.status, list.header("content-type")), (200, "text/html; charset=utf-8"));
    assert_eq!(get(address, "/debug/flags").status, 200);
}

#[test]
fn profiles_are_refused_with_a_reason() {
    let bench = Bench::start();
    let address = bench.address(Server::Metrics);
    let moved = get(address, "/debug/pprof");
    assert_eq!((moved.status, moved.header("location")), (302, "/debug/pprof/"));
    for path in ["/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile"] {
        let reply = get(address, path);
        assert_eq!(reply.status, 501);
        assert!(reply.body.contains("perf"), "{}", reply.body);
    }
}

#[test]
fn debugging_has_to_be_allowed() {
    let bench = Bench::start_with(|config| config.profiling = false);
    let address = bench.address(Server::Metrics);
    for path in ["/debug/pprof/", "/debug/flags/v", "/debug/flags"] {
        assert_eq!(ask(address, "PUT", path, "", "9").status, 404, "{path}");
    }
    assert_eq!(*bench.verbosity.lock().unwrap(), None);
}

#[test]
fn further_paths_are_answered_in_one_piece_or_in_pieces() {
    let bench = Bench::start();
    let address = bench.address(Server::Metrics);
    check(&get(address, "/more/whole"), "text/plain; charset=utf-8", "all of it");
    check(
        &get(address, "/more/pieces"),
        "text/plain; charset=utf-8",
        "6\r\npiece \r\n3\r\nby \r\n5\r\npiece\r\n0\r\n\r\n",
    );
    assert_eq!(get(address, "/else").status, 404);
    // Upstream's paths are upstream's.
    check(&get(address, "/proxyMode"), "text/plain; charset=utf-8", "nftables");
}
