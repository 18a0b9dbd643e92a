//! The backend: its idea of what the kernel holds, and changes for what differs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use iptables::{Restore, TableName};
use mode::RuleCount;
use model::{Changed, Family, Frontend, FrontendKey, ServiceName, ServicePortName, Table, shrink_if_sparse};
use rustc_hash::FxBuildHasher;

use crate::changes::Changes;
use crate::config::Config;
use crate::fixed;
use crate::objects::{Counts, Objects};
use crate::programmed::Programmed;
use crate::render;

/// One family's rules: what they depend on, and what the kernel holds of them.
///
/// Invariant: `held` is what the last plan reported by [`Backend::committed`] left in the kernel.
#[derive(Clone, Debug)]
pub struct Backend<F: Family> {
    pub(crate) config: Config,
    held: Held<F>,
    /// The rules in the kernel, and of these what the last changes wrote.
    rules: Counts,
    written: Counts,
}

/// What the kernel holds.
#[derive(Clone, Debug)]
pub(crate) struct Held<F: Family> {
    services: HashMap<ServiceName, Box<[Programmed<F>]>, FxBuildHasher>,
    /// Whose each frontend is.
    owners: HashMap<FrontendKey<F>, ServiceName, FxBuildHasher>,
    health_check_ports: HealthCheckPorts,
}

/// Whose each `healthCheckNodePort` is.
type HealthCheckPorts = BTreeMap<u16, ServiceName>;

fn health_check_ports<F: Family>(table: &Table<F>) -> HealthCheckPorts {
    table.health_check_ports().map(|(port, service)| (port, service.clone())).collect()
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Held<F> {
    fn default() -> Self {
        Self {
            services: HashMap::default(),
            owners: HashMap::default(),
            health_check_ports: HealthCheckPorts::new(),
        }
    }
}

/// Changes together with what is held once they are made.
#[derive(Debug)]
#[must_use]
pub struct Plan<F: Family> {
    /// What to restore. Empty: nothing to do.
    pub restore: Restore,
    pub(crate) outcome: Outcome<F>,
    /// The rules that there are then, and those that are written.
    rules: Counts,
    written: Counts,
}

impl<F: Family> Plan<F> {
    pub(crate) fn new(restore: Restore, outcome: Outcome<F>, rules: Counts) -> Self {
        Self { written: Counts::written(&restore), restore, outcome, rules }
    }
}

#[derive(Debug)]
pub(crate) enum Outcome<F: Family> {
    /// These Services differ; `None`: nothing is left of one.
    Delta {
        services: Vec<(ServiceName, Box<[Programmed<F>]>)>,
        owners: Vec<(FrontendKey<F>, Option<ServiceName>)>,
        /// All of them, if one differs.
        health_check_ports: Option<HealthCheckPorts>,
    },
    /// Everything was looked at.
    Whole { held: Box<Held<F>>, config: Config },
}

impl<F: Family> Backend<F> {
    /// A backend that knows nothing of the kernel yet: [`Backend::repair`] comes first.
    pub fn new(config: Config) -> Self {
        Self { config, held: Held::default(), rules: Counts::default(), written: Counts::default() }
    }

    /// The settings that the kernel's rules follow.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The changes that carry what differs into the kernel. The work is proportional to the number of frontends and endpoints
    /// of their Services, and to that of all health check ports if one differs.
    pub fn plan(&self, table: &Table<F>, changed: &Changed<F>) -> Plan<F> {
        let keys = &changed.frontends;
        let mut changes = Changes::default();
        let (mut old, mut new) = (Objects::default(), Objects::default());
        let mut services = Vec::new();
        for service in self.concerned(table, keys) {
            let wanted = service_ports(table.of_service(&service));
            let held = self.held.services.get(&service).map_or(&[][..], |ports| ports);
            if *held != *wanted {
                // Only Service ports that differ are rendered.
                let objects = |ports: &[Programmed<F>], others: &[Programmed<F>]| {
                    let mut objects = Objects::default();
                    for port in ports.iter().filter(|port| !others.contains(port)) {
                        objects.extend(render::objects(port, &self.config));
                    }
                    objects
                };
                old.extend(objects(held, &wanted));
                new.extend(objects(&wanted, held));
                services.push((service, wanted));
            }
        }
        let health_check_ports = (!changed.health_check_ports.is_empty()).then(|| health_check_ports(table));
        if let Some(ports) = &health_check_ports {
            old.extend(fixed::health_checks(&self.held.health_check_ports));
            new.extend(fixed::health_checks(ports));
        }
        let mut rules = self.rules.clone();
        rules.add_objects(&new);
        rules.remove_objects(&old);
        changes.objects(old, new);
        let owner = |key: &FrontendKey<F>| table.get(key).map(|frontend| frontend.service.service.clone());
        let owners = keys.iter().map(|key| (*key, owner(key))).collect();
        Plan::new(changes.into_restore(), Outcome::Delta { services, owners, health_check_ports }, rules)
    }

    /// The Services that have or had these frontends.
    fn concerned(&self, table: &Table<F>, keys: &BTreeSet<FrontendKey<F>>) -> BTreeSet<ServiceName> {
        let before = keys.iter().filter_map(|key| self.held.owners.get(key));
        let after = keys.iter().filter_map(|key| Some(&table.get(key)?.service.service));
        before.chain(after).cloned().collect()
    }

    /// The rules that are held for the Service port of a frontend.
    pub(crate) fn explain(&self, key: &FrontendKey<F>) -> Vec<mode::Rule> {
        let service = self.held.owners.get(key).and_then(|owner| self.held.services.get(owner));
        let ports = service.into_iter().flat_map(|ports| ports.iter());
        let objects = ports.filter(|port| port.has(key)).map(|port| render::objects(port, &self.config));
        objects.flat_map(Objects::explain).collect()
    }

    /// The rules of upstream's two tables; the canary in `mangle` counts for nothing.
    pub fn rule_counts(&self) -> Vec<RuleCount> {
        let count = |table: TableName| RuleCount {
            table: table.as_str(),
            held: self.rules.of(table),
            written: self.written.of(table),
        };
        [TableName::Filter, TableName::Nat].map(count).into()
    }

    /// Takes note that the plan's changes were made.
    pub fn committed(&mut self, plan: Plan<F>) {
        self.rules = plan.rules;
        self.written = plan.written;
        match plan.outcome {
            Outcome::Delta { services, owners, health_check_ports } => {
                if let Some(ports) = health_check_ports {
                    self.held.health_check_ports = ports;
                }
                for (service, ports) in services {
                    if ports.is_empty() {
                        self.held.services.remove(&service);
                    } else {
                        self.held.services.insert(service, ports);
                    }
                }
                for (key, owner) in owners {
                    match owner {
                        Some(owner) => self.held.owners.insert(key, owner),
                        None => self.held.owners.remove(&key),
                    };
                }
                shrink_if_sparse(&mut self.held.services);
                shrink_if_sparse(&mut self.held.owners);
            }
            Outcome::Whole { held, config } => {
                self.held = *held;
                self.config = config;
            }
        }
    }
}

impl<F: Family> Held<F> {
    /// All that the table asks for.
    pub(crate) fn of(table: &Table<F>) -> Self {
        let mut by_service: BTreeMap<&ServiceName, Vec<&Frontend<F>>> = BTreeMap::new();
        let mut held = Self { health_check_ports: health_check_ports(table), ..Self::default() };
        for frontend in table.iter() {
            let service = &frontend.service.service;
            held.owners.insert(frontend.key, service.clone());
            by_service.entry(service).or_default().push(frontend);
        }
        for (service, frontends) in by_service {
            held.services.insert(service.clone(), service_ports(frontends.into_iter()));
        }
        held
    }

    /// Whose each `healthCheckNodePort` is.
    pub(crate) fn health_check_ports(&self) -> &HealthCheckPorts {
        &self.health_check_ports
    }

    /// All Service ports, in the order of their names.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &Programmed<F>> {
        let mut services: Vec<_> = self.services.iter().collect();
        services.sort_unstable_by_key(|(name, _)| *name);
        services.into_iter().flat_map(|(_, ports)| ports.iter())
    }
}

/// The ports of one Service, in the order of their names.
fn service_ports<'a, F: Family>(frontends: impl Iterator<Item = &'a Frontend<F>>) -> Box<[Programmed<F>]> {
    let mut by_port: BTreeMap<&ServicePortName, Vec<&Frontend<F>>> = BTreeMap::new();
    for frontend in frontends {
        by_port.entry(&frontend.service).or_default().push(frontend);
    }
    by_port.into_iter().map(|(name, frontends)| Programmed::new(name, &frontends)).collect()
}
