//! What the story plays on: a cluster with Service `web`, the proxy as a process, and the kernel's own word on commits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use fakes::objects::{self, Endpoint, Port};
use lab::Host;
use lab::commits::Generation;
use lab::proxy::{Proxy, wait_until};
use testkit::cluster::{Cluster, HTTP_PORT};
use tokio::time::Instant;

/// The Service's addresses.
pub(crate) const WEB_IP4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The same in IPv6.
pub(crate) const WEB_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa);
/// The Service's port on each node.
pub(crate) const NODE_PORT: u16 = 30080;

const PORTS: [Port; 1] =
    [Port { name: "http", protocol: "TCP", port: 80, target: HTTP_PORT, node_port: Some(NODE_PORT) }];
/// How long a start or a change may take until the demonstration gives up; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the kernel is asked whether something was committed, and so how exact the times are.
const POLL: Duration = Duration::from_micros(50);

/// The cluster and what is needed to play on it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    program: PathBuf,
    generation: Generation,
}

/// What the kernel committed for one change of both families.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    /// From the API server's write of the IPv4 slice to the commit.
    pub(crate) v4: Duration,
    /// The same for IPv6.
    pub(crate) v6: Duration,
}

impl Stage {
    /// Builds the cluster and creates Service `web` with no endpoints. The proxy is not started.
    pub(crate) fn build(program: PathBuf) -> anyhow::Result<Self> {
        let cluster = Cluster::new(3, 2)?;
        cluster.apply(objects::service("web", &[WEB_IP4.into(), WEB_IP6.into()], &PORTS))?;
        let generation = Generation::open(cluster.lab.node()).context("ask the kernel for its generation")?;
        Ok(Self { cluster, program, generation })
    }

    /// The pods that can serve: two on each node.
    pub(crate) fn servers(&self) -> [&Host; 4] {
        let lab = &self.cluster.lab;
        [lab.pod(0), lab.pod(1), lab.node2_pod(0), lab.node2_pod(1)]
    }

    /// The pod that asks. It is no endpoint.
    pub(crate) fn client(&self) -> &Host {
        self.cluster.lab.pod(2)
    }

    /// The Service's address of a family.
    pub(crate) fn web(v6: bool) -> SocketAddr {
        let ip = if v6 { IpAddr::from(WEB_IP6) } else { WEB_IP4.into() };
        (ip, 80).into()
    }

    /// Makes these pods the Service's endpoints, by writing its two slices to the API server.
    pub(crate) fn set_endpoints(&self, pods: &[&str]) -> anyhow::Result<()> {
        self.set_slice(pods, false)?;
        self.set_slice(pods, true)
    }

    fn set_slice(&self, pods: &[&str], v6: bool) -> anyhow::Result<()> {
        let names = self.cluster.pod_names();
        let named = names.iter().zip(self.cluster.endpoints(v6));
        let endpoints: Vec<Endpoint> =
            named.filter(|(name, _)| pods.contains(name)).map(|(_, endpoint)| endpoint).collect();
        self.cluster.apply(objects::slice("web", if v6 { "v6" } else { "v4" }, &PORTS, &endpoints))
    }

    /// Like [`Stage::set_endpoints`], and waits for the kernel to have committed each slice's change.
    pub(crate) fn change_endpoints(&self, pods: &[&str]) -> anyhow::Result<Committed> {
        let v4 = self.time_commit(|| self.set_slice(pods, false))?;
        let v6 = self.time_commit(|| self.set_slice(pods, true))?;
        Ok(Committed { v4, v6 })
    }

    fn time_commit(&self, change: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
        let before = self.generation()?;
        let written = Instant::now();
        change()?;
        while self.generation()? == before {
            anyhow::ensure!(
                written.elapsed() < PATIENCE,
                "the change did not reach the kernel in {PATIENCE:?}"
            );
            std::thread::sleep(POLL);
        }
        Ok(written.elapsed())
    }

    /// The number of the node's ruleset, which every transaction increments.
    pub(crate) fn generation(&self) -> anyhow::Result<u32> {
        self.generation.read().context("ask the kernel for its generation")
    }

    /// Starts the proxy and waits until it says that both families' rules are right; yields how long that took.
    pub(crate) fn start_proxy(&self) -> anyhow::Result<(Proxy, Duration)> {
        let program = self.program.to_string_lossy();
        let arguments = self.cluster.arguments();
        // The kernel kills the proxy should this process end without doing so. Set by a program that becomes the proxy:
        // nothing else can be done between fork and exec without unsafe code.
        let prefix = ["--pdeathsig", "KILL", "--", &program];
        let all: Vec<&str> = prefix.into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let started = Instant::now();
        let mut proxy = Proxy::start(self.cluster.lab.node(), "setpriv".as_ref(), &all)
            .with_context(|| format!("start {program}"))?;
        let ended = wait_until(PATIENCE, || is_ready(&proxy.log()) || !proxy.is_running());
        let ready = ended && is_ready(&proxy.log());
        anyhow::ensure!(ready, "{program} did not get ready; its log:\n{}", proxy.log().join("\n"));
        Ok((proxy, started.elapsed()))
    }
}

/// Whether the proxy has told of the rules of both families.
fn is_ready(log: &[String]) -> bool {
    let told =
        |family: &str| log.iter().any(|line| line.contains("the kernel's rules") && line.contains(family));
    told("IPv4") && told("IPv6")
}
