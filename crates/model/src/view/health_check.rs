//! Service health checks: what a load balancer learns about a Service of which only local endpoints may be used.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{ThisNode, endpoints, own};
use crate::{Family, ServiceEntry, ServiceName};

/// The health check of one Service in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node, counted by address.
    pub local_endpoints: usize,
}

/// All health checks of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// The ranges of addresses that serve node ports, and so these.
    pub ranges: Vec<IpNet>,
    /// By Service.
    pub services: BTreeMap<ServiceName, HealthCheck>,
}

/// The health check of a Service; `None` if it asks for none or has no cluster IP in the family.
///
/// What counts are distinct addresses of ready endpoints on this node, over all ports. Terminating endpoints that only still
/// serve do not count, even where they take traffic: the load balancer is to look elsewhere. Source: upstream's
/// `LocalReadyEndpoints` in `pkg/proxy/endpointschangetracker.go`.
pub fn health_check<F: Family>(node: &ThisNode, entry: &ServiceEntry) -> Option<HealthCheck> {
    let service = entry.service.as_deref()?;
    let port = service.health_check_node_port?;
    own::<F>(&service.cluster_ips).next()?;
    let mut addresses: BTreeSet<F::Addr> = BTreeSet::new();
    for service_port in &service.ports {
        let candidates = endpoints::gather::<F>(node, service_port, &entry.slices);
        addresses.extend(endpoints::local_ready::<F>(&candidates));
    }
    Some(HealthCheck { port, local_endpoints: addresses.len() })
}
