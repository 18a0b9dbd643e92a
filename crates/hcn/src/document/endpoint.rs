//! Endpoints.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Policy, SchemaVersion, of_type, or_default, policy_type};
use crate::guid::Guid;
use crate::mac::Mac;

/// An address on a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Endpoint {
    /// Its id; HNS gives one if there is none.
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    pub id: Option<Guid>,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The network that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_compute_network: Option<Guid>,
    /// Its addresses: one for each family.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub ip_configurations: Vec<IpConfiguration>,
    /// Its hardware address, with dashes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    /// See [`EndpointFlags`].
    #[serde(skip_serializing_if = "EndpointFlags::is_empty")]
    pub flags: EndpointFlags,
    /// What it has besides.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub policies: Vec<Policy>,
    /// The form of this document.
    pub schema_version: SchemaVersion,
}

/// One address of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpConfiguration {
    /// The address.
    pub ip_address: String,
    /// Length of its subnet's prefix; may be missing.
    #[serde(skip_serializing_if = "is_no_length")]
    pub prefix_length: u8,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_no_length(length: &u8) -> bool {
    *length == 0
}

/// Flags of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointFlags(pub u32);

impl EndpointFlags {
    /// It is on another node.
    pub const REMOTE: Self = Self(1);

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// Whether these are among them.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a policy of type `ProviderAddress` says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Provider {
    provider_address: String,
}

impl Endpoint {
    /// An endpoint on another node, on an overlay with the address of that node.
    pub fn remote(address: IpAddr, network: Guid, mac: Mac, provider: Option<IpAddr>) -> Self {
        Self {
            host_compute_network: Some(network),
            ip_configurations: vec![IpConfiguration { ip_address: address.to_string(), prefix_length: 0 }],
            mac_address: mac.to_string(),
            flags: EndpointFlags::REMOTE,
            policies: provider.into_iter().map(provider_policy).collect(),
            ..Self::default()
        }
    }

    /// Whether it is on another node.
    pub fn is_remote(&self) -> bool {
        self.flags.contains(EndpointFlags::REMOTE)
    }

    /// Its addresses, as far as they are some.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ip_configurations.iter().filter_map(|configuration| configuration.ip_address.parse().ok())
    }

    /// The address of its node, on an overlay.
    pub fn provider_address(&self) -> Option<IpAddr> {
        let mut providers = of_type::<Provider>(&self.policies, policy_type::PROVIDER_ADDRESS);
        providers.find_map(|provider| provider.provider_address.parse().ok())
    }
}

fn provider_policy(address: IpAddr) -> Policy {
    Policy::new(policy_type::PROVIDER_ADDRESS, json!({ "ProviderAddress": address }))
}
