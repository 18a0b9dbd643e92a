//! Service health checks on node ports.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use model::view::{HealthCheck, HealthChecks};
use model::{IpFamily, ServiceName};

use crate::client::{ask, get, try_get};
use crate::support::{Bench, free_port, loopback, until};

fn name(service: &str) -> ServiceName {
    ServiceName::new("shop", service)
}

/// Checks of one family: Service, port, local endpoints.
fn checks(ranges: &[&str], services: &[(&str, u16, usize)]) -> HealthChecks {
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    let check = |(service, port, local_endpoints): &(&str, u16, usize)| {
        (name(service), HealthCheck { port: *port, local_endpoints: *local_endpoints })
    };
    HealthChecks { ranges, services: services.iter().map(check).collect() }
}

fn publish(bench: &Bench, family: IpFamily, ranges: &[&str], services: &[(&str, u16, usize)]) {
    bench.checks.send_modify(|published| _ = published.insert(family, checks(ranges, services)));
}

const LOOPBACK: [&str; 1] = ["127.0.0.1/32"];

fn listens(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

/// Waits until a check answers with this status.
#[track_caller]
fn until_status(address: SocketAddr, status: u16) {
    until("an answer", || try_get(address, "/").is_some_and(|reply| reply.status == status));
}

#[test]
fn endpoints_come_and_go() {
    let bench = Bench::start();
    bench.all_well();
    let port = free_port();
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 2)]);
    until("it listens", || listens(loopback(port)));
    let reply = get(loopback(port), "/any/path");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("x-content-type-options"), "nosniff");
    assert_eq!(reply.header("x-load-balancing-endpoint-weight"), "2");
    assert_eq!(
        reply.body,
        "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
    );
    assert_eq!(ask(loopback(port), "POST", "/", "", "body").status, 200);
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 0)]);
    until_status(loopback(port), 503);
    let reply = get(loopback(port), "/");
    assert_eq!(reply.header("x-load-balancing-endpoint-weight"), "0");
    assert!(
        reply.body.contains("\"localEndpoints\": 0") && reply.body.contains("\"serviceProxyHealthy\": true")
    );
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 1)]);
    until_status(loopback(port), 200);
    publish(&bench, IpFamily::V4, &LOOPBACK, &[]);
    until("it is closed", || !listens(loopback(port)));
}

#[test]
fn a_proxy_that_is_not_healthy_serves_nobody() {
    let bench = Bench::start();
    bench.all_well();
    let port = free_port();
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 3)]);
    until_status(loopback(port), 200);
    // Eligibility of the node is of no interest here.
    bench.health.lock().set_node_eligible(false);
    assert_eq!(get(loopback(port), "/").status, 200);
    bench.stuck();
    let reply = get(loopback(port), "/");
    assert_eq!((reply.status, reply.header("x-load-balancing-endpoint-weight")), (503, "3"));
    assert!(reply.body.contains("\"serviceProxyHealthy\": false"), "{}", reply.body);
}

#[test]
fn it_works_without_the_health_server() {
    let bench = Bench::start_with(|config| config.health_address = None);
    bench.all_well();
    let port = free_port();
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 1)]);
    until_status(loopback(port), 200);
}

#[test]
fn a_changed_port_moves() {
    let bench = Bench::start();
    bench.all_well();
    let (first, second) = (free_port(), free_port());
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", first, 1)]);
    until_status(loopback(first), 200);
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", second, 1)]);
    until_status(loopback(second), 200);
    assert!(!listens(loopback(first)));
    // Another Service takes the old one at once.
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", second, 1), ("shop", first, 0)]);
    until_status(loopback(first), 503);
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", first, 1), ("shop", second, 0)]);
    until_status(loopback(first), 200);
    until_status(loopback(second), 503);
    assert_eq!(*bench.told.lock().unwrap(), []);
}

#[test]
fn families_count_by_themselves() {
    let bench = Bench::start();
    bench.all_well();
    let port = free_port();
    publish(&bench, IpFamily::V4, &["0.0.0.0/0"], &[("web", port, 2)]);
    publish(&bench, IpFamily::V6, &["::/0"], &[("web", port, 0)]);
    until_status(loopback(port), 200);
    until_status((Ipv6Addr::LOCALHOST, port).into(), 503);
}

#[test]
fn a_port_that_is_taken_is_told_once_and_tried_again() {
    let bench = Bench::start();
    bench.all_well();
    let taken = TcpListener::bind(loopback(0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = free_port();
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 1), ("other", other, 1)]);
    until_status(loopback(other), 200);
    until("it is told", || !bench.told.lock().unwrap().is_empty());
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 2), ("other", other, 0)]);
    until_status(loopback(other), 503);
    {
        let told = bench.told.lock().unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((&told[0].service, told[0].port, told[0].address), (&name("web"), port, loopback(port)));
        assert!(told[0].error.contains("in use"), "{told:?}");
    }
    drop(taken);
    until_status(loopback(port), 200);
    assert_eq!(get(loopback(port), "/").header("x-load-balancing-endpoint-weight"), "2");
}

/// Two Services that want one port: the first by name has it, and the other takes over.
#[test]
fn a_port_is_taken_over() {
    let bench = Bench::start();
    bench.all_well();
    let port = free_port();
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("a", port, 1), ("b", port, 2)]);
    until_status(loopback(port), 200);
    assert_eq!(get(loopback(port), "/").header("x-load-balancing-endpoint-weight"), "1");
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("b", port, 2)]);
    until("the other answers", || {
        try_get(loopback(port), "/")
            .is_some_and(|reply| reply.header("x-load-balancing-endpoint-weight") == "2")
    });
}

/// A process that is being started has a copy of every socket until it runs its own program.
#[test]
fn a_port_is_free_for_another_service_though_a_child_has_a_copy_of_its_socket() {
    let bench = Bench::start();
    bench.all_well();
    let port = free_port();
    for round in 0..20 {
        let services = [("a", port, 1), ("b", port, 0)];
        let (service, status) = if round % 2 == 0 { (services[0], 200) } else { (services[1], 503) };
        publish(&bench, IpFamily::V4, &LOOPBACK, &[service]);
        until_status(loopback(port), status);
        // They stay open until the end of the test.
        let copies = copies_of_listener(port);
        assert!(!copies.is_empty());
        std::mem::forget(copies);
    }
    assert_eq!(*bench.told.lock().unwrap(), []);
}

/// Copies of the descriptors of this process that listen on a port.
fn copies_of_listener(port: u16) -> Vec<std::os::fd::OwnedFd> {
    use procfs::net::TcpState;
    use procfs::process::{FDTarget, Process};
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    let process = Process::myself().unwrap();
    let entries = process.tcp().unwrap();
    let listens = |inode: u64| {
        entries.iter().any(|entry| {
            entry.inode == inode && entry.state == TcpState::Listen && entry.local_address.port() == port
        })
    };
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let descriptors = process.fd().unwrap().filter_map(Result::ok);
    descriptors
        .filter(|info| matches!(info.target, FDTarget::Socket(inode) if listens(inode)))
        .map(|info| pidfd_getfd(&this, info.fd, PidfdGetfdFlags::empty()).unwrap())
        .collect()
}

#[test]
fn ranges_without_an_address_serve_nobody_until_they_have_one() {
    let bench = Bench::start();
    bench.all_well();
    let port = free_port();
    publish(&bench, IpFamily::V4, &["203.0.113.0/24"], &[("web", port, 1)]);
    let other = free_port();
    publish(&bench, IpFamily::V6, &["::1/128"], &[("web", other, 1)]);
    until_status((Ipv6Addr::LOCALHOST, other).into(), 200);
    assert!(!listens(loopback(port)));
    publish(&bench, IpFamily::V4, &LOOPBACK, &[("web", port, 1)]);
    until_status(loopback(port), 200);
    let none: BTreeMap<IpFamily, HealthChecks> = BTreeMap::new();
    bench.checks.send_replace(none);
    until("all are closed", || !listens(loopback(port)));
}
