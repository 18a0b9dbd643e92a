//! The pure core: parsed Kubernetes objects, the store that holds them, the view that one node takes of a Service, and
//! the load-balancing table that every backend reads.
//!
//! Flow: [`Change`] → [`Store`] → [`view`] → [`Table`]. Each arrow is a plain function call; nothing here does I/O,
//! takes the time, or logs. The crate knows nothing of netfilter and nothing of wire formats: objects arrive parsed
//! (crate `api`), and backends see only [`Frontend`]s, never a Service or an `EndpointSlice`.
#![forbid(unsafe_code)]

mod capacity;
mod conflicts;
mod frontend;
mod names;
mod net;
mod objects;
mod proxying;
mod rule_settings;
mod slots;
mod store;
mod table;
mod uid;
pub mod view;

pub use capacity::shrink_if_sparse;
pub use conflicts::ConflictChange;
pub use frontend::{
    AddressKind, Affinity, Destination, EndpointNode, EndpointWeights, Frontend, FrontendAddress,
    FrontendKey, Masquerade, Pool, Verdict,
};
pub use names::{Interner, Name, ObjectName, ServiceName, ServicePortName};
pub use net::{
    AddrError, CidrError, Family, IpFamily, Protocol, V4, V6, parse_addr, parse_cidr, special_use,
};
pub use objects::{
    AppProtocol, Change, Conditions, Endpoint, EndpointSlice, Hints, Kind, Node, Object, Service,
    ServiceCidr, ServicePort, SliceDetails, SliceEndpoints, SlicePort, TrafficPolicy,
};
pub use proxying::{AskedBy, Label, ProxyingRule, ProxyingRules};
pub use rule_settings::{Balancer, Extent, NodePortAddresses, PodSource, Proxied, RuleSettings};
pub use slots::assign_slots;
pub use store::{ServiceEntry, Store, Touched};
pub use table::{Changed, Table};
pub use uid::Uid;
