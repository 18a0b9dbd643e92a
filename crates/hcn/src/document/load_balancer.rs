//! Load balancers.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{SchemaVersion, or_default};
use crate::guid::Guid;

/// A frontend and the endpoints behind it. It has no name, owner or label.
///
/// HNS takes several frontends and port mappings for one; this program and upstream make one object for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LoadBalancer {
    /// Its id; HNS gives one if there is none.
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    pub id: Option<Guid>,
    /// The endpoints.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub host_compute_endpoints: Vec<Guid>,
    /// The address that flows get as their source, where that is rewritten; empty: HNS chooses.
    #[serde(rename = "SourceVIP", skip_serializing_if = "String::is_empty")]
    pub source_vip: String,
    /// The address that packets are captured by; none: any of the node's, a node port.
    #[serde(rename = "FrontendVIPs", skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub frontend_vips: Vec<String>,
    /// Protocol and ports.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub port_mappings: Vec<PortMapping>,
    /// See [`LoadBalancerFlags`].
    #[serde(skip_serializing_if = "LoadBalancerFlags::is_empty")]
    pub flags: LoadBalancerFlags,
    /// The form of this document.
    pub schema_version: SchemaVersion,
}

/// Protocol and ports of a load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortMapping {
    /// IP's number: 6, 17, 132.
    pub protocol: u32,
    /// Port of all endpoints, in host byte order.
    pub internal_port: u16,
    /// Port of the frontend, in host byte order.
    pub external_port: u16,
    /// How an endpoint is chosen.
    #[serde(skip_serializing_if = "Distribution::is_default")]
    pub distribution_type: Distribution,
    /// See [`PortMappingFlags`].
    #[serde(skip_serializing_if = "PortMappingFlags::is_empty")]
    pub flags: PortMappingFlags,
}

/// By what of a packet an endpoint is chosen, which is always a hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distribution {
    /// Addresses, protocol and ports (0).
    #[default]
    Flow,
    /// The client's address and the protocol (1).
    ClientAndProtocol,
    /// The client's address (2).
    Client,
    /// One that is not known here.
    Other(u32),
}

impl Distribution {
    fn number(self) -> u32 {
        match self {
            Self::Flow => 0,
            Self::ClientAndProtocol => 1,
            Self::Client => 2,
            Self::Other(number) => number,
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_default(&self) -> bool {
        *self == Self::Flow
    }
}

impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.number())
    }
}

impl<'de> Deserialize<'de> for Distribution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match u32::deserialize(deserializer)? {
            0 => Self::Flow,
            1 => Self::ClientAndProtocol,
            2 => Self::Client,
            number => Self::Other(number),
        })
    }
}

/// Has a number be a set of flags, which is left out of documents where it is empty.
macro_rules! flags {
    ($name:ident) => {
        impl $name {
            fn is_empty(&self) -> bool {
                self.0 == 0
            }

            /// Both.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Whether these are among them.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
        }
    };
}
flags!(LoadBalancerFlags);
flags!(PortMappingFlags);

/// Flags of a load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LoadBalancerFlags(pub u32);

impl LoadBalancerFlags {
    /// Direct server return.
    pub const DSR: Self = Self(1);
    /// The frontend is one of IPv6.
    pub const IPV6: Self = Self(2);
}

/// Flags of a port mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortMappingFlags(pub u32);

impl PortMappingFlags {
    /// An internal load balancer.
    pub const INTERNAL: Self = Self(1);
    /// The frontend can be reached from the node itself.
    pub const LOCAL_ROUTED_VIP: Self = Self(2);
    /// Packets come by a multiplexer before this node.
    pub const USE_MUX: Self = Self(4);
    /// Endpoints see the frontend as the destination.
    pub const PRESERVE_DESTINATION: Self = Self(8);
    /// Flows from outside stay with their endpoint when the endpoints change.
    pub const EXTERNAL_VIP: Self = Self(16);
}
