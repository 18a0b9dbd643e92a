//! Carries out the plan of `topology` and hands out the hosts.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use model::IpFamily;

use super::namespace::write_sysctl;
use super::time_limit::TimeLimit;
use super::topology::{
    self, Addresses, Config, MAX_PODS, NODE, NODE_PLAN, NODE2, NODE2_PLAN, NodePlan, OUTSIDE,
};
use super::{LabError, Namespace};

/// Below this many entries, the load tests could meet a full connection tracking table.
const CONNTRACK_MIN: u64 = 65_536;

/// A namespace with its addresses; everything that a [`Namespace`] does can be called on it directly.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Namespace,
    addresses: Addresses,
}

impl Host {
    /// The host's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The host's IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        self.addresses.ip4
    }

    /// The host's IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        self.addresses.ip6
    }

    /// The host's address of a family.
    pub fn ip(&self, family: IpFamily) -> IpAddr {
        match family {
            IpFamily::V4 => self.addresses.ip4.into(),
            IpFamily::V6 => self.addresses.ip6.into(),
        }
    }

    /// The host's address of a family with a port.
    pub fn socket(&self, family: IpFamily, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// Both listings of a node's rules.
#[derive(Clone, Debug)]
pub struct Listing {
    /// What `nft list ruleset` prints.
    pub text: String,
    /// What `nft -j list ruleset` prints, parsed.
    pub json: serde_json::Value,
}

/// The laboratory; see the module's picture. Dropping it removes everything, except what sockets and processes of the
/// caller still hold.
#[derive(Debug)]
pub struct Lab {
    node: Host,
    node2: Host,
    outside: Host,
    pods: Vec<Host>,
    node2_pods: Vec<Host>,
    switch: Namespace,
    _time_limit: Option<TimeLimit>,
}

impl Lab {
    /// Builds a laboratory, ready for traffic when this returns. Several may exist in one process.
    ///
    /// # Errors
    /// [`LabError::MissingPrivilege`] without the right to make namespaces; otherwise the step that failed.
    pub fn new(config: &Config) -> Result<Self, LabError> {
        let pods = make_pods("", NODE_PLAN, config.pods)?;
        let node2_pods = make_pods("node2-", NODE2_PLAN, config.node2_pods)?;
        let lab = Self {
            node: make_host("node", NODE, topology::NODE_SETTINGS)?,
            node2: make_host("node2", NODE2, topology::NODE_SETTINGS)?,
            outside: make_host("outside", OUTSIDE, &[])?,
            switch: make_namespace("switch", topology::SWITCH_SETTINGS)?,
            pods,
            node2_pods,
            _time_limit: config.time_limit.map(TimeLimit::begin),
        };
        lab.require_conntrack()?;
        lab.connect(config)?;
        Ok(lab)
    }

    fn connect(&self, config: &Config) -> Result<(), LabError> {
        // The order matters: each batch makes the interfaces that the next ones configure.
        let hosts = [&self.node, &self.node2, &self.outside].map(|host| (host.name(), host.path()));
        batch(
            &self.switch,
            &topology::switch_batch(hosts.iter().map(|(name, path)| (*name, path.as_path()))),
        )?;
        batch(&self.outside, &topology::outside_batch(&config.outside_routes))?;
        for (node, plan, pods) in
            [(&self.node, NODE_PLAN, &self.pods), (&self.node2, NODE2_PLAN, &self.node2_pods)]
        {
            let cables: Vec<(String, PathBuf)> =
                pods.iter().enumerate().map(|(index, pod)| (format!("pod{index}"), pod.path())).collect();
            batch(node, &topology::node_batch(plan, cables.iter().map(|(n, p)| (n.as_str(), p.as_path()))))?;
            for pod in pods {
                batch(pod, &topology::pod_batch(pod.addresses))?;
            }
        }
        // A cable's first end learns asynchronously that the second is up, and loses what it sends until then.
        [&self.switch, &self.node, &self.node2].into_iter().try_for_each(wait_for_links)
    }

    /// Namespaces have their own tables but the machine's limit, which they cannot raise.
    fn require_conntrack(&self) -> Result<(), LabError> {
        let path = PathBuf::from("/proc/sys/net/netfilter/nf_conntrack_max");
        match self.node.run(|| fs::read_to_string(&path)) {
            Ok(text) => match text.trim().parse() {
                Ok(max) if max < CONNTRACK_MIN => Err(LabError::ConntrackTooSmall(max)),
                _ => Ok(()),
            },
            Err(source) => Err(LabError::Sysctl { path, source }),
        }
    }

    /// The node under test.
    pub fn node(&self) -> &Host {
        &self.node
    }

    /// The other node, which runs no rules of its own.
    pub fn node2(&self) -> &Host {
        &self.node2
    }

    /// The client outside the cluster.
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// A pod of the node under test, named `pod0` and so on.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn pod(&self, index: usize) -> &Host {
        &self.pods[index]
    }

    /// A pod of the other node, named `node2-pod0` and so on.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn node2_pod(&self, index: usize) -> &Host {
        &self.node2_pods[index]
    }

    /// All pods of the node under test.
    pub fn pods(&self) -> &[Host] {
        &self.pods
    }

    /// All pods of the other node.
    pub fn node2_pods(&self) -> &[Host] {
        &self.node2_pods
    }

    /// Every host: the nodes, the client outside, then the pods.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.node, &self.node2, &self.outside].into_iter().chain(&self.pods).chain(&self.node2_pods)
    }

    /// Lists the rules of the node under test with `nft`, as text and as JSON. To be called at the end of each packet
    /// test: rules that operators' tools cannot list are a defect.
    ///
    /// # Errors
    /// [`LabError::Command`] if `nft` fails or crashes, [`LabError::Listing`] if its JSON is not JSON.
    pub fn check_listable(&self) -> Result<Listing, LabError> {
        let text = self.node.exec("nft", &["list", "ruleset"])?;
        let json = self.node.exec("nft", &["-j", "list", "ruleset"])?;
        // Without any rule, nft prints nothing or an empty list, depending on its version.
        let json = if json.trim().is_empty() { "{}" } else { &json };
        Ok(Listing { text, json: serde_json::from_str(json).map_err(LabError::Listing)? })
    }

    /// One line for each host: name, addresses, and the command that opens a shell inside while this process lives.
    pub fn entrances(&self) -> String {
        let mut text = String::new();
        for host in self.hosts() {
            writeln!(
                text,
                "{:<12} {:<15} {:<18} nsenter --net={}",
                host.name(),
                host.ip4(),
                host.ip6(),
                host.path().display()
            )
            .expect("writing to a string succeeds");
        }
        text
    }
}

fn make_pods(prefix: &str, plan: NodePlan, n_pods: usize) -> Result<Vec<Host>, LabError> {
    if n_pods > MAX_PODS {
        return Err(LabError::TooManyPods(n_pods));
    }
    (0..n_pods).map(|index| make_host(&format!("{prefix}pod{index}"), plan.pod(index), &[])).collect()
}

fn make_host(name: &str, addresses: Addresses, settings: &[(&str, &str)]) -> Result<Host, LabError> {
    Ok(Host { namespace: make_namespace(name, settings)?, addresses })
}

/// A namespace with the common settings and some more, written before any interface exists that could inherit others.
fn make_namespace(name: &str, settings: &[(&str, &str)]) -> Result<Namespace, LabError> {
    let namespace = Namespace::without_loopback(name)?;
    namespace.run(|| {
        topology::SETTINGS.iter().chain(settings).try_for_each(|(key, value)| write_sysctl(key, value))
    })?;
    Ok(namespace)
}

fn batch(namespace: &Namespace, commands: &str) -> Result<(), LabError> {
    namespace.exec_with_input("ip", &["-batch", "-"], commands).map(drop)
}

/// Waits until every cable of a namespace carries packets.
fn wait_for_links(namespace: &Namespace) -> Result<(), LabError> {
    for _ in 0..200 {
        let links = namespace.exec("ip", &["-o", "link", "show", "type", "veth"])?;
        if links.lines().all(|line| line.contains(" state UP ")) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(LabError::LinkDown(namespace.name().to_owned()))
}
