//! The Services and their endpoints: as API objects for the proxy, as frontends for the kernel alone. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use fakes::objects::{self, Endpoint, NAMESPACE, Port};
use model::{
    AddressKind, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey, ObjectName, Pool,
    Protocol, ServicePortName, V4, Verdict,
};
use serde_json::Value;
use testkit::cluster::{LINE_PORT, NODE, UDP_PORT};

/// The port of every Service and of its endpoints.
const PORT: Port = Port { name: "http", protocol: "TCP", port: 80, target: 8080, node_port: None };
/// The port of the Services that real packets are sent to.
const PROBE_PORT: Port = Port { name: "udp", protocol: "UDP", port: 53, target: UDP_PORT, node_port: None };
/// The ports of the Service by which the data path is measured.
const DATA_PORTS: [Port; 3] = [
    Port { name: "line", protocol: "TCP", port: LINE.1, target: LINE_PORT, node_port: None },
    Port { name: "sink", protocol: "TCP", port: SINK.1, target: SINK_PORT, node_port: None },
    Port { name: "udp", protocol: "UDP", port: ECHO.1, target: UDP_PORT, node_port: None },
];
/// Where pods take in bytes and throw them away.
pub(crate) const SINK_PORT: u16 = 8083;

/// The address of a Service that real packets are sent to.
pub(crate) type Target = (Ipv4Addr, u16);
/// The first and the last Service in the order of names.
pub(crate) const PROBES: [Probe; 2] = [
    Probe { name: "aa-probe", ip: Ipv4Addr::new(10, 96, 0, 11) },
    Probe { name: "zz-probe", ip: Ipv4Addr::new(10, 96, 0, 10) },
];
const DATA_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 12);
/// Answers a line and closes.
pub(crate) const LINE: Target = (DATA_IP, 80);
/// Takes in bytes.
pub(crate) const SINK: Target = (DATA_IP, 81);
/// Answers datagrams.
pub(crate) const ECHO: Target = (DATA_IP, 53);

/// A Service that real packets are sent to, and whose endpoint moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    name: &'static str,
    ip: Ipv4Addr,
}

impl Probe {
    /// Where it is served.
    pub(crate) fn target(&self) -> SocketAddr {
        (self.ip, PROBE_PORT.port).into()
    }

    /// The Service.
    pub(crate) fn service(&self) -> Value {
        objects::service(self.name, &[self.ip.into()], &[PROBE_PORT])
    }

    /// Its slice.
    pub(crate) fn slice(&self, pods: &[IpAddr]) -> Value {
        probe_slice(self.name, pods)
    }
}

fn probe_slice(name: &str, pods: &[IpAddr]) -> Value {
    objects::slice(name, "v4", &[PROBE_PORT], &local(pods))
}

fn local(pods: &[IpAddr]) -> Vec<Endpoint> {
    pods.iter().map(|pod| Endpoint::ready(*pod, NODE)).collect()
}

/// The Service of the data path, with its only endpoint.
pub(crate) fn data_objects(pod: IpAddr) -> [Value; 2] {
    let slice = objects::slice("data", "v4", &DATA_PORTS, &local(&[pod]));
    [objects::service("data", &[DATA_IP.into()], &DATA_PORTS), slice]
}

/// A Service that connections are made to, and whose endpoint moves.
pub(crate) const MOVING: Target = (Ipv4Addr::new(10, 96, 0, 15), LINE.1);
const MOVING_NAME: &str = "moving";
const MOVING_PORTS: [Port; 1] = [DATA_PORTS[0]];

/// The Service.
pub(crate) fn moving_service() -> Value {
    objects::service(MOVING_NAME, &[MOVING.0.into()], &MOVING_PORTS)
}

/// Its slice.
pub(crate) fn moving_slice(pods: &[IpAddr]) -> Value {
    objects::slice(MOVING_NAME, "v4", &MOVING_PORTS, &local(pods))
}

/// The Service with session affinity.
pub(crate) const STICKY: Target = (Ipv4Addr::new(10, 96, 0, 14), PROBE_PORT.port);

/// The Service with session affinity, and its slice.
pub(crate) fn sticky_objects(pods: &[IpAddr]) -> [Value; 2] {
    let mut service = objects::service("sticky", &[STICKY.0.into()], &[PROBE_PORT]);
    service["spec"]["sessionAffinity"] = "ClientIP".into();
    [service, probe_slice("sticky", pods)]
}

const OTHER_FAMILY: &str = "other-family";

/// A Service of IPv6.
pub(crate) fn other_family_service() -> Value {
    objects::service(OTHER_FAMILY, &[Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1).into()], &[PORT])
}

/// Its slice, of which each next one has one endpoint replaced.
pub(crate) fn other_family_slice(number: u16) -> Value {
    let endpoint = |n: u16| Ipv6Addr::new(0xfd00, 0x10, 0x250, 0, 0, 0, 1, number.wrapping_add(n));
    let endpoints: Vec<Endpoint> = (0..10).map(|n| Endpoint::ready(endpoint(n).into(), NODE)).collect();
    objects::slice(OTHER_FAMILY, "v6", &[PORT], &endpoints)
}

/// Number 0 of the addresses of Services that are created by the way, of a range with 2^8.
const FIRST_LATE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);

/// A Service that is created by the way and that real packets are sent to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Late(pub(crate) u8);

impl Late {
    /// How many there can be: numbers from 20 to 255.
    pub(crate) const NUMBERS: std::ops::RangeInclusive<u8> = 20..=255;

    /// Its name.
    pub(crate) fn name(self) -> String {
        format!("late-{:03}", self.0)
    }

    /// Where it is served.
    pub(crate) fn target(self) -> SocketAddr {
        (self.ip(), PROBE_PORT.port).into()
    }

    /// The Service.
    pub(crate) fn service(self) -> Value {
        objects::service(&self.name(), &[self.ip().into()], &[PROBE_PORT])
    }

    /// Its slice.
    pub(crate) fn slice(self, pod: IpAddr) -> Value {
        probe_slice(&self.name(), &[pod])
    }

    fn ip(self) -> Ipv4Addr {
        let [a, b, c, _] = FIRST_LATE_IP.octets();
        Ipv4Addr::new(a, b, c, self.0)
    }
}

/// A Service with many endpoints, all of which are replaced one batch after the other.
#[derive(Clone, Debug)]
pub(crate) struct Rolling {
    /// Numbers of addresses, one list a slice.
    slices: Vec<Vec<u32>>,
    next: u32,
}

impl Rolling {
    /// Slices, and endpoints of each, as the control plane makes them (`--max-endpoints-per-slice`).
    const SLICES: u32 = 10;
    const PER_SLICE: u32 = 100;
    /// Endpoints that are replaced at once.
    pub(crate) const AT_ONCE: usize = 10;
    const NAME: &str = "rolling";
    const IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 13);

    /// With its first endpoints.
    pub(crate) fn new() -> Self {
        let slice = |slice: u32| (slice * Self::PER_SLICE..(slice + 1) * Self::PER_SLICE).collect();
        Self { slices: (0..Self::SLICES).map(slice).collect(), next: Self::SLICES * Self::PER_SLICE }
    }

    /// The Service and its slices.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let service = objects::service(Self::NAME, &[Self::IP.into()], &[PORT]);
        let slices = (0..self.slices.len()).map(|slice| self.slice(slice));
        std::iter::once(service).chain(slices).collect()
    }

    /// The name of the Service and those of its slices.
    pub(crate) fn names(&self) -> (&'static str, impl Iterator<Item = String>) {
        (Self::NAME, (0..self.slices.len()).map(|slice| format!("{}-{slice}", Self::NAME)))
    }

    /// Replaces all endpoints, yielding the slice to write at each step.
    pub(crate) fn roll(&mut self) -> impl Iterator<Item = Value> {
        let steps = Self::PER_SLICE as usize / Self::AT_ONCE;
        (0..steps * self.slices.len()).map(move |step| {
            let slice = step % self.slices.len();
            let first = step / self.slices.len() * Self::AT_ONCE;
            for which in first..first + Self::AT_ONCE {
                self.slices[slice][which] = self.next;
                self.next += 1;
            }
            self.slice(slice)
        })
    }

    fn slice(&self, slice: usize) -> Value {
        let ip = |number: &u32| Ipv4Addr::from(FIRST_ROLLING_IP + number);
        let endpoint = |number: &u32| Endpoint::ready(ip(number).into(), NODE);
        let endpoints: Vec<Endpoint> = self.slices[slice].iter().map(endpoint).collect();
        objects::slice(Self::NAME, &slice.to_string(), &[PORT], &endpoints)
    }
}

/// Number 0 of the addresses of [`Rolling`]'s endpoints, which no others have.
const FIRST_ROLLING_IP: u32 = u32::from_be_bytes([10, 64, 0, 0]);

/// Number 0 of the Services' addresses, of a range with almost 2^20.
const FIRST_SERVICE_IP: u32 = u32::from_be_bytes([10, 96, 1, 0]);
/// Number 0 of the endpoints' addresses.
const FIRST_ENDPOINT_IP: u32 = u32::from_be_bytes([10, 128, 0, 0]);
/// How many addresses endpoints can have: 10.128.0.0/9.
const ENDPOINT_IPS: u32 = 1 << 23;
/// Kept for endpoints that come later.
const SPARE_IPS: u32 = 1 << 20;
/// Endpoints on each node, of which one is the node under test; a node of a large cluster has about that many pods.
const PODS_A_NODE: u32 = 100;

/// Which endpoints each Service has.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Numbers of addresses, one list a Service. The first Service has one endpoint more than the others, and the last
    /// one is created and deleted by the way.
    endpoints: Vec<Vec<u32>>,
    /// The next number that no endpoint has had.
    next: u32,
    /// How many nodes the endpoints are spread over.
    nodes: u32,
}

/// The number of a Service.
pub(crate) type Index = usize;

impl World {
    /// So many Services (and one more, see [`World::extra`]) with so many endpoints each (the first one more), none of
    /// which shares an address with another one.
    ///
    /// # Errors
    /// There are not enough addresses.
    pub(crate) fn new(services: u32, endpoints: u32) -> anyhow::Result<Self> {
        let total = u64::from(services + 1) * u64::from(endpoints);
        let room = u64::from(ENDPOINT_IPS - SPARE_IPS);
        anyhow::ensure!(total <= room, "{total} endpoints are too many, {room} have addresses");
        let of = |service: u32| (service * endpoints..(service + 1) * endpoints).collect();
        let next = (services + 1) * endpoints;
        let nodes = (next / PODS_A_NODE).max(1);
        let mut world = Self { endpoints: (0..=services).map(of).collect(), next, nodes };
        world.add(0);
        Ok(world)
    }

    /// The Services whose endpoints may change: not the first, which keeps the only one of its count.
    pub(crate) fn ordinary(&self) -> Range<Index> {
        1..self.services()
    }

    /// How many Services there are, without the extra one.
    pub(crate) fn services(&self) -> usize {
        self.endpoints.len() - 1
    }

    /// How many endpoints there are.
    pub(crate) fn endpoints(&self) -> u64 {
        self.endpoints.iter().map(|of_service| of_service.len() as u64).sum()
    }

    /// The Service that is created and deleted by the way; it comes after all others.
    pub(crate) fn extra(&self) -> Index {
        self.services()
    }

    /// Replaces one endpoint by a new one.
    pub(crate) fn replace(&mut self, service: Index, which: usize) {
        let new = self.fresh();
        let endpoints = &mut self.endpoints[service];
        let which = which % endpoints.len();
        endpoints[which] = new;
    }

    /// Adds an endpoint.
    pub(crate) fn add(&mut self, service: Index) {
        let new = self.fresh();
        self.endpoints[service].push(new);
    }

    /// Removes an endpoint, if there is one.
    pub(crate) fn remove(&mut self, service: Index, which: usize) {
        let endpoints = &mut self.endpoints[service];
        if !endpoints.is_empty() {
            endpoints.remove(which % endpoints.len());
        }
    }

    fn fresh(&mut self) -> u32 {
        let new = self.next;
        // Long after an address was used it may be used again.
        self.next = if new + 1 < ENDPOINT_IPS { new + 1 } else { ENDPOINT_IPS - SPARE_IPS };
        new
    }

    fn node(&self, number: u32) -> String {
        format!("node-{}", number % self.nodes + 1)
    }

    // === as API objects ===

    /// All objects, without the Service (but with the slice) of [`World::extra`].
    pub(crate) fn objects(&self) -> impl Iterator<Item = Value> {
        let services = (0..self.services()).map(service);
        services.chain((0..self.endpoints.len()).map(|service| self.slice(service)))
    }

    /// A Service's only slice.
    pub(crate) fn slice(&self, service: Index) -> Value {
        let endpoint = |number: &u32| Endpoint::ready(endpoint_ip(*number).into(), &self.node(*number));
        let endpoints: Vec<Endpoint> = self.endpoints[service].iter().map(endpoint).collect();
        objects::slice(&name(service), "v4", &[PORT], &endpoints)
    }

    // === as frontends ===

    /// A Service's only frontend, as the proxy derives it from the objects.
    pub(crate) fn frontend(&self, service: Index) -> Frontend<V4> {
        let destination = |number: &u32| Destination {
            address: endpoint_ip(*number),
            port: PORT.target,
            node: EndpointNode::this_if(self.node(*number) == NODE),
        };
        let endpoints: BTreeSet<_> = self.endpoints[service].iter().map(destination).collect();
        Frontend::new(
            FrontendKey {
                address: FrontendAddress::Ip(service_ip(service)),
                protocol: Protocol::Tcp,
                port: PORT.port,
            },
            AddressKind::ClusterIp,
            ServicePortName {
                service: object_name(service),
                port: PORT.name.into(),
                protocol: Protocol::Tcp,
            },
            Pool::new(endpoints, Verdict::Reject),
        )
    }
}

/// A Service.
pub(crate) fn service(service: Index) -> Value {
    objects::service(&name(service), &[service_ip(service).into()], &[PORT])
}

/// A Service's name.
pub(crate) fn name(service: Index) -> String {
    format!("svc-{service:07}")
}

/// A Service's name with its namespace.
pub(crate) fn object_name(service: Index) -> ObjectName {
    ObjectName::new(NAMESPACE, &name(service))
}

fn service_ip(service: Index) -> Ipv4Addr {
    // The number of Services is limited to a million by the arguments.
    Ipv4Addr::from(FIRST_SERVICE_IP + u32::try_from(service).unwrap_or(u32::MAX >> 8))
}

fn endpoint_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST_ENDPOINT_IP + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_endpoints_share_an_address_whatever_happens() {
        let mut world = World::new(3, 2).unwrap();
        world.replace(0, 5);
        world.add(1);
        world.remove(2, 1);
        let all: Vec<u32> = world.endpoints.iter().flatten().copied().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(world.endpoints.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1, 2]);
    }

    #[test]
    fn the_node_has_as_many_pods_as_nodes_have() {
        for (services, expected) in [(3, 41), (99, 101), (999, 101)] {
            let world = World::new(services, 10).unwrap();
            let all =
                (0..=world.services()).flat_map(|service| world.frontend(service).pool.endpoints().to_vec());
            assert_eq!(
                all.filter(|destination| destination.node == EndpointNode::This).count(),
                expected,
                "{services} Services"
            );
        }
    }

    #[test]
    fn the_extra_service_has_only_a_slice_at_first() {
        let world = World::new(2, 1).unwrap();
        let names: Vec<String> =
            world.objects().map(|object| object["metadata"]["name"].to_string()).collect();
        assert_eq!(
            names,
            [
                "\"svc-0000000\"",
                "\"svc-0000001\"",
                "\"svc-0000000-v4\"",
                "\"svc-0000001-v4\"",
                "\"svc-0000002-v4\"",
            ]
        );
    }

    #[test]
    fn a_rolling_update_replaces_every_endpoint_once() {
        let mut rolling = Rolling::new();
        let addresses = |objects: &[Value]| -> BTreeSet<String> {
            let endpoints = objects.iter().filter_map(|object| object["endpoints"].as_array()).flatten();
            endpoints.map(|endpoint| endpoint["addresses"][0].to_string()).collect()
        };
        let before = addresses(&rolling.objects());
        let steps: Vec<Value> = rolling.roll().collect();
        let after = addresses(&rolling.objects());
        assert_eq!((before.len(), steps.len(), after.len()), (1000, 100, 1000));
        assert!(before.is_disjoint(&after));
        assert_eq!(addresses(&steps[90..]), after, "the last write of each slice is its end");
    }

    #[test]
    fn more_than_there_are_addresses_is_refused() {
        assert!(World::new(1_000_000, 10).is_err());
        assert!(World::new(100_000, 10).is_ok());
    }
}
