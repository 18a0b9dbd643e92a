//! What the configuration says about this mode.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hcn::Mac;

/// The section `winkernel` of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `networkName`
    pub network_name: String,
    /// `sourceVip`
    pub source_vip: Option<IpAddr>,
    /// `enableDSR`
    pub dsr: bool,
    /// `rootHnsEndpointName`
    pub root_endpoint: String,
    /// `forwardHealthCheckVip`
    pub forward_health_checks: bool,
    /// The port of `healthzBindAddress`, which answers for Services without a `healthCheckNodePort`.
    pub healthz_port: Option<u16>,
}

/// The addresses of the node's adapters, each with the adapter's hardware address.
pub type Adapters = Arc<dyn Fn() -> BTreeMap<IpAddr, Mac> + Send + Sync>;
