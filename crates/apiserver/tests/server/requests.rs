//! Lists with their options, and writes.

use apiserver::{ApiServer, Config, Kind, ProtobufSupport};
use serde_json::{Value, json};

use crate::client::{Answer, JSON, PROTOBUF, get, request};

pub(crate) fn node(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
}

fn with_nodes(count: usize) -> ApiServer {
    let server = ApiServer::start(Config::default()).unwrap();
    server
        .load((0..count).map(|i| node(&format!("n{i:03}"), &json!({"odd": (i % 2 == 1).to_string()}))))
        .unwrap();
    server
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().into_iter().flatten();
    items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn list(server: &ApiServer, query: &str) -> Value {
    let answer = get(server.address(), &format!("/api/v1/nodes?{query}"), JSON);
    assert_eq!(answer.status, 200, "{query}");
    answer.json()
}

fn send(server: &ApiServer, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
    request(server.address(), method, path, &[("Content-Type", content_type), ("Accept", JSON)], body)
        .unwrap()
}

fn post(server: &ApiServer, path: &str, body: &Value) -> Answer {
    send(server, "POST", path, JSON, body.to_string().as_bytes())
}

#[test]
fn pages_show_one_revision() {
    let server = with_nodes(5);
    let first = list(&server, "limit=2");
    assert_eq!(names(&first), ["n000", "n001"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.delete(Kind::Node, "", "n002").unwrap();
    server.apply(node("n0025", &json!({}))).unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = list(&server, &format!("limit=2&continue={token}"));
    assert_eq!(names(&second), ["n002", "n003"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = list(&server, &format!("limit=2&continue={token}"));
    assert_eq!(names(&last), ["n004"]);
    assert_eq!(last["metadata"]["continue"], Value::Null);
}

#[test]
fn an_expired_page_can_go_on_inconsistently() {
    let server = with_nodes(4);
    let first = list(&server, "limit=2");
    server.expire();
    server.delete(Kind::Node, "", "n002").unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let expired = get(server.address(), &format!("/api/v1/nodes?limit=2&continue={token}"), JSON);
    assert_eq!(expired.status, 410);
    let status = expired.json();
    let token = status["metadata"]["continue"].as_str().unwrap();
    assert_eq!(names(&list(&server, &format!("limit=2&continue={token}"))), ["n003"]);
}

#[test]
fn limits_do_not_apply_to_any_version() {
    let server = with_nodes(4);
    assert_eq!(names(&list(&server, "limit=2&resourceVersion=0")).len(), 4);
}

#[test]
fn selectors_and_exact_revisions() {
    let server = with_nodes(4);
    let then = server.resource_version();
    server.delete(Kind::Node, "", "n001").unwrap();
    assert_eq!(names(&list(&server, "labelSelector=odd%3Dtrue")), ["n003"]);
    assert_eq!(names(&list(&server, "fieldSelector=metadata.name%3Dn002")), ["n002"]);
    let exact = format!("resourceVersion={then}&resourceVersionMatch=Exact&labelSelector=odd%3Dtrue");
    assert_eq!(names(&list(&server, &exact)), ["n001", "n003"]);
    let page = list(&server, "limit=1&labelSelector=odd%3Dfalse");
    assert_eq!(page["metadata"]["remainingItemCount"], Value::Null, "not counted with a selector");
    let unsupported = get(server.address(), "/api/v1/nodes?fieldSelector=spec.podCIDR%3Dx", JSON);
    assert_eq!(unsupported.status, 400);
}

#[test]
fn a_namespaced_list_shows_one_namespace() {
    let server = ApiServer::start(Config::default()).unwrap();
    for namespace in ["a", "a-b", "b"] {
        let metadata = json!({"name": "s", "namespace": namespace});
        server.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata})).unwrap();
    }
    let one = get(server.address(), "/api/v1/namespaces/a/services", JSON).json();
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    let all = get(server.address(), "/api/v1/services", JSON).json();
    let order: Vec<&str> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["metadata"]["namespace"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["a-b", "a", "b"], "as etcd orders keys");
}

#[test]
fn a_service_lives_and_dies_over_http() {
    let server = ApiServer::start(Config::default()).unwrap();
    let path = "/api/v1/namespaces/shop/services";
    let body = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                      "spec": {"type": "ClusterIP", "ports": [{"port": 80}]}});
    let created = post(&server, path, &body);
    assert_eq!(created.status, 201);
    let mut object = created.json();
    assert_eq!(object["metadata"]["namespace"], "shop");
    assert_eq!(post(&server, path, &body).status, 409);

    let one = format!("{path}/web");
    let old = object.clone();
    object["spec"]["ports"][0]["port"] = 81.into();
    assert_eq!(send(&server, "PUT", &one, JSON, object.to_string().as_bytes()).status, 200);
    let conflict = send(&server, "PUT", &one, JSON, old.to_string().as_bytes());
    assert_eq!((conflict.status, conflict.json()["reason"].take()), (409, "Conflict".into()));

    let patch = br#"{"metadata": {"labels": {"a": "b"}}}"#;
    let patched = send(&server, "PATCH", &one, "application/merge-patch+json", patch).json();
    assert_eq!(
        (&patched["metadata"]["labels"]["a"], &patched["spec"]["ports"][0]["port"]),
        (&json!("b"), &json!(81))
    );
    assert_eq!(send(&server, "PATCH", &one, "application/apply-patch+yaml", b"{}").status, 415);
    let balanced =
        br#"{"spec": {"type": "x"}, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}"#;
    let status =
        send(&server, "PATCH", &format!("{one}/status"), "application/merge-patch+json", balanced).json();
    assert_eq!(status["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
    assert_eq!(status["spec"]["type"], "ClusterIP", "the status subresource changes only the status");

    assert_eq!(send(&server, "DELETE", &one, "", b"").json()["status"], "Success");
    assert_eq!(get(server.address(), &one, JSON).status, 404);
    assert_eq!(send(&server, "DELETE", &one, "", b"").status, 404);
    assert_eq!(send(&server, "DELETE", path, "", b"").status, 405);
}

#[test]
fn bad_bodies_are_refused() {
    let server = ApiServer::start(Config::default()).unwrap();
    let path = "/api/v1/namespaces/shop/services";
    let named = |extra: Value| {
        let mut body = json!({"metadata": {"name": "web"}});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    assert_eq!(send(&server, "POST", path, JSON, b"{").status, 400);
    assert_eq!(send(&server, "POST", path, "application/yaml", b"a: b").status, 415);
    assert_eq!(post(&server, path, &json!({"spec": {}})).status, 422);
    assert_eq!(post(&server, path, &json!({"metadata": {"name": "web", "namespace": "x"}})).status, 400);
    let wrong = post(&server, path, &named(json!({"spec": {"ports": [{"port": "http"}]}})));
    assert_eq!(wrong.status, 400);
    assert!(wrong.json()["message"].as_str().unwrap().contains("spec.ports.port"));
    let strict = format!("{path}?fieldValidation=Strict");
    let unknown = post(&server, &strict, &named(json!({"spec": {"ports": [{"port": 1, "prot": 2}]}})));
    assert_eq!(unknown.status, 400);
    assert!(unknown.json()["message"].as_str().unwrap().contains(r#"unknown field "spec.ports[0].prot""#));
    assert_eq!(server.count(Kind::Service), 0);
}

#[test]
fn events_may_come_in_protobuf() {
    let server = ApiServer::start(Config::default()).unwrap();
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "metadata": {"name": "e1", "namespace": "default"}, "eventTime": "2026-11-21T01:05:48.250000Z",
        "reportingController": "kube-proxy", "reportingInstance": "node-1", "action": "Start",
        "reason": "Starting", "regarding": {"kind": "Node", "name": "node-1"}, "note": "hello", "type": "Normal",
        "series": {"count": 3, "lastObservedTime": "2026-11-21T01:05:49.000001Z"},
    });
    assert_eq!(post(&server, path, &event).status, 201);
    let stored = get(server.address(), &format!("{path}/e1"), PROTOBUF).bytes();
    let before = server.events();
    server.delete(Kind::Event, "default", "e1").unwrap();
    let created = send(&server, "POST", path, PROTOBUF, &stored);
    assert_eq!(created.status, 201);
    let mut after = server.events();
    after[0]["metadata"]["resourceVersion"] = before[0]["metadata"]["resourceVersion"].clone();
    assert_eq!(after, before, "the way through protobuf loses nothing");
    assert_eq!(after[0]["series"]["lastObservedTime"], "2026-11-21T01:05:49.000001Z");
    assert_eq!(send(&server, "POST", path, PROTOBUF, &stored[..40]).status, 400);
}

#[test]
fn a_lease_is_kept_and_renewed() {
    let server = ApiServer::start(Config::default()).unwrap();
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "node-1", "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": "node-1", "leaseDurationSeconds": 40, "renewTime": "2026-11-21T01:05:48.250000Z"},
    });
    assert_eq!(post(&server, path, &lease).status, 201);
    lease["spec"]["renewTime"] = "2026-11-21T01:05:58.250000Z".into();
    let one = format!("{path}/node-1");
    assert_eq!(send(&server, "PUT", &one, JSON, lease.to_string().as_bytes()).status, 200);
    let stored = get(server.address(), &one, PROTOBUF).bytes();
    assert_eq!(send(&server, "PUT", &one, PROTOBUF, &stored).status, 200);
    assert_eq!(get(server.address(), &one, JSON).json()["spec"], lease["spec"]);
}

#[test]
fn protobuf_can_be_off() {
    for (protobuf, status, content_type) in
        [(ProtobufSupport::Refuse, 406, JSON), (ProtobufSupport::AnswerJson, 200, JSON)]
    {
        let server = ApiServer::start(Config { protobuf, ..Config::default() }).unwrap();
        let answer = get(server.address(), "/api/v1/services", PROTOBUF);
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (status, content_type));
        assert_eq!(get(server.address(), "/api/v1/services", &format!("{PROTOBUF},{JSON}")).status, 200);
    }
}

#[test]
fn requests_are_logged() {
    let server = with_nodes(1);
    get(server.address(), "/api/v1/nodes?limit=1", PROTOBUF).bytes();
    get(server.address(), "/nothing", JSON).bytes();
    let log = server.requests();
    let brief: Vec<_> =
        log.iter().map(|r| (r.method.as_str(), r.path_and_query.as_str(), r.status)).collect();
    assert_eq!(brief, [("GET", "/api/v1/nodes?limit=1", 200), ("GET", "/nothing", 404)]);
    assert_eq!(log[0].accept.as_deref(), Some(PROTOBUF));
}

#[test]
fn ten_thousand_slices_are_listed_whole() {
    let server = ApiServer::start(Config::default()).unwrap();
    let slice = |i: usize| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("s{i}"), "namespace": "shop"},
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}],
        })
    };
    server.load((0..10_000).map(slice)).unwrap();
    let path = "/apis/discovery.k8s.io/v1/endpointslices";
    let list = get(server.address(), path, JSON).json();
    assert_eq!(list["items"].as_array().unwrap().len(), 10_000);
    let proto = get(server.address(), path, PROTOBUF).bytes();
    assert!(proto.starts_with(b"k8s\0") && proto.ends_with(&[0x1a, 0, 0x22, 0]));
    assert!(proto.len() < serde_json::to_vec(&list).unwrap().len());
}
