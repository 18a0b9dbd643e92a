//! Answers of the event loop to questions.

use model::{ServiceEntry, ServiceName};
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
            Question::Services { wanted, answer } => {
                self.families.iter_mut().for_each(|family| family.want_traffic());
                drop(answer.send(self.page(&wanted, now)));
            }
            Question::Overview { answer } => drop(answer.send(self.overview(now))),
            Question::Traffic => self.families.iter_mut().for_each(|family| family.want_traffic()),
        }
    }

    fn page(&self, wanted: &snapshot::Wanted, now: Instant) -> snapshot::Page {
        let mut page = snapshot::Page { services: Vec::new(), next: None };
        for (n_looked_at, (name, entry)) in self.store.entries_after(wanted.after.as_ref()).enumerate() {
            if page.services.len() == snapshot::MAX_PAGE || n_looked_at == snapshot::MAX_LOOK {
                return page;
            }
            if is_wanted(entry, wanted) {
                page.services.extend(self.service(name, now));
            }
            page.next = Some(name.clone());
        }
        snapshot::Page { next: None, ..page }
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

fn is_wanted(entry: &ServiceEntry, wanted: &snapshot::Wanted) -> bool {
    let snapshot::Wanted { address, node_port, .. } = *wanted;
    (address, node_port) == (None, None)
        || address.is_some_and(|address| entry.has_address(address))
        || node_port.is_some_and(|port| entry.has_node_port(port))
}
