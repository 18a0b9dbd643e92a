//! Events as values: what can happen, to what.

use model::{ObjectName, Uid};

/// Something that people should see beside the object that it concerns. Two equal ones are the same thing happening again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// What happened.
    pub reason: Reason,
    /// To what.
    pub regarding: Regarding,
    /// The particulars, for people. Cut after 1024 bytes, which is the API's limit.
    pub note: String,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The proxy has all it needs to know and begins to program rules.
    Starting,
    /// The health server can't listen.
    FailedToStartProxierHealthcheck,
    /// The metrics server can't listen.
    FailedToStartMetricServer,
    /// `ipvs` mode is in use, which Kubernetes has given up.
    IpvsDeprecation,
    /// A Service's `healthCheckNodePort` can't be listened on.
    FailedToStartServiceHealthcheck,
    /// The rules of a family could not be brought into the kernel for a while.
    FailedToSyncProxyRules,
    /// That is over.
    SyncedProxyRules,
    /// A Service's address and port belong to another Service.
    FrontendConflict,
    /// Something that is no Service's has a Service's address and port on one node.
    FrontendTaken,
    /// A Service asks for something that the mode can't do.
    NotOnThisPlatform,
    /// An object, or a part of it, can't be used.
    InvalidObject,
    /// An endpoint gets nothing for now, although Kubernetes says that it serves.
    EndpointEjected,
    /// A Service has external IPs that the configuration does not allow.
    ExternalIPNotAllowed,
    /// The startup taint could not be taken away from the Node.
    FailedToRemoveStartupTaint,
    /// The canary's Service does not answer although an endpoint of it does.
    CanaryFailed,
    /// That is over.
    CanaryAnswers,
    /// The configuration file was changed to something that can't be used.
    InvalidConfiguration,
}

/// Whether there is something to do for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// No.
    Normal,
    /// Yes.
    Warning,
}

impl EventType {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 17] = [
        Self::Starting,
        Self::FailedToStartProxierHealthcheck,
        Self::FailedToStartMetricServer,
        Self::IpvsDeprecation,
        Self::FailedToStartServiceHealthcheck,
        Self::FailedToSyncProxyRules,
        Self::SyncedProxyRules,
        Self::FrontendConflict,
        Self::FrontendTaken,
        Self::NotOnThisPlatform,
        Self::InvalidObject,
        Self::EndpointEjected,
        Self::ExternalIPNotAllowed,
        Self::FailedToRemoveStartupTaint,
        Self::CanaryFailed,
        Self::CanaryAnswers,
        Self::InvalidConfiguration,
    ];

    /// `reason`, as upstream spells it where it has the same.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::FailedToStartProxierHealthcheck => "FailedToStartProxierHealthcheck",
            Self::FailedToStartMetricServer => "FailedToStartMetricServer",
            Self::IpvsDeprecation => "IPVSDeprecation",
            Self::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
            Self::FailedToSyncProxyRules => "FailedToSyncProxyRules",
            Self::SyncedProxyRules => "SyncedProxyRules",
            Self::FrontendConflict => "FrontendConflict",
            Self::FrontendTaken => "FrontendTaken",
            Self::NotOnThisPlatform => "NotOnThisPlatform",
            Self::InvalidObject => "InvalidObject",
            Self::EndpointEjected => "EndpointEjected",
            Self::ExternalIPNotAllowed => "ExternalIPNotAllowed",
            Self::FailedToRemoveStartupTaint => "FailedToRemoveStartupTaint",
            Self::CanaryFailed => "CanaryFailed",
            Self::CanaryAnswers => "CanaryAnswers",
            Self::InvalidConfiguration => "InvalidConfiguration",
        }
    }

    /// `action`: what the proxy was about to do.
    pub fn action(self) -> &'static str {
        match self {
            Self::Starting
            | Self::FailedToStartProxierHealthcheck
            | Self::FailedToStartMetricServer
            | Self::IpvsDeprecation => "StartKubeProxy",
            Self::FailedToStartServiceHealthcheck => "Listen",
            Self::FailedToSyncProxyRules
            | Self::SyncedProxyRules
            | Self::FrontendConflict
            | Self::FrontendTaken
            | Self::NotOnThisPlatform
            | Self::ExternalIPNotAllowed => "SyncProxyRules",
            Self::FailedToRemoveStartupTaint => "RemoveTaint",
            Self::CanaryFailed | Self::CanaryAnswers => "Probe",
            Self::InvalidObject => "Decode",
            Self::EndpointEjected => "Balance",
            Self::InvalidConfiguration => "ReloadConfiguration",
        }
    }

    /// `type`.
    pub fn event_type(self) -> EventType {
        match self {
            Self::Starting | Self::SyncedProxyRules | Self::CanaryAnswers => EventType::Normal,
            _ => EventType::Warning,
        }
    }

    /// Whether all nodes see the same, so that one event is enough for all.
    pub fn is_same_everywhere(self) -> bool {
        matches!(
            self,
            Self::FrontendConflict
                | Self::NotOnThisPlatform
                | Self::InvalidObject
                | Self::ExternalIPNotAllowed
        )
    }
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Regarding {
    /// A Node, by name only, as upstream does.
    Node(String),
    /// A Service. `kubectl describe` shows only events that have the UID.
    Service(ObjectName, Option<Uid>),
    /// An `EndpointSlice`.
    EndpointSlice(ObjectName),
}

impl Regarding {
    pub(crate) fn api_version(&self) -> &'static str {
        match self {
            Self::Node(_) | Self::Service(..) => "v1",
            Self::EndpointSlice(_) => "discovery.k8s.io/v1",
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "Node",
            Self::Service(..) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Node(name) => name,
            Self::Service(name, _) | Self::EndpointSlice(name) => &name.name,
        }
    }

    /// Empty for cluster-scoped kinds.
    pub(crate) fn namespace(&self) -> &str {
        match self {
            Self::Node(_) => "",
            Self::Service(name, _) | Self::EndpointSlice(name) => &name.namespace,
        }
    }

    pub(crate) fn uid(&self) -> Option<Uid> {
        match self {
            Self::Service(_, uid) => *uid,
            Self::Node(_) | Self::EndpointSlice(_) => None,
        }
    }
}

impl Event {
    /// An event without particulars.
    pub fn new(reason: Reason, regarding: Regarding) -> Self {
        Self { reason, regarding, note: String::new() }
    }

    /// The same event with particulars.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// A Service's health-check port can't be listened on. The text is upstream's.
    pub fn service_healthcheck(
        node: &str,
        service: &ObjectName,
        uid: Option<Uid>,
        port: u16,
        error: &dyn std::fmt::Display,
    ) -> Self {
        let note = format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {error}");
        let regarding = Regarding::Service(service.clone(), uid);
        Self::new(Reason::FailedToStartServiceHealthcheck, regarding).note(note)
    }
}
