//! The laboratory: an API server on the node with all objects, two real pods behind one of the Services, and the proxy.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use testkit::apiserver::{ApiServer, Config as ApiConfig};
use testkit::client::udp_once;
use testkit::cluster::{CLUSTER_CIDR, NODE, UDP_PORT};
use testkit::commits::Generation;
use testkit::echo::{EchoServer, Mode};
use testkit::lab::{Config as LabConfig, Host, Lab};
use testkit::objects;
use testkit::proxy::Proxy;

use crate::world::{PROBE_IP, World, probe_service, probe_slice};

/// How long anything may take; only there to end a bench that hangs.
pub(crate) const LIMIT: Duration = Duration::from_mins(5);
/// Changes that the API server remembers, so that no watch has to begin anew during the churn.
const HISTORY: usize = 1 << 16;

/// Everything around the proxy.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) lab: Lab,
    pub(crate) api: ApiServer,
    /// What the API server holds.
    pub(crate) world: World,
    /// Ask for the number of the node's ruleset.
    pub(crate) generation: Generation,
    program: PathBuf,
    _pods: Vec<EchoServer>,
}

impl Site {
    /// Builds it, without starting the proxy.
    pub(crate) fn build(world: &World, program: PathBuf) -> anyhow::Result<Self> {
        let lab = Lab::new(&LabConfig { pods: 3, node2_pods: 0, ..LabConfig::default() })?;
        let config = ApiConfig { history_limit: HISTORY, ..ApiConfig::default() };
        let api = lab.node().run(|| ApiServer::start(config)).context("start the API server")?;
        let serve = |pod: &Host| EchoServer::start(pod, pod.name(), &[(UDP_PORT, Mode::Udp)]);
        let pods = lab.pods()[..2].iter().map(serve).collect::<Result<_, _>>().context("serve in pods")?;
        let node = objects::node(NODE, &[lab.node().ip4().into()]);
        let around = [node, probe_service(), probe_slice(lab.pod(0).ip4().into())];
        api.load(around.into_iter().chain(world.objects())).context("store the objects")?;
        let generation = Generation::open(lab.node()).context("ask the kernel for its generation")?;
        Ok(Self { lab, api, world: world.clone(), generation, program, _pods: pods })
    }

    /// Starts the proxy on the node.
    pub(crate) fn start_proxy(&self) -> anyhow::Result<Proxy> {
        let program = self.program.to_string_lossy();
        let url = self.api.url();
        // The kernel kills the proxy should this process end without doing so; see setpriv(1).
        let arguments =
            ["--pdeathsig", "KILL", "--", &program, "--master", &url, "--hostname-override", NODE]
                .into_iter()
                .chain(["--cluster-cidr", CLUSTER_CIDR, "-v", "2"]);
        let arguments: Vec<&str> = arguments.collect();
        let proxy = Proxy::start(self.lab.node(), "setpriv".as_ref(), &arguments);
        proxy.with_context(|| format!("start {program}"))
    }

    /// Takes the proxy's rules out of the node.
    pub(crate) fn delete_rules(&self) -> anyhow::Result<()> {
        Ok(self.lab.node().nft("delete table ip kube-proxy\ndelete table ip6 kube-proxy\n")?)
    }

    /// Where the probe Service is.
    pub(crate) fn probe_address() -> SocketAddr {
        (PROBE_IP, 53).into()
    }

    /// The pods that the probe Service can have as its endpoint.
    pub(crate) fn probe_pods(&self) -> [&Host; 2] {
        [self.lab.pod(0), self.lab.pod(1)]
    }

    /// Makes a pod the probe Service's only endpoint.
    pub(crate) fn move_probe(&self, pod: IpAddr) -> anyhow::Result<()> {
        self.api.apply(probe_slice(pod)).map(drop).context("store the probe's slice")
    }

    /// The pod that sends packets to the probe Service.
    pub(crate) fn client(&self) -> &Host {
        self.lab.pod(2)
    }

    /// Fails unless a packet to the last Service comes through now.
    pub(crate) fn check_served(&self) -> anyhow::Result<()> {
        let answer = self.client().run(|| udp_once(Self::probe_address(), Duration::from_secs(1)));
        answer.map(drop).context("the rules are said to be in place, but the last Service is not served")
    }

    /// The number of the node's ruleset.
    pub(crate) fn generation(&self) -> anyhow::Result<u32> {
        self.generation.read().context("ask the kernel for its generation")
    }
}
