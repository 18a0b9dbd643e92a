//! Answers of the event loop to questions.

use model::ServiceName;
use tokio::time::Instant;

use super::Agent;
use crate::snapshot;
use crate::telemetry::Question;

impl Agent {
    /// Whoever asked may have gone.
    pub(super) fn answer(&mut self, question: Question, now: Instant) {
        match question {
            Question::Service { service, answer } => drop(answer.send(self.service(&service, now))),
            Question::Services { after, limit, answer } => {
                self.families.iter_mut().for_each(|family| family.want_traffic(now));
                let names = self.store.names_after(after.as_ref());
                let services = names.filter_map(|name| self.service(name, now));
                let page = services.take(limit.min(snapshot::MAX_PAGE)).collect();
                drop(answer.send(page));
            }
            Question::Overview { answer } => drop(answer.send(self.overview(now))),
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
        let families = self.families.iter();
        snapshot::Overview {
            node: self.settings.node_name.to_string(),
            is_listed: self.missing.is_empty(),
            waits_for_pod_cidrs: self.node.waits_until().is_some(),
            services: self.store.entries().len(),
            families: families.clone().map(|family| family.state(now)).collect(),
            conflicts: families.clone().flat_map(|family| family.conflicts()).collect(),
            recent_changes: families.flat_map(|family| family.recent_changes()).collect(),
        }
    }
}
