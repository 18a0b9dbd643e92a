//! Events in the API's form.
//!
//! The rules are those of `ValidateEventCreate` in `pkg/apis/core/validation/events.go`; what breaks one is refused.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use jiff::Timestamp;
use serde::Serialize;

use crate::{Event, Regarding};

/// `reportingController`.
const CONTROLLER: &str = "kube-proxy";
/// Where events about cluster-scoped objects are kept.
const CLUSTER_SCOPED_NAMESPACE: &str = "default";
/// Longest `note` in bytes.
const MAX_NOTE: usize = 1024;
/// Longest `reportingInstance` in bytes.
const MAX_INSTANCE: usize = 128;
/// Longest `metadata.name` in bytes, without the full stop and the 16 digits at its end.
const MAX_NAME: usize = 253 - 17;

/// An event's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Identity {
    /// That of an event that happened at this time.
    pub(crate) fn new(event: &Event, at: Timestamp) -> Self {
        let regarding = &event.regarding;
        let number = if event.reason.is_same_everywhere() { fingerprint(event) } else { nanos(at) };
        Self {
            namespace: namespace(regarding).to_owned(),
            name: format!("{}.{number:x}", cut(regarding.name(), MAX_NAME).trim_end_matches(['.', '-'])),
        }
    }

    /// The collection that it belongs to.
    pub(crate) fn collection(&self) -> String {
        format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace)
    }

    /// The event itself.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

fn namespace(regarding: &Regarding) -> &str {
    match regarding.namespace() {
        "" => CLUSTER_SCOPED_NAMESPACE,
        namespace => namespace,
    }
}

/// Nanoseconds since 1970.
fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or_default()
}

/// The same for equal events, in every process of one version.
fn fingerprint(event: &Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.hash(&mut hasher);
    hasher.finish()
}

/// The text up to so many bytes.
fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

/// `metav1.MicroTime`: the API wants six digits.
fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// `series`: what came of an event that happened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    pub(crate) count: u32,
    pub(crate) last: Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Metadata<'a>,
    event_time: String,
    reporting_controller: &'a str,
    reporting_instance: &'a str,
    action: &'a str,
    reason: &'a str,
    regarding: Reference<'a>,
    note: &'a str,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<SeriesBody>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference<'a> {
    api_version: &'a str,
    kind: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SeriesBody {
    count: u32,
    last_observed_time: String,
}

#[derive(Serialize)]
struct Patch {
    series: SeriesBody,
}

impl From<Series> for SeriesBody {
    fn from(series: Series) -> Self {
        Self { count: series.count, last_observed_time: micro_time(series.last) }
    }
}

/// A new Event.
pub(crate) fn create(
    event: &Event,
    identity: &Identity,
    at: Timestamp,
    series: Option<Series>,
    instance: &str,
) -> serde_json::Result<Vec<u8>> {
    let Event { reason, regarding, note } = event;
    serde_json::to_vec(&Body {
        api_version: "events.k8s.io/v1",
        kind: "Event",
        metadata: Metadata { name: &identity.name, namespace: &identity.namespace },
        event_time: micro_time(at),
        reporting_controller: CONTROLLER,
        reporting_instance: cut(instance, MAX_INSTANCE),
        action: reason.action(),
        reason: reason.as_str(),
        regarding: Reference {
            api_version: regarding.api_version(),
            kind: regarding.kind(),
            name: regarding.name(),
            namespace: regarding.namespace(),
            uid: regarding.uid().map(|uid| uid.to_string()),
        },
        note: cut(note, MAX_NOTE),
        r#type: reason.event_type().as_str(),
        series: series.map(SeriesBody::from),
    })
}

/// The change of an Event that happened again.
pub(crate) fn patch(series: Series) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Patch { series: series.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use model::{ObjectName, Uid};
    use serde_json::{Value, json};

    const UID: &str = "0a1b2c3d-4e5f-4789-abcd-ef0123456789";

    fn at() -> Timestamp {
        "2026-01-02T15:04:05.000006789Z".parse().unwrap()
    }

    fn body(event: &Event, series: Option<Series>) -> Value {
        let identity = Identity::new(event, at());
        serde_json::from_slice(&create(event, &identity, at(), series, "kube-proxy-host").unwrap()).unwrap()
    }

    #[test]
    fn an_event_about_the_node() {
        let event = Event::new(Reason::Starting, Regarding::Node("node-1".into()));
        let expected = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "node-1.1886f4a3b1c93285", "namespace": "default"},
            "eventTime": "2026-01-02T15:04:05.000006Z",
            "reportingController": "kube-proxy", "reportingInstance": "kube-proxy-host",
            "action": "StartKubeProxy", "reason": "Starting", "type": "Normal", "note": "",
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": "node-1"},
        });
        let mut found = body(&event, None);
        assert_eq!(found["metadata"]["name"], format!("node-1.{:x}", at().as_nanosecond()));
        found["metadata"]["name"] = expected["metadata"]["name"].clone();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_event_about_a_service_is_where_the_service_is() {
        let service = ObjectName::new("shop", "web");
        let event = Event::service_healthcheck("node-1", &service, Uid::parse(UID), 30000, &"in use");
        let series = Series { count: 3, last: at() };
        let found = body(&event, Some(series));
        assert_eq!(found["metadata"]["namespace"], "shop");
        assert_eq!(
            found["regarding"],
            json!({"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": UID}),
        );
        assert_eq!(
            found["note"],
            "node node-1 failed to start healthcheck \"shop/web\" on port 30000: in use"
        );
        assert_eq!((&found["action"], &found["type"]), (&json!("Listen"), &json!("Warning")));
        let expected = json!({"count": 3, "lastObservedTime": "2026-01-02T15:04:05.000006Z"});
        assert_eq!(found["series"], expected);
        let patch: Value = serde_json::from_slice(&patch(series).unwrap()).unwrap();
        assert_eq!(patch, json!({"series": expected}));
    }

    #[test]
    fn what_is_the_same_everywhere_has_the_same_name() {
        let event = |reason, note: &str| {
            Event::new(reason, Regarding::Service(ObjectName::new("shop", "web"), None)).note(note)
        };
        let later: Timestamp = "2026-01-02T16:00:00Z".parse().unwrap();
        let name = |event: &Event, at| Identity::new(event, at).name;
        let conflict = event(Reason::FrontendConflict, "x");
        assert_eq!(name(&conflict, at()), name(&conflict, later));
        assert_ne!(name(&conflict, at()), name(&event(Reason::FrontendConflict, "y"), at()));
        let listen = event(Reason::FailedToStartServiceHealthcheck, "x");
        assert_ne!(name(&listen, at()), name(&listen, later));
    }

    #[test]
    fn the_apis_limits_are_kept() {
        let long = format!("{}é", "n".repeat(1023));
        let event = Event::new(
            Reason::InvalidObject,
            Regarding::EndpointSlice(ObjectName::new("shop", &"a.".repeat(126))),
        )
        .note(long);
        let identity = Identity::new(&event, at());
        assert!(identity.name.len() <= 253 && !identity.name.contains(".."), "{}", identity.name);
        let body: Value =
            serde_json::from_slice(&create(&event, &identity, at(), None, &"h".repeat(500)).unwrap())
                .unwrap();
        assert_eq!(body["note"].as_str().unwrap().len(), 1023);
        assert_eq!(body["reportingInstance"].as_str().unwrap().len(), 128);
        for reason in Reason::ALL {
            assert!((1..=128).contains(&reason.as_str().len()) && (1..=128).contains(&reason.action().len()));
        }
    }
}
