//! Byte for byte what a real API server sent for the same request and state.

use std::path::Path;

use apiserver::{ApiServer, Auth, Config, Kind};
use serde_json::Value;

use crate::client::{Answer, JSON, PROTOBUF, PROTOBUF_WATCH, get};

const SERVICES: &str = "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
                        &fieldSelector=spec.clusterIP%21%3DNone";
const SLICES: &str =
    "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless";
const STREAMED: &str =
    "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";

fn recorded(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/wire").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn recorded_json(name: &str) -> Value {
    serde_json::from_slice(&recorded(name)).unwrap()
}

fn recorded_events(name: &str) -> Vec<Value> {
    let bytes = recorded(name);
    bytes
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect()
}

fn start() -> ApiServer {
    ApiServer::start(Config::default()).unwrap()
}

/// A server in the state of a recorded list.
fn restored(list: &str) -> ApiServer {
    let server = start();
    let list = recorded_json(list);
    let kind = list["kind"].as_str().unwrap().strip_suffix("List").unwrap();
    for item in list["items"].as_array().unwrap() {
        let mut item = item.clone();
        item["kind"] = kind.into();
        item["apiVersion"] = list["apiVersion"].clone();
        server.restore(&item).unwrap();
    }
    server.advance_to(list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
    server
}

/// Compares as text where that can be read, because a difference of bytes says little.
#[track_caller]
fn assert_same(actual: &[u8], file: &str) {
    let expected = recorded(file);
    if actual != expected {
        let (actual, expected) = (String::from_utf8_lossy(actual), String::from_utf8_lossy(&expected));
        panic!("{file} differs\n  actual: {actual}\nexpected: {expected}");
    }
}

#[track_caller]
fn check(answer: Answer, status: u16, content_type: &str, file: &str) {
    assert_eq!(answer.status, status, "{file}");
    assert_eq!(answer.headers["content-type"], content_type, "{file}");
    assert_same(&answer.bytes(), file);
}

/// Both forms of an answer: `name.json` and `name.pb`.
#[track_caller]
fn check_both(server: &ApiServer, path: &str, status: u16, name: &str) {
    check(get(server.address(), path, JSON), status, JSON, &format!("{name}.json"));
    check(get(server.address(), path, PROTOBUF), status, PROTOBUF, &format!("{name}.pb"));
}

#[test]
fn lists() {
    let services = restored("services.list.json");
    check_both(&services, &format!("{SERVICES}&limit=500"), 200, "services.list");
    let both = format!("{PROTOBUF},{JSON}");
    check(get(services.address(), SERVICES, &both), 200, PROTOBUF, "services.list.pb-then-json.negotiated");
    check_both(&restored("endpointslices.list.json"), SLICES, 200, "endpointslices.list");
    let node = "/api/v1/nodes?fieldSelector=metadata.name%3Dnode-1";
    check_both(&restored("node.list.json"), node, 200, "node.list");
    let cidrs = "/apis/networking.k8s.io/v1/servicecidrs";
    check_both(&restored("servicecidrs.list.json"), cidrs, 200, "servicecidrs.list");
}

#[test]
fn first_page() {
    let server = restored("services.page1.json");
    for i in 0..7 {
        let metadata =
            serde_json::json!({"name": format!("rest-{i}"), "namespace": "shop", "resourceVersion": "9"});
        let service = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata});
        server.restore(&service).unwrap();
    }
    check_both(&server, "/api/v1/services?limit=3", 200, "services.page1");
}

#[test]
fn errors() {
    let server = restored("services.list.json");
    check_both(&server, "/api/v1/namespaces/shop/services/none", 404, "not-found");
    check_both(&server, "/api/v1/services?labelSelector=a%20b%20c", 400, "bad-selector");
    let exact = "/api/v1/services?resourceVersion=1&resourceVersionMatch=Exact";
    check_both(&server, exact, 410, "expired-list");
    let future =
        "/api/v1/services?resourceVersion=999999999&resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    check_both(&server, future, 504, "future-list");
    let token = "eyJ2IjogIm1ldGEuazhzLmlvL3YxIiwgInJ2IjogMSwgInN0YXJ0IjogInNob3AvZnJvbnRcdTAwMDAifQ";
    check_both(&server, &format!("/api/v1/services?limit=3&continue={token}"), 410, "expired-continue");
    let unsound = "/api/v1/services?watch=true&sendInitialEvents=true";
    check_both(&server, unsound, 422, "bad-streamed-list");
    check(
        get(server.address(), "/api/v1/services", "application/cbor-nope"),
        406,
        JSON,
        "not-acceptable.json",
    );
}

#[test]
fn without_credentials() {
    let config = Config { auth: Auth::Token("secret".to_owned()), ..Config::default() };
    let server = ApiServer::start(config).unwrap();
    check(get(server.address(), "/api/v1/services", ""), 403, JSON, "unauthorized.json");
}

/// The two forms of a streamed list were recorded one after the other, at different revisions.
#[track_caller]
fn check_streamed(list: &str, path: &str, name: &str, json_version: u64, proto_version: u64) {
    for (accept, suffix, version) in [(JSON, "json", json_version), (PROTOBUF_WATCH, "pb", proto_version)] {
        let server = restored(list);
        server.advance_to(version);
        let file = format!("{name}.{suffix}");
        let mut answer = get(server.address(), &format!("{path}&{STREAMED}"), accept);
        assert_eq!(answer.headers["content-type"], accept);
        let length = recorded(&file).len();
        assert_same(&answer.take_bytes(length), &file);
    }
}

#[test]
fn streamed_lists() {
    check_streamed("services.list.json", SERVICES, "services.streamed-list", 270, 249);
    check_streamed("endpointslices.list.json", SLICES, "endpointslices.streamed-list", 279, 261);
}

#[test]
fn expired_watch() {
    let server = start();
    server.advance_to(301);
    server.expire();
    let path = "/api/v1/services?watch=true&resourceVersion=1&allowWatchBookmarks=true";
    check(get(server.address(), path, JSON), 200, JSON, "services.watch-expired.json");
    check(get(server.address(), path, PROTOBUF_WATCH), 200, PROTOBUF_WATCH, "services.watch-expired.pb");
}

/// Makes the changes that a recorded watch shows.
fn replay(server: &ApiServer, events: &[Value], last_hides: Option<(&str, &str)>) {
    for event in events {
        let mut object = event["object"].clone();
        let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        server.advance_to(version - 1);
        let kind = Kind::from_type(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap())
            .unwrap();
        let made = match (event["type"].as_str().unwrap(), last_hides) {
            ("DELETED", None) => {
                server.delete(kind, "shop", object["metadata"]["name"].as_str().unwrap()).unwrap()
            }
            ("DELETED", Some((label, value))) => {
                object["metadata"]["labels"][label] = value.into();
                server.apply(object).unwrap()
            }
            _ => server.apply(object).unwrap(),
        };
        assert_eq!(made, version);
    }
}

#[test]
fn watches() {
    for (path, name, from, hides) in [
        (SERVICES, "services.watch", 319, ("service.kubernetes.io/service-proxy-name", "x")),
        (SLICES, "endpointslices.watch", 240, ("service.kubernetes.io/headless", "")),
    ] {
        let server = start();
        server.advance_to(from);
        let path = format!("{path}&watch=true&allowWatchBookmarks=true&resourceVersion={from}");
        let mut json = get(server.address(), &path, JSON);
        let mut proto = get(server.address(), &path, PROTOBUF_WATCH);
        replay(&server, &recorded_events(&format!("{name}.json")), Some(hides));
        for (answer, file) in [(&mut json, format!("{name}.json")), (&mut proto, format!("{name}.pb"))] {
            let length = recorded(&file).len();
            assert_same(&answer.take_bytes(length), &file);
        }
    }
}

#[test]
fn watch_until_timeout() {
    let server = start();
    server.advance_to(240);
    replay(&server, &recorded_events("services.watch-timeout.json"), None);
    let path = "/api/v1/services?watch=true&timeoutSeconds=1&resourceVersion=240&allowWatchBookmarks=true";
    check(get(server.address(), path, JSON), 200, JSON, "services.watch-timeout.json");
    let proto = get(server.address(), path, PROTOBUF_WATCH).bytes();
    // The protobuf stream was recorded when fewer changes had happened.
    assert_same(&proto[..recorded("services.watch-timeout.pb").len()], "services.watch-timeout.pb");
}
