//! What a client may ask about the server itself: versions, groups, resources, and just enough `OpenAPI` for
//! kubectl.

use serde_json::{Value, json};

use super::config::Config;
use super::kinds::{Info, Kind};

/// The document at `path`, if the server has one there. `kinds` are those that it admits to know.
pub(super) fn document(config: &Config, kinds: &[Kind], path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["version"] => Some(version(&config.version)),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let groups: Vec<Value> =
                group_versions(kinds).into_iter().filter(|g| !g.0.is_empty()).map(group).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let known = group_versions(kinds).into_iter().find(|g| g.0 == *name && !name.is_empty())?;
            let mut document = group(known);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            Some(document)
        }
        ["api", version] => resources(kinds, "", version),
        ["apis", group, version] => resources(kinds, group, version),
        ["openapi", "v3"] => Some(openapi_index(kinds)),
        ["openapi", "v3", "api", version] => openapi(kinds, "", version),
        ["openapi", "v3", "apis", group, version] => openapi(kinds, group, version),
        _ => None,
    }
}

fn version(version: &str) -> Value {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    json!({
        "major": major, "minor": minor, "gitVersion": version, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// Each (group, version) once, in the order of the kinds.
fn group_versions(kinds: &[Kind]) -> Vec<(&'static str, &'static str)> {
    let mut groups = Vec::new();
    for info in kinds.iter().map(|k| k.info()) {
        if !groups.contains(&(info.group, info.version)) {
            groups.push((info.group, info.version));
        }
    }
    groups
}

fn group((name, version): (&str, &str)) -> Value {
    let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn infos<'a>(
    kinds: &'a [Kind],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static Info> + 'a {
    kinds.iter().map(|k| k.info()).filter(move |i| i.group == group && i.version == version)
}

fn resources(kinds: &[Kind], group: &str, version: &str) -> Option<Value> {
    let resource = |info: &Info| {
        json!({
            "name": info.plural, "singularName": info.singular, "namespaced": info.namespaced,
            "kind": info.kind, "shortNames": info.short_names,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        })
    };
    let resources: Vec<Value> = infos(kinds, group, version).map(resource).collect();
    let group_version = infos(kinds, group, version).next()?.api_version();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    }))
}

fn openapi_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn openapi_index(kinds: &[Kind]) -> Value {
    let entry = |(group, version): (&str, &str)| {
        let path = openapi_path(group, version);
        let url = format!("/openapi/v3/{path}");
        (path, json!({"serverRelativeURL": url}))
    };
    let paths: serde_json::Map<String, Value> = group_versions(kinds).into_iter().map(entry).collect();
    json!({"paths": paths})
}

/// Says of each kind only that a patch takes `fieldValidation`. From that kubectl concludes that the server
/// validates, and does not ask for the full `OpenAPI` document.
fn openapi(kinds: &[Kind], group: &str, version: &str) -> Option<Value> {
    let path = |info: &Info| {
        let scope = if info.namespaced { "namespaces/{namespace}/" } else { "" };
        let path = format!("/{}/{scope}{}/{{name}}", openapi_path(group, version), info.plural);
        let gvk = json!({"group": info.group, "version": info.version, "kind": info.kind});
        let parameter = json!({"name": "fieldValidation", "in": "query", "schema": {"type": "string"}});
        let patch = json!({
            "x-kubernetes-group-version-kind": gvk, "parameters": [parameter],
            "responses": {"200": {"description": "OK"}},
        });
        (path, json!({"patch": patch}))
    };
    let paths: serde_json::Map<String, Value> = infos(kinds, group, version).map(path).collect();
    let info = json!({"title": "Kubernetes", "version": "unversioned"});
    (!paths.is_empty()).then(|| json!({"openapi": "3.0.0", "info": info, "paths": paths}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kind_takes_its_group_along() {
        let config = Config::default();
        let path = "/apis/networking.k8s.io/v1";
        assert!(document(&config, &Kind::ALL, path).is_some());
        let without: Vec<Kind> = Kind::ALL.into_iter().filter(|k| *k != Kind::ServiceCidr).collect();
        assert_eq!(document(&config, &without, path), None);
        assert_eq!(document(&config, &without, "/apis/networking.k8s.io"), None);
        let groups = document(&config, &without, "/apis").unwrap();
        assert!(!groups.to_string().contains("networking"), "{groups}");
    }

    #[test]
    fn the_core_group_is_not_among_the_others() {
        let config = Config::default();
        let groups = document(&config, &Kind::ALL, "/apis").unwrap();
        assert_eq!(groups["groups"].as_array().unwrap().len(), 4);
        let core = document(&config, &Kind::ALL, "/api/v1").unwrap();
        let names: Vec<&str> =
            core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["services", "nodes", "namespaces", "events"]);
    }
}
