//! Malformed and odd objects, each in JSON and in protobuf: what is left out, what is ignored and what is rejected.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod encode;

use std::time::Duration;

use api::{Format, Outcome, Parsed, decode_list, decode_object};
use model::{AppProtocol, Interner, Kind, Object, SliceEndpoints};
use serde_json::{Value, json};

/// Overwrites parts of a sound object: `patch` is merged as in RFC 7396, except that lists are replaced.
fn patched(mut base: Value, patch: &Value) -> Value {
    fn merge(base: &mut Value, patch: &Value) {
        match (base, patch) {
            (Value::Object(base), Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(base.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
            (base, patch) => *base = patch.clone(),
        }
    }
    merge(&mut base, patch);
    base
}

fn sound(kind: Kind) -> Value {
    match kind {
        Kind::Service => json!({
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"},
            "spec": {
                "type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            },
        }),
        Kind::EndpointSlice => json!({
            "metadata": {
                "name": "web-abc", "namespace": "shop", "resourceVersion": "7",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "node-1"}],
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        }),
        Kind::Node => json!({
            "metadata": {"name": "node-1", "resourceVersion": "7"},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }),
        Kind::ServiceCidr => json!({
            "metadata": {"name": "kubernetes", "resourceVersion": "7"},
            "spec": {"cidrs": ["10.96.0.0/16"]},
        }),
    }
}

/// Decodes the object alone, and once more between two sound ones in a list.
fn decode(kind: Kind, format: Format, object: &Value) -> Parsed {
    let mut interner = Interner::default();
    let encoded = |object: &Value| match format {
        Format::Json => object.to_string().into_bytes(),
        Format::Protobuf => encode::object(kind, object),
    };
    let alone = decode_object(kind, format, &encoded(object), &mut interner);

    let neighbours = [sound(kind), object.clone(), sound(kind)];
    let body = match format {
        Format::Json => json!({"kind": format!("{kind}List"), "items": neighbours}).to_string().into_bytes(),
        Format::Protobuf => encode::list(kind, &neighbours),
    };
    let mut listed = Vec::new();
    decode_list(kind, format, &body, &mut interner, |item| listed.push(item)).unwrap();
    let [before, between, after] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(between, &alone);
    for neighbour in [before, after] {
        assert!(matches!(neighbour.outcome, Outcome::Keep(_)) && neighbour.notes.is_empty());
    }
    alone
}

/// The outcome in one word, then every note and the rejection.
fn summary(parsed: &Parsed) -> Vec<String> {
    let mut lines = match &parsed.outcome {
        Outcome::Keep(_) => vec!["keep".to_owned()],
        Outcome::Ignore(_, reason) => vec![format!("ignore: {reason}")],
        Outcome::Reject(rejection) => vec!["reject".to_owned(), rejection.to_string()],
    };
    lines.extend(parsed.notes.iter().map(ToString::to_string));
    lines
}

/// Both formats come to the same.
#[track_caller]
fn check(kind: Kind, patch: &Value, expected: &[&str]) -> Object {
    let object = patched(sound(kind), patch);
    let json = decode(kind, Format::Json, &object);
    assert_eq!(summary(&json), expected, "{object}");
    assert_eq!(decode(kind, Format::Protobuf, &object), json, "{object}");
    match json.outcome {
        Outcome::Keep(object) => object,
        // Whatever; the caller looks only at kept objects.
        Outcome::Ignore(..) | Outcome::Reject(_) => {
            let Outcome::Keep(object) = decode(kind, Format::Json, &sound(kind)).outcome else {
                unreachable!()
            };
            object
        }
    }
}

#[track_caller]
fn service(patch: &Value, expected: &[&str]) -> model::Service {
    let Object::Service(service) = check(Kind::Service, patch, expected) else { unreachable!() };
    service
}

#[track_caller]
fn slice(patch: &Value, expected: &[&str]) -> model::EndpointSlice {
    let Object::EndpointSlice(slice) = check(Kind::EndpointSlice, patch, expected) else { unreachable!() };
    slice
}

#[test]
fn sound_objects_are_kept_without_notes() {
    for kind in Kind::ALL {
        check(kind, &json!({}), &["keep"]);
        check(kind, &json!({"unknown": {"deep": [1, "x", null]}}), &["keep"]);
    }
}

#[test]
fn objects_without_a_usable_name_are_rejected() {
    for kind in Kind::ALL {
        let text = |reason: &str| format!("{kind} without a usable name: metadata.name: {reason}");
        check(kind, &json!({"metadata": {"name": ""}}), &["reject", &text("is empty")]);
        check(kind, &json!({"metadata": {"name": "a b"}}), &["reject", &text("\"a b\" is not a name")]);
        check(kind, &json!({"metadata": {"name": "a\nb"}}), &["reject", &text("\"a\\nb\" is not a name")]);
        let cut = format!("\"{}\" is longer than 253 bytes", "x".repeat(64));
        check(kind, &json!({"metadata": {"name": "x".repeat(1 << 20)}}), &["reject", &text(&cut)]);
    }
    let expected = "Service without a usable name: metadata.namespace: is empty";
    check(Kind::Service, &json!({"metadata": {"namespace": ""}}), &["reject", expected]);
    check(Kind::Node, &json!({"metadata": {"namespace": "ignored"}}), &["keep"]);
}

#[test]
fn services_that_are_not_ours_are_ignored() {
    let label =
        |value: &str| json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
    service(&label("other"), &["ignore: another proxy serves it"]);
    service(&label(""), &["ignore: another proxy serves it"]);
    service(&json!({"spec": {"clusterIP": ""}}), &["ignore: it has no cluster ip"]);
    service(
        &json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}),
        &["ignore: it has no cluster ip"],
    );
    service(&json!({"spec": {"type": "ExternalName"}}), &["ignore: it is a dns name only"]);
    service(&json!({"spec": {"clusterIPs": []}}), &["ignore: it has no cluster ip"]);
}

#[test]
fn cluster_ips_are_chosen_by_family() {
    let ips =
        |service: model::Service| service.cluster_ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let old = json!({"spec": {"ipFamilies": [], "clusterIP": "10.96.0.007", "clusterIPs": []}});
    assert_eq!(ips(service(&old, &["keep"])), ["10.96.0.7"]);
    let dual = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": ["fd00::9", "10.96.0.9"]}});
    assert_eq!(ips(service(&dual, &["keep"])), ["fd00::9", "10.96.0.9"]);
    let wrong = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["fd00::9", "fd00::9"]}});
    let note = "Service shop/web: spec.clusterIPs[0]: \"fd00::9\" is not an IPv4 address";
    assert_eq!(ips(service(&wrong, &["keep", note])), ["fd00::9"]);
    let odd = json!({"spec": {"ipFamilies": ["IPv5", "IPv4"], "clusterIPs": ["x", "10.96.0.9"]}});
    let note = "Service shop/web: spec.clusterIPs[0]: its family \"IPv5\" is neither IPv4 nor IPv6";
    assert_eq!(ips(service(&odd, &["keep", note])), ["10.96.0.9"]);
    let twice = json!({"spec": {"ipFamilies": ["IPv4", "IPv4"], "clusterIPs": ["10.96.0.9", "10.96.0.10"]}});
    assert_eq!(ips(service(&twice, &["keep"])), ["10.96.0.9"]);
}

#[test]
fn a_service_whose_only_cluster_ip_is_garbage_is_rejected() {
    let old = json!({"spec": {"ipFamilies": [], "clusterIP": "10.96.0.999"}});
    service(&old, &["reject", "Service shop/web: spec.clusterIP: \"10.96.0.999\" is not an IP address"]);
    let new = json!({"spec": {"clusterIPs": ["10.96.0.999"]}});
    service(
        &new,
        &[
            "reject",
            "Service shop/web: spec.clusterIPs: \"10.96.0.999\" is not an IP address",
            "Service shop/web: spec.clusterIPs[0]: \"10.96.0.999\" is not an IP address",
        ],
    );
}

#[test]
fn bad_service_ports_are_left_out() {
    let ports = |ports: Value| json!({"spec": {"ports": ports}});
    for (port, fault) in [
        (json!({"name": "b", "port": 0}), "spec.ports[1].port: 0 is not a port number"),
        (json!({"name": "b", "port": 65536}), "spec.ports[1].port: 65536 is not a port number"),
        (json!({"name": "b", "port": -1}), "spec.ports[1].port: -1 is not a port number"),
        (json!({"name": "b"}), "spec.ports[1].port: 0 is not a port number"),
        (
            json!({"name": "b", "port": 81, "protocol": "ICMP"}),
            "spec.ports[1].protocol: \"ICMP\" is not a protocol",
        ),
        (
            json!({"name": "b", "port": 81, "protocol": "tcp"}),
            "spec.ports[1].protocol: \"tcp\" is not a protocol",
        ),
        (json!({"name": "b;", "port": 81}), "spec.ports[1].name: \"b;\" is not a name"),
    ] {
        let patch = ports(json!([{"name": "http", "port": 80}, port]));
        let kept = service(&patch, &["keep", &format!("Service shop/web: {fault}")]);
        assert_eq!(kept.ports.len(), 1);
    }
    let bad_node_port = ports(json!([{"port": 80, "nodePort": 70000}]));
    let note = "Service shop/web: spec.ports[0].nodePort: 70000 is not a port number";
    let kept = service(&bad_node_port, &["keep", note]);
    assert_eq!((kept.ports[0].port, kept.ports[0].node_port), (80, None));
    for (name, expected) in [
        ("http", AppProtocol::Http),
        ("kubernetes.io/h2c", AppProtocol::Http),
        ("Kubernetes.IO/ws", AppProtocol::Http),
        ("GRPC", AppProtocol::Http),
        ("https", AppProtocol::Opaque),
        ("kubernetes.io/wss", AppProtocol::Opaque),
        ("example.com/mine", AppProtocol::Opaque),
        ("", AppProtocol::Opaque),
    ] {
        let kept = service(&ports(json!([{"port": 80, "appProtocol": name}])), &["keep"]);
        assert_eq!(kept.ports[0].app_protocol, expected, "{name}");
    }
    let twice =
        ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}, {"name": "a", "port": 82}]));
    let note = "Service shop/web: spec.ports[2]: replaces another of the same name and protocol";
    let kept = service(&twice, &["keep", note]);
    assert_eq!(kept.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [82, 81]);
    assert!(service(&ports(json!([])), &["keep"]).ports.is_empty());
}

#[test]
fn addresses_from_outside_are_parsed_one_by_one() {
    let patch =
        json!({"spec": {"externalIPs": ["198.51.100.07", "", " ", "bad", "198.51.100.7", "fd00::1"]}});
    let kept =
        service(&patch, &["keep", "Service shop/web: spec.externalIPs[3]: \"bad\" is not an IP address"]);
    assert_eq!(
        kept.external_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["198.51.100.7", "fd00::1"]
    );

    let patch = json!({"status": {"loadBalancer": {"ingress": [
        {"hostname": "lb"}, {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}, {"ip": "192.0.2.3", "ipMode": "VIP"},
        {"ip": "x"},
    ]}}});
    let note = "Service shop/web: status.loadBalancer.ingress[4].ip: \"x\" is not an IP address";
    let kept = service(&patch, &["keep", note]);
    assert_eq!(
        kept.load_balancer_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1", "192.0.2.3"]
    );

    let long = "9".repeat(1 << 20);
    let patch = json!({"spec": {"externalIPs": [long]}});
    let note = format!("Service shop/web: spec.externalIPs[0]: \"{}\" is not an IP address", "9".repeat(64));
    service(&patch, &["keep", &note]);
}

/// Addresses that mean something on every node are not translated, whoever claims them; what else the object says counts.
#[test]
fn special_addresses_are_left_out() {
    for (family, special, usual, what) in [
        ("IPv4", "127.0.0.1", "10.96.0.9", "a loopback address"),
        ("IPv4", "127.1.2.3", "10.96.0.9", "a loopback address"),
        ("IPv4", "0.0.0.0", "10.96.0.9", "the unspecified address"),
        ("IPv4", "169.254.169.254", "10.96.0.9", "a link-local address"),
        ("IPv4", "224.0.0.1", "10.96.0.9", "a multicast address"),
        ("IPv4", "239.1.2.3", "10.96.0.9", "a multicast address"),
        ("IPv4", "255.255.255.255", "240.0.0.9", "the broadcast address"),
        ("IPv6", "::1", "fd00::9", "a loopback address"),
        ("IPv6", "::", "fd00::9", "the unspecified address"),
        ("IPv6", "fe80::1", "fd00::9", "a link-local address"),
        ("IPv6", "ff02::1", "fd00::9", "a multicast address"),
    ] {
        let reason = format!("{special:?} is {what}");
        let noted = |path: &str| format!("Service shop/web: {path}: {reason}");
        let cluster = |families: Value, ips: Value| json!({"spec": {"ipFamilies": families, "clusterIP": ips[0], "clusterIPs": ips}});
        let rejected = ["reject", &noted("spec.clusterIPs"), &noted("spec.clusterIPs[0]")];
        check(Kind::Service, &cluster(json!([family]), json!([special])), &rejected);
        let old = json!({"spec": {"ipFamilies": [], "clusterIP": special, "clusterIPs": []}});
        check(Kind::Service, &old, &["reject", &noted("spec.clusterIP")]);

        let patch = json!({"spec": {"externalIPs": [special, usual]}});
        let kept = service(&patch, &["keep", &noted("spec.externalIPs[0]")]);
        assert_eq!(kept.external_ips.iter().map(ToString::to_string).collect::<Vec<_>>(), [usual]);
        let patch = json!({"status": {"loadBalancer": {"ingress": [{"ip": special}, {"ip": usual}]}}});
        let kept = service(&patch, &["keep", &noted("status.loadBalancer.ingress[0].ip")]);
        assert_eq!(kept.load_balancer_ips.iter().map(ToString::to_string).collect::<Vec<_>>(), [usual]);
        let patch =
            json!({"addressType": family, "endpoints": [{"addresses": [special]}, {"addresses": [usual]}]});
        slice(&patch, &["keep", &format!("EndpointSlice shop/web-abc: endpoints[0].addresses[0]: {reason}")]);
    }
    let dual = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["127.0.0.1", "fd00::9"]}});
    let note = "Service shop/web: spec.clusterIPs[0]: \"127.0.0.1\" is a loopback address";
    assert_eq!(service(&dual, &["keep", note]).cluster_ips.len(), 1);
}

#[test]
fn source_ranges_are_lenient_as_upstream() {
    let ranges = |texts: Value, notes: &[&str]| {
        let kept = service(&json!({"spec": {"loadBalancerSourceRanges": texts}}), notes);
        kept.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ranges(json!([" 10.0.0.5/024 "]), &["keep"]), ["10.0.0.0/24"]);
    assert_eq!(ranges(json!(["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"]), &["keep"]), ["fd00::/8"]);
    assert_eq!(ranges(json!(["::/0", "fd00::/8", "10.0.0.0/8"]), &["keep"]), ["10.0.0.0/8"]);
    let note = "Service shop/web: spec.loadBalancerSourceRanges[0]: \"10.0.0.0/33\" is not a CIDR";
    assert!(ranges(json!(["10.0.0.0/33"]), &["keep", note]).is_empty());
}

#[test]
fn affinity_has_a_default_and_limits() {
    let affinity = |config: Value, notes: &[&str]| {
        let patch = json!({"spec": {"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}});
        service(&patch, notes).affinity.unwrap()
    };
    let default = Duration::from_hours(3);
    let config = |seconds: i64| json!({"clientIP": {"timeoutSeconds": seconds}});
    assert_eq!(affinity(Value::Null, &["keep"]), default);
    assert_eq!(affinity(json!({"clientIP": {}}), &["keep"]), default);
    assert_eq!(affinity(config(1), &["keep"]), Duration::from_secs(1));
    assert_eq!(affinity(config(86_400), &["keep"]), Duration::from_hours(24));
    for seconds in [0, -5, 86_401] {
        let note = format!(
            "Service shop/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not in 1..=86400, the \
             default is used"
        );
        assert_eq!(affinity(config(seconds), &["keep", &note]), default);
    }
    let odd = json!({"spec": {"sessionAffinity": "Cookie"}});
    let note = "Service shop/web: spec.sessionAffinity: \"Cookie\" is not an affinity";
    assert_eq!(service(&odd, &["keep", note]).affinity, None);
}

#[test]
fn policies_count_where_the_api_lets_them() {
    use model::TrafficPolicy::{Cluster, Local};
    let external = |spec: Value| {
        let patch = patched(json!({"spec": {"externalTrafficPolicy": "Local"}}), &json!({"spec": spec}));
        service(&patch, &["keep"]).external_policy
    };
    assert_eq!(external(json!({"type": "ClusterIP"})), Cluster);
    assert_eq!(external(json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"]})), Local);
    assert_eq!(external(json!({"type": "NodePort"})), Local);
    assert_eq!(external(json!({"type": "LoadBalancer", "healthCheckNodePort": 30000})), Local);
    assert_eq!(external(json!({"type": "NodePort", "externalTrafficPolicy": "Nearby"})), Cluster);
    let internal = json!({"spec": {"internalTrafficPolicy": "local"}});
    assert_eq!(service(&internal, &["keep"]).internal_policy, Cluster);
}

#[test]
fn proxies_are_asked_for_by_a_policy_that_there_is() {
    let asking = |policy: &str| json!({"metadata": {"annotations": {"kube-proxy/proxying": policy}}});
    let named = |service: model::Service| service.proxying.map(balance::Policy::as_str);
    assert_eq!(named(service(&json!({}), &["keep"])), None);
    assert_eq!(named(service(&asking("least-request"), &["keep"])), Some("least-request"));
    let note = "Service shop/web: metadata.annotations[kube-proxy/proxying]: \"fastest\" is no policy; \
                there are round-robin, random, least-request, ring-hash, maglev, weighted";
    assert_eq!(named(service(&asking("fastest"), &["keep", note])), None);
}

/// What selectors look at is sorted; labels of kube-proxy's own are not among them.
#[test]
fn labels_are_kept() {
    let labels = json!({"metadata": {"labels": {"tier": "front", "app": "web", "service.kubernetes.io/headless": ""}}});
    let found = service(&labels, &["keep"]).labels;
    let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(found, [("app", "web"), ("tier", "front")]);
}

#[test]
fn what_proxies_are_to_do_against_harm_is_said_by_annotations() {
    let asking = |annotations: Value| json!({"metadata": {"annotations": annotations}});
    assert_eq!(service(&json!({}), &["keep"]).resilience, None);
    let all = asking(json!({
        "kube-proxy/limits": "connections=10",
        "kube-proxy/ejection": "on",
        "kube-proxy/health-check": "tcp",
        "kube-proxy/timeouts": "connect=1s,idle=0",
        "kube-proxy/slow-start": "window=30s",
        "kube-proxy/proxy-protocol": "v2",
    }));
    let found = service(&all, &["keep"]).resilience.unwrap();
    assert_eq!(found.limits.connections, Some(10));
    assert_eq!(found.ejection, Some(balance::Ejection::default()));
    assert_eq!(found.health_check, balance::HealthCheck::parse("tcp").ok());
    assert_eq!(Ok(found.timeouts), balance::Timeouts::parse("connect=1s,idle=0"));
    assert_eq!(found.slow_start, balance::SlowStart::parse("window=30s").ok());
    assert_eq!(found.proxy_protocol, Some(balance::ProxyProtocol::V2));
    let note = "Service shop/web: metadata.annotations[kube-proxy/ejection]: longest is shorter than time";
    let bad = asking(json!({"kube-proxy/limits": "connections=10", "kube-proxy/ejection": "time=1h"}));
    assert_eq!(service(&bad, &["keep", note]).resilience.unwrap().ejection, None);
    for (name, text, reason) in [
        ("timeouts", "read=1s", "\"read\" is unknown; there are connect, idle, request and drain"),
        ("slow-start", "30s", "\"30s\" is not of the form name=value"),
        ("proxy-protocol", "3", "\"3\" is no version of it; there are v1 and v2"),
        ("weights", "zone:a=many", "zone:a is \"many\", not a number of 0 to 1000"),
    ] {
        let key = format!("kube-proxy/{name}");
        let note = format!("Service shop/web: metadata.annotations[{key}]: {reason}");
        let found = service(&asking(json!({ key: text })), &["keep", &note]);
        assert_eq!((found.resilience, found.weights), (None, None), "{name}");
    }
}

/// A slice knows of its endpoints what nobody else keeps: which pod each is.
#[test]
fn weights_are_said_by_services_and_slices() {
    let asking = |text: &str| json!({"metadata": {"annotations": {"kube-proxy/weights": text}}});
    let weights = service(&asking("zone:a=3"), &["keep"]).weights;
    assert_eq!(weights.as_deref(), balance::Weights::parse("zone:a=3").ok().as_ref());
    let endpoints = json!([
        {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-0"}, "zone": "a"},
        {"addresses": ["10.0.0.2"], "targetRef": {"kind": "Pod", "name": "web-1"}, "zone": "a"},
        {"addresses": ["10.0.0.3"], "targetRef": {"kind": "Node", "name": "web-0"}, "zone": "b"},
    ]);
    let with = |text: &str| {
        let mut patch = asking(text);
        patch["endpoints"] = endpoints.clone();
        patch
    };
    let found = slice(&with("pod:web-0=5,zone:a=2"), &["keep"]);
    let weights = |slice: &model::EndpointSlice| {
        let details = slice.details.as_ref().unwrap();
        [0, 1, 2].map(|at| details.weight(at))
    };
    assert_eq!(weights(&found), [Some(5), Some(2), None]);
    let zones = |slice: &model::EndpointSlice| {
        let details = slice.details.as_ref().unwrap();
        [0, 1, 2].map(|at| details.zone(at).map(ToString::to_string))
    };
    assert_eq!(zones(&found), ["a", "a", "b"].map(|zone| Some(zone.to_owned())));
    let note = "EndpointSlice shop/web-abc: metadata.annotations[kube-proxy/weights]: \"all\" is not of the form name=value";
    let found = slice(&with("all"), &["keep", note]);
    assert_eq!((weights(&found), zones(&found).len()), ([None; 3], 3));
}

#[test]
fn health_check_ports_belong_to_local_load_balancers() {
    let local = |port: i64| json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port}});
    assert_eq!(service(&local(30_001), &["keep"]).health_check_node_port, Some(30_001));
    for port in [0, 65_536] {
        let note = format!("Service shop/web: spec.healthCheckNodePort: {port} is not a port number");
        assert_eq!(service(&local(port), &["keep", &note]).health_check_node_port, None);
    }
    let cluster = json!({"spec": {"type": "LoadBalancer", "healthCheckNodePort": 30_001}});
    assert_eq!(service(&cluster, &["keep"]).health_check_node_port, None);
}

#[test]
fn slices_that_are_not_ours_are_ignored() {
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let headless = labels(json!({"service.kubernetes.io/headless": ""}));
    slice(&headless, &["ignore: it belongs to a headless service"]);
    let missing = "EndpointSlice shop/web-abc: metadata.labels[kubernetes.io/service-name]: is missing";
    slice(&json!({"metadata": {"labels": null}}), &["ignore: it names no service", missing]);
    let bad = labels(json!({"kubernetes.io/service-name": "a b"}));
    let note =
        "EndpointSlice shop/web-abc: metadata.labels[kubernetes.io/service-name]: \"a b\" is not a name";
    slice(&bad, &["ignore: it names no service", note]);
    slice(&json!({"addressType": "FQDN"}), &["ignore: it holds dns names, not addresses"]);
    for other in ["", "IPv5", "ipv4"] {
        let reason =
            format!("EndpointSlice shop/web-abc: addressType: {other:?} is neither IPv4, IPv6 nor FQDN");
        slice(&json!({"addressType": other}), &["reject", &reason]);
    }
}

#[test]
fn bad_slice_ports_are_left_out() {
    for (port, fault) in [
        (json!({"port": 80}), "ports[1].name: is missing"),
        (json!({"name": "b"}), "ports[1].port: is missing"),
        (json!({"name": "b", "port": 0}), "ports[1].port: 0 is not a port number"),
        (json!({"name": "b", "port": 99_999}), "ports[1].port: 99999 is not a port number"),
        (
            json!({"name": "b", "port": 80, "protocol": "QUIC"}),
            "ports[1].protocol: \"QUIC\" is not a protocol",
        ),
        (json!({"name": "\"", "port": 80}), "ports[1].name: \"\\\"\" is not a name"),
        (json!({"name": "http", "port": 8080}), "ports[1]: is there twice"),
    ] {
        let patch = json!({"ports": [{"name": "http", "protocol": "TCP", "port": 8080}, port]});
        let kept = slice(&patch, &["keep", &format!("EndpointSlice shop/web-abc: {fault}")]);
        assert_eq!(kept.ports.len(), 1);
    }
    let nil_protocol = json!({"ports": [{"name": "", "port": 80}]});
    assert_eq!(slice(&nil_protocol, &["keep"]).ports[0].protocol, model::Protocol::Tcp);
}

#[test]
fn bad_endpoints_are_left_out() {
    for (endpoint, fault) in [
        (json!({"addresses": []}), "endpoints[1].addresses: is empty"),
        (json!({"nodeName": "n"}), "endpoints[1].addresses: is empty"),
        (
            json!({"addresses": ["10.0.0.999"]}),
            "endpoints[1].addresses[0]: \"10.0.0.999\" is not an IP address",
        ),
        (json!({"addresses": ["fd00::1"]}), "endpoints[1].addresses[0]: \"fd00::1\" is not an IPv4 address"),
        (
            json!({"addresses": ["web.example.com"]}),
            "endpoints[1].addresses[0]: \"web.example.com\" is not an IP address",
        ),
    ] {
        let patch = json!({"endpoints": [{"addresses": ["10.0.0.1"]}, endpoint]});
        let kept = slice(&patch, &["keep", &format!("EndpointSlice shop/web-abc: {fault}")]);
        assert!(matches!(&kept.endpoints, SliceEndpoints::V4(endpoints) if endpoints.len() == 1));
    }
    let mapped = json!({"addressType": "IPv6", "endpoints": [{"addresses": ["::ffff:10.0.0.1"]}]});
    let note =
        "EndpointSlice shop/web-abc: endpoints[0].addresses[0]: \"::ffff:10.0.0.1\" is not an IPv6 address";
    slice(&mapped, &["keep", note]);
}

#[test]
fn odd_endpoints_are_kept() {
    let patch = json!({"endpoints": [
        {"addresses": ["10.0.0.1", "garbage"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.0.0.02"], "nodeName": "node 1", "hints": {"forZones": [{"name": "a"}, {"name": "b c"}]}},
        {"addresses": ["10.0.0.3"], "conditions": null, "hints": {"forZones": []}},
    ]});
    let notes = [
        "keep",
        "EndpointSlice shop/web-abc: endpoints[1].nodeName: \"node 1\" is not a name",
        "EndpointSlice shop/web-abc: endpoints[1].hints.forZones[1].name: \"b c\" is not a name",
    ];
    let kept = slice(&patch, &notes);
    let SliceEndpoints::V4(endpoints) = kept.endpoints else { panic!("not ipv4") };
    assert!(
        !endpoints[0].conditions.ready
            && endpoints[0].conditions.serving
            && endpoints[0].conditions.terminating
    );
    assert_eq!(endpoints[1].address.to_string(), "10.0.0.2");
    assert_eq!(
        (&endpoints[1].node, &*endpoints[1].hints.as_ref().unwrap().zones),
        (&None, &["a".into()][..])
    );
    assert_eq!(endpoints[2].conditions, model::Conditions::default());
    assert_eq!(endpoints[2].hints, None);
}

#[test]
fn notes_are_bounded() {
    let endpoints: Vec<Value> = (0..1000).map(|_| json!({"addresses": ["x"]})).collect();
    let object = patched(sound(Kind::EndpointSlice), &json!({"endpoints": endpoints}));
    let parsed = decode(Kind::EndpointSlice, Format::Json, &object);
    assert_eq!(parsed.notes.len(), 17);
    assert_eq!(parsed.notes[16].to_string(), "EndpointSlice shop/web-abc: 984 more items are unusable");
}

#[test]
fn nodes_and_cidrs_lose_only_bad_items() {
    let patch = json!({
        "metadata": {"labels": {"topology.kubernetes.io/zone": "a/b"}},
        "spec": {"podCIDRs": ["10.244.1.0/24", "x"]},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "Hostname", "address": "node-1"},
            {"type": "InternalIP", "address": "?"}, {"type": "InternalIP", "address": "192.0.2.1"},
        ]},
    });
    let notes = [
        "keep",
        "Node node-1: metadata.labels[topology.kubernetes.io/zone]: \"a/b\" is not a name",
        "Node node-1: status.addresses[2].address: \"?\" is not an IP address",
        "Node node-1: spec.podCIDRs[1]: \"x\" is not a CIDR",
    ];
    let Object::Node(node) = check(Kind::Node, &patch, &notes) else { unreachable!() };
    assert_eq!(
        node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1", "198.51.100.1"]
    );
    let note = "ServiceCIDR kubernetes: spec.cidrs[0]: \"10.96.0.0\" is not a CIDR";
    let patch = json!({"spec": {"cidrs": ["10.96.0.0", "fd00::/112"]}});
    let Object::ServiceCidr(cidr) = check(Kind::ServiceCidr, &patch, &["keep", note]) else { unreachable!() };
    assert_eq!(cidr.cidrs.len(), 1);
}

/// A value of the wrong type, and the rejection in JSON and in protobuf.
#[track_caller]
fn wrong_type(kind: Kind, patch: &Value, json: &str, protobuf: &str) {
    let object = patched(sound(kind), patch);
    let shown = summary(&decode(kind, Format::Json, &object));
    assert_eq!(shown[1].split(" at line ").next(), Some(json));
    assert_eq!(summary(&decode(kind, Format::Protobuf, &object))[1..], [protobuf]);
}

#[test]
fn wrong_types_reject_the_object_by_name() {
    wrong_type(
        Kind::Service,
        &json!({"spec": {"ports": [{"port": "80"}]}}),
        "Service shop/web: spec.ports[0].port: invalid type: string \"80\", expected i64",
        "Service shop/web: spec.ports.port: the field has the wrong wire type",
    );
    wrong_type(
        Kind::Service,
        &json!({"spec": {"clusterIP": 7}}),
        "Service shop/web: spec.clusterIP: invalid type: integer `7`, expected a string",
        "Service shop/web: spec.clusterIP: the field has the wrong wire type",
    );
    wrong_type(
        Kind::EndpointSlice,
        &json!({"endpoints": [{"addresses": [true]}]}),
        "EndpointSlice shop/web-abc: endpoints[0].addresses[0]: invalid type: boolean `true`, expected a string",
        "EndpointSlice shop/web-abc: endpoints.addresses: the field has the wrong wire type",
    );
    wrong_type(
        Kind::Node,
        &json!({"spec": 5}),
        "Node node-1: spec: invalid type: integer `5`, expected struct NodeSpec",
        "Node node-1: spec: the field has the wrong wire type",
    );
}

#[test]
fn huge_garbage_makes_short_reasons() {
    let object = patched(sound(Kind::Service), &json!({"spec": {"ports": "y".repeat(1 << 20)}}));
    let lines = summary(&decode(Kind::Service, Format::Json, &object));
    assert!(lines[1].starts_with("Service shop/web: spec.ports: invalid type: string \"yyy"), "{}", lines[1]);
    assert!(lines[1].len() < 400);
}

#[test]
fn garbage_is_rejected_without_a_name() {
    let mut interner = Interner::default();
    for kind in Kind::ALL {
        for (format, bytes) in [
            (Format::Protobuf, &b"\xff\xff\xff"[..]),
            (Format::Protobuf, b"{\"metadata\":{}}"),
            (Format::Protobuf, b""),
            (Format::Json, b""),
            (Format::Json, b"null"),
            (Format::Json, b"[1]"),
            (Format::Json, b"{\"metadata\":{\"name\":\"x\",\"namespace\":\"y\"}} more"),
        ] {
            let parsed = decode_object(kind, format, bytes, &mut interner);
            let Outcome::Reject(rejection) = &parsed.outcome else { panic!("{kind} {bytes:?}: {parsed:?}") };
            assert_eq!((rejection.kind, &rejection.name), (kind, &None), "{rejection}");
        }
    }
}

#[test]
fn text_that_is_not_utf8_rejects_the_object_by_name() {
    let mut object = encode::object(Kind::Service, &sound(Kind::Service));
    let at = object.windows(9).position(|window| window == b"10.96.0.9").unwrap();
    object[at] = 0xff;
    let parsed = decode_object(Kind::Service, Format::Protobuf, &object, &mut Interner::default());
    assert_eq!(summary(&parsed)[1..], ["Service shop/web: spec.clusterIP: the text is not UTF-8"]);
}

#[test]
fn a_node_that_goes_away_says_so() {
    let node = |patch: &Value| {
        let Object::Node(node) = check(Kind::Node, patch, &["keep"]) else { unreachable!() };
        (node.is_deleting, node.is_scaled_down, node.is_eligible())
    };
    assert_eq!(node(&json!({})), (false, false, true));
    assert_eq!(node(&json!({"metadata": {"deletionTimestamp": null}})), (false, false, true));
    let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}});
    assert_eq!(node(&deleting), (true, false, false));
    let taints =
        |key: &str| json!({"spec": {"taints": [{"key": "node.kubernetes.io/not-ready"}, {"key": key}]}});
    assert_eq!(node(&taints("other")), (false, false, true));
    assert_eq!(node(&taints("ToBeDeletedByClusterAutoscaler")), (false, true, false));
}

#[test]
fn trigger_times_are_read_or_noted() {
    const KEY: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    let slice = |time: &str, expected: &[&str]| {
        slice(&json!({"metadata": {"annotations": {KEY: time}}}), expected).trigger_time
    };
    let at = |nanos| Some(std::time::SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos));
    assert_eq!(slice("2026-01-02T03:04:05Z", &["keep"]), at(1_767_323_045_000_000_000));
    assert_eq!(slice("2026-01-02T04:04:05.123456789+01:00", &["keep"]), at(1_767_323_045_123_456_789));
    assert_eq!(slice("0001-01-01T00:00:00Z", &["keep"]), None);
    assert_eq!(slice("", &["keep"]), None);
    let object = patched(sound(Kind::EndpointSlice), &json!({"metadata": {"annotations": {KEY: "today"}}}));
    let lines = summary(&decode(Kind::EndpointSlice, Format::Protobuf, &object));
    assert!(
        lines[1].starts_with(&format!("EndpointSlice shop/web-abc: metadata.annotations[{KEY}]: ")),
        "{lines:?}"
    );
}
