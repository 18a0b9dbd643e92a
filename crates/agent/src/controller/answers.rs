//! Answers of one family to questions.

use std::sync::Arc;

use mode::Planner;
use model::view::{self, Explanation, ThisNode};
use model::{Family, Frontend, ServiceEntry, ServiceName};
use tokio::time::Instant;

use super::Controller;
use crate::counting::Counting;
use crate::snapshot::{self, AddressState, FamilyState, ServiceFamily, build};
use crate::traffic::Traffic;

impl<F: Family, P: Planner<F>> Controller<F, P> {
    pub(super) fn family_state(&self, now: Instant) -> FamilyState {
        let waiting = |since| now.saturating_duration_since(since).as_secs_f64();
        FamilyState {
            family: F::FAMILY.to_string(),
            mode: P::NAME.to_owned(),
            is_known: self.pipeline.is_known(),
            was_synced: self.was_synced,
            last_synced_at: self.telemetry.last_synced(),
            waiting_seconds: self.pipeline.pending_since().map(waiting),
            refused: self.pipeline.refused(),
            failure: self.failure.clone(),
            frontends: self.pipeline.table().len(),
            rules: self.pipeline.rule_counts().into_iter().map(build::rule_count).collect(),
            repairs: self.telemetry.repairs(),
        }
    }

    pub(super) fn explain_service(
        &self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
        now: Instant,
    ) -> Option<ServiceFamily> {
        let ports = match view::explain::<F>(node, entry) {
            Explanation::NoService => return None,
            Explanation::NoClusterIp => None,
            Explanation::Ports(ports) => Some(ports),
        };
        let frontends = entry.map(|entry| view::frontends::<F>(node, entry)).unwrap_or_default();
        let has_cluster_ip = ports.is_some();
        let traffic = self.latest_traffic();
        let outages = self.pipeline.outages(now);
        let service = entry.and_then(|entry| entry.service.as_deref());
        let asked = service.and_then(|service| node.proxying.policy(service));
        let port = |explained: view::PortExplanation<F>| {
            let own = || frontends.iter().filter(|frontend| frontend.service == explained.port);
            let proxying =
                asked.zip(own().next()).map(|((policy, by), own)| build::proxying(policy, by, own));
            let addresses = own().map(|frontend| self.address(frontend)).collect();
            let affinity = own().next().and_then(|frontend| frontend.affinity);
            let affinity_seconds = affinity.map(|affinity| affinity.timeout.as_secs());
            build::port(explained, addresses, affinity_seconds, proxying, &outages, traffic.as_deref(), now)
        };
        Some(ServiceFamily {
            family: F::FAMILY.to_string(),
            has_cluster_ip,
            ports: ports.unwrap_or_default().into_iter().map(port).collect(),
            last_change: self.history.last_of(name, F::FAMILY),
        })
    }

    fn address_state(&self, frontend: &Frontend<F>) -> AddressState {
        match self.pipeline.table().get(&frontend.key) {
            Some(winner) if winner.service != frontend.service => {
                AddressState::Lost { winner: winner.service.to_string() }
            }
            Some(_) if self.pipeline.is_in_force(&frontend.key) => AddressState::InForce,
            Some(_) | None => AddressState::Waiting,
        }
    }

    fn address(&self, frontend: &Frontend<F>) -> snapshot::Address {
        let state = self.address_state(frontend);
        let is_served = !matches!(state, AddressState::Lost { .. });
        let rules = if is_served { self.pipeline.rules(&frontend.key) } else { Vec::new() };
        build::address(frontend, state, rules)
    }

    fn latest_traffic(&self) -> Option<Arc<Traffic>> {
        self.counting.as_ref().and_then(Counting::latest)
    }
}
