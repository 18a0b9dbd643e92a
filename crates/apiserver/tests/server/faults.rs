//! Misbehaviour, as a client sees it.

use std::io::Read;
use std::time::{Duration, SystemTime};

use apiserver::{ApiServer, Auth, Config, Disorder, Fault, Kind, Rule, Verb};
use serde_json::json;

use crate::client::{JSON, PROTOBUF, PROTOBUF_WATCH, get, request};
use crate::requests::node;
use crate::watching::{expect, watch};

const LIMIT: Duration = Duration::from_secs(5);
const NODES: &str = "/api/v1/nodes";

fn start() -> ApiServer {
    let server = ApiServer::start(Config::default()).unwrap();
    server.apply(node("a", &json!({}))).unwrap();
    server
}

fn status(server: &ApiServer, path: &str) -> u16 {
    get(server.address(), path, JSON).status
}

#[test]
fn errors_for_some_requests() {
    let server = start();
    let faults = server.faults();
    faults.next(1, Fault::Status { code: 500, retry_after: None });
    faults.next_of(Kind::Node, Verb::List, 1, Fault::Status { code: 429, retry_after: Some(7) });
    assert_eq!(status(&server, "/api/v1/services"), 500);
    assert_eq!(status(&server, "/api/v1/services"), 200);
    let limited = get(server.address(), NODES, JSON);
    assert_eq!((limited.status, limited.headers["retry-after"].as_str()), (429, "7"));
    assert_eq!(limited.json()["details"]["retryAfterSeconds"], 7);
    assert_eq!(status(&server, NODES), 200);
    faults.always(Kind::Node, Fault::Status { code: 403, retry_after: None });
    assert_eq!(
        [status(&server, NODES), status(&server, NODES), status(&server, "/api/v1/services")],
        [403, 403, 200]
    );
    faults.clear();
    assert_eq!(status(&server, NODES), 200);
}

#[test]
fn a_missing_kind() {
    let server = start();
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    server.faults().set_missing(Kind::ServiceCidr, true);
    assert_eq!([status(&server, path), status(&server, "/apis/networking.k8s.io/v1")], [404, 404]);
    server.faults().set_missing(Kind::ServiceCidr, false);
    assert_eq!([status(&server, path), status(&server, "/apis/networking.k8s.io/v1")], [200, 200]);
}

#[test]
fn no_answer_at_all() {
    let server = start();
    server.faults().next(1, Fault::Disconnect);
    assert!(request(server.address(), "GET", NODES, &[], b"").is_err());
    assert_eq!(status(&server, NODES), 200);
    assert_eq!(server.requests()[0].status, 0);
}

#[test]
fn refused_connections() {
    let server = start();
    let mut open = watch(&server, "resourceVersion=1");
    expect(&mut open, "ADDED", "a");
    server.faults().refuse_connections(true);
    let refused = request(server.address(), "GET", NODES, &[], b"").map(|a| a.status).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(open.read(&mut [0]).is_err(), "open connections break too");
    server.faults().refuse_connections(false);
    assert_eq!(status(&server, NODES), 200);
}

#[test]
fn a_late_answer() {
    let server = start();
    server.faults().next(1, Fault::Delay(Duration::from_millis(200)));
    server.faults().next(1, Fault::Status { code: 503, retry_after: None });
    let before = SystemTime::now();
    assert_eq!(status(&server, NODES), 503, "a delay combines with another fault");
    assert!(before.elapsed().unwrap() >= Duration::from_millis(200));
}

#[test]
fn truncated_and_garbage_bodies() {
    let server = start();
    for accept in [JSON, PROTOBUF] {
        let whole = get(server.address(), NODES, accept).bytes();
        server.faults().next(1, Fault::Truncate(40));
        let mut read = Vec::new();
        assert!(get(server.address(), NODES, accept).read_to_end(&mut read).is_err());
        assert_eq!(read, whole[..40]);
    }
    server.faults().next(1, Fault::Garbage("nonsense".into()));
    let garbage = get(server.address(), NODES, PROTOBUF);
    assert_eq!((garbage.status, garbage.headers["content-type"].as_str()), (200, PROTOBUF));
    assert_eq!(garbage.bytes(), b"nonsense");
}

#[test]
fn an_older_list() {
    let server = start();
    server.faults().next_of(Kind::Node, Verb::List, 1, Fault::ListVersion(1));
    assert_eq!(get(server.address(), NODES, JSON).json()["metadata"]["resourceVersion"], "1");
    let honest = server.resource_version().to_string();
    assert_eq!(get(server.address(), NODES, JSON).json()["metadata"]["resourceVersion"], honest);
}

#[test]
fn watches_that_stall() {
    let server = start();
    let mut answer = watch(&server, "");
    expect(&mut answer, "ADDED", "a");
    server.faults().stall_watches(true);
    server.apply(node("b", &json!({}))).unwrap();
    assert!(answer.is_silent(Duration::from_millis(200)));
    server.faults().stall_watches(false);
    expect(&mut answer, "ADDED", "b");
    server.faults().stall_watches(true);
    server.faults().drop_watches();
    assert!(answer.read(&mut [0]).is_err(), "a stalled watch can be dropped");
}

#[test]
fn watches_that_end() {
    let server = start();
    let mut answer = watch(&server, "");
    expect(&mut answer, "ADDED", "a");
    server.faults().end_watches();
    assert!(answer.event().is_none());
    let mut answer = watch(&server, "");
    expect(&mut answer, "ADDED", "a");
    server.faults().drop_watches();
    assert!(answer.read(&mut [0]).is_err());
    server.faults().next_of(Kind::Node, Verb::Watch, 1, Fault::WatchExpired);
    let mut answer = watch(&server, "resourceVersion=1");
    assert_eq!(answer.event().unwrap().2["code"], 410);
}

#[test]
fn a_watch_cut_within_an_event() {
    let server = start();
    let version = server.resource_version();
    let mut answer =
        get(server.address(), &format!("{NODES}?watch=1&resourceVersion={version}"), PROTOBUF_WATCH);
    assert!(server.wait_for_watches(Kind::Node, 1, LIMIT));
    server.faults().cut_next_event(Kind::Node);
    server.apply(node("b", &json!({}))).unwrap();
    let length: [u8; 4] = answer.take_bytes(4).try_into().unwrap();
    let mut rest = Vec::new();
    assert!(answer.read_to_end(&mut rest).is_err());
    assert!(!rest.is_empty(), "half an event comes");
    assert!(rest.len() < u32::from_be_bytes(length) as usize);
}

#[test]
fn lying_watches() {
    let server = start();
    let mut answer = watch(&server, "");
    expect(&mut answer, "ADDED", "a");
    let mut old = node("a", &json!({"lie": "1"}));
    old["metadata"]["resourceVersion"] = "1".into();
    server.faults().send_event(Kind::Node, "MODIFIED", &old).unwrap();
    let lie = expect(&mut answer, "MODIFIED", "a");
    assert_eq!(
        (&lie["metadata"]["resourceVersion"], &lie["metadata"]["labels"]["lie"]),
        (&json!("1"), &json!("1"))
    );
    server.faults().set_disorder(Disorder::Duplicate);
    server.apply(node("b", &json!({}))).unwrap();
    expect(&mut answer, "ADDED", "b");
    expect(&mut answer, "ADDED", "b");
    server.faults().set_disorder(Disorder::Swap);
    server.apply(node("c", &json!({}))).unwrap();
    server.apply(node("d", &json!({}))).unwrap();
    expect(&mut answer, "ADDED", "d");
    expect(&mut answer, "ADDED", "c");
    server.faults().send_raw(Kind::Node, "nonsense\n");
    assert_eq!(answer.take_bytes(9), b"nonsense\n");
}

#[test]
fn raw_objects_in_lists_and_watches() {
    let server = start();
    let mut answer = get(server.address(), &format!("{NODES}?watch=1&resourceVersion=0"), JSON);
    expect(&mut answer, "ADDED", "a");
    server.inject_raw(Kind::Node, "", "b", r#"{"metadata":7}"#, &b"\xff\xff\xff"[..]);
    let list = get(server.address(), NODES, JSON).json();
    assert_eq!(list["items"][1], json!({"metadata": 7}));
    let proto = get(server.address(), NODES, PROTOBUF).bytes();
    assert!(proto.windows(5).any(|w| w == b"\x12\x03\xff\xff\xff"));
    let (event_type, _, object) = answer.event().unwrap();
    assert_eq!((event_type.as_str(), &object["metadata"]), ("ADDED", &json!(7)));
    assert_eq!(get(server.address(), "/api/v1/nodes/b", PROTOBUF).status, 200);
    assert_eq!(server.list(Kind::Node).len(), 1);
    assert!(server.delete(Kind::Node, "", "b").is_some());
    assert_eq!(answer.event().unwrap().0, "DELETED");
}

#[test]
fn huge_objects() {
    let server = start();
    let mut huge = node("huge", &json!({}));
    huge["metadata"]["annotations"] = json!({"note": "x".repeat(3 << 20)});
    server.apply(huge).unwrap();
    assert!(get(server.address(), NODES, PROTOBUF).bytes().len() > 3 << 20);
    let mut answer = watch(&server, "");
    expect(&mut answer, "ADDED", "a");
    expect(&mut answer, "ADDED", "huge");
}

#[test]
fn rotated_tokens() {
    let server =
        ApiServer::start(Config { auth: Auth::Token("one".to_owned()), ..Config::default() }).unwrap();
    let with = |token: &str| {
        let headers = [("Authorization", token)];
        request(server.address(), "GET", NODES, &headers, b"").unwrap().status
    };
    assert_eq!([with("Bearer one"), with("Bearer two"), with("one"), with("")], [200, 401, 401, 403]);
    server.set_token("two");
    assert_eq!([with("Bearer one"), with("Bearer two")], [401, 200]);
    assert_eq!(request(server.address(), "GET", "/readyz", &[], b"").unwrap().status, 200);
}

#[test]
fn rules_without_count_last() {
    let server = start();
    let fault = Fault::Status { code: 500, retry_after: None };
    server.faults().add(Rule { kind: None, verb: Some(Verb::Get), times: None, fault });
    let one = "/api/v1/nodes/a";
    assert_eq!([status(&server, one), status(&server, one), status(&server, NODES)], [500, 500, 200]);
}
