//! What people hear of: the agent's notices and what the source rejects, as records in the log and Events in the API.

use std::net::IpAddr;

use agent::{Conflict, Notice, Notices, Taken};
use api::Rejection;
use events::{Event, Reason, Recorder, Regarding, Worker};
use metrics::Metrics;
use mode::OutageCause;
use model::{Change, IpFamily, Kind, Node, Protocol};
use source::Client;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tracing::{error, info, trace};

use crate::plausibility::{Checked, Finding, check, primary_family};

/// The outlets for what people should hear of. `hostname` is the host's own name, whatever the Node is called.
pub(crate) fn outlets(hostname: &str) -> (Notices, Recorder, Listener) {
    let (sender, notices) = unbounded_channel();
    let (recorder, worker) = events::queue(&format!("kube-proxy-{hostname}"));
    let listener = Listener { notices, recorder: recorder.clone(), worker, nodes: watch::Sender::default() };
    (Notices::to(sender), recorder, listener)
}

/// Hears the notices.
pub(crate) struct Listener {
    notices: UnboundedReceiver<Notice>,
    recorder: Recorder,
    worker: Worker,
    nodes: watch::Sender<Option<Node>>,
}

impl Listener {
    /// This node's Node as it is known, now and later; none: there was none yet.
    pub(crate) fn nodes(&self) -> watch::Receiver<Option<Node>> {
        self.nodes.subscribe()
    }

    /// Passes on what it hears, for ever; returns only with a reason to end the program. Without a client there is no API, and
    /// events go nowhere.
    pub(crate) async fn run(
        self,
        client: Option<Client>,
        node_name: &str,
        checked: &Checked,
    ) -> anyhow::Error {
        let Self { mut notices, recorder, worker, nodes } = self;
        if let Some(client) = client {
            tokio::spawn(worker.run(client));
        } else {
            drop(worker);
        }
        let node_name = node_name.to_owned();
        let mut teller = Teller { recorder, node_name, checked, has_started: false, found: None };
        while let Some(notice) = notices.recv().await {
            if let Notice::Node(node) = &notice {
                nodes.send_replace(node.clone());
            }
            if let Err(error) = teller.tell(notice) {
                return error;
            }
        }
        // The agent has ended, and says why.
        std::future::pending().await
    }
}

struct Teller<'a> {
    recorder: Recorder,
    node_name: String,
    checked: &'a Checked,
    has_started: bool,
    /// What looked wrong when the Node was last looked at; `None`: it has not been yet.
    found: Option<Vec<Finding>>,
}

impl Teller<'_> {
    fn tell(&mut self, notice: Notice) -> anyhow::Result<()> {
        if let Some(event) = event_of(&notice, &self.node_name) {
            self.recorder.send(event);
        }
        let Notice::Node(node) = notice else { return Ok(()) };
        // The first one means that all kinds have been listed.
        if !std::mem::replace(&mut self.has_started, true) {
            self.recorder.send(Event::new(Reason::Starting, Regarding::Node(self.node_name.clone())));
        }
        node.map_or(Ok(()), |node| self.look_at(&node))
    }

    /// Says what looks wrong now that the Node is known. Only at the first time it may end the program: what runs goes on.
    fn look_at(&mut self, node: &Node) -> anyhow::Result<()> {
        let found = check(self.checked, node);
        let is_first = self.found.is_none();
        if is_first {
            log_families(&self.checked.families, primary_family(node));
        }
        for finding in found.iter().filter(|finding| !self.found.iter().flatten().any(|old| old == *finding))
        {
            match finding {
                Finding::Fatal(text) if is_first => {
                    anyhow::bail!("kube-proxy configuration is incorrect: {text}");
                }
                Finding::Fatal(text) | Finding::Doubt(text) => {
                    error!(error = text, "Kube-proxy configuration may be incomplete or incorrect");
                }
            }
        }
        self.found = Some(found);
        Ok(())
    }
}

fn log_families(families: &[IpFamily], primary: IpFamily) {
    if families.len() > 1 {
        info!("primary ipFamily" = %primary, "kube-proxy running in dual-stack mode");
    } else {
        info!(ipFamily = %primary, "kube-proxy running in single-stack mode");
    }
}

/// The records by which people know that the proxy begins to watch.
pub(crate) fn log_watches() {
    info!("Starting service config controller");
    info!("Starting endpoint slice config controller");
    info!("Starting serviceCIDR config controller");
    info!("Starting node config controller");
}

/// The same for a kind that has been listed completely.
pub(crate) fn log_listed(kind: Kind) {
    let controller = match kind {
        Kind::Service => "service config",
        Kind::EndpointSlice => "endpoint slice config",
        Kind::ServiceCidr => "serviceCIDR config",
        Kind::Node => "node config",
    };
    info!(controller, "Caches are synced");
}

/// Each change that the API tells of.
pub(crate) fn log_change(change: &Change) {
    match change {
        Change::Apply(object) => trace!(kind = %object.kind(), name = %object.name(), "Object changed"),
        Change::Delete(kind, name) => trace!(%kind, %name, "Object deleted"),
        Change::Replace { kind, objects, .. } => trace!(%kind, n = objects.len(), "Objects listed"),
    }
}

/// Tells whether the changed configuration file can be used, and if not, why.
pub(crate) fn tell_config_file(
    usable: Result<(), &str>,
    metrics: &Metrics,
    recorder: &Recorder,
    node_name: &str,
) {
    metrics.config_file_usable.set(i64::from(usable.is_ok()));
    if let Err(error) = usable {
        let note = format!(
            "the changed configuration file can't be used; the former configuration stays in force: {error}"
        );
        let regarding = Regarding::Node(node_name.to_owned());
        recorder.send(Event::new(Reason::InvalidConfiguration, regarding).note(note));
    }
}

/// What an event of the API says of a notice; `None` for those that are only for the log.
fn event_of(notice: &Notice, node_name: &str) -> Option<Event> {
    let node = || Regarding::Node(node_name.to_owned());
    match notice {
        Notice::ConflictBegan(conflict) => Some(conflict_event(conflict)),
        Notice::NotOnThisPlatform { service, uid, what } => {
            let regarding = Regarding::Service(service.clone(), *uid);
            let note = format!("on nodes of this kind: {}", what.join("; "));
            Some(Event::new(Reason::NotOnThisPlatform, regarding).note(note))
        }
        Notice::FrontendTaken { service, uid, taken } => {
            let Taken { family, address, protocol, port, by } = taken;
            let what = frontend(*family, *address, *protocol, *port);
            let note =
                format!("{what} is not served on node {node_name}: {by}, which is somebody else's, has it");
            let regarding = Regarding::Service(service.clone(), *uid);
            Some(Event::new(Reason::FrontendTaken, regarding).note(note))
        }
        Notice::EndpointOut { service, endpoint, cause } => {
            let why = match cause {
                OutageCause::Ejected => "too much of what it is given fails",
                OutageCause::CheckFails => "its health check fails",
            };
            let regarding = Regarding::Service(service.service.clone(), None);
            let note = format!(
                "endpoint {endpoint} of port {:?} gets nothing for now: {why}",
                service.port.as_str()
            );
            Some(Event::new(Reason::EndpointEjected, regarding).note(note))
        }
        // Nothing that changes may be in the note, or the event would not count as the same again.
        Notice::SyncsFail { family, error, .. } => Some(
            Event::new(Reason::FailedToSyncProxyRules, node())
                .note(format!("{family} rules could not be programmed for a while: {error}")),
        ),
        Notice::SyncsWork { family, .. } => Some(
            Event::new(Reason::SyncedProxyRules, node()).note(format!("{family} rules are programmed again")),
        ),
        Notice::ConflictEnded(_) | Notice::Node(_) => None,
    }
}

/// In words; without an address the node's own.
fn frontend(family: IpFamily, address: Option<IpAddr>, protocol: Protocol, port: u16) -> String {
    match address {
        Some(address) => format!("{address} port {port}/{protocol}"),
        None => format!("{family} node port {port}/{protocol}"),
    }
}

fn conflict_event(conflict: &Conflict) -> Event {
    let Conflict { family, address, protocol, port, loser, uid, winner } = conflict;
    let what = frontend(*family, *address, *protocol, *port);
    let regarding = Regarding::Service(loser.service.clone(), *uid);
    let note =
        format!("{what} is served for Service {}, which claims it too, and not for this one", winner.service);
    Event::new(Reason::FrontendConflict, regarding).note(note)
}

/// What the API says of an object that can't be used; `None` if it can't be named, or has no events of its own.
pub(crate) fn rejection_event(rejection: &Rejection) -> Option<Event> {
    let name = rejection.name.clone()?;
    let regarding = match rejection.kind {
        Kind::Service => Regarding::Service(name, None),
        Kind::EndpointSlice => Regarding::EndpointSlice(name),
        Kind::Node | Kind::ServiceCidr => return None,
    };
    let Rejection { path, reason, .. } = rejection;
    let note = if path.is_empty() { reason.clone() } else { format!("{path}: {reason}") };
    Some(Event::new(Reason::InvalidObject, regarding).note(note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent::{NodePorts, Pods};
    use events::EventType;
    use model::{ObjectName, Protocol, ServicePortName};

    fn name(service: &str) -> ServicePortName {
        ServicePortName {
            service: ObjectName::new("shop", service),
            port: "http".into(),
            protocol: Protocol::Tcp,
        }
    }

    fn conflict(address: Option<&str>) -> Conflict {
        Conflict {
            family: IpFamily::V4,
            address: address.map(|addr| addr.parse().unwrap()),
            protocol: Protocol::Tcp,
            port: 80,
            loser: name("b"),
            uid: None,
            winner: name("a"),
        }
    }

    #[test]
    fn a_conflict_is_told_at_the_loser_with_all_names() {
        let event = event_of(&Notice::ConflictBegan(conflict(Some("10.96.0.1"))), "node-1").unwrap();
        assert_eq!(event.regarding, Regarding::Service(ObjectName::new("shop", "b"), None));
        assert_eq!(event.reason.event_type(), EventType::Warning);
        assert!(
            event.note.starts_with("10.96.0.1 port 80/TCP is served for Service shop/a,"),
            "{}",
            event.note
        );
        let event = event_of(&Notice::ConflictBegan(conflict(None)), "node-1").unwrap();
        assert!(event.note.starts_with("IPv4 node port 80/TCP is served for"), "{}", event.note);
        assert_eq!(event_of(&Notice::ConflictEnded(conflict(None)), "node-1"), None);
    }

    #[test]
    fn failing_syncs_are_the_same_event_each_time() {
        let notice = |seconds| Notice::SyncsFail {
            family: IpFamily::V6,
            lasting: std::time::Duration::from_secs(seconds),
            error: "no room".to_owned(),
        };
        let event = event_of(&notice(61), "node-1").unwrap();
        assert_eq!(event.regarding, Regarding::Node("node-1".to_owned()));
        assert!(event.note.contains("IPv6") && event.note.contains("no room"), "{}", event.note);
        assert_eq!(Some(event), event_of(&notice(361), "node-1"));
    }

    #[test]
    fn objects_that_can_be_named_are_told_of() {
        let rejection = |kind, name: Option<&str>| Rejection {
            kind,
            name: name.map(|name| ObjectName::new("shop", name)),
            path: "spec.ports[0].port".to_owned(),
            reason: "0 is not a port".to_owned(),
        };
        let event = rejection_event(&rejection(Kind::Service, Some("web"))).unwrap();
        assert_eq!(event.note, "spec.ports[0].port: 0 is not a port");
        assert_eq!(event.regarding, Regarding::Service(ObjectName::new("shop", "web"), None));
        assert!(rejection_event(&rejection(Kind::EndpointSlice, Some("web-1"))).is_some());
        assert_eq!(rejection_event(&rejection(Kind::Service, None)), None);
        assert_eq!(rejection_event(&rejection(Kind::Node, Some("node-1"))), None);
    }

    #[test]
    fn only_the_first_look_at_the_node_may_end_the_program() {
        let checked = Checked {
            families: vec![IpFamily::V4],
            pods: Pods::NodeCidr,
            cluster_cidrs: Vec::new(),
            node_ports: NodePorts::Primary,
            ipvs_exclude_cidrs: Vec::new(),
            listeners: Vec::new(),
        };
        let node = |address: &str| {
            Notice::Node(Some(Node {
                name: ObjectName::new("", "node-1"),
                zone: None,
                addresses: [address.parse().unwrap()].into(),
                pod_cidrs: Box::default(),
                is_deleting: false,
                is_scaled_down: false,
                taints: Box::default(),
            }))
        };
        let teller = || {
            let (recorder, _worker) = events::queue("kube-proxy-host");
            Teller {
                recorder,
                node_name: "node-1".to_owned(),
                checked: &checked,
                has_started: false,
                found: None,
            }
        };
        let mut first = teller();
        assert!(first.tell(Notice::Node(None)).is_ok());
        let error = first.tell(node("fd00::1")).unwrap_err().to_string();
        assert_eq!(error, "kube-proxy configuration is incorrect: no support for primary IP family \"IPv6\"");
        let mut later = teller();
        assert!(later.tell(node("10.0.0.1")).is_ok());
        assert!(later.tell(node("fd00::1")).is_ok());
    }
}
