//! The `ClusterRole` in `deploy/` against what the program asks the API server for.

use std::collections::BTreeSet;
use std::path::Path;

use lab::proxy::wait_until;

use crate::support::{PATIENCE, apply_web, cluster, start};

/// A permission as RBAC has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    group: String,
    resource: String,
    verb: String,
}

/// Every request is permitted, and nothing is permitted that a request does not need.
#[test]
fn the_cluster_role_permits_what_is_asked_for_and_no_more() {
    let permitted = cluster_role();
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    let asked = || -> BTreeSet<Permission> {
        let requests = cluster.api.requests();
        requests.iter().map(|request| needed(&request.method, &request.path_and_query)).collect()
    };
    // ServiceCIDRs are not waited for at the start.
    let resources = |permissions: &BTreeSet<Permission>| -> BTreeSet<String> {
        permissions.iter().map(|permission| permission.resource.clone()).collect()
    };
    let mut expected = resources(&permitted);
    // Sent when there is something to tell, which need not be here.
    expected.remove("events");
    assert!(
        wait_until(PATIENCE, || expected.is_subset(&resources(&asked()))),
        "permitted {expected:?}, asked for {:?}",
        asked()
    );
    let refused: Vec<_> = asked().into_iter().filter(|needed| !permitted.contains(needed)).collect();
    assert_eq!(refused, [], "permitted is {permitted:?}");
    for permission in permitted {
        let verbs: &[&str] =
            if permission.resource == "events" { &["create", "patch"] } else { &["list", "watch"] };
        assert!(verbs.contains(&permission.verb.as_str()), "{permission:?} is never used");
    }
}

/// What `deploy/kustomize/base/cluster-role.yaml` grants.
fn cluster_role() -> BTreeSet<Permission> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kustomize/base/cluster-role.yaml");
    let role: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut permissions = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for (group, resource, verb) in combinations(rule) {
            permissions.insert(Permission { group, resource, verb });
        }
    }
    assert!(!permissions.is_empty());
    permissions
}

/// All combinations of a rule's groups, resources and verbs.
fn combinations(rule: &serde_json::Value) -> Vec<(String, String, String)> {
    let texts = |field: &str| -> Vec<String> {
        rule[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut all = Vec::new();
    for group in texts("apiGroups") {
        for resource in texts("resources") {
            all.extend(texts("verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
        }
    }
    all
}

/// The permission that a request needs: `/api/v1/...` is the group without a name, `/apis/GROUP/VERSION/...` the others.
fn needed(method: &str, path_and_query: &str) -> Permission {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let mut parts: Vec<_> = path.split('/').skip(1).collect();
    let group = if parts[0] == "api" { "" } else { parts.remove(1) };
    let mut rest = parts.split_off(2);
    if rest[0] == "namespaces" && rest.len() > 2 {
        rest.drain(..2);
    }
    let verb = match method {
        "GET" if query.split('&').any(|pair| pair == "watch=true") => "watch",
        "GET" if rest.len() == 1 => "list",
        "GET" => "get",
        "POST" => "create",
        "PATCH" => "patch",
        other => other,
    };
    Permission { group: group.to_owned(), resource: rest[0].to_owned(), verb: verb.to_owned() }
}

#[test]
fn permissions_of_requests() {
    #[track_caller]
    fn check(method: &str, path: &str, expected: (&str, &str, &str)) {
        let Permission { group, resource, verb } = needed(method, path);
        assert_eq!((group.as_str(), resource.as_str(), verb.as_str()), expected);
    }
    check("GET", "/api/v1/nodes?fieldSelector=a&watch=true", ("", "nodes", "watch"));
    check("GET", "/api/v1/services?limit=500", ("", "services", "list"));
    check("GET", "/api/v1/nodes/node-1", ("", "nodes", "get"));
    check("GET", "/apis/discovery.k8s.io/v1/endpointslices", ("discovery.k8s.io", "endpointslices", "list"));
    check("POST", "/apis/events.k8s.io/v1/namespaces/default/events", ("events.k8s.io", "events", "create"));
    check(
        "PATCH",
        "/apis/events.k8s.io/v1/namespaces/default/events/a",
        ("events.k8s.io", "events", "patch"),
    );
}
