//! A planner, its target over HNS in memory, and the event loop in between.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use backend_kernelspace::{Activity, Adapters, Found, HnsTarget, KernelspacePlanner, Options};
use fakes::hns::{FakeHns, Knobs, Objects};
use hcn::{Guid, LoadBalancer, Mac, PortMappingFlags, network_type};
use mode::{Cause, Planner, Reading, Settled, Target};
use model::{
    AddressKind, Affinity, Changed, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey,
    ObjectName, Pool, Protocol, RuleSettings, ServicePortName, Table, V4, Verdict,
};

pub(crate) const NETWORK: &str = "cbr0";
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);
pub(crate) const SOURCE_VIP: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 200);

/// One family of a node.
pub(crate) struct World {
    pub(crate) table: Table<V4>,
    pub(crate) settings: RuleSettings,
    pub(crate) hns: FakeHns,
    pub(crate) network: Guid,
    pub(crate) activity: Activity,
    options: Arc<Options>,
    planner: KernelspacePlanner<V4>,
    target: Option<HnsTarget<V4>>,
    /// What was refused, and waits.
    pub(crate) failed: BTreeSet<FrontendKey<V4>>,
    /// Nobody knows what is held.
    is_lost: bool,
    /// What the last plan's steps were, with what came of them.
    last: Vec<String>,
}

pub(crate) fn options() -> Options {
    Options { network_name: NETWORK.to_owned(), ..Options::default() }
}

/// The node's pods have 10.244.1.1 to 10.244.1.9; HNS has an endpoint for each.
pub(crate) fn objects(kind: &str) -> (Objects, Guid) {
    let mut objects = Objects::default();
    let network = objects.add_network(NETWORK, kind, &["10.244.1.0/24", "fd00:10:244:1::/64"]);
    if kind == network_type::OVERLAY {
        objects.add_remote_subnet(network, "10.244.2.0/24", [192, 168, 1, 12].into());
        objects.add_pod(network, "sourcevip", &[SOURCE_VIP.into()]);
    }
    for last in 1..10 {
        objects.add_pod(network, &format!("pod-{last}"), &[here(last).into()]);
    }
    // Somebody else's.
    let nat = objects.add_network("nat", "NAT", &["172.20.0.0/16"]);
    let container = objects.add_pod(nat, "container", &[[172, 20, 0, 5].into()]);
    objects.add_balancer(LoadBalancer {
        host_compute_endpoints: vec![container],
        port_mappings: vec![hcn::PortMapping {
            protocol: 6,
            internal_port: 80,
            external_port: 8088,
            flags: PortMappingFlags::LOCAL_ROUTED_VIP,
            ..hcn::PortMapping::default()
        }],
        ..LoadBalancer::default()
    });
    (objects, network)
}

pub(crate) fn here(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, last)
}

pub(crate) fn elsewhere(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 2, last)
}

fn adapters() -> Adapters {
    Arc::new(|| BTreeMap::from([(NODE.into(), Mac([0, 0x15, 0x5d, 1, 1, 11]))]))
}

impl World {
    pub(crate) fn new() -> Self {
        Self::of(network_type::L2_BRIDGE, options(), Knobs::default())
    }

    pub(crate) fn of(kind: &str, options: Options, knobs: Knobs) -> Self {
        let (objects, network) = objects(kind);
        let (hns, options) = (FakeHns::with(knobs, objects), Arc::new(options));
        Self {
            table: Table::default(),
            settings: RuleSettings { node_address: Some(NODE.into()), ..RuleSettings::default() },
            planner: KernelspacePlanner::new(options.clone()),
            hns,
            network,
            activity: Activity::default(),
            options,
            target: None,
            failed: BTreeSet::new(),
            is_lost: true,
            last: Vec::new(),
        }
    }

    /// A new process takes over what there is.
    pub(crate) fn restart(&mut self) {
        self.planner = KernelspacePlanner::new(self.options.clone());
        self.target = None;
        self.failed.clear();
        self.is_lost = true;
    }

    /// A new connection, which knows nothing of what was read.
    pub(crate) fn reopen(&mut self) {
        self.target = None;
    }

    fn target(&mut self) -> &mut HnsTarget<V4> {
        let (hns, options, activity) = (self.hns.clone(), self.options.clone(), self.activity.clone());
        let open = || HnsTarget::new(Box::new(hns), options, adapters()).telling(activity);
        self.target.get_or_insert_with(open)
    }

    /// Reads, and brings everything to what it should be. False: it can't be read.
    pub(crate) fn sync(&mut self) -> bool {
        match self.target().read() {
            Reading::Whole(found) => {
                self.run(Cause::Found(&found));
                true
            }
            Reading::Failed(_) => {
                self.target = None;
                false
            }
            other => panic!("{other:?}"),
        }
    }

    /// Why it can't be read.
    pub(crate) fn refusal(&mut self) -> String {
        let Reading::Failed(error) = self.target().read() else { panic!("it can be read") };
        error.to_string()
    }

    /// What became of changed frontends, with what waits from before.
    pub(crate) fn change(&mut self, keys: impl IntoIterator<Item = FrontendKey<V4>>) {
        let mut changed = Changed::frontends(keys);
        changed.frontends.append(&mut self.failed);
        if self.is_lost {
            self.sync();
        } else if !changed.is_empty() {
            self.run(Cause::Changed(&changed));
        }
    }

    /// Sets a Service's frontends and carries them out.
    pub(crate) fn set(&mut self, name: &str, frontends: Vec<Frontend<V4>>) {
        let keys = self.table.set_service(&ObjectName::new("ns", name), frontends);
        self.change(keys);
    }

    pub(crate) fn delete(&mut self, name: &str) {
        self.set(name, Vec::new());
    }

    /// Contents are looked at.
    pub(crate) fn wake(&mut self) {
        if let Some(at) = self.planner.wake_at() {
            self.run(Cause::Woken(at));
        }
    }

    /// Until nothing is left to do, as the event loop does it.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        for _ in 0..12 {
            if self.is_lost {
                self.sync();
            } else if self.failed.is_empty() {
                return;
            } else {
                self.change([]);
            }
        }
        panic!("it goes on and on: {:?}\n{}", self.failed, self.last.join("\n"));
    }

    pub(crate) fn is_settled(&self) -> bool {
        !self.is_lost && self.failed.is_empty()
    }

    pub(crate) fn rules(&self, key: FrontendKey<V4>) -> Vec<String> {
        self.planner.rules(&key).into_iter().map(|rule| rule.text).collect()
    }

    pub(crate) fn shortcomings(&self, key: FrontendKey<V4>) -> Vec<&'static str> {
        self.planner.shortcomings(self.table.get(&key).unwrap())
    }

    pub(crate) fn occupant(&self, key: FrontendKey<V4>) -> Option<String> {
        self.planner.occupant(self.table.get(&key).unwrap())
    }

    /// As the event loop does it; what was not tried is planned at once.
    fn run(&mut self, cause: Cause<'_, V4, Found>) {
        self.is_lost = false;
        let is_everything = cause.is_whole();
        let detached = is_everything.then(|| self.planner.detached());
        let planner = detached.as_ref().unwrap_or(&self.planner);
        let Ok(plan) = planner.plan(&self.table, &self.settings, cause) else {
            self.is_lost = true;
            return;
        };
        let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
        let applied = self.target().apply(plan.steps, &|| false);
        let results = applied.results.iter().map(|result| format!("{result:?}"));
        self.last = steps.iter().zip(results).map(|(step, result)| format!("{step}: {result}")).collect();
        if !applied.is_usable {
            self.target = None;
        }
        let results = applied.results.into_iter().map(|result| result.map_err(Arc::new)).collect();
        let Settled { is_known, failed, untried } = self.planner.settle(plan.held, results);
        self.is_lost = !is_known;
        if is_everything {
            self.failed.clear();
        }
        self.failed.extend(failed.frontends);
        if is_known && !untried.is_empty() {
            self.run(Cause::Changed(&untried));
        }
    }

    /// The load balancers of ours, one a line.
    pub(crate) fn balancers(&self) -> Vec<String> {
        let mut lines: Vec<String> = ours(&self.hns.objects(), self.network)
            .into_iter()
            .map(|(_, document)| line(&document, &self.hns.objects()))
            .collect();
        lines.sort();
        lines
    }

    /// Addresses of remote endpoints, sorted.
    pub(crate) fn remotes(&self) -> Vec<String> {
        let objects = self.hns.objects();
        let remote = objects.endpoints.values().filter(|endpoint| endpoint.is_remote());
        let mut addresses: Vec<String> =
            remote.flat_map(hcn::Endpoint::addresses).map(|address| address.to_string()).collect();
        addresses.sort();
        addresses
    }

    /// What should be there, worked out from the table alone: by address, protocol and port, the endpoints.
    pub(crate) fn expected(&self) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let frontends = self.table.iter().filter_map(|frontend| {
            let addresses: BTreeSet<IpAddr> =
                frontend.pool.endpoints().iter().map(|endpoint| endpoint.address.into()).collect();
            (!addresses.is_empty()).then(|| (name_of(frontend.key), addresses))
        });
        frontends.collect()
    }

    /// The same as HNS has it.
    pub(crate) fn served(&self) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let objects = self.hns.objects();
        let served = ours(&objects, self.network).into_iter().map(|(_, document)| {
            let [mapping] = document.port_mappings.as_slice() else { panic!("one mapping") };
            let vip = document.frontend_vips.first().map_or("node port", |vip| vip);
            let name = format!("{vip} {} {}", mapping.protocol, mapping.external_port);
            let addresses = document
                .host_compute_endpoints
                .iter()
                .flat_map(|id| objects.endpoints.get(id).into_iter().flat_map(hcn::Endpoint::addresses));
            (name, addresses.filter(IpAddr::is_ipv4).collect())
        });
        served.collect()
    }
}

fn name_of(key: FrontendKey<V4>) -> String {
    format!("{} {} {}", key.address, key.protocol.number(), key.port)
}

/// All load balancers but that of somebody else.
pub(crate) fn ours(objects: &Objects, _network: Guid) -> Vec<(Guid, LoadBalancer)> {
    let is_foreign = |document: &LoadBalancer| document.port_mappings.iter().any(|m| m.external_port == 8088);
    let all = objects.balancers.iter().filter(|(_, document)| !is_foreign(document));
    all.map(|(id, document)| (*id, document.clone())).collect()
}

fn line(document: &LoadBalancer, objects: &Objects) -> String {
    let vip = document.frontend_vips.first().map_or("node", |vip| vip);
    let mapping = document.port_mappings[0];
    let endpoint = |id: &Guid| match objects.endpoints.get(id) {
        Some(endpoint) => endpoint.addresses().next().map_or("?".into(), |address| address.to_string()),
        None => "gone".to_owned(),
    };
    let mut endpoints: Vec<String> = document.host_compute_endpoints.iter().map(endpoint).collect();
    endpoints.sort();
    let mut line = format!(
        "{vip} {} {} -> {} port {}",
        mapping.protocol,
        mapping.external_port,
        endpoints.join(" "),
        mapping.internal_port
    );
    for (name, number) in [
        ("flags", document.flags.0),
        ("mapping", mapping.flags.0),
        ("distribution", u32::from(mapping.distribution_type != hcn::Distribution::Flow)),
    ] {
        if number != 0 {
            write!(line, " {name} {number}").unwrap();
        }
    }
    if !document.source_vip.is_empty() && document.source_vip != NODE.to_string() {
        write!(line, " source {}", document.source_vip).unwrap();
    }
    line
}

pub(crate) fn key(address: &str, protocol: Protocol, port: u16) -> FrontendKey<V4> {
    let address = match address {
        "node" => FrontendAddress::Node,
        text => FrontendAddress::Ip(text.parse().unwrap()),
    };
    FrontendKey { address, protocol, port }
}

/// Endpoints below 100 are pods of this node, others are elsewhere.
pub(crate) fn destination(last: u8) -> Destination<V4> {
    let (address, local) = if last < 100 { (here(last), true) } else { (elsewhere(last), false) };
    Destination { address, port: 8080, node: EndpointNode::this_if(local) }
}

pub(crate) fn frontend(service: &str, key: FrontendKey<V4>, endpoints: &[u8]) -> Frontend<V4> {
    let kind = match key.address {
        FrontendAddress::Ip(address) if address.octets()[0] == 10 => AddressKind::ClusterIp,
        FrontendAddress::Ip(_) => AddressKind::LoadBalancerIp,
        FrontendAddress::Node => AddressKind::NodePort,
    };
    let destinations: BTreeSet<_> = endpoints.iter().map(|last| destination(*last)).collect();
    let name =
        ServicePortName { service: ObjectName::new("ns", service), port: "p".into(), protocol: key.protocol };
    Frontend {
        flow_endpoints: destinations.iter().copied().collect(),
        ..Frontend::new(key, kind, name, Pool::new(destinations, Verdict::Reject))
    }
}

pub(crate) fn sticky(frontend: Frontend<V4>) -> Frontend<V4> {
    Frontend { affinity: Some(Affinity { timeout: Duration::from_secs(10), service: None }), ..frontend }
}

pub(crate) fn web() -> FrontendKey<V4> {
    key("10.96.0.10", Protocol::Tcp, 80)
}
