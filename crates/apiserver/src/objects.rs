//! Single objects: get, create, update, patch, delete.

use bytes::Bytes;
use http::Response;
use serde_json::{Map, Value, json};

use super::body::{Body, response, whole};
use super::error::ObjectError;
use super::kinds::Kind;
use super::negotiate::{Format, PROTOBUF};
use super::object::{Object, key};
use super::proto;
use super::shared::Shared;
use super::status::Status;
use super::store::Store;
use super::time::Timestamp;

/// Where a request for a single object points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: Kind,
    /// Empty for cluster-wide kinds.
    pub(super) namespace: String,
    /// Empty when an object is created.
    pub(super) name: String,
    /// Whether the `status` subresource is meant.
    pub(super) is_status: bool,
}

impl Target {
    fn key(&self) -> String {
        key(&self.namespace, &self.name)
    }
}

/// Body of a request.
#[derive(Debug)]
pub(super) struct Content {
    /// Media type without parameters.
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

fn object_response(code: u16, object: &Object, format: Format) -> Response<Body> {
    let bytes = match format {
        Format::Protobuf => object.enveloped(),
        Format::Json => {
            let mut bytes = Vec::new();
            object.put_json(&mut bytes);
            bytes.push(b'\n');
            bytes
        }
    };
    response(code, format.content_type(), whole(bytes))
}

pub(super) fn get(shared: &Shared, target: &Target, format: Format) -> Result<Response<Body>, Status> {
    let object = shared.lock().store.get(target.kind, &target.key()).cloned();
    let object = object.ok_or_else(|| Status::not_found(target.kind, &target.name))?;
    Ok(object_response(200, &object, format))
}

pub(super) fn create(
    shared: &Shared,
    target: &Target,
    content: &Content,
    format: Format,
) -> Result<Response<Body>, Status> {
    let mut value = parse(target, content)?;
    let name = take_name(&mut value);
    if name.is_empty() {
        return Err(Status::failure(422, "Invalid", "name or generateName is required"));
    }
    let key = key(&target.namespace, &name);
    let object = shared.change(|store| {
        if store.get(target.kind, &key).is_some() {
            return Err(Status::already_exists(target.kind, &name));
        }
        put(store, target.kind, &mut value)
    })?;
    Ok(object_response(201, &object, format))
}

pub(super) fn update(
    shared: &Shared,
    target: &Target,
    content: &Content,
    format: Format,
) -> Result<Response<Body>, Status> {
    let value = parse(target, content)?;
    replace(shared, target, format, |_| Ok(value))
}

/// Applies a merge patch (RFC 7386) or one of operations (RFC 6902). The other kinds of patch get 415.
pub(super) fn patch(
    shared: &Shared,
    target: &Target,
    content: &Content,
    format: Format,
) -> Result<Response<Body>, Status> {
    let patch = || -> Result<Value, Status> {
        serde_json::from_slice(&content.bytes).map_err(|e| Status::bad_request(e.to_string()))
    };
    match content.media_type.as_str() {
        "application/merge-patch+json" => {
            let patch = patch()?;
            replace(shared, target, format, |mut value| {
                merge(&mut value, patch);
                Ok(value)
            })
        }
        "application/json-patch+json" => {
            let patch = patch()?;
            let invalid = |reason: String| Status::failure(422, "Invalid", reason);
            replace(shared, target, format, |value| super::json_patch::apply(value, &patch).map_err(invalid))
        }
        other => Err(Status::unsupported_media_type(other)),
    }
}

fn merge(value: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *value = patch;
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    for (name, patch) in patch {
        let Value::Object(map) = value else { return };
        if patch.is_null() {
            map.remove(&name);
        } else {
            merge(map.entry(name).or_insert(Value::Null), patch);
        }
    }
}

/// Replaces an existing object by what `change` makes of it.
fn replace(
    shared: &Shared,
    target: &Target,
    format: Format,
    change: impl FnOnce(Value) -> Result<Value, Status>,
) -> Result<Response<Body>, Status> {
    let not_found = || Status::not_found(target.kind, &target.name);
    let object = shared.change(|store| {
        let old = store.get(target.kind, &target.key()).cloned().ok_or_else(not_found)?;
        let old_value = old.value().ok_or_else(|| Status::fault(500, None))?;
        let mut value = change(old_value.clone())?;
        let expected = value["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !expected.is_empty() && expected != old.resource_version.to_string() {
            return Err(Status::conflict(target.kind, &target.name));
        }
        if target.is_status {
            let status = value["status"].take();
            value = old_value.clone();
            value["status"] = status;
        }
        value["metadata"]["name"] = target.name.as_str().into();
        put(store, target.kind, &mut value)
    })?;
    Ok(object_response(200, &object, format))
}

pub(super) fn delete(shared: &Shared, target: &Target, format: Format) -> Result<Response<Body>, Status> {
    let last = shared.change(|store| store.remove(target.kind, &target.key()));
    let last = last.ok_or_else(|| Status::not_found(target.kind, &target.name))?;
    let uid = last.value().and_then(|v| v["metadata"]["uid"].as_str().map(str::to_owned)).unwrap_or_default();
    Ok(super::body::status_response(&Status::deleted(target.kind, &target.name, &uid), format))
}

/// Reads an object, and checks it against the path.
fn parse(target: &Target, content: &Content) -> Result<Value, Status> {
    let info = target.kind.info();
    let bad = |e: &dyn std::error::Error| {
        Status::bad_request(format!("{} in version \"{}\" cannot be handled: {e}", info.kind, info.version))
    };
    let mut value: Value = match content.media_type.as_str() {
        "" | "application/json" => serde_json::from_slice(&content.bytes).map_err(|e| bad(&e))?,
        PROTOBUF => {
            let raw = proto::open_envelope(&content.bytes).map_err(|e| bad(&e))?;
            proto::decode(info.message, raw).map_err(|e| bad(&e))?
        }
        other => return Err(Status::unsupported_media_type(other)),
    };
    if !value.is_object() {
        return Err(Status::bad_request("the body is not an object"));
    }
    check_namespace(target, &value)?;
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    if info.namespaced {
        value["metadata"]["namespace"] = target.namespace.as_str().into();
    }
    Ok(value)
}

fn check_namespace(target: &Target, value: &Value) -> Result<(), Status> {
    match value["metadata"]["namespace"].as_str() {
        None | Some("") => Ok(()),
        Some(namespace) if namespace == target.namespace => Ok(()),
        Some(_) => {
            let text =
                "the namespace of the provided object does not match the namespace sent on the request";
            Err(Status::bad_request(text))
        }
    }
}

/// The object's name, which is made from `generateName` if it has to be.
fn take_name(value: &mut Value) -> String {
    let metadata = &mut value["metadata"];
    if let (None | Some(""), Some(prefix)) = (metadata["name"].as_str(), metadata["generateName"].as_str()) {
        metadata["name"] = format!("{prefix}{:05x}", fastrand::u32(..0x10_0000)).into();
    }
    metadata["name"].as_str().unwrap_or_default().to_owned()
}

/// Completes the metadata that the server owns, and stores the object.
fn put(store: &mut Store, kind: Kind, value: &mut Value) -> Result<std::sync::Arc<Object>, Status> {
    put_value(store, kind, value).map_err(|e| {
        let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
        Status::bad_request(format!("{e}{cause}"))
    })
}

/// Stores `value` with the next revision, and with `uid` and `creationTimestamp` if it has none: those of the
/// object that it replaces, or new ones.
pub(super) fn put_value(
    store: &mut Store,
    kind: Kind,
    value: &mut Value,
) -> Result<std::sync::Arc<Object>, ObjectError> {
    let metadata = &mut value["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Err(ObjectError::NoName);
    }
    let old = store.get(kind, &key(metadata["namespace"].as_str().unwrap_or_default(), name));
    let old_metadata = old.and_then(|o| o.value()).map(|mut v| v["metadata"].take()).unwrap_or_default();
    for field in ["uid", "creationTimestamp"] {
        if metadata[field].as_str().unwrap_or_default().is_empty() {
            metadata[field] = match old_metadata[field].as_str() {
                Some(text) => text.into(),
                None if field == "uid" => new_uid().into(),
                None => Timestamp::now().to_seconds_text().into(),
            };
        }
    }
    store.put(|revision| {
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        Object::new(kind, value, revision)
    })
}

/// A random UUID of version 4.
fn new_uid() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patches() {
        let mut value = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1, 2]});
        merge(&mut value, json!({"a": null, "b": {"c": 5}, "e": [3], "f": {"g": null, "h": 1}}));
        assert_eq!(value, json!({"b": {"c": 5, "d": 3}, "e": [3], "f": {"h": 1}}));
    }

    #[test]
    fn uids_are_of_version_4() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!(["8", "9", "a", "b"].contains(&&uid[19..20]), "{uid}");
    }
}
