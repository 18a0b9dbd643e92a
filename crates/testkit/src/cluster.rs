//! A laboratory with everything around the proxy: an API server on the node, echo servers in all pods, a Node object.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use apiserver::{ApiServer, Config as ApiConfig, Kind};
use fakes::objects::{self, Endpoint, NAMESPACE};
pub use fakes::objects::{LINE_PORT, NODE, NODE2, UDP_PORT};
use lab::cgroup::SocketSite;
use lab::echo::{EchoServer, Mode};
use lab::proxy::Proxy;
use lab::{Config as LabConfig, Host, Lab};
use tempfile::TempDir;

/// The pods' addresses, for `--cluster-cidr`.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/47";

/// Port on which every pod answers over TCP and keeps the connection.
pub const KEEP_PORT: u16 = 8081;
/// Port on which every pod answers HTTP.
pub const HTTP_PORT: u16 = 8082;

/// The mode that the proxy under test runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// `nftables`.
    Nftables,
    /// `iptables`, with the programs of one flavour.
    Iptables(Flavour),
    /// `ipvs`; needs a kernel that has it, and `ipvsadm`.
    Ipvs,
    /// `userspace`.
    Userspace,
    /// `ebpf`, in a cgroup of its own, which the thread that asks for it enters.
    Ebpf,
}

/// Which kernel interface iptables uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Tables of nftables.
    Nft,
    /// The old one.
    Legacy,
}

impl Flavour {
    /// How its programs' names end.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// Leaves the kubelet's mark, which tells a proxy which flavour to use.
    ///
    /// # Errors
    /// The programs of iptables are missing.
    pub fn mark(self, node: &Host) -> anyhow::Result<()> {
        for name in ["iptables", "ip6tables"] {
            let program = format!("{name}-{}", self.suffix());
            node.exec(&program, &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])?;
        }
        Ok(())
    }

    /// What `iptables-save` and `ip6tables-save` print.
    ///
    /// # Errors
    /// The programs fail.
    pub fn save(self, node: &Host) -> anyhow::Result<[String; 2]> {
        let save = |name: &str| node.exec(&format!("{name}-{}-save", self.suffix()), &[]);
        Ok([save("iptables")?, save("ip6tables")?])
    }
}

/// A cluster of two nodes, of which one is to run the proxy.
#[derive(Debug)]
pub struct Cluster {
    /// Namespaces.
    pub lab: Lab,
    /// The API server, on the node's loopback.
    pub api: ApiServer,
    servers: Vec<EchoServer>,
    mode: ProxyMode,
    socket_site: Option<SocketSite>,
    is_proxying: bool,
    has_datagrams: bool,
    /// Before the directory, which they are in.
    _named: Vec<NamedNamespace>,
    dir: TempDir,
    kubeconfig: PathBuf,
}

/// A name of a network namespace, as container runtimes make it. Gone with this.
#[derive(Debug)]
struct NamedNamespace(PathBuf);

impl NamedNamespace {
    fn new(host: &Host, path: PathBuf) -> anyhow::Result<Self> {
        std::fs::write(&path, "")?;
        let status = Command::new("mount").arg("--bind").arg(host.path()).arg(&path).status()?;
        anyhow::ensure!(status.success(), "mount {} at {}", host.name(), path.display());
        Ok(Self(path))
    }
}

impl Drop for NamedNamespace {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

impl Cluster {
    /// Builds it; the proxy is not started.
    ///
    /// # Errors
    /// Namespaces, servers or files can't be made; the text says which and why.
    pub fn new(pods: usize, node2_pods: usize) -> anyhow::Result<Self> {
        let lab = Lab::new(&LabConfig { pods, node2_pods, ..LabConfig::default() })?;
        Self::with(lab, ApiConfig::default())
    }

    /// Builds it in a given laboratory with a given API server.
    ///
    /// # Errors
    /// As [`Cluster::new`].
    pub fn with(lab: Lab, config: ApiConfig) -> anyhow::Result<Self> {
        let api = lab.node().run(|| ApiServer::start(config)).context("start the API server")?;
        let dir = TempDir::new().context("make a directory")?;
        let kubeconfig = api.kubeconfig(dir.path()).context("write the kubeconfig")?;
        let servers = lab.pods().iter().chain(lab.node2_pods()).map(serve).collect::<anyhow::Result<_>>()?;
        let node = objects::node(NODE, &[lab.node().ip4().into(), lab.node().ip6().into()]);
        api.apply(node).context("store the Node")?;
        api.apply(objects::service_cidr(&["10.96.0.0/12", "fd00:10:96::/112"]))
            .context("store the ServiceCIDR")?;
        Ok(Self {
            lab,
            api,
            servers,
            mode: ProxyMode::Nftables,
            socket_site: None,
            is_proxying: false,
            has_datagrams: false,
            _named: Vec::new(),
            dir,
            kubeconfig,
        })
    }

    /// The same cluster, whose proxy runs in another mode. The kubelet's mark tells it which flavour of iptables to use.
    ///
    /// # Errors
    /// The programs of iptables are missing.
    pub fn in_mode(self, mode: ProxyMode) -> anyhow::Result<Self> {
        if let ProxyMode::Iptables(flavour) = mode {
            flavour.mark(self.lab.node())?;
        }
        let socket_site = match mode {
            ProxyMode::Ebpf => {
                let site = SocketSite::enter()?;
                let others = [self.lab.outside(), self.lab.node2()].into_iter().chain(self.lab.node2_pods());
                others.for_each(|host| host.is_of_another_node(site.outside()));
                Some(site)
            }
            ProxyMode::Nftables | ProxyMode::Iptables(_) | ProxyMode::Ipvs | ProxyMode::Userspace => {
                self.socket_site
            }
        };
        Ok(Self { mode, socket_site, ..self })
    }

    /// The same cluster, whose proxy has workers for Services that ask for them.
    #[must_use]
    pub fn proxying(self) -> Self {
        Self { is_proxying: true, ..self }
    }

    /// The same cluster, whose proxy serves UDP at the socket, too: it finds the namespaces of the node's pods by name.
    ///
    /// # Errors
    /// They can't be given names.
    pub fn with_datagrams(self) -> anyhow::Result<Self> {
        std::fs::create_dir(self.netns_dir())?;
        let named = |pod: &Host| NamedNamespace::new(pod, self.netns_dir().join(pod.name()));
        let named = self.lab.pods().iter().map(named).collect::<Result<_, _>>()?;
        Ok(Self { has_datagrams: true, _named: named, ..self })
    }

    /// Where the namespaces of the node's pods have names.
    pub fn netns_dir(&self) -> PathBuf {
        self.dir().join("netns")
    }

    /// The mode of its proxy.
    pub fn mode(&self) -> ProxyMode {
        self.mode
    }

    /// The rules on the node, as an operator lists them.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn listing(&self) -> anyhow::Result<String> {
        match self.mode {
            ProxyMode::Nftables | ProxyMode::Ebpf | ProxyMode::Userspace => {
                Ok(self.lab.check_listable()?.text)
            }
            ProxyMode::Iptables(flavour) => Ok(flavour.save(self.lab.node())?.concat()),
            ProxyMode::Ipvs => {
                let servers = self.lab.node().exec("ipvsadm", &["-Ln"])?;
                Ok(format!("{}{servers}", self.lab.check_listable()?.text))
            }
        }
    }

    /// Where mode ebpf has its programs.
    ///
    /// # Panics
    /// In other modes.
    pub fn socket_site(&self) -> &SocketSite {
        self.socket_site.as_ref().expect("mode ebpf has a cgroup of its own")
    }

    /// A directory of its own, gone with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The arguments with which the proxy serves this cluster.
    pub fn arguments(&self) -> Vec<String> {
        let kubeconfig = self.kubeconfig.to_string_lossy();
        let mode = match self.mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables(_) => "iptables",
            ProxyMode::Ipvs => "ipvs",
            ProxyMode::Userspace => "userspace",
            ProxyMode::Ebpf => "ebpf",
        };
        let site = self.socket_site.iter().flat_map(|site| {
            let path = |path: &Path| path.display().to_string();
            [
                "--ebpf-cgroup-root".to_owned(),
                path(site.cgroup()),
                "--ebpf-bpffs".to_owned(),
                path(site.bpffs()),
            ]
        });
        let datagrams = self.has_datagrams.then(|| {
            ["--ebpf-udp".to_owned(), "--ebpf-netns-dir".to_owned(), self.netns_dir().display().to_string()]
        });
        let proxying = self.is_proxying.then(|| "--service-proxying-annotated".to_owned());
        ["--kubeconfig", &kubeconfig, "--hostname-override", NODE, "--proxy-mode", mode, "-v", "2"]
            .into_iter()
            .chain(["--cluster-cidr", CLUSTER_CIDR])
            .map(str::to_owned)
            .chain(site)
            .chain(datagrams.into_iter().flatten())
            .chain(proxying)
            .collect()
    }

    /// Starts the proxy on the node.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn start_proxy(&self, program: &Path) -> anyhow::Result<Proxy> {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let started = Proxy::start(self.lab.node(), program, &arguments);
        started.with_context(|| format!("start {}", program.display()))
    }

    /// Starts the proxy and waits until its rules are in place.
    ///
    /// # Errors
    /// It can't be started, or has not said so in half a minute; the error has its log.
    pub fn start_proxy_and_wait(&self, program: &Path) -> anyhow::Result<Proxy> {
        let mut proxy = self.start_proxy(program)?;
        for family in ["IPv4", "IPv6"] {
            let ready = |proxy: &Proxy| {
                let lines = proxy.log();
                lines.iter().any(|line| line.contains("the kernel's rules") && line.contains(family))
            };
            let ended = lab::proxy::wait_until(START_LIMIT, || ready(&proxy) || !proxy.is_running());
            anyhow::ensure!(ended && ready(&proxy), "the proxy is not ready:\n{}", proxy.log().join("\n"));
        }
        if self.mode == ProxyMode::Userspace {
            Self::wait_for_workers(&proxy)?;
        }
        Ok(proxy)
    }

    /// Waits until flows of both families go through workers.
    ///
    /// # Errors
    /// They do not after half a minute; the error has the proxy's log.
    pub fn wait_for_workers(proxy: &Proxy) -> anyhow::Result<()> {
        let leased = || proxy.log().iter().filter(|line| line.contains(LEASED)).count() >= 2;
        let ready = lab::proxy::wait_until(START_LIMIT, leased);
        anyhow::ensure!(ready, "no flows go through workers:\n{}", proxy.log().join("\n"));
        Ok(())
    }

    /// The pods as endpoints of a family: first those of the node under test, then the other's. Their echo servers have
    /// the names of [`Cluster::pod_names`].
    pub fn endpoints(&self, v6: bool) -> Vec<Endpoint> {
        let ip = |host: &Host| if v6 { IpAddr::from(host.ip6()) } else { host.ip4().into() };
        let local = self.lab.pods().iter().map(|pod| Endpoint::ready(ip(pod), NODE));
        local.chain(self.lab.node2_pods().iter().map(|pod| Endpoint::ready(ip(pod), NODE2))).collect()
    }

    /// The names that the pods answer with, in the order of [`Cluster::endpoints`].
    pub fn pod_names(&self) -> Vec<&str> {
        self.servers.iter().map(EchoServer::name).collect()
    }

    /// Creates or replaces an object.
    ///
    /// # Errors
    /// It is no sound object.
    pub fn apply(&self, object: serde_json::Value) -> anyhow::Result<()> {
        self.api.apply(object).map(drop).context("store an object")
    }

    /// Deletes an object of the test's namespace.
    pub fn delete(&self, kind: Kind, name: &str) {
        self.api.delete(kind, NAMESPACE, name);
    }
}

/// What a proxy says of each family whose flows go through a worker.
const LEASED: &str = "flows go through a worker";
/// How long a start may take before it counts as failed; this machine may be busy.
const START_LIMIT: Duration = Duration::from_secs(30);

fn serve(pod: &Host) -> anyhow::Result<EchoServer> {
    let ports = [
        (LINE_PORT, Mode::Line),
        (KEEP_PORT, Mode::KeepOpen),
        (HTTP_PORT, Mode::Http),
        (UDP_PORT, Mode::Udp),
    ];
    EchoServer::start(pod, pod.name(), &ports).with_context(|| format!("serve in {}", pod.name()))
}
