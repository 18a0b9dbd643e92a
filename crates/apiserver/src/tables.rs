//! The API types, field by field, with upstream's protobuf tags.
//!
//! Tags are those of `generated.proto` in `k8s.io/api` and `k8s.io/apimachinery`; the order of the fields is that
//! of the Go structs, because JSON is written in that order. Answers recorded from a real server prove the types of
//! which they have values: Service, EndpointSlice, ServiceCIDR, Status, most of the metadata and a part of Node.
//! Fields of Node and Namespace that no proxy reads are left out, and with them what a client sends there.

use super::schema::{Field, Message, Presence, Type, tag_order};
use Type::{Bool, Int, IntOrText, List, Map, MicroTime, Quantity, RawJson, Text, Time};

const TEXTS: Type = List(&Text);
const TEXT_MAP: Type = Map(&Text);
const QUANTITIES: Type = Map(&Quantity);

macro_rules! message {
    ($name:ident: $($tag:literal $json:literal $ty:expr, $presence:ident;)*) => {
        pub(super) static $name: Message = {
            const FIELDS: &[Field] =
                &[$(Field { name: $json, tag: $tag, ty: $ty, presence: Presence::$presence }),*];
            const ORDER: [u8; FIELDS.len()] = tag_order(FIELDS);
            Message { fields: FIELDS, by_tag: &ORDER }
        };
    };
}

const fn one(message: &'static Message) -> Type {
    Type::Message(message)
}

macro_rules! many {
    ($message:ident) => {
        List(&Type::Message(&$message))
    };
}

// === apimachinery ===

message! { LIST_META:
    1 "selfLink" Text, Value;
    2 "resourceVersion" Text, Value;
    3 "continue" Text, Value;
    4 "remainingItemCount" Int, Pointer;
}

message! { OWNER_REFERENCE:
    5 "apiVersion" Text, Always;
    1 "kind" Text, Always;
    3 "name" Text, Always;
    4 "uid" Text, Always;
    6 "controller" Bool, Pointer;
    7 "blockOwnerDeletion" Bool, Pointer;
}

message! { MANAGED_FIELDS_ENTRY:
    1 "manager" Text, Value;
    2 "operation" Text, Value;
    3 "apiVersion" Text, Value;
    4 "time" Time, Pointer;
    6 "fieldsType" Text, Value;
    7 "fieldsV1" RawJson, Pointer;
    8 "subresource" Text, Value;
}

message! { OBJECT_META:
    1 "name" Text, Value;
    2 "generateName" Text, Value;
    3 "namespace" Text, Value;
    4 "selfLink" Text, Value;
    5 "uid" Text, Value;
    6 "resourceVersion" Text, Value;
    7 "generation" Int, Value;
    8 "creationTimestamp" Time, Value;
    9 "deletionTimestamp" Time, Pointer;
    10 "deletionGracePeriodSeconds" Int, Pointer;
    11 "labels" TEXT_MAP, Value;
    12 "annotations" TEXT_MAP, Value;
    13 "ownerReferences" many!(OWNER_REFERENCE), Value;
    14 "finalizers" TEXTS, Value;
    17 "managedFields" many!(MANAGED_FIELDS_ENTRY), Value;
}

message! { CONDITION:
    1 "type" Text, Always;
    2 "status" Text, Always;
    3 "observedGeneration" Int, Value;
    4 "lastTransitionTime" Time, Always;
    5 "reason" Text, Always;
    6 "message" Text, Always;
}

message! { STATUS_CAUSE:
    1 "reason" Text, Value;
    2 "message" Text, Value;
    3 "field" Text, Value;
}

message! { STATUS_DETAILS:
    1 "name" Text, Value;
    2 "group" Text, Value;
    3 "kind" Text, Value;
    6 "uid" Text, Value;
    4 "causes" many!(STATUS_CAUSE), Value;
    5 "retryAfterSeconds" Int, Value;
}

message! { STATUS:
    1 "metadata" one(&LIST_META), Value;
    2 "status" Text, Value;
    3 "message" Text, Value;
    4 "reason" Text, Value;
    5 "details" one(&STATUS_DETAILS), Pointer;
    6 "code" Int, Value;
}

// === Service ===

message! { SERVICE_PORT:
    1 "name" Text, Value;
    2 "protocol" Text, Value;
    6 "appProtocol" Text, Pointer;
    3 "port" Int, Always;
    4 "targetPort" IntOrText, Always;
    5 "nodePort" Int, Value;
}

message! { CLIENT_IP_CONFIG:
    1 "timeoutSeconds" Int, Pointer;
}

message! { SESSION_AFFINITY_CONFIG:
    1 "clientIP" one(&CLIENT_IP_CONFIG), Pointer;
}

message! { SERVICE_SPEC:
    1 "ports" many!(SERVICE_PORT), Value;
    2 "selector" TEXT_MAP, Value;
    3 "clusterIP" Text, Value;
    18 "clusterIPs" TEXTS, Value;
    4 "type" Text, Value;
    5 "externalIPs" TEXTS, Value;
    7 "sessionAffinity" Text, Value;
    8 "loadBalancerIP" Text, Value;
    9 "loadBalancerSourceRanges" TEXTS, Value;
    10 "externalName" Text, Value;
    11 "externalTrafficPolicy" Text, Value;
    12 "healthCheckNodePort" Int, Value;
    13 "publishNotReadyAddresses" Bool, Value;
    14 "sessionAffinityConfig" one(&SESSION_AFFINITY_CONFIG), Pointer;
    19 "ipFamilies" TEXTS, Value;
    17 "ipFamilyPolicy" Text, Pointer;
    20 "allocateLoadBalancerNodePorts" Bool, Pointer;
    21 "loadBalancerClass" Text, Pointer;
    22 "internalTrafficPolicy" Text, Pointer;
    23 "trafficDistribution" Text, Pointer;
}

message! { PORT_STATUS:
    1 "port" Int, Always;
    2 "protocol" Text, Always;
    3 "error" Text, Pointer;
}

message! { LOAD_BALANCER_INGRESS:
    1 "ip" Text, Value;
    2 "hostname" Text, Value;
    3 "ipMode" Text, Pointer;
    4 "ports" many!(PORT_STATUS), Value;
}

message! { LOAD_BALANCER_STATUS:
    1 "ingress" many!(LOAD_BALANCER_INGRESS), Value;
}

message! { SERVICE_STATUS:
    1 "loadBalancer" one(&LOAD_BALANCER_STATUS), Value;
    2 "conditions" many!(CONDITION), Value;
}

message! { SERVICE:
    1 "metadata" one(&OBJECT_META), Value;
    2 "spec" one(&SERVICE_SPEC), Value;
    3 "status" one(&SERVICE_STATUS), Value;
}

// === EndpointSlice ===

message! { OBJECT_REFERENCE:
    1 "kind" Text, Value;
    2 "namespace" Text, Value;
    3 "name" Text, Value;
    4 "uid" Text, Value;
    5 "apiVersion" Text, Value;
    6 "resourceVersion" Text, Value;
    7 "fieldPath" Text, Value;
}

message! { ENDPOINT_CONDITIONS:
    1 "ready" Bool, Pointer;
    2 "serving" Bool, Pointer;
    3 "terminating" Bool, Pointer;
}

message! { NAME_HINT:
    1 "name" Text, Always;
}

message! { ENDPOINT_HINTS:
    1 "forZones" many!(NAME_HINT), Value;
    2 "forNodes" many!(NAME_HINT), Value;
}

message! { ENDPOINT:
    1 "addresses" TEXTS, Always;
    2 "conditions" one(&ENDPOINT_CONDITIONS), Value;
    3 "hostname" Text, Pointer;
    4 "targetRef" one(&OBJECT_REFERENCE), Pointer;
    5 "deprecatedTopology" TEXT_MAP, Value;
    6 "nodeName" Text, Pointer;
    7 "zone" Text, Pointer;
    8 "hints" one(&ENDPOINT_HINTS), Pointer;
}

message! { ENDPOINT_PORT:
    1 "name" Text, Pointer;
    2 "protocol" Text, Pointer;
    3 "port" Int, Pointer;
    4 "appProtocol" Text, Pointer;
}

message! { ENDPOINT_SLICE:
    1 "metadata" one(&OBJECT_META), Value;
    4 "addressType" Text, Always;
    2 "endpoints" many!(ENDPOINT), Always;
    3 "ports" many!(ENDPOINT_PORT), Always;
}

// === Node ===

message! { TAINT:
    1 "key" Text, Always;
    2 "value" Text, Value;
    3 "effect" Text, Always;
    4 "timeAdded" Time, Pointer;
}

message! { NODE_SPEC:
    1 "podCIDR" Text, Value;
    7 "podCIDRs" TEXTS, Value;
    3 "providerID" Text, Value;
    4 "unschedulable" Bool, Value;
    5 "taints" many!(TAINT), Value;
    2 "externalID" Text, Value;
}

message! { NODE_CONDITION:
    1 "type" Text, Always;
    2 "status" Text, Always;
    3 "lastHeartbeatTime" Time, Value;
    4 "lastTransitionTime" Time, Value;
    5 "reason" Text, Value;
    6 "message" Text, Value;
}

message! { NODE_ADDRESS:
    1 "type" Text, Always;
    2 "address" Text, Always;
}

message! { DAEMON_ENDPOINT:
    1 "Port" Int, Always;
}

message! { NODE_DAEMON_ENDPOINTS:
    1 "kubeletEndpoint" one(&DAEMON_ENDPOINT), Value;
}

message! { NODE_SYSTEM_INFO:
    1 "machineID" Text, Always;
    2 "systemUUID" Text, Always;
    3 "bootID" Text, Always;
    4 "kernelVersion" Text, Always;
    5 "osImage" Text, Always;
    6 "containerRuntimeVersion" Text, Always;
    7 "kubeletVersion" Text, Always;
    8 "kubeProxyVersion" Text, Always;
    9 "operatingSystem" Text, Always;
    10 "architecture" Text, Always;
}

message! { CONTAINER_IMAGE:
    1 "names" TEXTS, Always;
    2 "sizeBytes" Int, Value;
}

message! { NODE_STATUS:
    1 "capacity" QUANTITIES, Value;
    2 "allocatable" QUANTITIES, Value;
    3 "phase" Text, Value;
    4 "conditions" many!(NODE_CONDITION), Value;
    5 "addresses" many!(NODE_ADDRESS), Value;
    6 "daemonEndpoints" one(&NODE_DAEMON_ENDPOINTS), Value;
    7 "nodeInfo" one(&NODE_SYSTEM_INFO), Value;
    8 "images" many!(CONTAINER_IMAGE), Value;
    9 "volumesInUse" TEXTS, Value;
}

message! { NODE:
    1 "metadata" one(&OBJECT_META), Value;
    2 "spec" one(&NODE_SPEC), Value;
    3 "status" one(&NODE_STATUS), Value;
}

// === Namespace ===

message! { NAMESPACE_SPEC:
    1 "finalizers" TEXTS, Value;
}

message! { NAMESPACE_CONDITION:
    1 "type" Text, Always;
    2 "status" Text, Always;
    4 "lastTransitionTime" Time, Value;
    5 "reason" Text, Value;
    6 "message" Text, Value;
}

message! { NAMESPACE_STATUS:
    1 "phase" Text, Value;
    2 "conditions" many!(NAMESPACE_CONDITION), Value;
}

message! { NAMESPACE:
    1 "metadata" one(&OBJECT_META), Value;
    2 "spec" one(&NAMESPACE_SPEC), Value;
    3 "status" one(&NAMESPACE_STATUS), Value;
}

// === ServiceCIDR ===

message! { SERVICE_CIDR_SPEC:
    1 "cidrs" TEXTS, Value;
}

message! { SERVICE_CIDR_STATUS:
    1 "conditions" many!(CONDITION), Value;
}

message! { SERVICE_CIDR:
    1 "metadata" one(&OBJECT_META), Value;
    2 "spec" one(&SERVICE_CIDR_SPEC), Value;
    3 "status" one(&SERVICE_CIDR_STATUS), Value;
}

// === Event ===

message! { EVENT_SOURCE:
    1 "component" Text, Value;
    2 "host" Text, Value;
}

message! { EVENT_SERIES:
    1 "count" Int, Always;
    2 "lastObservedTime" MicroTime, Always;
}

message! { CORE_EVENT:
    1 "metadata" one(&OBJECT_META), Value;
    2 "involvedObject" one(&OBJECT_REFERENCE), Value;
    3 "reason" Text, Value;
    4 "message" Text, Value;
    5 "source" one(&EVENT_SOURCE), Value;
    6 "firstTimestamp" Time, Always;
    7 "lastTimestamp" Time, Always;
    8 "count" Int, Value;
    9 "type" Text, Value;
    10 "eventTime" MicroTime, Always;
    11 "series" one(&EVENT_SERIES), Pointer;
    12 "action" Text, Value;
    13 "related" one(&OBJECT_REFERENCE), Pointer;
    14 "reportingComponent" Text, Always;
    15 "reportingInstance" Text, Always;
}

message! { EVENT:
    1 "metadata" one(&OBJECT_META), Value;
    2 "eventTime" MicroTime, Always;
    3 "series" one(&EVENT_SERIES), Pointer;
    4 "reportingController" Text, Value;
    5 "reportingInstance" Text, Value;
    6 "action" Text, Value;
    7 "reason" Text, Value;
    8 "regarding" one(&OBJECT_REFERENCE), Value;
    9 "related" one(&OBJECT_REFERENCE), Pointer;
    10 "note" Text, Value;
    11 "type" Text, Value;
    12 "deprecatedSource" one(&EVENT_SOURCE), Value;
    13 "deprecatedFirstTimestamp" Time, Value;
    14 "deprecatedLastTimestamp" Time, Value;
    15 "deprecatedCount" Int, Value;
}

// === coordination.k8s.io ===

message! { LEASE_SPEC:
    1 "holderIdentity" Text, Pointer;
    2 "leaseDurationSeconds" Int, Pointer;
    3 "acquireTime" MicroTime, Pointer;
    4 "renewTime" MicroTime, Pointer;
    5 "leaseTransitions" Int, Pointer;
    6 "strategy" Text, Pointer;
    7 "preferredHolder" Text, Pointer;
}

message! { LEASE:
    1 "metadata" one(&OBJECT_META), Value;
    2 "spec" one(&LEASE_SPEC), Value;
}
