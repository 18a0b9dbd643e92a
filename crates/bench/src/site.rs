//! The laboratory: an API server on the node with all objects, real pods behind some Services, and the program.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::{ApiServer, Config as ApiConfig, Kind};
use fakes::objects::{self, NAMESPACE};
use lab::cgroup::SocketSite;
use lab::commits::Generation;
use lab::echo::{EchoServer, Mode};
use lab::proxy::Proxy;
use lab::{Config as LabConfig, Host, Lab};
use serde_json::Value;
use testkit::cluster::{Flavour, LINE_PORT, NODE, UDP_PORT};
use tokio::time::Instant;

use crate::contender::Contender;
use crate::packets::{Sources, seek};
use crate::world::{PROBES, Probe, SINK_PORT, World, data_objects, moving_service, moving_slice};

/// How long anything may take; only there to end a bench that hangs.
pub(crate) const LIMIT: Duration = Duration::from_mins(15);
/// The mode whose programs have a place of their own.
pub(crate) const EBPF: &str = "ebpf";
/// Changes that the API server remembers, so that no watch has to begin anew during the churn.
const HISTORY: usize = 1 << 16;
/// Pods with servers. One more has the clients.
const SERVERS: usize = 3;

/// The port on which a pod serves the same as on this one, to those who come directly. On the same port, flows of both ways
/// would now and then have the same addresses and ports behind the translation, and the kernel would have to find others.
pub(crate) const fn direct(port: u16) -> u16 {
    port + 1000
}

/// Everything around the program.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) lab: Lab,
    pub(crate) api: ApiServer,
    /// What the API server holds.
    pub(crate) world: World,
    /// The kind of iptables that programs are to use.
    flavour: Option<Flavour>,
    /// Tells the number of the node's ruleset.
    pub(crate) generation: Generation,
    sources: Sources,
    _pods: Vec<EchoServer>,
    /// Where mode ebpf has its programs: for sockets of this thread, and of those that it starts.
    at_sockets: Option<SocketSite>,
}

impl Site {
    /// Builds it for a program in this mode, without starting one.
    pub(crate) fn build(world: &World, mode: &str, flavour: Option<Flavour>) -> anyhow::Result<Self> {
        let at_sockets = (mode == EBPF).then(SocketSite::enter).transpose()?;
        let lab = Lab::new(&LabConfig {
            pods: SERVERS + 1,
            node2_pods: 0,
            time_limit: None,
            ..LabConfig::default()
        })?;
        if let Some(flavour) = flavour {
            flavour.mark(lab.node()).context("say which kind of iptables the node has")?;
        }
        let config = ApiConfig { history_limit: HISTORY, ..ApiConfig::default() };
        let api = lab.node().run(|| ApiServer::start(config)).context("start the API server")?;
        let modes = [(UDP_PORT, Mode::Udp), (LINE_PORT, Mode::Line), (SINK_PORT, Mode::Discard)];
        let ports = modes.iter().flat_map(|(port, mode)| [(*port, *mode), (direct(*port), *mode)]);
        let ports: Vec<(u16, Mode)> = ports.collect();
        let serve = |pod: &Host| EchoServer::start(pod, pod.name(), &ports);
        let pods = lab.pods()[..SERVERS].iter().map(serve).collect::<Result<_, _>>();
        let pods = pods.context("serve in pods")?;
        let first: IpAddr = lab.pod(0).ip4().into();
        let node = objects::node(NODE, &[lab.node().ip4().into()]);
        let cidr = objects::service_cidr(&["10.96.0.0/12"]);
        let probes = PROBES.iter().flat_map(|probe| [probe.service(), probe.slice(&[first])]);
        let moving = [moving_service(), moving_slice(&[first])];
        let around = [node, cidr].into_iter().chain(data_objects(first)).chain(moving).chain(probes);
        api.load(around.chain(world.objects())).context("store the objects")?;
        let generation = Generation::open(lab.node()).context("ask the kernel for its generation")?;
        let sources = sources(&lab)?;
        Ok(Self { lab, api, world: world.clone(), flavour, generation, sources, _pods: pods, at_sockets })
    }

    /// Starts a program on the node.
    pub(crate) fn start(&self, contender: &Contender) -> anyhow::Result<Proxy> {
        let program = contender.program.to_string_lossy();
        let own = contender.arguments(&self.api.url()).into_iter().chain(self.socket_arguments());
        let own: Vec<String> = own.collect();
        // The kernel kills the program should this process end without doing so; see setpriv(1).
        let arguments = ["--pdeathsig", "KILL", "--", &program].into_iter();
        let arguments: Vec<&str> = arguments.chain(own.iter().map(String::as_str)).collect();
        let proxy = Proxy::start(self.lab.node(), "setpriv".as_ref(), &arguments);
        proxy.with_context(|| format!("start {program}"))
    }

    /// The arguments that tell mode ebpf its place.
    fn socket_arguments(&self) -> impl Iterator<Item = String> {
        self.at_sockets.iter().flat_map(|site| {
            let cgroup = format!("--ebpf-cgroup-root={}", site.cgroup().display());
            [cgroup, format!("--ebpf-bpffs={}", site.bpffs().display())]
        })
    }

    /// A pod with a server.
    pub(crate) fn server(&self, number: usize) -> &Host {
        self.lab.pod(number % SERVERS)
    }

    /// The address of a pod with a server.
    pub(crate) fn server_ip(&self, number: usize) -> IpAddr {
        self.server(number).ip4().into()
    }

    /// The pod that sends packets.
    pub(crate) fn client(&self) -> &Host {
        self.lab.pod(SERVERS)
    }

    /// Makes pods the endpoints of a probe Service.
    pub(crate) fn place(&self, probe: &Probe, servers: &[usize]) -> anyhow::Result<()> {
        let pods: Vec<IpAddr> = servers.iter().map(|server| self.server_ip(*server)).collect();
        self.apply(probe.slice(&pods))
    }

    /// Stores an object.
    pub(crate) fn apply(&self, object: Value) -> anyhow::Result<()> {
        self.api.apply(object).map(drop).context("store an object")
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, kind: Kind, name: &str) -> anyhow::Result<()> {
        self.api
            .delete(kind, NAMESPACE, name)
            .map(drop)
            .with_context(|| format!("there is no {kind:?} {name}"))
    }

    /// Sends packets from the client (whose thread has to be the calling one) until a certain server answers.
    pub(crate) fn reach(&self, target: SocketAddr, server: usize) -> anyhow::Result<Instant> {
        self.reach_while(target, server, || true)
    }

    /// As [`Site::reach`], as long as this says so.
    pub(crate) fn reach_while(
        &self,
        target: SocketAddr,
        server: usize,
        go_on: impl Fn() -> bool,
    ) -> anyhow::Result<Instant> {
        seek(&self.sources, target, |name| name == self.server(server).name(), go_on, LIMIT)
    }

    /// How many chains and rules the tables of iptables for IPv4 hold; `None` in other modes.
    pub(crate) fn tables(&self) -> anyhow::Result<Option<[u64; 2]>> {
        let Some(flavour) = self.flavour else { return Ok(None) };
        let [saved, _] = flavour.save(self.lab.node()).context("list the rules")?;
        let count = |begin: &str| saved.lines().filter(|line| line.starts_with(begin)).count() as u64;
        Ok(Some([count(":"), count("-A ")]))
    }

    /// The number of the node's ruleset.
    pub(crate) fn generation(&self) -> anyhow::Result<u32> {
        self.generation.read().context("ask the kernel for its generation")
    }
}

/// Addresses of the client, the last of its range, from which [`Site::reach`] sends last.
pub(crate) fn client_ips(count: u8) -> impl Iterator<Item = Ipv4Addr> {
    let end = u32::from(FIRST_SOURCE) + (1 << (32 - SOURCES_PREFIX));
    (1..=count).map(move |n| Ipv4Addr::from(end - u32::from(n)))
}

/// Gives the client a range of addresses of its own, among those of pods.
fn sources(lab: &Lab) -> anyhow::Result<Sources> {
    let client = lab.pod(SERVERS);
    let range = format!("{FIRST_SOURCE}/{SOURCES_PREFIX}");
    client.exec("ip", &["route", "add", "local", &range, "dev", "lo"])?;
    let (gateway, device) = (client.ip4().to_string(), client.name());
    lab.node().exec("ip", &["route", "add", &range, "via", &gateway, "dev", device, "onlink"])?;
    Ok(Sources::new(FIRST_SOURCE, 1 << (32 - SOURCES_PREFIX)))
}

/// Part of the pods' range that no pod is in.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 244, 128, 0);
const SOURCES_PREFIX: u32 = 17;
