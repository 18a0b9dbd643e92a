//! Watches and streamed lists.

use std::time::Duration;

use apiserver::{ApiServer, Config, Kind};
use serde_json::{Value, json};

use crate::client::{Answer, JSON, get};
use crate::requests::node;

const QUIET: Duration = Duration::from_millis(100);

fn start() -> ApiServer {
    ApiServer::start(Config::default()).unwrap()
}

pub(crate) fn watch(server: &ApiServer, query: &str) -> Answer {
    let answer = get(server.address(), &format!("/api/v1/nodes?watch=true&{query}"), JSON);
    assert_eq!(answer.status, 200, "{query}");
    answer
}

#[track_caller]
pub(crate) fn expect(answer: &mut Answer, event_type: &str, name: &str) -> Value {
    let (actual_type, actual_name, object) = answer.event().expect("the watch goes on");
    assert_eq!((actual_type.as_str(), actual_name.as_str()), (event_type, name));
    object
}

pub(crate) fn is_end_mark(object: &Value) -> bool {
    object["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
}

#[test]
fn a_watch_starts_where_it_is_told() {
    let server = start();
    let first = server.apply(node("a", &json!({}))).unwrap();
    server.apply(node("b", &json!({}))).unwrap();
    let mut later = watch(&server, &format!("resourceVersion={first}"));
    expect(&mut later, "ADDED", "b");
    for any in ["", "resourceVersion=0"] {
        let mut all = watch(&server, any);
        expect(&mut all, "ADDED", "a");
        expect(&mut all, "ADDED", "b");
        server.apply(node("a", &json!({}))).unwrap();
        expect(&mut all, "MODIFIED", "a");
    }
    expect(&mut later, "MODIFIED", "a");
}

#[test]
fn selectors_turn_changes_into_additions_and_deletions() {
    let server = start();
    let from = server.resource_version();
    let mut answer = watch(&server, &format!("labelSelector=%21hidden&resourceVersion={from}"));
    server.apply(node("a", &json!({"hidden": "1", "v": "1"}))).unwrap();
    server.apply(node("a", &json!({"v": "2"}))).unwrap();
    let hidden = server.apply(node("a", &json!({"hidden": "1", "v": "3"}))).unwrap();
    server.delete(Kind::Node, "", "a").unwrap();
    server.apply(node("a", &json!({"v": "4"}))).unwrap();
    let removed = server.delete(Kind::Node, "", "a").unwrap();
    assert_eq!(expect(&mut answer, "ADDED", "a")["metadata"]["labels"]["v"], "2");
    let gone = expect(&mut answer, "DELETED", "a");
    assert_eq!(gone["metadata"]["labels"]["v"], "2", "the last matching state");
    assert_eq!(gone["metadata"]["resourceVersion"], hidden.to_string());
    assert_eq!(expect(&mut answer, "ADDED", "a")["metadata"]["labels"]["v"], "4");
    assert_eq!(expect(&mut answer, "DELETED", "a")["metadata"]["resourceVersion"], removed.to_string());
    assert!(answer.is_silent(QUIET));
}

#[test]
fn a_watch_sees_its_own_kind_and_namespace_only() {
    let server = start();
    let path = "/api/v1/namespaces/shop/services?watch=1&resourceVersion=1";
    let mut answer = get(server.address(), path, JSON);
    server.apply(node("a", &json!({}))).unwrap();
    for (namespace, name) in [("other", "x"), ("shop", "y")] {
        let metadata = json!({"name": name, "namespace": namespace});
        server.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata})).unwrap();
    }
    expect(&mut answer, "ADDED", "y");
    assert!(answer.is_silent(QUIET));
}

#[test]
fn streamed_lists_end_with_a_mark() {
    let server = start();
    server.load((0..3000).map(|i| node(&format!("n{i:05}"), &json!({})))).unwrap();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut answer = watch(&server, query);
    for i in 0..3000 {
        expect(&mut answer, "ADDED", &format!("n{i:05}"));
    }
    let mark = expect(&mut answer, "BOOKMARK", "");
    assert!(is_end_mark(&mark));
    assert_eq!(mark["metadata"]["resourceVersion"], server.resource_version().to_string());
    server.delete(Kind::Node, "", "n00007").unwrap();
    expect(&mut answer, "DELETED", "n00007");
}

#[test]
fn a_streamed_list_waits_for_its_version() {
    let server = start();
    let wanted = server.resource_version() + 1;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut answer = watch(&server, &format!("{query}&resourceVersion={wanted}"));
    assert!(answer.is_silent(QUIET));
    server.apply(node("a", &json!({}))).unwrap();
    expect(&mut answer, "ADDED", "a");
    assert!(is_end_mark(&expect(&mut answer, "BOOKMARK", "")));
}

#[test]
fn an_older_server_knows_no_streamed_lists() {
    let server = ApiServer::start(Config { streamed_lists: false, ..Config::default() }).unwrap();
    let path = "/api/v1/nodes?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let answer = get(server.address(), path, JSON);
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["details"]["causes"][0]["field"], "sendInitialEvents");
}

#[test]
fn bookmarks_come_to_those_who_allow_them() {
    let config = Config { bookmark_interval: Duration::from_millis(50), ..Config::default() };
    let server = ApiServer::start(config).unwrap();
    let mut with = watch(&server, "resourceVersion=1&allowWatchBookmarks=true");
    let mut without = watch(&server, "resourceVersion=1");
    // A write to another kind moves the bookmark, and nothing else.
    server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})).unwrap();
    let mut newest = String::new();
    for _ in 0..3 {
        let bookmark = expect(&mut with, "BOOKMARK", "");
        assert!(!is_end_mark(&bookmark));
        bookmark["metadata"]["resourceVersion"].as_str().unwrap().clone_into(&mut newest);
    }
    assert_eq!(newest, server.resource_version().to_string());
    assert!(without.is_silent(QUIET));
}

#[test]
fn a_watch_ends_in_time_after_a_last_bookmark() {
    let server = start();
    let mut answer = watch(&server, "resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=3");
    expect(&mut answer, "BOOKMARK", "");
    assert!(answer.event().is_none(), "the end is a proper one");
    assert!(server.wait_for_watches(Kind::Node, 0, Duration::from_secs(5)));
}

#[test]
fn an_expired_version_gets_one_error() {
    let server = start();
    let old = server.apply(node("a", &json!({}))).unwrap();
    let mut open = watch(&server, &format!("resourceVersion={old}"));
    assert!(server.wait_for_watches(Kind::Node, 1, Duration::from_secs(5)));
    server.expire();
    for answer in [&mut open, &mut watch(&server, &format!("resourceVersion={old}"))] {
        let (event_type, _, status) = answer.event().unwrap();
        assert_eq!(
            (event_type.as_str(), &status["code"], &status["reason"]),
            ("ERROR", &json!(410), &json!("Expired"))
        );
        assert!(answer.event().is_none());
    }
    let mut fresh = watch(&server, &format!("resourceVersion={}", server.resource_version()));
    server.apply(node("b", &json!({}))).unwrap();
    expect(&mut fresh, "ADDED", "b");
}

#[test]
fn a_watch_that_cannot_keep_up_expires() {
    let server = ApiServer::start(Config { history_limit: 3, ..Config::default() }).unwrap();
    server.faults().stall_watches(true);
    let mut answer = watch(&server, "resourceVersion=1");
    for i in 0..5 {
        server.apply(node(&format!("n{i}"), &json!({}))).unwrap();
    }
    server.faults().stall_watches(false);
    assert_eq!(answer.event().unwrap().0, "ERROR");
}

#[test]
fn watches_of_clients_that_left_are_forgotten() {
    let server = start();
    let answer = watch(&server, "resourceVersion=1");
    assert!(server.wait_for_watches(Kind::Node, 1, Duration::from_secs(5)));
    drop(answer);
    assert!(server.wait_for_watches(Kind::Node, 0, Duration::from_secs(5)));
}
