//! The Windows program, a folder with what is its host, and an API server.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apiserver::ApiServer;
use fakes::hns::{Knobs, Objects};
use hcn::{Endpoint, Guid, LoadBalancer, Mac, PortMapping, network_type};
use lab::proxy::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// For a machine that is busy, and emulates another.
pub(crate) const LIMIT: Duration = Duration::from_mins(5);
/// The network that is served.
pub(crate) const NETWORK: &str = "cbr0";

/// A host, as far as the program sees one.
pub(crate) struct Site {
    dir: TempDir,
    pub(crate) server: ApiServer,
    pub(crate) metrics_port: u16,
    pub(crate) health_port: u16,
}

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run `make windows`")).into()
}

/// As Windows has it: wine shows the whole file system as drive Z.
fn windows(path: &Path) -> String {
    format!("Z:{}", path.display().to_string().replace('/', "\\"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Site {
    /// A node with a network of pods, and objects of somebody else's.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(variable("KUBE_PROXY_EXE"), dir.path().join("kube-proxy.exe")).unwrap();
        for name in ["computenetwork.dll", "vmcompute.dll"] {
            std::fs::copy(variable("HNS_STUB"), dir.path().join(name)).unwrap();
        }
        let random = variable("BCRYPTPRIMITIVES");
        std::fs::copy(random, dir.path().join("bcryptprimitives.dll")).unwrap();
        let server =
            ApiServer::start(apiserver::Config { tls: true, ..apiserver::Config::default() }).unwrap();
        server.apply(fakes::objects::node(fakes::objects::NODE, &["10.0.0.1".parse().unwrap()])).unwrap();
        server.kubeconfig(dir.path()).unwrap();
        let site = Self { dir, server, metrics_port: free_port(), health_port: free_port() };
        let saved = json!({ "knobs": Knobs::default(), "objects": node() });
        std::fs::write(site.path("hns.json"), saved.to_string()).unwrap();
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("wine");
        command.arg(self.path("kube-proxy.exe")).args(arguments).current_dir(self.dir.path());
        command.env("WINEPREFIX", variable("WINEPREFIX")).env("WINEDEBUG", "-all").env_remove("DISPLAY");
        for (name, file) in
            [("HNS_STUB_STATE", "hns.json"), ("HNS_STUB_JOURNAL", "journal"), ("HNS_STUB_EVENT", "event")]
        {
            command.env(name, windows(&self.path(file)));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts it as on a node.
    pub(crate) fn start(&self) -> Program {
        let kubeconfig = windows(&self.kubeconfig());
        let (metrics, health) =
            (format!("127.0.0.1:{}", self.metrics_port), format!("127.0.0.1:{}", self.health_port));
        let arguments = [
            "--kubeconfig",
            &kubeconfig,
            "--network-name",
            NETWORK,
            "--hostname-override",
            fakes::objects::NODE,
            "--metrics-bind-address",
            &metrics,
            "--healthz-bind-address",
            &health,
            "--windows-priorityclass=ABOVE_NORMAL_PRIORITY_CLASS",
            "-v=4",
        ];
        Program::new(self.command(&arguments).stdout(Stdio::null()).spawn().unwrap())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.server.kubeconfig(self.dir.path()).unwrap()
    }

    /// What is in HNS. The program replaces the file as a whole.
    pub(crate) fn hns(&self) -> Objects {
        let saved: Value = serde_json::from_slice(&std::fs::read(self.path("hns.json")).unwrap()).unwrap();
        serde_json::from_value(saved["objects"].clone()).unwrap()
    }

    /// The calls that write, as they were tried so far.
    pub(crate) fn journal(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("journal")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until HNS has these frontends of ours, each with these endpoints, and nothing else of ours.
    #[track_caller]
    pub(crate) fn wait_for(&self, program: &Program, wanted: &Frontends) {
        if !wait_until(LIMIT, || ours(&self.hns()) == *wanted) {
            let log = program.log().join("\n");
            panic!("HNS has {:#?}\nwanted {wanted:#?}\n{log}", ours(&self.hns()));
        }
    }
}

/// Asks a server of the program.
pub(crate) fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Addresses of endpoints, by address and port of the frontend.
pub(crate) type Frontends = BTreeMap<(String, u16), Vec<String>>;

/// The load balancers whose endpoints are on the network that is served.
pub(crate) fn ours(objects: &Objects) -> Frontends {
    let network = objects.networks.iter().find(|(_, network)| network.name == NETWORK).map(|(id, _)| *id);
    let addresses = |id: &Guid| {
        let endpoint = objects.endpoints.get(id).filter(|found| found.host_compute_network == network)?;
        Some(endpoint.ip_configurations.first()?.ip_address.clone())
    };
    let of = |balancer: &LoadBalancer| {
        let endpoints: Option<Vec<String>> = balancer.host_compute_endpoints.iter().map(addresses).collect();
        let mut endpoints = endpoints?;
        endpoints.sort_unstable();
        let (vip, mapping) = (balancer.frontend_vips.first()?, balancer.port_mappings.first()?);
        Some(((vip.clone(), mapping.external_port), endpoints))
    };
    objects.balancers.values().filter_map(of).collect()
}

/// Somebody else's load balancer.
pub(crate) fn foreign(objects: &Objects) -> Vec<&LoadBalancer> {
    objects.balancers.values().filter(|found| found.frontend_vips == ["172.16.0.99"]).collect()
}

fn node() -> Objects {
    let mut objects = Objects::default();
    let network = objects.add_network(NETWORK, network_type::L2_BRIDGE, &["10.244.1.0/24"]);
    for pod in 2..12 {
        let address = Ipv4Addr::new(10, 244, 1, pod).into();
        objects.add_pod(network, &format!("pod-{pod}"), &[address]);
    }
    let nat = objects.add_network("nat", "NAT", &["172.16.0.0/24"]);
    let container = objects.add_pod(nat, "container", &[Ipv4Addr::new(172, 16, 0, 2).into()]);
    let id = Guid::from_u128(0xf0);
    let far = Endpoint::remote(Ipv4Addr::new(172, 16, 1, 2).into(), nat, Mac([2, 0, 172, 16, 1, 2]), None);
    objects.endpoints.insert(id, Endpoint { id: Some(id), ..far });
    objects.add_balancer(LoadBalancer {
        host_compute_endpoints: vec![container],
        frontend_vips: vec!["172.16.0.99".to_owned()],
        port_mappings: vec![PortMapping {
            protocol: 6,
            internal_port: 80,
            external_port: 80,
            ..PortMapping::default()
        }],
        ..LoadBalancer::default()
    });
    objects
}

/// A running program. Killed when dropped.
pub(crate) struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Program {
    fn new(mut child: Child) -> Self {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (sink, stderr) = (log.clone(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        Self { child, log }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// `kill -9`
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What a key of the console does: wine makes it of the signal.
    pub(crate) fn interrupt(self) -> (ExitStatus, Vec<String>) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        self.end()
    }

    /// Waits until it has ended.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        assert!(wait_until(LIMIT, || self.child.try_wait().unwrap().is_some()), "it does not end");
        (self.child.wait().unwrap(), self.log())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
