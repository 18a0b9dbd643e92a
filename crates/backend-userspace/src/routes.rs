//! Frontends as a worker knows them.

use std::net::SocketAddr;

use model::{
    AppProtocol, Family, FrontendAddress, FrontendKey, Pool, Protocol, ServicePortName, TrafficPolicy,
};
use proxy::frame::{self, Route};

/// What a worker calls a frontend; `None` if it does not know the protocol.
pub(crate) fn frontend<F: Family>(key: &FrontendKey<F>) -> Option<frame::Frontend> {
    let protocol = match key.protocol {
        Protocol::Tcp => frame::Protocol::Tcp,
        Protocol::Udp => frame::Protocol::Udp,
        Protocol::Sctp => return None,
    };
    let address = match key.address {
        FrontendAddress::Ip(address) => Some(address.into()),
        FrontendAddress::Node => None,
    };
    Some(frame::Frontend { address, protocol, port: key.port })
}

/// Where a worker takes flows to a frontend; `None` if rules hand none over, because nobody serves them.
///
/// Internal flows may have endpoints where others have none: then a worker gets no others.
pub(crate) fn route<F: Family>(wanted: &model::Frontend<F>) -> Option<Route> {
    let affinity_secs = wanted.affinity.map(|affinity| affinity.timeout.as_secs());
    let weight = |to: &model::Destination<F>| {
        let weights = wanted.weights.as_ref()?;
        weights.get(&(to.address, to.port)).copied()
    };
    let pool = |policy, pool: &Pool<F>| {
        let endpoints: Vec<SocketAddr> =
            pool.endpoints().iter().map(|to| SocketAddr::new(to.address.into(), to.port)).collect();
        let weights = match wanted.weights {
            Some(_) => pool.endpoints().iter().map(|to| weight(to).unwrap_or(1)).collect(),
            None => Vec::new(),
        };
        let name = pool_name(&wanted.service, policy);
        let by_request = wanted.app_protocol == AppProtocol::Http;
        let resilience = wanted.resilience.as_deref().cloned().unwrap_or_default();
        (!endpoints.is_empty()).then_some(frame::Pool {
            name,
            endpoints,
            weights,
            affinity_secs,
            by_request,
            resilience,
        })
    };
    let any = pool(wanted.policy, &wanted.pool);
    let internal = wanted.internal_pool.as_ref().and_then(|found| pool(TrafficPolicy::Cluster, found));
    let any = any.or_else(|| internal.clone())?;
    Some(Route { frontend: frontend(&wanted.key)?, any, internal, policy: wanted.proxying })
}

/// What the pools of a Service port are called.
pub(crate) fn pool_names(service: &ServicePortName) -> [String; 2] {
    [TrafficPolicy::Cluster, TrafficPolicy::Local].map(|policy| pool_name(service, policy))
}

fn pool_name(service: &ServicePortName, policy: TrafficPolicy) -> String {
    let policy = match policy {
        TrafficPolicy::Cluster => "",
        TrafficPolicy::Local => " local",
    };
    format!("{service}/{:?}{policy}", service.protocol)
}
