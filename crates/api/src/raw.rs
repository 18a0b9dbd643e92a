//! The raw form of each kind: the fields that we use, as the wire has them, borrowed from the input where it can be.
//!
//! Absent and `null` mean the same, as in the API's own decoder. Unknown fields are skipped.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Label on Services that another proxy serves.
pub(crate) const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label on the slices of headless Services.
pub(crate) const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that names a slice's Service.
pub(crate) const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label with a Node's zone.
pub(crate) const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Annotation on Services that ask for a proxy on each node: the policy by which it is to choose endpoints.
pub(crate) const ANNOTATION_PROXYING: &str = "kube-proxy/proxying";
/// Of a Service: how much proxies may have under way.
pub(crate) const ANNOTATION_LIMITS: &str = "kube-proxy/limits";
/// Of a Service: when proxies leave endpoints out that fail.
pub(crate) const ANNOTATION_EJECTION: &str = "kube-proxy/ejection";
/// Of a Service: how proxies ask endpoints whether they serve.
pub(crate) const ANNOTATION_HEALTH_CHECK: &str = "kube-proxy/health-check";
/// Of a Service: for how long proxies wait for what.
pub(crate) const ANNOTATION_TIMEOUTS: &str = "kube-proxy/timeouts";
/// Of a Service: how endpoints that begin to serve get little at first.
pub(crate) const ANNOTATION_SLOW_START: &str = "kube-proxy/slow-start";
/// Of a Service or an EndpointSlice: weights of endpoints.
pub(crate) const ANNOTATION_WEIGHTS: &str = "kube-proxy/weights";
/// Of a Service: that proxies begin connections with a header of the PROXY protocol, and of which version.
pub(crate) const ANNOTATION_PROXY_PROTOCOL: &str = "kube-proxy/proxy-protocol";
/// Annotation on Services that ask for connections to endpoints that are gone to be reset.
pub(crate) const ANNOTATION_RESET_CONNECTIONS: &str = "kube-proxy/reset-connections";
/// Annotation on slices: when the change happened that they come from.
pub(crate) const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Of a Service: Windows nodes leave the destination as it is on the way to endpoints.
pub(crate) const ANNOTATION_PRESERVE_DESTINATION: &str = "preserve-destination";
/// Key of the taint that the cluster autoscaler puts on Nodes that it is about to delete.
pub(crate) const TAINT_SCALED_DOWN: &str = "ToBeDeletedByClusterAutoscaler";
/// Annotation of the bookmark that ends a streamed initial list.
pub(crate) const ANNOTATION_INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A text, borrowed unless it had escapes. `Option<Cow<str>>` would always be copied by serde.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(text.into())
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// `null` is the default value.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Declares raw structs whose fields are all optional on the wire.
macro_rules! raw {
    ($($(#[$meta:meta])* struct $name:ident<'a> { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
        pub(crate) struct $name<'a> {
            $($(#[$field_meta])* #[serde(deserialize_with = "nullable")] pub(crate) $field: $type,)*
        }
    )*};
}

raw! {
    /// The part of an object that every kind has.
    struct Head<'a> {
        metadata: Meta<'a>,
    }

    struct Meta<'a> {
        name: Text<'a>,
        namespace: Text<'a>,
        uid: Text<'a>,
        resource_version: Text<'a>,
        deletion_timestamp: Present,
        labels: Labels<'a>,
        annotations: Annotations<'a>,
    }

    struct Service<'a> {
        metadata: Meta<'a>,
        spec: ServiceSpec<'a>,
        status: ServiceStatus<'a>,
    }

    struct ServiceSpec<'a> {
        ports: Vec<ServicePort<'a>>,
        #[serde(rename = "clusterIP")]
        cluster_ip: Text<'a>,
        #[serde(rename = "clusterIPs")]
        cluster_ips: Vec<Text<'a>>,
        r#type: Text<'a>,
        #[serde(rename = "externalIPs")]
        external_ips: Vec<Text<'a>>,
        session_affinity: Text<'a>,
        session_affinity_config: AffinityConfig<'a>,
        load_balancer_source_ranges: Vec<Text<'a>>,
        external_traffic_policy: Text<'a>,
        internal_traffic_policy: Text<'a>,
        health_check_node_port: i64,
        ip_families: Vec<Text<'a>>,
    }

    struct ServicePort<'a> {
        name: Text<'a>,
        protocol: Text<'a>,
        port: i64,
        node_port: i64,
        app_protocol: Text<'a>,
    }

    struct AffinityConfig<'a> {
        #[serde(rename = "clientIP")]
        client_ip: ClientIp<'a>,
    }

    struct ServiceStatus<'a> {
        load_balancer: LoadBalancer<'a>,
    }

    struct LoadBalancer<'a> {
        ingress: Vec<Ingress<'a>>,
    }

    struct Ingress<'a> {
        ip: Text<'a>,
        ip_mode: Option<Text<'a>>,
    }

    struct EndpointSlice<'a> {
        metadata: Meta<'a>,
        address_type: Text<'a>,
        endpoints: Vec<Endpoint<'a>>,
        ports: Vec<SlicePort<'a>>,
    }

    struct Endpoint<'a> {
        addresses: First<'a>,
        conditions: Conditions,
        node_name: Text<'a>,
        zone: Text<'a>,
        target_ref: TargetRef<'a>,
        hints: Hints<'a>,
    }

    struct TargetRef<'a> {
        kind: Text<'a>,
        name: Text<'a>,
    }

    struct Hints<'a> {
        for_zones: Vec<Hint<'a>>,
        for_nodes: Vec<Hint<'a>>,
    }

    struct Hint<'a> {
        name: Text<'a>,
    }

    struct SlicePort<'a> {
        name: Option<Text<'a>>,
        protocol: Option<Text<'a>>,
        port: Option<i64>,
    }

    struct Node<'a> {
        metadata: Meta<'a>,
        spec: NodeSpec<'a>,
        status: NodeStatus<'a>,
    }

    struct NodeSpec<'a> {
        #[serde(rename = "podCIDR")]
        pod_cidr: Text<'a>,
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<Text<'a>>,
        taints: Vec<Taint<'a>>,
    }

    struct Taint<'a> {
        key: Text<'a>,
    }

    struct NodeStatus<'a> {
        addresses: Vec<NodeAddress<'a>>,
    }

    struct NodeAddress<'a> {
        r#type: Text<'a>,
        address: Text<'a>,
    }

    struct ServiceCidr<'a> {
        metadata: Meta<'a>,
        spec: CidrSpec<'a>,
    }

    struct CidrSpec<'a> {
        cidrs: Vec<Text<'a>>,
    }
}

/// `sessionAffinityConfig.clientIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientIp<'a> {
    pub(crate) timeout_seconds: Option<i64>,
    #[serde(skip)]
    lifetime: std::marker::PhantomData<&'a ()>,
}

/// An endpoint's conditions; absent ones have defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

/// A value of which only matters that it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present(pub(crate) bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_any| Self(true))
    }
}

/// The first of a list of texts; the others are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct First<'a>(pub(crate) Option<Text<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for First<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstVisitor;
        impl<'de> Visitor<'de> for FirstVisitor {
            type Value = First<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<First<'de>, A::Error> {
                let first = First(seq.next_element()?);
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }
        }
        deserializer.deserialize_seq(FirstVisitor)
    }
}

/// Labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels<'a> {
    pub(crate) proxy_name: bool,
    pub(crate) headless: bool,
    pub(crate) service_name: Text<'a>,
    pub(crate) zone: Text<'a>,
    /// All others.
    pub(crate) others: Vec<(Text<'a>, Text<'a>)>,
}

impl<'a> Labels<'a> {
    /// Takes a label in.
    pub(crate) fn set(&mut self, key: Text<'a>, value: Text<'a>) {
        match &*key {
            LABEL_PROXY_NAME => self.proxy_name = true,
            LABEL_HEADLESS => self.headless = true,
            LABEL_SERVICE_NAME => self.service_name = value,
            LABEL_ZONE => self.zone = value,
            _ => self.others.push((key, value)),
        }
    }
}

/// The annotations that we look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Annotations<'a> {
    pub(crate) proxying: Option<Text<'a>>,
    pub(crate) limits: Option<Text<'a>>,
    pub(crate) ejection: Option<Text<'a>>,
    pub(crate) health_check: Option<Text<'a>>,
    pub(crate) timeouts: Option<Text<'a>>,
    pub(crate) slow_start: Option<Text<'a>>,
    pub(crate) weights: Option<Text<'a>>,
    pub(crate) proxy_protocol: Option<Text<'a>>,
    pub(crate) resets_connections: Option<Text<'a>>,
    pub(crate) initial_events_end: bool,
    pub(crate) trigger_time: Text<'a>,
    pub(crate) preserves_destination: bool,
}

impl<'a> Annotations<'a> {
    /// Takes an annotation in, if it is one of ours.
    pub(crate) fn set(&mut self, key: &str, value: Text<'a>) {
        match key {
            ANNOTATION_INITIAL_EVENTS_END => self.initial_events_end = &*value == "true",
            ANNOTATION_TRIGGER_TIME => self.trigger_time = value,
            ANNOTATION_PROXYING => self.proxying = Some(value),
            ANNOTATION_LIMITS => self.limits = Some(value),
            ANNOTATION_EJECTION => self.ejection = Some(value),
            ANNOTATION_HEALTH_CHECK => self.health_check = Some(value),
            ANNOTATION_TIMEOUTS => self.timeouts = Some(value),
            ANNOTATION_SLOW_START => self.slow_start = Some(value),
            ANNOTATION_WEIGHTS => self.weights = Some(value),
            ANNOTATION_PROXY_PROTOCOL => self.proxy_protocol = Some(value),
            ANNOTATION_RESET_CONNECTIONS => self.resets_connections = Some(value),
            ANNOTATION_PRESERVE_DESTINATION => self.preserves_destination = &*value == "true",
            _ => {}
        }
    }
}

/// A map of texts, handed over entry by entry.
trait TextMap<'a>: Default {
    fn put(&mut self, key: Text<'a>, value: Text<'a>);
}

impl<'a> TextMap<'a> for Labels<'a> {
    fn put(&mut self, key: Text<'a>, value: Text<'a>) {
        self.set(key, value);
    }
}

impl<'a> TextMap<'a> for Annotations<'a> {
    fn put(&mut self, key: Text<'a>, value: Text<'a>) {
        self.set(&key, value);
    }
}

fn text_map<'de, D: Deserializer<'de>, T: TextMap<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct MapVisitor<T>(std::marker::PhantomData<T>);
    impl<'de, T: TextMap<'de>> Visitor<'de> for MapVisitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of strings")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
            let mut texts = T::default();
            while let Some((key, value)) = map.next_entry::<Text<'de>, Option<Text<'de>>>()? {
                texts.put(key, value.unwrap_or_default());
            }
            Ok(texts)
        }
    }
    deserializer.deserialize_map(MapVisitor(std::marker::PhantomData))
}

impl<'de> Deserialize<'de> for Labels<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_map(deserializer)
    }
}

impl<'de> Deserialize<'de> for Annotations<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_map(deserializer)
    }
}
