//! The program for Windows, under wine, beside an HNS in memory (`hns`: `examples/hns_stub.rs`), against an API server on Linux.
//! `make windows` builds and runs it. What only HNS and its switch can show is not shown here: no packet goes anywhere.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::net::{IpAddr, Ipv4Addr};

use apiserver::Kind;
use fakes::hns::Objects;
use fakes::objects::{self, Endpoint, NODE, NODE2, Port};
use hcn::Event;
use lab::proxy::wait_until;

use support::{Frontends, LIMIT, Program, Site, foreign, get, ours};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
#[ignore = "part of make windows"]
fn it_tells_its_version_and_its_flags() {
    let site = Site::new();
    let version = site.output(&["--version"]);
    assert!(version.status.success() && text(&version.stdout).starts_with("Kubernetes v1.36"), "{version:?}");
    let help = text(&site.output(&["--help"]).stdout);
    for flag in [
        "--network-name",
        "--source-vip",
        "--enable-dsr",
        "--windows-service",
        "--log-file",
        "--conntrack-min",
    ] {
        assert!(help.contains(flag), "{flag} is missing in\n{help}");
    }
}

/// On Windows before Server 2019, or without the feature Containers.
#[test]
#[ignore = "part of make windows"]
fn without_the_libraries_of_hns_it_says_so_and_does_the_rest() {
    let site = Site::new();
    std::fs::remove_file(site.path("computenetwork.dll")).unwrap();
    let version = site.output(&["--version"]);
    assert!(version.status.success() && text(&version.stdout).starts_with("Kubernetes v1.36"), "{version:?}");
    assert!(site.output(&["--help"]).status.success());
    let written = site.output(&["--write-config-to", "written.yaml"]);
    assert!(written.status.success() && site.path("written.yaml").exists(), "{written:?}");
    let missing = "computenetwork.dll can't be loaded";
    let cleaned = site.output(&["--cleanup", "--network-name", support::NETWORK]);
    assert_eq!(cleaned.status.code(), Some(1), "{cleaned:?}");
    assert!(text(&cleaned.stderr).contains(missing), "{cleaned:?}");
    let (status, log) = site.start().end();
    assert_eq!(status.code(), Some(1));
    assert!(log.iter().any(|line| line.contains(missing) && line.contains("Containers")), "{log:#?}");
}

#[test]
#[ignore = "part of make windows"]
fn it_checks_and_writes_configurations() {
    let site = Site::new();
    let config = site.path("config.yaml");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let write = || site.output(&["--config", "config.yaml", "--write-config-to", "written.yaml"]);

    std::fs::write(
        &config,
        format!("{head}winkernel: {{enableDSR: true, networkName: l2}}\nwindowsRunAsService: true\n"),
    )
    .unwrap();
    let done = write();
    assert!(done.status.success(), "{done:?}");
    let written = std::fs::read_to_string(site.path("written.yaml")).unwrap();
    for line in ["mode: kernelspace", "networkName: l2", "enableDSR: true", "windowsRunAsService: true"] {
        assert!(written.contains(line), "no {line:?} in\n{written}");
    }

    std::fs::write(&config, format!("{head}mode: nftables\nwinkernel: {{sourceVip: x}}\n")).unwrap();
    let refused = write();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("must be kernelspace or blank"), "{refused:?}");

    std::fs::write(&config, format!("{head}winkernel: {{sourceVip: x}}\n")).unwrap();
    let refused = write();
    assert!(text(&refused.stderr).contains("winkernel.sourceVip: Invalid value"), "{refused:?}");
}

#[test]
#[ignore = "part of make windows"]
fn it_logs_to_a_file_and_is_a_service_only_when_it_was_started_as_one() {
    let site = Site::new();
    let output = site.output(&[
        "--windows-service",
        "--network-name=l2",
        "--hostname-override=n",
        "--log-file=the.log",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let log = std::fs::read_to_string(site.path("the.log")).unwrap();
    assert!(log.contains("run as a service, as --windows-service asks"), "{log}");
    // Without the flag, what a service says is beside the program.
    let output = site.output(&["--windows-service", "--network-name=l2", "--hostname-override=n"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), String::new()));
    assert!(site.path("kube-proxy.log").exists());
}

/// The Service of a number: an endpoint on this node and one on another.
fn service(site: &Site, number: u8, remote: u8) -> ((String, u16), Vec<String>) {
    let name = format!("web-{number}");
    let vip = Ipv4Addr::new(10, 96, 0, number);
    let ports = [Port { name: "http", protocol: "TCP", port: 80, target: 8080, node_port: None }];
    let (here, there) = (Ipv4Addr::new(10, 244, 1, 2 + number % 10), Ipv4Addr::new(10, 244, 2, remote));
    let endpoints = [Endpoint::ready(here.into(), NODE), Endpoint::ready(there.into(), NODE2)];
    site.server.apply(objects::slice(&name, "a", &ports, &endpoints)).unwrap();
    site.server.apply(objects::service(&name, &[IpAddr::from(vip)], &ports)).unwrap();
    let mut endpoints = vec![here.to_string(), there.to_string()];
    endpoints.sort_unstable();
    ((vip.to_string(), 80), endpoints)
}

fn remove(site: &Site, number: u8) {
    let name = format!("web-{number}");
    site.server.delete(Kind::Service, objects::NAMESPACE, &name).unwrap();
    site.server.delete(Kind::EndpointSlice, objects::NAMESPACE, &format!("{name}-a")).unwrap();
}

/// A hundred Services come, half of them change, some go.
fn churn(site: &Site, program: &Program) -> Frontends {
    let mut wanted: Frontends = (1..=100).map(|number| service(site, number, number)).collect();
    site.wait_for(program, &wanted);
    for number in 1..=50 {
        let (frontend, endpoints) = service(site, number, 100 + number);
        wanted.insert(frontend, endpoints);
    }
    for number in 81..=100 {
        remove(site, number);
        wanted.remove(&(format!("10.96.0.{number}"), 80));
    }
    site.wait_for(program, &wanted);
    wanted
}

#[test]
#[ignore = "part of make windows"]
fn services_come_and_go_and_kills_change_nothing() {
    let site = Site::new();
    let mut program = site.start();
    let wanted = churn(&site, &program);
    serves(&site);
    let is_enough = || remote(&site.hns()) == wanted.len() + 1;
    assert!(wait_until(LIMIT, is_enough), "an endpoint for each that is in use, and somebody else's");
    let handles = |line: &String| line.split(' ').next().and_then(|count| count.parse().ok());
    let most: Option<usize> = site.journal().iter().filter_map(handles).max();
    assert!(most.is_some_and(|most| most < 8), "handles are closed: {most:?}");

    // A start on what is right writes nothing.
    let written = site.journal();
    program.kill();
    assert!(get(site.health_port, "/healthz").is_err(), "it was another process that was killed");
    program = site.start();
    service(&site, 200, 200);
    let mut grown = wanted.clone();
    grown.insert(("10.96.0.200".to_owned(), 80), vec!["10.244.1.2".to_owned(), "10.244.2.200".to_owned()]);
    site.wait_for(&program, &grown);
    let since: Vec<_> = site.journal().split_off(written.len());
    let made = since.iter().map(|line| line.split_once(' ').unwrap().1).collect::<Vec<_>>();
    assert_eq!(made, ["create endpoint", "create load balancer"], "nothing but the new one");

    // While HNS is away, nothing is forgotten.
    std::fs::rename(site.path("hns.json"), site.path("away.json")).unwrap();
    let (frontend, endpoints) = service(&site, 201, 201);
    assert!(
        wait_until(LIMIT, || program.log().iter().any(|line| line.contains("0x80070426"))),
        "{:#?}",
        program.log()
    );
    std::fs::rename(site.path("away.json"), site.path("hns.json")).unwrap();
    grown.insert(frontend, endpoints);
    site.wait_for(&program, &grown);

    // HNS tells that something happened, on a thread of its own.
    std::fs::write(site.path("event"), Event::NetworkCreated.code().to_string()).unwrap();
    let is_heard = || program.log().iter().any(|line| line.contains("a network was made"));
    assert!(wait_until(LIMIT, is_heard), "nobody listens to HNS: {:#?}", program.log());

    let (status, log) = program.interrupt();
    assert!(status.success(), "{status}\n{}", log.join("\n"));
    assert_eq!(ours(&site.hns()), grown, "the end of the program leaves everything in place");

    let cleaned = site.output(&["--cleanup", "--network-name", support::NETWORK]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    let left = site.hns();
    assert_eq!((ours(&left).len(), remote(&left), foreign(&left).len()), (0, 1, 1), "{left:#?}");
    assert_eq!(left.endpoints.len(), 12, "pods and somebody else's endpoints stay");
}

/// How many endpoints of other nodes there are, on all networks.
fn remote(objects: &Objects) -> usize {
    objects.endpoints.values().filter(|found| found.is_remote()).count()
}

fn serves(site: &Site) {
    let mode = get(site.metrics_port, "/proxyMode").unwrap();
    assert!(mode.ends_with("kernelspace"), "{mode}");
    let health = get(site.health_port, "/healthz").unwrap();
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let metrics = get(site.metrics_port, "/metrics").unwrap();
    for series in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"]
    {
        let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
        assert!(value.is_some_and(|value| value.parse::<f64>().unwrap() > 0.0), "{series} in\n{metrics}");
    }
}
