//! Whatever befalls the watches, changes reach the kernel.

use std::time::Duration;

use apiserver::{ApiServer, Auth, Config, Disorder, Fault, Kind, ProtobufSupport};
use lab::client::{FailureClass, Transport};
use lab::{Config as LabConfig, Lab};
use testkit::cluster::Cluster;

use crate::support::{WEB_V4, apply_endpoints, apply_web, check_listable, cluster, ip, start, wait_for};

/// Lets only one pod serve and waits until that is so.
#[track_caller]
fn switch_to(cluster: &Cluster, pod: usize) {
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    apply_endpoints(cluster, &v4[pod..=pod], &v6[pod..=pod]);
    let name = cluster.pod_names()[pod];
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok(name));
}

type Mishap<'a> = &'a dyn Fn(&ApiServer);

/// Each mishap, then a change; the numbers name the mishap when one fails.
#[test]
fn changes_arrive_whatever_happens_to_the_watches() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    let faults = cluster.api.faults();
    let mishaps: [(&str, Mishap<'_>); 8] = [
        ("watches end", &|_| faults.end_watches()),
        ("connections break", &|_| faults.drop_watches()),
        ("an event is cut", &|_| faults.cut_next_event(Kind::EndpointSlice)),
        ("garbage", &|_| faults.send_raw(Kind::EndpointSlice, &b"\0\0\0\x05hello"[..])),
        ("versions expire", &|api| {
            faults.drop_watches();
            api.expire();
        }),
        ("errors", &|_| {
            faults.next(3, Fault::Status { code: 500, retry_after: None });
            faults.drop_watches();
        }),
        ("too many requests", &|_| {
            faults.next(2, Fault::Status { code: 429, retry_after: Some(1) });
            faults.drop_watches();
        }),
        ("events twice", &|_| faults.set_disorder(Disorder::Duplicate)),
    ];
    for (round, (name, mishap)) in mishaps.iter().enumerate() {
        eprintln!("mishap: {name}");
        mishap(&cluster.api);
        switch_to(&cluster, round % 2);
    }
    check_listable(&cluster);
}

/// What was deleted while nobody watched is gone after the next listing.
#[test]
fn deletions_that_nobody_saw_leave_nothing_behind() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    switch_to(&cluster, 0);
    cluster.api.faults().refuse_connections(true);
    cluster.api.faults().drop_watches();
    cluster.delete(Kind::Service, "web");
    cluster.delete(Kind::EndpointSlice, "web-v4");
    cluster.api.expire();
    // The rules of before stay in force meanwhile.
    std::thread::sleep(Duration::from_millis(300));
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod0"));
    cluster.api.faults().refuse_connections(false);
    let gone = || !check_listable(&cluster).contains("10.96.0.10");
    assert!(lab::proxy::wait_until(crate::support::PATIENCE, gone), "{}", check_listable(&cluster));
}

/// TLS with a client certificate, and a token, in both formats, with and without streamed lists.
#[test]
fn every_kind_of_server_is_served_from() {
    let tls = Config { tls: true, ..Config::default() };
    let servers = [
        Config { auth: Auth::ClientCertificate, ..tls.clone() },
        Config { auth: Auth::Token("secret".into()), ..tls },
        Config { protobuf: ProtobufSupport::Refuse, ..Config::default() },
        Config { streamed_lists: false, ..Config::default() },
        Config { streamed_lists: false, protobuf: ProtobufSupport::AnswerJson, ..Config::default() },
    ];
    for config in servers {
        eprintln!("server: {config:?}");
        let lab = Lab::new(&LabConfig { pods: 1, node2_pods: 0, ..LabConfig::default() }).unwrap();
        let cluster = Cluster::with(lab, config).unwrap();
        apply_web(&cluster);
        let proxy = start(&cluster);
        switch_to(&cluster, 0);
        let log = proxy.log().join("\n");
        assert!(!log.contains("secret"), "a token in the log:\n{log}");
    }
}

/// A cluster without the `ServiceCIDR` API, or where the proxy may not read it, is served all the same.
#[test]
fn service_cidrs_may_be_absent() {
    for code in [403, 404] {
        let cluster = cluster(1, 0);
        cluster.api.faults().always(Kind::ServiceCidr, Fault::Status { code, retry_after: None });
        apply_web(&cluster);
        let _proxy = start(&cluster);
        switch_to(&cluster, 0);
    }
}

/// Before the slices are known, a Service must not be refused as if it had none.
#[test]
fn nothing_is_programmed_before_all_kinds_are_known() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    cluster.api.faults().always(Kind::EndpointSlice, Fault::Status { code: 503, retry_after: None });
    let mut proxy = cluster.start_proxy(crate::support::program()).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(proxy.is_running());
    let text = cluster.lab.check_listable().unwrap().text;
    assert!(!text.contains("kube-proxy"), "{text}");
    cluster.api.faults().clear();
    switch_to(&cluster, 0);
    assert!(!proxy.log().iter().any(|line| line.contains("reject")));
}

/// A Service that is given to another proxy by its label is not ours any more, and comes back with the label's end.
#[test]
fn a_service_of_another_proxy_is_left_alone() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    switch_to(&cluster, 0);
    let mut service = cluster.api.get(Kind::Service, "default", "web").unwrap();
    service["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "other".into();
    cluster.apply(service.clone()).unwrap();
    let gone = || !check_listable(&cluster).contains("10.96.0.10");
    assert!(lab::proxy::wait_until(crate::support::PATIENCE, gone));
    service["metadata"]["labels"] = serde_json::json!({});
    cluster.apply(service).unwrap();
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod0"));
    apply_endpoints(&cluster, &[], &[]);
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Err(FailureClass::Refused));
}
