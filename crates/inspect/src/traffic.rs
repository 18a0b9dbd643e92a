//! What went through, as a document.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use agent::{Counters, Flow, PortTraffic, Published, Rates};
use model::ServicePortName;
use tokio::time::Instant;

use crate::api::unix_seconds;
use crate::document::{TrafficList, TrafficRow, TrafficShare};

/// The families together.
pub(crate) fn list(published: &Published, now: Instant, time: SystemTime) -> TrafficList {
    let mut ports: BTreeMap<&ServicePortName, Sums> = BTreeMap::new();
    for (service, port) in published.values().flat_map(|traffic| &traffic.ports) {
        ports.entry(service).or_default().add(port);
    }
    let age = |traffic: &std::sync::Arc<agent::Traffic>| now.saturating_duration_since(traffic.read_at);
    TrafficList {
        now: unix_seconds(time),
        age_seconds: published.values().map(age).max().map(|age| age.as_secs_f64()),
        items: ports.into_iter().map(|(service, sums)| sums.row(service)).collect(),
    }
}

/// What went through a Service port in both families; an endpoint is of one.
#[derive(Default)]
struct Sums {
    total: Counters,
    per_second: Option<Rates>,
    endpoints: BTreeMap<SocketAddr, Flow>,
}

impl Sums {
    fn add(&mut self, port: &PortTraffic) {
        let Flow { total, per_second } = port.flow;
        self.total = self.total.plus(total);
        if let Some(more) = per_second {
            let sum = self.per_second.unwrap_or_default();
            self.per_second = Some(Rates {
                connections: sum.connections + more.connections,
                refused: sum.refused + more.refused,
                dropped: sum.dropped + more.dropped,
            });
        }
        self.endpoints.extend(&port.endpoints);
    }

    fn row(self, service: &ServicePortName) -> TrafficRow {
        let share = |(address, flow): (SocketAddr, Flow)| TrafficShare {
            address,
            connections: flow.total.connections,
            connections_per_second: flow.per_second.map(|rates| rates.connections),
            bytes: flow.total.bytes,
        };
        let Counters { connections, refused, dropped, packets, bytes, retries } = self.total;
        TrafficRow {
            namespace: service.service.namespace.to_string(),
            name: service.service.name.to_string(),
            service_port: service.to_string(),
            protocol: service.protocol.to_string(),
            connections,
            refused,
            dropped,
            connections_per_second: self.per_second.map(|rates| rates.connections),
            refused_per_second: self.per_second.map(|rates| rates.refused),
            dropped_per_second: self.per_second.map(|rates| rates.dropped),
            packets,
            bytes,
            retries,
            endpoints: self.endpoints.into_iter().map(share).collect(),
        }
    }
}
