//! Tracked flows that the rules would no longer make: UDP and SCTP flows stay where they are for as long as their client
//! sends, so those to an endpoint that is gone have to be forgotten. Off the way of changes to the kernel's rules.
//!
//! Connections of TCP end by themselves, unless their endpoint went without a word, as with its node: then the client sends
//! into the void until it gives up, a quarter of an hour later. Where a Service asks for it, they are forgotten too. The
//! client's next packet then looks like that of a new flow, goes to an endpoint that is there, and that one answers with RST, since it knows
//! of no such connection; the sequence number is the client's own, so that it believes it.
//!
//! What upstream does in `pkg/proxy/conntrack/cleanup.go`, without its gaps: Services without endpoints, deleted Services,
//! changes of a Service alone, and SCTP count too; flows through a node port count only if they were sent to the node.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use conntrack::{Conntrack, Filter, Flow};
use ipnet::IpNet;
use model::{Family, FrontendAddress, FrontendKey, IpFamily, Protocol, Table};
use netlink::NetlinkError;
use tokio::time::Instant;

/// Opens a connection to the table of tracked flows. Called on the thread that will use it.
pub type OpenConntrack = Arc<dyn Fn() -> Result<Box<dyn Conntrack>, NetlinkError> + Send + Sync>;

/// Whom flows to an address may be answered by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// One of these; a flow that was never translated is stale too, since it began before the rules were there.
    Answers(HashSet<SocketAddr>),
    /// Nobody: the frontend is gone. The address may be anybody's now, so that only translated flows are stale.
    Gone,
}

/// What a packet was sent to. `None`: one of the node's addresses.
type Target = (Option<IpAddr>, u8, u16);

/// What is right for some frontends of one family, and so which flows are not.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    family: conntrack::Family,
    targets: HashMap<Target, Expected>,
    node_addresses: HashSet<IpAddr>,
    /// Ranges in which every address without a frontend counts as gone: for the first sweep after a start, which does
    /// not know what was deleted before.
    all_of: Vec<IpNet>,
}

impl Sweep {
    /// What the table says about these frontends.
    pub(crate) fn new<'a, F: Family>(
        table: &Table<F>,
        keys: impl IntoIterator<Item = &'a FrontendKey<F>>,
        node_addresses: &[IpAddr],
        all_of: Vec<IpNet>,
    ) -> Self {
        let expected = |key: &FrontendKey<F>| {
            let Some(frontend) = table.get(key) else { return Expected::Gone };
            let socket = |d: &model::Destination<F>| SocketAddr::new(d.address.into(), d.port);
            Expected::Answers(frontend.flow_endpoints.iter().map(socket).collect())
        };
        let keys = keys.into_iter().filter(|key| may_be_stale(table, key));
        let targets = keys.map(|key| (target(key), expected(key))).collect();
        Self {
            family: F::FAMILY.into(),
            targets,
            node_addresses: node_addresses.iter().copied().collect(),
            all_of,
        }
    }

    /// Whether the flow goes where it should not.
    fn is_stale(&self, flow: &Flow) -> bool {
        let (dst, port) = (flow.orig.dst, flow.orig.dst_port);
        let by_address = self.targets.get(&(Some(dst), flow.protocol, port));
        let by_node_port = || {
            let is_to_node = self.node_addresses.contains(&dst);
            is_to_node.then(|| self.targets.get(&(None, flow.protocol, port))).flatten()
        };
        let is_tcp = flow.protocol == Protocol::Tcp.number();
        match by_address.or_else(by_node_port) {
            Some(Expected::Answers(answers)) => {
                !answers.contains(&flow.answered_by()) && (flow.is_dnat() || !is_tcp)
            }
            Some(Expected::Gone) => flow.is_dnat(),
            None if is_tcp => false,
            None => flow.is_dnat() && self.all_of.iter().any(|range| range.contains(&dst)),
        }
    }

    /// The passes over the table that find all of them: one for each target, or one for each protocol where that is less
    /// work.
    fn filters(&self) -> Vec<Filter> {
        let protocols = [Protocol::Udp, Protocol::Sctp, Protocol::Tcp].map(Protocol::number);
        let is_concerned = |protocol: &u8| {
            // Of a protocol that no Service has any more, too: there may have been one. Not of TCP, which is looked at only on demand.
            let is_of_all = !self.all_of.is_empty() && *protocol != Protocol::Tcp.number();
            is_of_all || self.targets.keys().any(|target| target.1 == *protocol)
        };
        if !self.all_of.is_empty() || self.targets.len() > MAX_NARROW_PASSES {
            let pass = |protocol| Filter::new(self.family, protocol);
            return protocols.into_iter().filter(is_concerned).map(pass).collect();
        }
        let narrow = |(address, protocol, port): &Target| {
            let filter = Filter::new(self.family, *protocol);
            match address {
                Some(address) => filter.to(SocketAddr::new(*address, *port)),
                None => filter.to_port(*port),
            }
        };
        let mut filters: Vec<Filter> = self.targets.keys().map(narrow).collect();
        filters.sort_by_key(|filter| (filter.protocol, filter.orig_dst, filter.orig_dst_port));
        filters
    }

    /// Deletes all stale flows; returns how many.
    fn perform(&self, conntrack: &mut dyn Conntrack) -> Result<u64, NetlinkError> {
        let mut deleted = 0;
        for filter in self.filters() {
            let result = conntrack.delete(&filter, &mut |flow| self.is_stale(flow));
            deleted += result.map_err(|error| error.besides(deleted, DELETED))?;
        }
        Ok(deleted)
    }
}

/// What a sweep counts.
const DELETED: &str = "deleted flows";
/// A pass walks the whole table whatever it looks for: about 30 ms for 100,000 flows.
const MAX_NARROW_PASSES: usize = 4;

/// Whether flows to a frontend may be stale after a change of it: not those of TCP, unless the Service asks for that.
pub(crate) fn may_be_stale<F: Family>(table: &Table<F>, key: &FrontendKey<F>) -> bool {
    key.protocol != Protocol::Tcp || table.get(key).is_some_and(|frontend| frontend.resets_connections)
}

fn target<F: Family>(key: &FrontendKey<F>) -> Target {
    let address = match key.address {
        FrontendAddress::Ip(addr) => Some(addr.into()),
        FrontendAddress::Node => None,
    };
    (address, key.protocol.number(), key.port)
}

/// What came of a sweep.
#[derive(Debug)]
pub(crate) struct Swept {
    /// How many flows were deleted.
    pub(crate) result: Result<u64, SweepError>,
    pub(crate) took: Duration,
}

/// A sweep that did not get to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SweepError {
    #[error(transparent)]
    Conntrack(#[from] NetlinkError),
    /// Which is a defect.
    #[error("a panic")]
    Panic,
}

impl SweepError {
    /// How many flows were deleted before, as far as that is known.
    fn deleted(&self) -> u64 {
        match self {
            Self::Conntrack(error) => error.done(),
            Self::Panic => 0,
        }
    }
}

/// The sending end of a sweeping thread's jobs. The thread ends when this is dropped.
#[derive(Debug)]
struct Sweeper {
    jobs: mpsc::Sender<Sweep>,
}

impl Sweeper {
    fn start(
        family: IpFamily,
        open: OpenConntrack,
        report: impl Fn(Swept) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Sweep>();
        let work = move || {
            for sweep in inbox {
                let started = Instant::now();
                let sweeping = AssertUnwindSafe(|| Ok(sweep.perform(&mut *open()?)?));
                let result = catch_unwind(sweeping).unwrap_or(Err(SweepError::Panic));
                if !report(Swept { result, took: started.elapsed() }) {
                    break;
                }
            }
        };
        std::thread::Builder::new().name(thread_name(family).into()).spawn(work)?;
        Ok(Self { jobs })
    }
}

/// What a family's sweeping thread is called.
pub(crate) fn thread_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "flows-ip",
        IpFamily::V6 => "flows-ip6",
    }
}

/// The pause after a sweep, whatever came of it. A sweep walks the kernel's whole table of flows, 30 ms without a pause, and
/// what shares the processor with it waits.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// How long an endpoint of TCP has to be gone before its connections are. It goes for a moment when its slice is written anew as another
/// one. Counted from the last change of the Service's endpoints.
pub(crate) const GONE_FOR_GOOD: Duration = Duration::from_secs(10);

/// One family's sweeps: what is due, and what is under way.
#[derive(Debug)]
pub(crate) struct Sweeps<F: Family> {
    sweeper: Sweeper,
    /// Frontends whose flows may be stale, and from when on they are looked at.
    due: BTreeMap<FrontendKey<F>, Instant>,
    /// All flows to Services are to be looked at, also those to addresses that no Service has (any more).
    all_due: bool,
    under_way: Option<UnderWay<F>>,
    not_before: Instant,
}

#[derive(Debug)]
struct UnderWay<F: Family> {
    keys: BTreeSet<FrontendKey<F>>,
    is_of_all: bool,
}

impl<F: Family> Sweeps<F> {
    /// Starts the thread. The first sweep is of all flows to Services. `report` gives false when nobody listens any more.
    ///
    /// # Errors
    /// The system refused a thread.
    pub(crate) fn start(
        open: OpenConntrack,
        report: impl Fn(Swept) -> bool + Send + 'static,
        now: Instant,
    ) -> std::io::Result<Self> {
        let sweeper = Sweeper::start(F::FAMILY, open, report)?;
        Ok(Self { sweeper, due: BTreeMap::new(), all_due: true, under_way: None, not_before: now })
    }

    /// The flows of these frontends may be stale.
    pub(crate) fn want(&mut self, keys: impl IntoIterator<Item = FrontendKey<F>>, now: Instant) {
        let due = |key: &FrontendKey<F>| match key.protocol {
            Protocol::Tcp => now + GONE_FOR_GOOD,
            Protocol::Udp | Protocol::Sctp => now,
        };
        self.due.extend(keys.into_iter().map(|key| (key, due(&key))));
    }

    /// Has all flows looked at again.
    pub(crate) fn want_all(&mut self, table: &Table<F>, now: Instant) {
        let keys = table.iter().map(|frontend| frontend.key);
        self.want(keys.filter(|key| may_be_stale(table, key)), now);
        self.all_due = true;
    }

    /// When [`Sweeps::next`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        let first = self.due.values().min().copied();
        if self.all_due { Some(self.not_before) } else { first.map(|first| first.max(self.not_before)) }
    }

    /// Begins a sweep if one is due. `service_cidrs`: what a sweep of all flows takes for addresses of Services. False: the
    /// thread has ended.
    pub(crate) fn next(
        &mut self,
        table: &Table<F>,
        node_addresses: &[IpAddr],
        service_cidrs: impl FnOnce() -> Vec<IpNet>,
        now: Instant,
    ) -> bool {
        if self.deadline().is_none_or(|due| due > now) {
            return true;
        }
        let keys: BTreeSet<_> = self.due.extract_if(.., |_, due| *due <= now).map(|(key, _)| key).collect();
        let is_of_all = std::mem::take(&mut self.all_due);
        let all_of = if is_of_all { service_cidrs() } else { Vec::new() };
        let sweep = Sweep::new(table, &keys, node_addresses, all_of);
        self.under_way = Some(UnderWay { keys, is_of_all });
        self.sweeper.jobs.send(sweep).is_ok()
    }

    /// Takes in what came of a sweep; gives how many flows were deleted.
    pub(crate) fn take(&mut self, result: &Result<u64, SweepError>, now: Instant) -> u64 {
        self.not_before = now + SWEEP_PAUSE;
        let under_way = self.under_way.take();
        match result {
            Ok(deleted) => *deleted,
            Err(error) => {
                if let Some(UnderWay { keys, is_of_all }) = under_way {
                    self.due.extend(keys.into_iter().map(|key| (key, now)));
                    self.all_due |= is_of_all;
                }
                error.deleted()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fakes::conntrack::{FakeConntrack, flow};
    use model::{
        AddressKind, Destination, EndpointNode, Frontend, Masquerade, ObjectName, Pool, ServicePortName, V4,
        Verdict,
    };

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn key(address: &str, port: u16) -> FrontendKey<V4> {
        let address = match address {
            "node" => FrontendAddress::Node,
            ip => FrontendAddress::Ip(ip.parse().unwrap()),
        };
        FrontendKey { address, protocol: Protocol::Udp, port }
    }

    fn tcp(address: &str, port: u16) -> FrontendKey<V4> {
        FrontendKey { protocol: Protocol::Tcp, ..key(address, port) }
    }

    /// A Service `dns` with these frontends, all answered by `10.244.0.1:53`.
    fn table(keys: &[FrontendKey<V4>]) -> Table<V4> {
        let service = ServicePortName {
            service: ObjectName::new("ns", "dns"),
            port: "".into(),
            protocol: Protocol::Udp,
        };
        let endpoint = Destination { address: [10, 244, 0, 1].into(), port: 53, node: EndpointNode::Other };
        let frontend = |key: &FrontendKey<V4>| Frontend {
            masquerade: Masquerade::Never,
            flow_endpoints: [endpoint].into(),
            resets_connections: key.protocol == Protocol::Tcp,
            ..Frontend::new(*key, AddressKind::ClusterIp, service.clone(), Pool::Empty(Verdict::Reject))
        };
        let mut table = Table::default();
        table.set_service(&service.service, keys.iter().map(frontend).collect());
        table
    }

    /// Sweeps the flows from one client, given as `target answered-by`; says which of them are left.
    #[track_caller]
    fn check(sweep: &Sweep, protocol: u8, flows: &[(&str, &str)], left: &[usize]) {
        let mut conntrack = FakeConntrack::new();
        for (target, answered_by) in flows {
            conntrack.add(flow(protocol, socket("10.244.0.9:4000"), socket(target), socket(answered_by)));
        }
        let deleted = sweep.perform(&mut conntrack).unwrap();
        let kept: Vec<_> = conntrack.flows().iter().map(|flow| (flow.orig.dst, flow.answered_by())).collect();
        let expected: Vec<_> = left.iter().map(|n| (socket(flows[*n].0).ip(), socket(flows[*n].1))).collect();
        assert_eq!(kept, expected);
        assert_eq!(deleted, u64::try_from(flows.len() - left.len()).unwrap());
    }

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const NODE: &str = "192.168.0.7";

    fn node() -> [IpAddr; 1] {
        [NODE.parse().unwrap()]
    }

    #[test]
    fn flows_to_other_endpoints_and_untranslated_ones_go() {
        let keys = [key("10.96.0.10", 53)];
        let flows = [
            ("10.96.0.10:53", "10.244.0.1:53"),
            ("10.96.0.10:53", "10.244.0.2:53"),
            ("10.96.0.10:53", "10.244.0.1:54"),
            ("10.96.0.10:53", "10.96.0.10:53"),
            ("10.96.0.10:54", "10.244.0.2:53"),
            ("10.96.0.11:53", "10.244.0.2:53"),
        ];
        check(&Sweep::new(&table(&keys), &keys, &node(), Vec::new()), UDP, &flows, &[0, 4, 5]);
        check(&Sweep::new(&table(&keys), &keys, &node(), Vec::new()), 6, &flows, &[0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn translated_flows_to_what_is_gone_go() {
        let keys = [key("10.96.0.10", 53)];
        let flows = [("10.96.0.10:53", "10.244.0.1:53"), ("10.96.0.10:53", "10.96.0.10:53")];
        check(&Sweep::new(&table(&[]), &keys, &node(), Vec::new()), UDP, &flows, &[1]);
    }

    #[test]
    fn a_node_port_concerns_only_the_node_itself() {
        let keys = [key("node", 30053)];
        let flows = [
            ("192.168.0.7:30053", "10.244.0.1:53"),
            ("192.168.0.7:30053", "10.244.0.2:53"),
            ("192.168.0.7:30053", "192.168.0.7:30053"),
            ("192.168.0.8:30053", "10.244.0.2:53"),
            ("8.8.8.8:30053", "8.8.8.8:30053"),
        ];
        check(&Sweep::new(&table(&keys), &keys, &node(), Vec::new()), UDP, &flows, &[0, 3, 4]);
    }

    #[test]
    fn a_first_sweep_knows_the_ranges_of_services() {
        let keys = [key("10.96.0.10", 53)];
        let flows = [
            ("10.96.0.10:53", "10.244.0.1:53"),
            ("10.96.0.99:53", "10.244.0.2:53"),
            ("10.96.0.99:53", "10.96.0.99:53"),
            ("203.0.113.1:53", "10.244.0.2:53"),
        ];
        let ranges = vec!["10.96.0.0/12".parse().unwrap()];
        check(&Sweep::new(&table(&keys), &keys, &node(), ranges), UDP, &flows, &[0, 2, 3]);
    }

    /// Connections go where they are asked for, and only those that were translated.
    #[test]
    fn connections_to_what_is_gone_go_where_the_service_asks() {
        let keys = [tcp("10.96.0.10", 53), tcp("node", 30053)];
        let flows = [
            ("10.96.0.10:53", "10.244.0.1:53"),
            ("10.96.0.10:53", "10.244.0.2:53"),
            ("10.96.0.10:53", "10.96.0.10:53"),
            ("10.96.0.11:53", "10.244.0.2:53"),
            ("192.168.0.7:30053", "10.244.0.2:53"),
        ];
        let ranges = || vec!["10.96.0.0/12".parse().unwrap()];
        check(&Sweep::new(&table(&keys), &keys, &node(), ranges()), TCP, &flows, &[0, 2, 3]);
        check(&Sweep::new(&table(&keys), &keys, &node(), Vec::new()), TCP, &flows, &[0, 2, 3]);
        // The Service is gone, or has never asked: its connections are left alone.
        check(&Sweep::new(&table(&[]), &keys, &node(), Vec::new()), TCP, &flows, &[0, 1, 2, 3, 4]);
        assert_eq!(Sweep::new(&table(&[]), &keys, &node(), Vec::new()).filters(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_wait_until_the_endpoint_is_gone_for_good() {
        let open: OpenConntrack = Arc::new(|| Ok(Box::new(FakeConntrack::new()) as Box<dyn Conntrack>));
        let start = Instant::now();
        let mut sweeps = Sweeps::<V4>::start(open, |_| true, start).unwrap();
        let keys = [key("10.96.0.10", 53), tcp("10.96.0.10", 53)];
        let table = table(&keys);
        let after = |seconds| start + Duration::from_secs(seconds);
        sweeps.want(keys, start);
        assert!(sweeps.next(&table, &node(), Vec::new, start));
        assert_eq!(sweeps.under_way.as_ref().unwrap().keys, BTreeSet::from([keys[0]]));
        sweeps.take(&Ok(0), start);
        assert_eq!(sweeps.deadline(), Some(start + GONE_FOR_GOOD));
        // Another change: everything begins anew.
        sweeps.want([keys[1]], after(9));
        assert_eq!(sweeps.deadline(), Some(after(9) + GONE_FOR_GOOD));
        assert!(sweeps.next(&table, &node(), Vec::new, after(18)));
        assert!(sweeps.under_way.is_none());
        assert!(sweeps.next(&table, &node(), Vec::new, after(19)));
        assert_eq!(sweeps.under_way.as_ref().unwrap().keys, BTreeSet::from([keys[1]]));
        // It failed: it is tried again after the pause.
        sweeps.take(&Err(SweepError::Panic), after(20));
        assert_eq!(sweeps.deadline(), Some(after(20) + SWEEP_PAUSE));
    }

    /// The last Service of the protocol went while nobody looked.
    #[test]
    fn a_first_sweep_looks_at_protocols_without_services() {
        let ranges = || vec!["10.96.0.0/12".parse().unwrap()];
        let flows = [("10.96.0.99:53", "10.244.0.2:53"), ("203.0.113.1:53", "10.244.0.2:53")];
        check(&Sweep::new(&table(&[]), &[], &node(), ranges()), UDP, &flows, &[1]);
        check(&Sweep::new(&table(&[]), &[], &node(), ranges()), Protocol::Sctp.number(), &flows, &[1]);
        check(&Sweep::new(&table(&[]), &[], &node(), ranges()), 6, &flows, &[0, 1]);
    }

    #[test]
    fn many_targets_take_one_pass() {
        let keys: Vec<_> = (0..10).map(|n| key(&format!("10.96.0.{n}"), 53)).collect();
        let mut conntrack = FakeConntrack::new();
        Sweep::new(&table(&keys), &keys, &node(), Vec::new()).perform(&mut conntrack).unwrap();
        assert_eq!(conntrack.filters(), [Filter::new(conntrack::Family::Ip, UDP)]);
        let mut conntrack = FakeConntrack::new();
        Sweep::new(&table(&keys), &keys[..2], &node(), Vec::new()).perform(&mut conntrack).unwrap();
        assert_eq!(conntrack.filters().len(), 2);
    }
}
