//! `metav1.Status`, the body of every error, in the shapes of a real server.

use serde_json::{Map, Value, json};

use super::kinds::Kind;
use super::negotiate::Format;
use super::{json as canonical_json, proto, tables};

/// An answer without an object: mostly an error.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) code: u16,
    body: Value,
    /// Value of the `Retry-After` header in seconds.
    pub(super) retry_after: Option<u32>,
    /// Written with line breaks, as a real server does before it has found out what the client accepts.
    is_pretty: bool,
}

impl Status {
    /// A failure with this HTTP code, reason and message.
    pub(super) fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let body = json!({"status": "Failure", "message": message, "reason": reason, "code": code});
        Self { code, body, retry_after: None, is_pretty: false }
    }

    /// The answer to a deletion.
    pub(super) fn deleted(kind: Kind, name: &str, uid: &str) -> Self {
        let mut status =
            Self { code: 200, body: json!({"status": "Success"}), retry_after: None, is_pretty: false };
        status.set_details(kind, name);
        status.body["details"]["uid"] = uid.into();
        status
    }

    fn set_details(&mut self, kind: Kind, name: &str) {
        let info = kind.info();
        self.body["details"] = json!({"name": name, "group": info.group, "kind": info.plural});
    }

    pub(super) fn not_found(kind: Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", kind.info().qualified_plural());
        let mut status = Self::failure(404, "NotFound", message);
        status.set_details(kind, name);
        status
    }

    /// The answer for a path that the server does not serve.
    pub(super) fn no_such_path() -> Self {
        let mut status = Self::failure(404, "NotFound", "the server could not find the requested resource");
        status.body["details"] = json!({});
        status
    }

    pub(super) fn already_exists(kind: Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.info().qualified_plural());
        let mut status = Self::failure(409, "AlreadyExists", message);
        status.set_details(kind, name);
        status
    }

    pub(super) fn conflict(kind: Kind, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes \
             to the latest version and try again",
            kind.info().qualified_plural()
        );
        let mut status = Self::failure(409, "Conflict", message);
        status.set_details(kind, name);
        status
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    pub(super) fn not_acceptable() -> Self {
        let message = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
                       application/vnd.kubernetes.protobuf, application/json;stream=watch, \
                       application/vnd.kubernetes.protobuf;stream=watch";
        let mut status = Self::failure(406, "NotAcceptable", message);
        status.body["details"] = json!({});
        status.is_pretty = true;
        status
    }

    pub(super) fn unsupported_media_type(content_type: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - {content_type:?} is not accepted");
        Self::failure(415, "UnsupportedMediaType", message)
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::failure(405, "MethodNotAllowed", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// What a request without credentials gets.
    pub(super) fn forbidden(verb: &str, kind: Kind) -> Self {
        let info = kind.info();
        let message = format!(
            "{} is forbidden: User \"system:anonymous\" cannot {verb} resource \"{}\" in API group \"{}\" at the \
             cluster scope",
            info.qualified_plural(),
            info.plural,
            info.group
        );
        let mut status = Self::failure(403, "Forbidden", message);
        status.set_details(kind, "");
        status
    }

    /// A list or watch whose resource version is no longer in the history.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// A continued list whose snapshot is gone; `continuation` goes on from the present state.
    pub(super) fn expired_continue(continuation: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start \
                       a new list without the continue parameter, or use the continue token in this response to \
                       retrieve the remainder of the results. Continuing with the provided token results in an \
                       inconsistent list - objects that were created, modified, or deleted between the time the first \
                       chunk was returned and now may show up in the list.";
        let mut status = Self::expired(message);
        status.body["metadata"] = json!({"continue": continuation});
        status
    }

    /// A resource version that the server has not reached.
    pub(super) fn too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let mut status = Self::failure(504, "Timeout", message);
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        status.body["details"] = json!({"causes": [cause], "retryAfterSeconds": 1});
        status.retry_after = Some(1);
        status
    }

    /// Options of a list or watch that contradict each other: (field, reason of the cause, message).
    pub(super) fn invalid_options(causes: &[(&str, &str, String)]) -> Self {
        let texts: Vec<String> = causes.iter().map(|(field, _, text)| format!("{field}: {text}")).collect();
        let listed =
            if let [only] = texts.as_slice() { only.clone() } else { format!("[{}]", texts.join(", ")) };
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {listed}");
        let cause = |(field, reason, text): &(&str, &str, String)| json!({"reason": reason, "message": text, "field": field});
        let causes: Vec<Value> = causes.iter().map(cause).collect();
        let mut status = Self::failure(422, "Invalid", message);
        status.body["details"] = json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": causes});
        status
    }

    /// The answer that a fault asks for.
    pub(super) fn fault(code: u16, retry_after: Option<u32>) -> Self {
        let (reason, message) = match code {
            401 => return Self::unauthorized(),
            403 => ("Forbidden", "forbidden by an injected fault"),
            404 => return Self::no_such_path(),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("InternalError", "an error on the server has prevented the request from succeeding"),
        };
        let mut status = Self::failure(code, reason, message);
        if let Some(seconds) = retry_after {
            status.body["details"] = json!({"retryAfterSeconds": seconds});
            status.retry_after = Some(seconds);
        }
        status
    }

    /// JSON with `kind` and `apiVersion`, without a line break at the end.
    pub(super) fn to_json(&self) -> String {
        if self.is_pretty {
            return self.to_pretty_json();
        }
        // The body is built above, so it fits the table.
        let body = canonical_json::canonical(&tables::STATUS, &self.body).unwrap_or_default();
        format!(r#"{{"kind":"Status","apiVersion":"v1",{}"#, body.get(1..).unwrap_or("}"))
    }

    /// Fields in the order of the Go struct with two spaces per level.
    fn to_pretty_json(&self) -> String {
        let text = |name: &str| self.body[name].to_string();
        format!(
            "{{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {{}},\n  \"status\": {},\n  \
             \"message\": {},\n  \"reason\": {},\n  \"details\": {{}},\n  \"code\": {}\n}}",
            text("status"),
            text("message"),
            text("reason"),
            text("code")
        )
    }

    /// Protobuf in its envelope.
    pub(super) fn to_proto(&self) -> Vec<u8> {
        let raw = proto::encode(&tables::STATUS, &self.body).unwrap_or_default();
        proto::envelope("v1", "Status", &raw)
    }

    /// The whole body in a format.
    pub(super) fn to_body(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Protobuf => self.to_proto(),
            Format::Json if self.is_pretty => self.to_json().into_bytes(),
            Format::Json => {
                let mut body = self.to_json().into_bytes();
                body.push(b'\n');
                body
            }
        }
    }

    /// The format in which the status goes out although the client asked for `format`.
    pub(super) fn format(&self, format: Format) -> Format {
        if self.is_pretty { Format::Json } else { format }
    }
}

/// Metadata of a bookmark: the revision and, at the end of the initial events, the mark that says so.
pub(super) fn bookmark_metadata(resource_version: u64, ends_initial_events: bool) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), resource_version.to_string().into());
    if ends_initial_events {
        metadata.insert("annotations".to_owned(), json!({"k8s.io/initial-events-end": "true"}));
    }
    Value::Object(metadata)
}
