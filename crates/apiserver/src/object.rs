//! One stored object: its two serialised forms and the few fields that selectors look at.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::error::{ObjectError, SchemaError};
use super::kinds::Kind;
use super::{json, proto};

/// An object as the store keeps it.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) resource_version: u64,
    /// Canonical JSON without `kind` and `apiVersion`, as items of a list are written.
    pub(super) json: Bytes,
    /// Protobuf without the envelope.
    pub(super) proto: Bytes,
    pub(super) labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the order in which the kind names them.
    pub(super) fields: Box<[Box<str>]>,
}

impl Object {
    /// Serialises `value`, whose metadata must be complete.
    pub(super) fn new(kind: Kind, value: &Value, resource_version: u64) -> Result<Self, ObjectError> {
        let info = kind.info();
        let schema = |source: SchemaError| ObjectError::Schema { kind: info.kind, source };
        let json = json::canonical(info.message, value).map_err(schema)?;
        let proto = proto::encode(info.message, value).map_err(schema)?;
        let meta = &value["metadata"];
        let labels = meta["labels"].as_object().into_iter().flatten();
        Ok(Self {
            kind,
            namespace: meta["namespace"].as_str().unwrap_or_default().into(),
            name: meta["name"].as_str().unwrap_or_default().into(),
            resource_version,
            json: json.into(),
            proto: proto.into(),
            labels: labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect(),
            fields: info.selectable.iter().map(|path| field_value(value, path).into()).collect(),
        })
    }

    /// An object whose forms are given, sound or not.
    pub(super) fn raw(
        kind: Kind,
        namespace: &str,
        name: &str,
        json: Bytes,
        proto: Bytes,
        revision: u64,
    ) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            resource_version: revision,
            json,
            proto,
            labels: Box::default(),
            fields: kind.info().selectable.iter().map(|_| "".into()).collect(),
        }
    }

    /// The key by which lists are ordered, as in etcd: `namespace/name`, or `name` of a cluster-wide kind.
    pub(super) fn key(&self) -> String {
        key(&self.namespace, &self.name)
    }

    /// The object with another `metadata.resourceVersion`. Bytes that were injected raw stay as they are.
    pub(super) fn with_resource_version(&self, resource_version: u64) -> Self {
        let changed = self.value().and_then(|mut value| {
            value["metadata"]["resourceVersion"] = resource_version.to_string().into();
            Self::new(self.kind, &value, resource_version).ok()
        });
        changed.unwrap_or_else(|| Self { resource_version, ..self.clone() })
    }

    /// The object as JSON value with `kind` and `apiVersion`, or `None` for raw bytes that are no JSON
    /// object.
    pub(super) fn value(&self) -> Option<Value> {
        let mut map: Map<String, Value> = serde_json::from_slice(&self.json).ok()?;
        map.get("metadata")?.as_object()?;
        map.insert("kind".to_owned(), self.kind.info().kind.into());
        map.insert("apiVersion".to_owned(), self.kind.info().api_version().into());
        Some(Value::Object(map))
    }

    /// Appends the object's JSON with `kind` and `apiVersion`.
    pub(super) fn put_json(&self, out: &mut Vec<u8>) {
        let info = self.kind.info();
        let head = format!(r#"{{"kind":"{}","apiVersion":"{}","#, info.kind, info.api_version());
        out.extend_from_slice(head.as_bytes());
        // The stored form is a non-empty object, so what follows its brace can follow the comma.
        out.extend_from_slice(self.json.get(1..).unwrap_or_default());
    }

    /// The object's protobuf in its envelope.
    pub(super) fn enveloped(&self) -> Vec<u8> {
        proto::envelope(&self.kind.info().api_version(), self.kind.info().kind, &self.proto)
    }
}

/// The key of an object, see [`Object::key`].
pub(super) fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// A field by its dotted path, as text; a missing boolean reads as "false", like in a Go struct.
fn field_value(value: &Value, path: &str) -> String {
    match path.split('.').fold(value, |v, name| &v[name]) {
        Value::String(text) => text.clone(),
        Value::Null if path == "spec.unschedulable" => "false".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
