//! A planner, its target over IPVS and devices in memory, and the event loop in between.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use backend_ipvs::{Activity, IpvsPlanner, IpvsTarget, Options, Rules};
use fakes::devices::FakeDevices;
use fakes::ipvs::FakeIpvs;
use ipvs::{Command, Flags, RealServer, RealServerId, ServerId, VirtualServer};
use mode::{Applied, Cause, NeedsReading, Plan, PlanOf, Planner, Reading, Settled, StepResults, Target};
use model::{
    AddressKind, Affinity, Changed, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey,
    Masquerade, ObjectName, Pool, Protocol, RuleSettings, ServicePortName, Table, V4, Verdict,
};
use tokio::time::Instant;

/// Rules that are not needed here.
#[derive(Clone, Copy)]
pub(crate) struct NoRules;

impl Planner<V4> for NoRules {
    const NAME: &'static str = "none";
    type Settings = ();
    type Target = NoRules;
    type Held = ();

    fn settings(&self, _rules: &RuleSettings) {}

    fn held_settings(&self) -> Option<&()> {
        Some(&())
    }

    fn plan(&self, _: &Table<V4>, (): &(), _: Cause<'_, V4, ()>) -> Result<PlanOf<Self, V4>, NeedsReading> {
        Ok(Plan { steps: Vec::new(), writes: 0, held: () })
    }

    fn detached(&self) -> Self {
        *self
    }

    fn settle(&mut self, (): (), _results: StepResults<NoRules>) -> Settled<V4> {
        Settled::done()
    }
}

impl Rules<V4> for NoRules {
    fn choose_endpoints((): &()) -> bool {
        false
    }
}

#[derive(Debug)]
pub(crate) enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl Target for NoRules {
    type Step = Never;
    type Receipt = ();
    type Found = ();
    type Counted = ();
    type Error = Infallible;

    fn apply(&mut self, _steps: Vec<Never>, _yields: &dyn Fn() -> bool) -> Applied<Self> {
        unreachable!("there are no steps")
    }

    fn read(&mut self) -> Reading<(), Infallible> {
        Reading::Whole(())
    }

    fn is_retryable(error: &Infallible) -> bool {
        match *error {}
    }

    fn outcome_unknown(why: &'static str) -> Infallible {
        unreachable!("{why}")
    }
}

/// One family of a node.
pub(crate) struct World {
    pub(crate) table: Table<V4>,
    pub(crate) settings: RuleSettings,
    pub(crate) ipvs: FakeIpvs,
    pub(crate) devices: FakeDevices,
    pub(crate) activity: Activity,
    options: Arc<Options>,
    planner: IpvsPlanner<V4, NoRules>,
    target: IpvsTarget<V4, NoRules>,
}

pub(crate) const NODE: &str = "192.168.0.1";
pub(crate) const SECOND: &str = "192.168.1.1";

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let addresses = ["127.0.0.1", NODE, "::1", "fe80::1", "fd00::1"].map(|text| text.parse().unwrap());
        let (ipvs, devices, options) = (FakeIpvs::new(), FakeDevices::new(addresses), Arc::new(options));
        let target =
            IpvsTarget::new(NoRules, Box::new(ipvs.clone()), Box::new(devices.clone()), options.clone());
        let activity = Activity::default();
        let target = target.telling(activity.clone());
        let planner = IpvsPlanner::new(NoRules, options.clone());
        let (table, settings) = (Table::default(), RuleSettings::default());
        Self { table, settings, ipvs, devices, activity, options, planner, target }
    }

    /// A new process takes over what there is.
    pub(crate) fn restart(&mut self, options: Options) {
        self.options = Arc::new(options);
        self.planner = IpvsPlanner::new(NoRules, self.options.clone());
        let (ipvs, devices) = (Box::new(self.ipvs.clone()), Box::new(self.devices.clone()));
        self.target =
            IpvsTarget::new(NoRules, ipvs, devices, self.options.clone()).telling(self.activity.clone());
    }

    /// Reads, and brings everything to what it should be.
    pub(crate) fn sync(&mut self) -> Settled<V4> {
        let Reading::Whole(found) = self.target.read() else { panic!("it can be read") };
        self.run(Cause::Found(&found))
    }

    /// What became of changed frontends.
    pub(crate) fn change(&mut self, keys: impl IntoIterator<Item = FrontendKey<V4>>) -> Settled<V4> {
        let changed = Changed::frontends(keys);
        self.run(Cause::Changed(&changed))
    }

    /// Sets a Service's frontends and carries them out.
    pub(crate) fn set(&mut self, name: &str, frontends: Vec<Frontend<V4>>) -> Settled<V4> {
        let keys = self.table.set_service(&ObjectName::new("ns", name), frontends);
        self.change(keys)
    }

    /// Wakes the planner when it wants to be.
    pub(crate) fn wake(&mut self) -> Option<Settled<V4>> {
        let at = self.planner.wake_at()?;
        Some(self.run(Cause::Woken(at)))
    }

    /// Until nothing is left to drain; what fails is tried again.
    pub(crate) fn drain(&mut self) {
        while let Some(settled) = self.wake() {
            self.change(settled.failed.frontends);
        }
    }

    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.planner.wake_at()
    }

    pub(crate) fn rules(&self, key: FrontendKey<V4>) -> Vec<String> {
        self.planner.rules(&key).into_iter().map(|rule| format!("{}: {}", rule.place, rule.text)).collect()
    }

    /// What is counted for each Service port and endpoint: connections, packets and bytes; a line for each counter.
    pub(crate) fn counted(&mut self) -> Vec<(String, String, [u64; 3])> {
        let counted = self.target.traffic().unwrap().expect("this mode counts");
        let mut lines: Vec<_> = self.planner.meters(&self.table, counted).into_iter().map(line).collect();
        lines.sort();
        lines
    }

    /// As the event loop does it; what was not tried is planned at once.
    fn run(&mut self, cause: Cause<'_, V4, backend_ipvs::Found<()>>) -> Settled<V4> {
        let detached = cause.is_whole().then(|| self.planner.detached());
        let planner = detached.as_ref().unwrap_or(&self.planner);
        let plan = match planner.plan(&self.table, &self.settings, cause) {
            Ok(plan) => plan,
            Err(NeedsReading) => return self.sync(),
        };
        let applied = self.target.apply(plan.steps, &|| false);
        let results = applied.results.into_iter().map(|result| result.map_err(Arc::new)).collect();
        let mut settled = self.planner.settle(plan.held, results);
        if !settled.untried.is_empty() {
            let untried = std::mem::take(&mut settled.untried);
            let again = self.run(Cause::Changed(&untried));
            settled.failed.extend(&again.failed);
            settled.is_known &= again.is_known;
        }
        settled
    }

    /// The servers, as `ipvsadm -Ln` tells them.
    pub(crate) fn servers(&self) -> Vec<String> {
        let servers = self.ipvs.servers();
        let text = |(server, reals): &(VirtualServer, Vec<RealServer>)| {
            let reals: Vec<String> = reals.iter().map(ToString::to_string).collect();
            format!("{server} -> {}", reals.join(", "))
        };
        servers.values().map(|server| text(server).replace(" flags 0x20", "")).collect()
    }

    /// What should be there, worked out from the table alone.
    pub(crate) fn expected(&self) -> BTreeMap<ServerId, (VirtualServer, BTreeSet<RealServer>)> {
        let mut expected = BTreeMap::new();
        let nodes = self.devices.held().others;
        let nodes = nodes.iter().filter(|address| address.is_ipv4() && !address.is_loopback());
        let frontends: BTreeMap<_, _> = self.table.iter().map(|frontend| (frontend.key, frontend)).collect();
        // Node ports come last, so that an address of a Service has precedence.
        for frontend in frontends.values() {
            let addresses: Vec<IpAddr> = match frontend.key.address {
                FrontendAddress::Ip(address) => vec![address.into()],
                FrontendAddress::Node => nodes.clone().copied().collect(),
            };
            for address in addresses {
                let protocol = frontend.key.protocol.number();
                let id = ServerId { address, protocol, port: frontend.key.port };
                expected.entry(id).or_insert_with(|| self.server(id, frontend));
            }
        }
        expected.retain(|_, (_, reals)| !reals.is_empty());
        expected
    }

    fn server(&self, id: ServerId, frontend: &Frontend<V4>) -> (VirtualServer, BTreeSet<RealServer>) {
        let persistence = frontend
            .affinity
            .and_then(|affinity| NonZeroU32::new(affinity.timeout.as_secs().try_into().unwrap()));
        let settings =
            VirtualServer { id, scheduler: self.options.scheduler, flags: Flags::OWN, persistence };
        let reals = frontend.pool.endpoints().iter().map(|endpoint| {
            RealServer::new(RealServerId { address: endpoint.address.into(), port: endpoint.port }, 1)
        });
        (settings, reals.collect())
    }
}

fn line(meter: mode::Meter) -> (String, String, [u64; 3]) {
    let mode::Meter { service, endpoint, counters, .. } = meter;
    let counted = [counters.connections, counters.packets.unwrap(), counters.bytes.unwrap()];
    (service.to_string(), endpoint.unwrap().to_string(), counted)
}

pub(crate) fn key(address: &str, protocol: Protocol, port: u16) -> FrontendKey<V4> {
    let address = match address {
        "node" => FrontendAddress::Node,
        text => FrontendAddress::Ip(text.parse().unwrap()),
    };
    FrontendKey { address, protocol, port }
}

/// The endpoints are the last numbers of 10.244.0.0/24.
pub(crate) fn frontend(service: &str, key: FrontendKey<V4>, endpoints: &[u8]) -> Frontend<V4> {
    let destination = |last: &u8| Destination {
        address: Ipv4Addr::new(10, 244, 0, *last),
        port: 8080,
        node: EndpointNode::Other,
    };
    let kind = match key.address {
        FrontendAddress::Ip(_) => AddressKind::ClusterIp,
        FrontendAddress::Node => AddressKind::NodePort,
    };
    Frontend {
        masquerade: Masquerade::UnlessFromPod,
        ..Frontend::new(
            key,
            kind,
            ServicePortName {
                service: ObjectName::new("ns", service),
                port: "p".into(),
                protocol: key.protocol,
            },
            Pool::new(endpoints.iter().map(destination).collect(), Verdict::Reject),
        )
    }
}

pub(crate) fn sticky(frontend: Frontend<V4>, seconds: u64) -> Frontend<V4> {
    Frontend { affinity: Some(Affinity { timeout: Duration::from_secs(seconds), service: None }), ..frontend }
}

pub(crate) fn web() -> FrontendKey<V4> {
    key("10.96.0.10", Protocol::Tcp, 80)
}

pub(crate) fn server_id(key: FrontendKey<V4>) -> ServerId {
    let FrontendAddress::Ip(address) = key.address else { panic!("an address") };
    ServerId { address: address.into(), protocol: key.protocol.number(), port: key.port }
}

pub(crate) fn endpoint(last: u8) -> RealServerId {
    RealServerId { address: IpAddr::from([10, 244, 0, last]), port: 8080 }
}

/// Those commands that do more than add.
pub(crate) fn removals(commands: &[Command]) -> Vec<String> {
    let removes = |command: &&Command| !matches!(command, Command::NewVirtual(_) | Command::NewReal(..));
    commands.iter().filter(removes).map(ToString::to_string).collect()
}
