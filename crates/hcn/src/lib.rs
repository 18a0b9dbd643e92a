//! Windows' Host Compute Network (HCN): the objects of its service (HNS) as values, and the calls that are about them.
//!
//! HNS programs a node's switch (VFP) from objects that it keeps: networks, endpoints, load balancers. They go to it and come back
//! as JSON, each call alone: there are no transactions. Here are those documents, what a version of HNS can do, what its codes
//! mean, and the trait [`Hcn`] of its calls, whose documents are JSON so that they can be recorded and faked on any platform.
//!
//! Pure: no calls. Whoever can make them implements [`Hcn`]. What is read may be anything: nothing here panics.
//!
//! Sources: <https://learn.microsoft.com/windows-server/networking/technologies/hcn/hcn-top> (calls, documents) and the package
//! `hcn` of <https://github.com/microsoft/hcsshim>, which upstream's kube-proxy uses (versions, codes).
#![forbid(unsafe_code)]

mod border;
mod code;
mod document;
mod error;
mod event;
mod guid;
mod mac;
mod version;

pub use border::{Call, Hcn, Kind};
pub use code::{Code, Failure};
pub use document::{
    Distribution, DocumentError, Endpoint, EndpointFlags, IpConfiguration, Ipam, LoadBalancer,
    LoadBalancerFlags, Network, Policy, PortMapping, PortMappingFlags, Query, RemoteSubnet, SchemaVersion,
    Subnet, guids, network_type, policy_type, read,
};
pub use error::{ErrorDocument, HcnError, check};
pub use event::Event;
pub use guid::{Guid, GuidError};
pub use mac::{Mac, MacError};
pub use version::{OldAnswer, VERSION_PATH, Version, VersionError};
