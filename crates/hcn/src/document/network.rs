//! Networks.

use serde::{Deserialize, Serialize};

use super::{Policy, SchemaVersion, of_type, or_default, policy_type};
use crate::guid::Guid;
use crate::mac::Mac;

/// Types of [`Network`]. HNS is not consistent in their case.
pub mod network_type {
    /// Pods have addresses of the node's own network or of routed subnets.
    pub const L2_BRIDGE: &str = "L2Bridge";
    /// The same, where the fabric beneath is told of each pod.
    pub const L2_TUNNEL: &str = "L2Tunnel";
    /// Packets between nodes are encapsulated (VXLAN).
    pub const OVERLAY: &str = "Overlay";
}

/// A switch with subnets, which a network plug-in made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// Its id; HNS gives one if there is none.
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    pub id: Option<Guid>,
    /// Its name, which is not always unique.
    pub name: String,
    /// One of [`network_type`], or another.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Its addresses.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub ipams: Vec<Ipam>,
    /// What it has besides.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub policies: Vec<Policy>,
    /// The form of this document.
    pub schema_version: SchemaVersion,
}

/// Subnets of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// The subnets.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub subnets: Vec<Subnet>,
}

/// One subnet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Subnet {
    /// `10.244.1.0/24`
    pub ip_address_prefix: String,
}

/// A subnet of another node, on an overlay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RemoteSubnet {
    /// `10.244.2.0/24`
    pub destination_prefix: String,
    /// Number of the overlay (VNI).
    #[serde(default)]
    pub isolation_id: u32,
    /// The node's own address.
    pub provider_address: String,
    /// Hardware address of the node's virtual router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distributed_router_mac_address: Option<Mac>,
}

impl Network {
    /// Whether it is of this type.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind)
    }

    /// The subnets of other nodes, as far as they are well-formed.
    pub fn remote_subnets(&self) -> impl Iterator<Item = RemoteSubnet> {
        of_type(&self.policies, policy_type::REMOTE_SUBNET_ROUTE)
    }

    /// The prefixes of its own subnets.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.ipams.iter().flat_map(|ipam| &ipam.subnets).map(|subnet| subnet.ip_address_prefix.as_str())
    }
}
