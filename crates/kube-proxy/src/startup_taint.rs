//! The startup taint (`startupTaint`): the node has it from its beginning, so that no pod is put there before Services work, and the proxy
//! takes it away after its first sync. Whenever it is there again, as on a Node that was made anew, it goes again.

use std::time::Duration;

use agent::Telemetry;
use events::{Event, Reason, Recorder, Regarding};
use model::{Name, Node};
use serde_json::{Value, json};
use source::{Client, Method, WriteError};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::first_sync;

/// The longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The pause after an attempt, unless the Node changes before. After one that succeeded, the watch is about to tell so.
const PAUSE: Duration = Duration::from_secs(10);

/// Takes the taint away whenever the node has it, from the first sync on; for ever.
pub(crate) async fn keep_away(
    key: String,
    client: Client,
    node_name: String,
    mut nodes: watch::Receiver<Option<Node>>,
    telemetry: Telemetry,
    recorder: Recorder,
) {
    first_sync::wait(&telemetry).await;
    loop {
        let patch = nodes.borrow_and_update().as_ref().and_then(|node| patch(&node.taints, &key));
        let Some(patch) = patch else {
            if nodes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let path = format!("/api/v1/nodes/{node_name}");
        match client.write(Method::JsonPatch, &path, patch.to_string().into_bytes(), ANSWER).await {
            Ok(()) => info!(node = node_name, taint = key, "Took the startup taint away"),
            Err(error) => tell(&error, &key, &node_name, &recorder),
        }
        // Whether it comes or not, the Node is looked at again.
        drop(timeout(PAUSE, nodes.changed()).await);
    }
}

/// Somebody else changed the taints meanwhile: the watch tells which there are now. All else may keep pods away for good.
fn tell(error: &WriteError, key: &str, node_name: &str, recorder: &Recorder) {
    warn!(node = node_name, taint = key, %error, "The startup taint can't be taken away yet");
    if matches!(error, WriteError::Refused { code: 409 | 422, .. }) {
        return;
    }
    let note = format!("taint {key} can't be taken away: {error}");
    let regarding = Regarding::Node(node_name.to_owned());
    recorder.send(Event::new(Reason::FailedToRemoveStartupTaint, regarding).note(note));
}

/// What takes all taints of a key away, whatever their value and effect, and nothing else (RFC 6902); `None` if there are none. The taints
/// have no keys in the API by which one of them could be named, so that each is tested at its place: the API refuses the patch if they are
/// others by now.
fn patch(taints: &[Name], key: &str) -> Option<Value> {
    let places = (0..taints.len()).rev().filter(|place| &*taints[*place] == key);
    let operations = places.flat_map(|place| {
        let path = format!("/spec/taints/{place}");
        [
            json!({ "op": "test", "path": format!("{path}/key"), "value": key }),
            json!({ "op": "remove", "path": path }),
        ]
    });
    let operations: Vec<Value> = operations.collect();
    (!operations.is_empty()).then_some(Value::Array(operations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(taints: &[&str], expected: Option<&Value>) {
        let taints: Vec<Name> = taints.iter().map(|key| Name::from(*key)).collect();
        assert_eq!(patch(&taints, "x/not-ready").as_ref(), expected);
    }

    #[test]
    fn every_taint_of_the_key_goes_and_no_other() {
        check(&[], None);
        check(&["a", "x/not-ready-yet"], None);
        let of = |place: usize| {
            [
                json!({ "op": "test", "path": format!("/spec/taints/{place}/key"), "value": "x/not-ready" }),
                json!({ "op": "remove", "path": format!("/spec/taints/{place}") }),
            ]
        };
        check(&["a", "x/not-ready"], Some(&Value::Array(of(1).into())));
        // From behind, so that places stay what they are.
        check(&["x/not-ready", "a", "x/not-ready"], Some(&Value::Array([of(2), of(0)].concat())));
    }
}
