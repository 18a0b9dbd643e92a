//! Answers recorded from a real API server: protobuf and JSON of the same request decode to the same objects.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use api::{
    BodyError, Format, FrameError, FrameReader, IgnoreReason, ListMeta, MAX_FRAME_BYTES, Outcome, Parsed,
    Status, WatchEvent, decode_list, decode_status,
};
use model::{Interner, Kind, Object, ObjectName, Protocol, SliceEndpoints, TrafficPolicy};

fn read(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(file)).unwrap()
}

fn list(kind: Kind, format: Format, file: &str) -> (ListMeta, Vec<Parsed>) {
    let mut items = Vec::new();
    let meta = decode_list(kind, format, &read(file), &mut Interner::default(), |item| items.push(item));
    (meta.unwrap(), items)
}

/// The list in both formats, which must be equal.
#[track_caller]
fn both_lists(kind: Kind, name: &str) -> (ListMeta, Vec<Parsed>) {
    let protobuf = list(kind, Format::Protobuf, &format!("{name}.pb"));
    assert_eq!(protobuf, list(kind, Format::Json, &format!("{name}.json")));
    protobuf
}

/// The events of a stream that arrives in chunks of `chunk` bytes.
fn events_in_chunks(kind: Kind, format: Format, file: &str, chunk: usize) -> Vec<WatchEvent> {
    let mut reader = FrameReader::new(format, MAX_FRAME_BYTES);
    let (mut events, mut interner) = (Vec::new(), Interner::default());
    for chunk in read(file).chunks(chunk) {
        reader.push(chunk);
        while let Some(event) = reader.next_event(kind, &mut interner).unwrap() {
            events.push(event);
        }
    }
    reader.finish().unwrap();
    events
}

/// The events of a stream in both formats; each must be the same in any chunking.
fn both_streams(kind: Kind, name: &str) -> [Vec<WatchEvent>; 2] {
    [(Format::Protobuf, "pb"), (Format::Json, "json")].map(|(format, extension)| {
        let file = format!("{name}.{extension}");
        let events = events_in_chunks(kind, format, &file, usize::MAX);
        for chunk in [1, 3, 1000] {
            assert_eq!(events_in_chunks(kind, format, &file, chunk), events, "{file} in chunks of {chunk}");
        }
        events
    })
}

/// An event in short form, without versions, which differ between two recordings.
fn short(event: &WatchEvent) -> String {
    let text = |name: Option<&ObjectName>| name.map(ToString::to_string).unwrap_or_default();
    match event {
        WatchEvent::Applied(parsed) => {
            assert!(!parsed.resource_version.is_empty());
            let what = match &parsed.outcome {
                Outcome::Keep(_) => "keep",
                Outcome::Ignore(..) => "ignore",
                Outcome::Reject(_) => "reject",
            };
            format!("{what} {}", text(parsed.name()))
        }
        WatchEvent::Deleted { name, resource_version } => {
            assert!(!resource_version.is_empty());
            format!("delete {name}")
        }
        WatchEvent::Bookmark { initial_events_end: true, .. } => "initial list ends".to_owned(),
        WatchEvent::Bookmark { initial_events_end: false, .. } => "bookmark".to_owned(),
        WatchEvent::Error(status) => format!("error {} {}", status.code, status.reason),
    }
}

fn kept(items: &[Parsed], name: &str) -> Object {
    let item = items.iter().find(|item| item.name().is_some_and(|n| n.to_string() == name)).unwrap();
    match &item.outcome {
        Outcome::Keep(object) => object.clone(),
        other => panic!("{name}: {other:?}"),
    }
}

fn ips<T: ToString>(addrs: &[T]) -> Vec<String> {
    addrs.iter().map(ToString::to_string).collect()
}

#[test]
fn services() {
    let (meta, items) = both_lists(Kind::Service, "services.list");
    assert_eq!(meta, ListMeta { resource_version: "240".into(), continue_token: String::new() });
    assert!(items.iter().all(|item| item.notes.is_empty()), "{items:?}");
    let ignored: Vec<_> = items.iter().filter(|item| matches!(item.outcome, Outcome::Ignore(..))).collect();
    assert_eq!(ignored.len(), 1);
    assert_eq!(
        ignored[0].outcome,
        Outcome::Ignore(ObjectName::new("shop", "out"), IgnoreReason::ExternalName)
    );

    let Object::Service(front) = kept(&items, "shop/front") else { panic!("not a service") };
    assert!(front.uid.is_some());
    assert_eq!(ips(&front.cluster_ips), ["10.96.167.0", "fd00:10:96::1d5a"]);
    assert_eq!(ips(&front.external_ips), ["198.51.100.7"]);
    assert_eq!(ips(&front.load_balancer_ips), ["192.0.2.10"]);
    assert_eq!(ips(&front.source_ranges), ["203.0.113.0/24", "2001:db8::/32"]);
    assert_eq!(front.affinity, Some(Duration::from_mins(10)));
    assert_eq!(front.external_policy, TrafficPolicy::Local);
    assert_eq!(front.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(front.health_check_node_port, Some(31999));
    let port = &front.ports[0];
    assert_eq!(
        (&*port.name, port.protocol, port.port, port.node_port),
        ("https", Protocol::Tcp, 443, Some(30443))
    );

    let Object::Service(edge) = kept(&items, "shop/edge") else { panic!("not a service") };
    assert_eq!(edge.internal_policy, TrafficPolicy::Local);
    assert_eq!(edge.affinity, None);
    let Object::Service(sig) = kept(&items, "shop/sig") else { panic!("not a service") };
    assert_eq!(sig.ports[0].protocol, Protocol::Sctp);
}

#[test]
fn a_page_of_services_says_how_to_go_on() {
    let (meta, items) = both_lists(Kind::Service, "services.page1");
    assert_eq!(items.len(), 3);
    assert!(!meta.continue_token.is_empty());
}

#[test]
fn the_negotiated_answer_is_protobuf() {
    let negotiated = list(Kind::Service, Format::Protobuf, "services.list.pb-then-json.negotiated");
    assert_eq!(negotiated, list(Kind::Service, Format::Protobuf, "services.list.pb"));
}

#[test]
fn slices() {
    let (_, items) = both_lists(Kind::EndpointSlice, "endpointslices.list");
    let fqdn = items.iter().find(|item| matches!(item.outcome, Outcome::Ignore(_, IgnoreReason::Fqdn)));
    assert_eq!(fqdn.unwrap().name(), Some(&ObjectName::new("shop", "names-1")));
    let Object::EndpointSlice(web) = kept(&items, "shop/web-abc12") else { panic!("not a slice") };
    assert_eq!(web.service, ObjectName::new("shop", "web"));
    let SliceEndpoints::V4(endpoints) = &web.endpoints else { panic!("not ipv4") };
    assert_eq!(endpoints[0].address.to_string(), "10.244.1.5");
    assert!(endpoints[0].conditions.ready && !endpoints[0].conditions.terminating);
    assert!(endpoints.iter().any(|endpoint| endpoint.hints.is_some()), "{endpoints:?}");
    let Object::EndpointSlice(six) = kept(&items, "shop/front-v6-xyz") else { panic!("not a slice") };
    assert!(matches!(&six.endpoints, SliceEndpoints::V6(endpoints) if endpoints.len() == 1));
}

#[test]
fn the_node() {
    let (_, items) = both_lists(Kind::Node, "node.list");
    let Object::Node(node) = kept(&items, "node-1") else { panic!("not a node") };
    assert_eq!(node.zone.as_deref(), Some("zone-a"));
    assert_eq!(ips(&node.addresses), ["192.168.77.2", "fd77::2"]);
    assert_eq!(ips(&node.pod_cidrs), ["10.244.1.0/24", "fd00:244:1::/64"]);
}

#[test]
fn service_cidrs() {
    let (_, items) = both_lists(Kind::ServiceCidr, "servicecidrs.list");
    let Object::ServiceCidr(cidr) = kept(&items, "kubernetes") else { panic!("not a cidr") };
    assert_eq!(ips(&cidr.cidrs), ["10.96.0.0/16", "fd00:10:96::/112"]);
}

#[test]
fn streams_are_the_same_in_both_formats() {
    for (kind, name, n_events) in [
        (Kind::Service, "services.watch", 3),
        (Kind::Service, "services.streamed-list", 9),
        (Kind::EndpointSlice, "endpointslices.watch", 3),
        (Kind::EndpointSlice, "endpointslices.streamed-list", 6),
        (Kind::Service, "services.watch-expired", 1),
    ] {
        let [protobuf, json] = both_streams(kind, name).map(|stream| stream.iter().map(short).collect());
        let (protobuf, json): (Vec<String>, Vec<String>) = (protobuf, json);
        assert_eq!(protobuf, json, "{name}");
        assert!(protobuf.len() >= n_events, "{name}: {protobuf:?}");
    }
}

#[test]
fn losing_to_the_selector_is_a_deletion() {
    let [protobuf, _] = both_streams(Kind::Service, "services.watch");
    let events: Vec<String> = protobuf.iter().map(short).collect();
    assert_eq!(events, ["keep shop/tmp-both", "keep shop/tmp-both", "delete shop/tmp-both"]);
}

#[test]
fn a_streamed_list_ends_with_a_bookmark() {
    for stream in both_streams(Kind::Service, "services.streamed-list") {
        let Some(WatchEvent::Bookmark { resource_version, initial_events_end: true }) = stream.last() else {
            panic!("{stream:?}")
        };
        assert!(resource_version.parse::<u64>().is_ok());
    }
}

#[test]
fn a_watch_that_timed_out_ends_between_events() {
    let [protobuf, json] = both_streams(Kind::Service, "services.watch-timeout");
    assert!(!protobuf.is_empty() && !json.is_empty());
}

#[track_caller]
fn both_statuses(name: &str, code: u16, reason: &str) -> Status {
    let [protobuf, json] = [(Format::Protobuf, "pb"), (Format::Json, "json")]
        .map(|(format, extension)| decode_status(format, &read(&format!("{name}.{extension}"))).unwrap());
    assert_eq!((json.code, &*json.reason), (code, reason));
    assert_eq!((protobuf.code, &*protobuf.reason), (code, reason));
    assert_eq!(protobuf.retry_after, json.retry_after);
    protobuf
}

#[test]
fn statuses() {
    both_statuses("not-found", 404, "NotFound");
    both_statuses("bad-selector", 400, "BadRequest");
    both_statuses("expired-list", 410, "Expired");
    both_statuses("expired-continue", 410, "Expired");
    both_statuses("bad-streamed-list", 422, "Invalid");
    let future = both_statuses("future-list", 504, "Timeout");
    assert_eq!(future.retry_after, Some(Duration::from_secs(1)));
    let forbidden = decode_status(Format::Json, &read("unauthorized.json")).unwrap();
    assert_eq!(forbidden.code, 403);
    let refused = decode_status(Format::Json, &read("not-acceptable.json")).unwrap();
    assert_eq!(refused.code, 406);
    assert_eq!(decode_status(Format::Protobuf, &read("services.list.pb")), None);
    assert_eq!(decode_status(Format::Json, &read("services.list.json")), None);
}

#[test]
fn a_status_or_another_kind_is_no_list() {
    let mut interner = Interner::default();
    for (kind, file) in [(Kind::Service, "not-found"), (Kind::Node, "services.list")] {
        for (format, extension) in [(Format::Protobuf, "pb"), (Format::Json, "json")] {
            let body = read(&format!("{file}.{extension}"));
            let error = decode_list(kind, format, &body, &mut interner, |_| {}).unwrap_err();
            assert!(matches!(error, BodyError::WrongKind { .. }), "{error}");
        }
    }
    let error = decode_list(Kind::Service, Format::Protobuf, b"{}", &mut interner, |_| {}).unwrap_err();
    assert_eq!(error, BodyError::NoMagic);
}

#[test]
fn a_stray_quote_does_not_swallow_what_follows() {
    let mut reader = FrameReader::new(Format::Json, MAX_FRAME_BYTES);
    let mut interner = Interner::default();
    reader.push(b"{\"");
    assert_eq!(reader.next_event(Kind::Service, &mut interner), Ok(None));
    assert!(!reader.is_between_events());
    reader.push(b"a line without another quote\n");
    assert_eq!(reader.next_event(Kind::Service, &mut interner), Err(FrameError::Garbage));
}

#[test]
fn oversized_frames_are_refused_before_they_are_read() {
    let mut interner = Interner::default();
    let mut protobuf = FrameReader::new(Format::Protobuf, 1000);
    protobuf.push(&[0, 0, 3, 233]);
    let error = Err(FrameError::TooLarge { size: 1001, limit: 1000 });
    assert_eq!(protobuf.next_event(Kind::Service, &mut interner), error);
    let mut json = FrameReader::new(Format::Json, 1000);
    json.push(&[b'{'; 1001]);
    assert_eq!(json.next_event(Kind::Service, &mut interner), error);
}
