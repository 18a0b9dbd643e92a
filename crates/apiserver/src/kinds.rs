//! The kinds of object that the server stores, and what the API says about each of them.

use super::schema::Message;
use super::tables;

/// A kind of API object that the server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Event.
    CoreEvent,
    /// `events.k8s.io/v1` Event. Kept apart from [`Kind::CoreEvent`], which a real server would show as the
    /// same objects.
    Event,
    /// `coordination.k8s.io/v1` Lease, by which programs elect a leader or say that they live.
    Lease,
}

/// What paths and envelopes say about a kind.
#[derive(Debug)]
pub(super) struct Info {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    pub(super) namespaced: bool,
    pub(super) message: &'static Message,
    /// Fields that a field selector may name besides `metadata.name` and `metadata.namespace`.
    pub(super) selectable: &'static [&'static str],
}

impl Info {
    /// `v1` or `group/version`.
    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `services` or `endpointslices.discovery.k8s.io`, as error messages name a resource.
    pub(super) fn qualified_plural(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

impl Kind {
    /// Every kind, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
        Self::Namespace,
        Self::CoreEvent,
        Self::Event,
        Self::Lease,
    ];

    /// The kind that a manifest's `apiVersion` and `kind` name, if the server knows it.
    pub fn from_type(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.info().kind == kind && k.info().api_version() == api_version)
    }

    /// The kind that a request path names, if the server knows it.
    pub(super) fn from_path(group: &str, version: &str, plural: &str) -> Option<Self> {
        let named = |k: &Self| {
            let info = k.info();
            info.group == group && info.version == version && info.plural == plural
        };
        Self::ALL.into_iter().find(named)
    }

    /// Position in [`Kind::ALL`].
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    pub(super) const fn info(self) -> &'static Info {
        match self {
            Self::Service => &SERVICE,
            Self::EndpointSlice => &ENDPOINT_SLICE,
            Self::Node => &NODE,
            Self::ServiceCidr => &SERVICE_CIDR,
            Self::Namespace => &NAMESPACE,
            Self::CoreEvent => &CORE_EVENT,
            Self::Event => &EVENT,
            Self::Lease => &LEASE,
        }
    }
}

static SERVICE: Info = Info {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    namespaced: true,
    message: &tables::SERVICE,
    selectable: &["spec.clusterIP", "spec.type"],
};

static ENDPOINT_SLICE: Info = Info {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    namespaced: true,
    message: &tables::ENDPOINT_SLICE,
    selectable: &[],
};

static NODE: Info = Info {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    namespaced: false,
    message: &tables::NODE,
    selectable: &["spec.unschedulable"],
};

static SERVICE_CIDR: Info = Info {
    group: "networking.k8s.io",
    version: "v1",
    kind: "ServiceCIDR",
    plural: "servicecidrs",
    namespaced: false,
    message: &tables::SERVICE_CIDR,
    selectable: &[],
};

static NAMESPACE: Info = Info {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    namespaced: false,
    message: &tables::NAMESPACE,
    selectable: &["status.phase"],
};

static CORE_EVENT: Info = Info {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    namespaced: true,
    message: &tables::CORE_EVENT,
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "reason",
        "type",
    ],
};

static EVENT: Info = Info {
    group: "events.k8s.io",
    version: "v1",
    kind: "Event",
    plural: "events",
    namespaced: true,
    message: &tables::EVENT,
    selectable: &["regarding.kind", "regarding.namespace", "regarding.name", "reason", "type"],
};

static LEASE: Info = Info {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    namespaced: true,
    message: &tables::LEASE,
    selectable: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_the_position() {
        for (position, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), position, "{kind:?}");
        }
    }

    #[test]
    fn both_events_are_told_apart() {
        assert_eq!(Kind::from_type("v1", "Event"), Some(Kind::CoreEvent));
        assert_eq!(Kind::from_type("events.k8s.io/v1", "Event"), Some(Kind::Event));
        assert_eq!(Kind::from_type("v1", "EndpointSlice"), None);
        assert_eq!(Kind::from_path("discovery.k8s.io", "v1", "endpointslices"), Some(Kind::EndpointSlice));
    }
}
