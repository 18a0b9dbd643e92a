//! What a real server fills in when an object comes over HTTP: defaults, cluster IPs and node ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::kinds::Kind;
use super::store::Store;

/// First address for cluster IPs; the range is 10.96.0.0/12.
const FIRST_V4: u32 = 0x0a60_0100;
/// First address for IPv6 cluster IPs; the range is `fd00:10:96::/112`.
const FIRST_V6: u128 = 0xfd00_0010_0096_0000_0000_0000_0000_0100;
/// First port for node ports and health checks; the range is 30000-32767.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Completes `value`, which replaces `old`.
pub(super) fn complete(store: &Store, kind: Kind, value: &mut Value, old: Option<&Value>) {
    match kind {
        Kind::Service => complete_service(store, value, old),
        Kind::EndpointSlice => complete_slice(value, old),
        Kind::Namespace => {
            set_default(&mut value["spec"]["finalizers"], || json!(["kubernetes"]));
            set_default(&mut value["status"]["phase"], || "Active".into());
        }
        Kind::Node | Kind::ServiceCidr | Kind::CoreEvent | Kind::Event | Kind::Lease => {}
    }
}

fn set_default(place: &mut Value, default: impl FnOnce() -> Value) {
    let is_empty = match place {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    if is_empty {
        *place = default();
    }
}

fn items(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

fn complete_slice(value: &mut Value, old: Option<&Value>) {
    for port in items(&mut value["ports"]) {
        if port["name"].is_null() {
            port["name"] = "".into();
        }
        set_default(&mut port["protocol"], || "TCP".into());
    }
    let generation = old.map_or(0, |o| o["metadata"]["generation"].as_i64().unwrap_or(0));
    value["metadata"]["generation"] = (generation + 1).into();
}

fn complete_service(store: &Store, value: &mut Value, old: Option<&Value>) {
    let spec = &mut value["spec"];
    set_default(&mut spec["type"], || "ClusterIP".into());
    set_default(&mut spec["sessionAffinity"], || "None".into());
    for port in items(&mut spec["ports"]) {
        set_default(&mut port["protocol"], || "TCP".into());
        let number = port["port"].clone();
        set_default(&mut port["targetPort"], || number);
    }
    if spec["sessionAffinity"] == "ClientIP" {
        set_default(&mut spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], || 10_800.into());
    }
    if spec["type"] == "ExternalName" {
        return;
    }
    set_default(&mut spec["internalTrafficPolicy"], || "Cluster".into());
    complete_addresses(store, spec, old);
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        complete_external(store, spec);
    }
}

fn complete_addresses(store: &Store, spec: &mut Value, old: Option<&Value>) {
    if let Some(old) = old {
        // The addresses of a Service do not change, and an update may leave them out.
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            set_default(&mut spec[field], || old["spec"][field].clone());
        }
    }
    let wants_two = matches!(spec["ipFamilyPolicy"].as_str(), Some("RequireDualStack" | "PreferDualStack"));
    let first_is_v6 = spec["ipFamilies"][0] == "IPv6";
    let listed = spec["clusterIPs"][0].clone();
    set_default(&mut spec["clusterIP"], || match listed {
        Value::Null => free_address(store, first_is_v6).into(),
        listed => listed,
    });
    let first = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    set_default(&mut spec["clusterIPs"], || match first.parse() {
        Ok(IpAddr::V4(_)) if wants_two => json!([first, free_address(store, true)]),
        Ok(IpAddr::V6(_)) if wants_two => json!([first, free_address(store, false)]),
        _ => json!([first]),
    });
    let family = |ip: &Value| match ip.as_str().and_then(|ip| ip.parse().ok()) {
        Some(IpAddr::V6(_)) => "IPv6",
        Some(IpAddr::V4(_)) | None => "IPv4",
    };
    let families: Vec<&str> = spec["clusterIPs"].as_array().into_iter().flatten().map(family).collect();
    let families = json!(families);
    set_default(&mut spec["ipFamilies"], || families);
    set_default(&mut spec["ipFamilyPolicy"], || "SingleStack".into());
}

fn complete_external(store: &Store, spec: &mut Value) {
    set_default(&mut spec["externalTrafficPolicy"], || "Cluster".into());
    let is_balancer = spec["type"] == "LoadBalancer";
    if is_balancer {
        set_default(&mut spec["allocateLoadBalancerNodePorts"], || true.into());
    }
    let mut taken = Vec::new();
    if spec["allocateLoadBalancerNodePorts"] != false {
        for port in items(&mut spec["ports"]).filter(|p| p["nodePort"].as_i64().unwrap_or(0) == 0) {
            let free = free_port(store, &taken);
            taken.push(free);
            port["nodePort"] = free.into();
        }
    }
    if is_balancer && spec["externalTrafficPolicy"] == "Local" {
        set_default(&mut spec["healthCheckNodePort"], || free_port(store, &taken).into());
    }
}

/// An address that no Service has in its JSON. Only used for objects that come over HTTP, where the search
/// does not matter.
fn free_address(store: &Store, is_v6: bool) -> String {
    let candidates = (0u16..).map(|i| {
        if is_v6 {
            IpAddr::from(Ipv6Addr::from(FIRST_V6 + u128::from(i))).to_string()
        } else {
            IpAddr::from(Ipv4Addr::from(FIRST_V4 + u32::from(i))).to_string()
        }
    });
    first_free(store, candidates, |address| format!("\"{address}\"")).unwrap_or_default()
}

fn free_port(store: &Store, taken: &[u16]) -> u16 {
    let candidates = NODE_PORTS.filter(|port| !taken.contains(port));
    first_free(store, candidates, |port| format!("odePort\":{port}")).unwrap_or(*NODE_PORTS.end())
}

/// The first candidate whose text occurs in no Service.
fn first_free<T>(
    store: &Store,
    mut candidates: impl Iterator<Item = T>,
    text: impl Fn(&T) -> String,
) -> Option<T> {
    let services = store.objects(Kind::Service);
    let is_used = |needle: &str| {
        services.values().any(|s| std::str::from_utf8(&s.json).is_ok_and(|json| json.contains(needle)))
    };
    candidates.find(|candidate| !is_used(&text(candidate)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::object::Object;

    fn completed(store: &Store, spec: &Value) -> Value {
        let mut value = json!({"metadata": {"name": "a"}, "spec": spec});
        complete(store, Kind::Service, &mut value, None);
        value["spec"].take()
    }

    #[test]
    fn a_plain_service() {
        let spec = completed(&Store::new(1), &json!({"ports": [{"port": 80}]}));
        let expected = json!({
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "clusterIP": "10.96.1.0", "clusterIPs": ["10.96.1.0"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        });
        assert_eq!(spec, expected);
    }

    #[test]
    fn a_headless_service_keeps_none() {
        let spec = completed(&Store::new(1), &json!({"clusterIP": "None"}));
        assert_eq!((&spec["clusterIP"], &spec["clusterIPs"]), (&json!("None"), &json!(["None"])));
    }

    #[test]
    fn what_is_in_use_is_not_given_twice() {
        let mut store = Store::new(1);
        let taken = json!({
            "metadata": {"name": "b", "namespace": "x"},
            "spec": {"clusterIP": "10.96.1.0", "ports": [{"port": 1, "nodePort": 30000}],
                     "healthCheckNodePort": 30002},
        });
        store.put(|rv| Object::new(Kind::Service, &taken, rv)).unwrap();
        let balancer = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 80}, {"port": 81}],
        });
        let spec = completed(&store, &balancer);
        assert_eq!(spec["clusterIPs"], json!(["10.96.1.1", "fd00:10:96::100"]));
        assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(spec["ports"][0]["nodePort"], 30001);
        assert_eq!(spec["ports"][1]["nodePort"], 30003);
        assert_eq!(spec["healthCheckNodePort"], 30004);
    }
}
