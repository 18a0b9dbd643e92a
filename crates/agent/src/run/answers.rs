//! Answers of the event loop to questions.

use model::ServiceName;
use tokio::time::Instant;

use super::Agent;
use crate::snapshot;
use crate::telemetry::Question;

impl Agent {
    /// Answers, unless whoever asked has gone.
    pub(super) fn answer(&mut self, question: Question, now: Instant) {
        if question.is_abandoned() {
            return;
        }
        match question {
            Question::Service { service, answer } => {
                self.families.iter_mut().for_each(|family| family.want_traffic());
                drop(answer.send(self.service(&service, now)));
            }
            Question::Services { after, limit, answer } => {
                self.families.iter_mut().for_each(|family| family.want_traffic());
                let names = self.store.names_after(after.as_ref());
                let services = names.filter_map(|name| self.service(name, now));
                let page = services.take(limit.min(snapshot::MAX_PAGE)).collect();
                drop(answer.send(page));
            }
            Question::Overview { answer } => drop(answer.send(self.overview(now))),
            Question::Traffic => self.families.iter_mut().for_each(|family| family.want_traffic()),
        }
    }

    fn service(&self, name: &ServiceName, now: Instant) -> Option<snapshot::Service> {
        let entry = self.store.entry(name);
        let families = self.families.iter();
        let families: Vec<_> =
            families.filter_map(|family| family.service(&self.this_node, name, entry, now)).collect();
        (!families.is_empty()).then(|| snapshot::Service {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            families,
        })
    }

    fn overview(&self, now: Instant) -> snapshot::Overview {
        let (families, node) = (self.families.iter(), self.node.get());
        snapshot::Overview {
            node: self.settings.node_name.to_string(),
            is_node_known: node.is_some(),
            node_addresses: node.map(|node| node.addresses.to_vec()).unwrap_or_default(),
            zone: node.and_then(|node| node.zone.as_ref()).map(ToString::to_string),
            generation: *self.telemetry.generation.borrow(),
            is_listed: self.missing.is_empty(),
            waits_for_pod_cidrs: self.node.waits_until().is_some(),
            services: self.store.entries().len(),
            families: families.clone().map(|family| family.state(now)).collect(),
            conflicts: families.clone().flat_map(|family| family.conflicts()).collect(),
            recent_changes: families.flat_map(|family| family.recent_changes()).collect(),
        }
    }
}
