//! Objects as JSON. Keys that are zero or empty are left out, unknown ones are passed over, and `null` counts as left out.

mod endpoint;
mod load_balancer;
mod network;
mod query;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::border::Kind;
use crate::guid::Guid;

pub use endpoint::{Endpoint, EndpointFlags, IpConfiguration};
pub use load_balancer::{Distribution, LoadBalancer, LoadBalancerFlags, PortMapping, PortMappingFlags};
pub use network::{Ipam, Network, RemoteSubnet, Subnet, network_type};
pub use query::Query;

/// Types of [`Policy`] that matter here.
pub mod policy_type {
    /// A subnet of another node, and how to get there: of a network.
    pub const REMOTE_SUBNET_ROUTE: &str = "RemoteSubnetRoute";
    /// The address of the node that has an endpoint: of a remote endpoint on an overlay.
    pub const PROVIDER_ADDRESS: &str = "ProviderAddress";
}

/// The version of a document's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SchemaVersion {
    /// 2
    pub major: u32,
    /// 0
    pub minor: u32,
}

impl Default for SchemaVersion {
    fn default() -> Self {
        Self { major: 2, minor: 0 }
    }
}

/// Something that a network or an endpoint has besides, by its type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Policy {
    /// Such as [`policy_type::PROVIDER_ADDRESS`].
    #[serde(rename = "Type")]
    pub kind: String,
    /// Depends on the type.
    pub settings: Value,
}

impl Policy {
    /// A policy of this type.
    pub fn new(kind: &str, settings: Value) -> Self {
        Self { kind: kind.to_owned(), settings }
    }
}

/// What was read is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not of the form that HNS documents")]
pub struct DocumentError {
    /// Which document.
    pub what: String,
    /// Why not.
    #[source]
    pub source: serde_json::Error,
}

/// Reads an object.
///
/// # Errors
/// It has not the form of its kind.
pub fn read<T: DeserializeOwned>(kind: Kind, id: Guid, document: Value) -> Result<T, DocumentError> {
    serde_json::from_value(document).map_err(|source| DocumentError { what: format!("{kind} {id}"), source })
}

/// Reads the answer of an enumeration, a list of ids.
///
/// # Errors
/// It is no such list.
pub fn guids(kind: Kind, text: &str) -> Result<Vec<Guid>, DocumentError> {
    let what = || format!("the list of each {kind}");
    let list: Option<Vec<Guid>> =
        serde_json::from_str(text).map_err(|source| DocumentError { what: what(), source })?;
    Ok(list.unwrap_or_default())
}

/// `null` as if the key was left out.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// The policies of a type, as far as they have its form.
fn of_type<T: DeserializeOwned>(policies: &[Policy], kind: &str) -> impl Iterator<Item = T> {
    let of_type = policies.iter().filter(move |policy| policy.kind == kind);
    of_type.filter_map(|policy| serde_json::from_value(policy.settings.clone()).ok())
}
