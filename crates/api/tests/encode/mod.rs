//! A small protobuf writer for tests: the API's JSON form in, its protobuf form out. Values of the wrong JSON type are
//! written with the wire type that they have, so that malformed objects can be written too.

use model::Kind;
use serde_json::Value;

/// The message that a field holds, by the field number; `""` for scalars, `map` for maps of texts.
type Field = (&'static str, u8, &'static str);

fn fields(message: &str) -> &'static [Field] {
    match message {
        "Service" => &[("metadata", 1, "Meta"), ("spec", 2, "ServiceSpec"), ("status", 3, "ServiceStatus")],
        "EndpointSlice" => &[
            ("metadata", 1, "Meta"),
            ("endpoints", 2, "Endpoint"),
            ("ports", 3, "SlicePort"),
            ("addressType", 4, ""),
        ],
        "Node" => &[("metadata", 1, "Meta"), ("spec", 2, "NodeSpec"), ("status", 3, "NodeStatus")],
        "ServiceCIDR" => &[("metadata", 1, "Meta"), ("spec", 2, "CidrSpec")],
        "Meta" => &[
            ("name", 1, ""),
            ("namespace", 3, ""),
            ("uid", 5, ""),
            ("resourceVersion", 6, ""),
            ("deletionTimestamp", 9, "Time"),
            ("labels", 11, "map"),
            ("annotations", 12, "map"),
        ],
        "ServiceSpec" => &[
            ("ports", 1, "ServicePort"),
            ("clusterIP", 3, ""),
            ("type", 4, ""),
            ("externalIPs", 5, ""),
            ("sessionAffinity", 7, ""),
            ("loadBalancerSourceRanges", 9, ""),
            ("externalTrafficPolicy", 11, ""),
            ("healthCheckNodePort", 12, ""),
            ("sessionAffinityConfig", 14, "AffinityConfig"),
            ("clusterIPs", 18, ""),
            ("ipFamilies", 19, ""),
            ("internalTrafficPolicy", 22, ""),
        ],
        "ServicePort" => &[
            ("name", 1, ""),
            ("protocol", 2, ""),
            ("port", 3, ""),
            ("nodePort", 5, ""),
            ("appProtocol", 6, ""),
        ],
        "AffinityConfig" => &[("clientIP", 1, "ClientIp")],
        "ClientIp" => &[("timeoutSeconds", 1, "")],
        "ServiceStatus" => &[("loadBalancer", 1, "LoadBalancer")],
        "LoadBalancer" => &[("ingress", 1, "Ingress")],
        "Ingress" => &[("ip", 1, ""), ("hostname", 2, ""), ("ipMode", 3, "")],
        "Endpoint" => &[
            ("addresses", 1, ""),
            ("conditions", 2, "Conditions"),
            ("targetRef", 4, "TargetRef"),
            ("nodeName", 6, ""),
            ("zone", 7, ""),
            ("hints", 8, "Hints"),
        ],
        "TargetRef" => &[("kind", 1, ""), ("name", 3, "")],
        "Conditions" => &[("ready", 1, ""), ("serving", 2, ""), ("terminating", 3, "")],
        "Hints" => &[("forZones", 1, "Hint"), ("forNodes", 2, "Hint")],
        "Hint" => &[("name", 1, "")],
        "SlicePort" => &[("name", 1, ""), ("protocol", 2, ""), ("port", 3, "")],
        "NodeSpec" => &[("podCIDR", 1, ""), ("taints", 5, "Taint"), ("podCIDRs", 7, "")],
        "Taint" => &[("key", 1, ""), ("value", 2, ""), ("effect", 3, "")],
        "NodeStatus" => &[("addresses", 5, "NodeAddress")],
        "NodeAddress" => &[("type", 1, ""), ("address", 2, "")],
        "CidrSpec" => &[("cidrs", 1, "")],
        other => panic!("no message {other}"),
    }
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    to.push(value.to_le_bytes()[0]);
}

fn bytes(number: u8, content: &[u8], to: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, to);
    varint(content.len() as u64, to);
    to.extend_from_slice(content);
}

fn write(number: u8, holds: &str, value: &Value, to: &mut Vec<u8>) {
    let integer = |value: i64, to: &mut Vec<u8>| {
        varint(u64::from(number) << 3, to);
        varint(value.cast_unsigned(), to);
    };
    match value {
        Value::Null => {}
        Value::Bool(value) => integer(i64::from(*value), to),
        Value::Number(value) => integer(value.as_i64().unwrap(), to),
        // A time is a message of its own; nobody looks inside.
        Value::String(_) if holds == "Time" => bytes(number, &[], to),
        Value::String(text) => bytes(number, text.as_bytes(), to),
        Value::Array(items) => {
            for item in items {
                write(number, holds, item, to);
            }
        }
        Value::Object(map) if holds == "map" => {
            for (key, value) in map {
                let mut entry = Vec::new();
                bytes(1, key.as_bytes(), &mut entry);
                bytes(2, value.as_str().unwrap().as_bytes(), &mut entry);
                bytes(number, &entry, to);
            }
        }
        Value::Object(_) => bytes(number, &message(holds, value), to),
    }
}

fn message(name: &str, value: &Value) -> Vec<u8> {
    let mut content = Vec::new();
    for (field, value) in value.as_object().unwrap() {
        match fields(name).iter().find(|(known, ..)| known == field) {
            Some((_, number, holds)) => write(*number, holds, value, &mut content),
            // A field that nobody knows, as from a newer server.
            None => bytes(100, b"\xff", &mut content),
        }
    }
    content
}

/// One object, as inside lists.
pub(crate) fn object(kind: Kind, value: &Value) -> Vec<u8> {
    message(kind.as_str(), value)
}

/// The body of a list answer.
pub(crate) fn list(kind: Kind, items: &[Value]) -> Vec<u8> {
    let mut list = Vec::new();
    bytes(1, &[], &mut list);
    for item in items {
        bytes(2, &object(kind, item), &mut list);
    }
    let (mut type_meta, mut unknown) = (Vec::new(), Vec::new());
    bytes(2, format!("{kind}List").as_bytes(), &mut type_meta);
    bytes(1, &type_meta, &mut unknown);
    bytes(2, &list, &mut unknown);
    [b"k8s\0", &unknown[..]].concat()
}
