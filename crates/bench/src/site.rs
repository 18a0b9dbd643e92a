//! The laboratory: an API server on the node with all objects, real pods behind some Services, and the program.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use testkit::apiserver::{ApiServer, Config as ApiConfig, Kind};
use testkit::cluster::{LINE_PORT, NODE, UDP_PORT};
use testkit::commits::Generation;
use testkit::echo::{EchoServer, Mode};
use testkit::lab::{Config as LabConfig, Host, Lab};
use testkit::objects::{self, NAMESPACE};
use testkit::proxy::Proxy;
use tokio::time::Instant;

use crate::contender::Contender;
use crate::packets::seek;
use crate::world::{PROBES, Probe, SINK_PORT, World, data_objects};

/// How long anything may take; only there to end a bench that hangs.
pub(crate) const LIMIT: Duration = Duration::from_mins(15);
/// Changes that the API server remembers, so that no watch has to begin anew during the churn.
const HISTORY: usize = 1 << 16;
/// Pods with servers. One more has the clients.
const SERVERS: usize = 3;

/// Everything around the program.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) lab: Lab,
    pub(crate) api: ApiServer,
    /// What the API server holds.
    pub(crate) world: World,
    /// Tells the number of the node's ruleset.
    pub(crate) generation: Generation,
    _pods: Vec<EchoServer>,
}

impl Site {
    /// Builds it, without starting a program.
    pub(crate) fn build(world: &World) -> anyhow::Result<Self> {
        let lab = Lab::new(&LabConfig { pods: SERVERS + 1, node2_pods: 0, ..LabConfig::default() })?;
        let config = ApiConfig { history_limit: HISTORY, ..ApiConfig::default() };
        let api = lab.node().run(|| ApiServer::start(config)).context("start the API server")?;
        let ports = [(UDP_PORT, Mode::Udp), (LINE_PORT, Mode::Line), (SINK_PORT, Mode::Discard)];
        let serve = |pod: &Host| EchoServer::start(pod, pod.name(), &ports);
        let pods = lab.pods()[..SERVERS].iter().map(serve).collect::<Result<_, _>>();
        let pods = pods.context("serve in pods")?;
        let first: IpAddr = lab.pod(0).ip4().into();
        let node = objects::node(NODE, &[lab.node().ip4().into()]);
        let cidr = objects::service_cidr(&["10.96.0.0/12"]);
        let probes = PROBES.iter().flat_map(|probe| [probe.service(), probe.slice(&[first])]);
        let around = [node, cidr].into_iter().chain(data_objects(first)).chain(probes);
        api.load(around.chain(world.objects())).context("store the objects")?;
        let generation = Generation::open(lab.node()).context("ask the kernel for its generation")?;
        Ok(Self { lab, api, world: world.clone(), generation, _pods: pods })
    }

    /// Starts a program on the node.
    pub(crate) fn start(&self, contender: &Contender) -> anyhow::Result<Proxy> {
        let program = contender.program.to_string_lossy();
        let own = contender.arguments(&self.api.url());
        // The kernel kills the program should this process end without doing so; see setpriv(1).
        let arguments = ["--pdeathsig", "KILL", "--", &program].into_iter();
        let arguments: Vec<&str> = arguments.chain(own.iter().map(String::as_str)).collect();
        let proxy = Proxy::start(self.lab.node(), "setpriv".as_ref(), &arguments);
        proxy.with_context(|| format!("start {program}"))
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
        seek(target, |name| name == self.server(server).name(), || true, LIMIT)
    }

    /// The number of the node's ruleset.
    pub(crate) fn generation(&self) -> anyhow::Result<u32> {
        self.generation.read().context("ask the kernel for its generation")
    }
}
