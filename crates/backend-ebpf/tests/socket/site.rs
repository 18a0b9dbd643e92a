//! What the tests share: a namespace with loopback addresses, servers that say who they are, and a table of Services.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backend_ebpf::{Change, Condition, Options, SocketPath, Wanted};
use ebpf::{FastPath, FastPathError, FastPathRemoval};
use kernel::{Bpf, FastPathPlace, KernelFastPath};
use lab::Namespace;
use lab::cgroup::SocketSite;
use model::{
    AddressKind, Destination, EndpointNode, Family, Frontend, FrontendAddress, FrontendKey, ObjectName, Pool,
    Protocol, RuleSettings, ServicePortName, Table, V4, Verdict,
};

/// A cgroup, a file system, and a namespace that is the node's.
pub(crate) struct Site {
    pub(crate) node: Namespace,
    pub(crate) socket_site: SocketSite,
}

impl Site {
    pub(crate) fn new() -> Self {
        let socket_site = SocketSite::enter().unwrap_or_else(|error| panic!("{error:#}"));
        let node = namespace("node");
        Self { node, socket_site }
    }

    pub(crate) fn place(&self) -> FastPathPlace {
        FastPathPlace {
            cgroup_root: self.socket_site.cgroup().to_owned(),
            bpffs: self.socket_site.bpffs().to_owned(),
        }
    }

    /// Programs and maps of this place, opened in the node's namespace whenever they are used there.
    pub(crate) fn path<F: Family>(&self, bpf: &Bpf) -> SocketPath<F> {
        self.path_with(bpf, Ok)
    }

    /// The same, with programs for datagrams.
    pub(crate) fn datagram_path<F: Family>(&self, bpf: &Bpf) -> SocketPath<F> {
        self.path_with(bpf, KernelFastPath::with_datagrams)
    }

    fn path_with<F: Family>(
        &self,
        bpf: &Bpf,
        with: fn(KernelFastPath<F>) -> Result<KernelFastPath<F>, FastPathError>,
    ) -> SocketPath<F> {
        let (place, bpf) = (self.place(), bpf.clone());
        let open = move || {
            let opened = with(KernelFastPath::<F>::open(place.clone(), bpf.clone())?)?;
            Ok(Box::new(opened) as Box<dyn FastPath<F>>)
        };
        let addresses = || Ok(BTreeSet::from([IpAddr::from([10, 0, 0, 1]), [127, 0, 0, 1].into()]));
        SocketPath::new(Box::new(open), Box::new(addresses), Box::new(|_, _| ()))
    }
}

/// Removes what is pinned. Programs that another test has just begun to start hold the lock for a moment.
pub(crate) fn remove(site: &Site, what: FastPathRemoval) {
    loop {
        match kernel::remove_fast_path(site.socket_site.bpffs(), what) {
            Err(FastPathError::Busy { .. }) => std::thread::yield_now(),
            other => return drop(other.unwrap()),
        }
    }
}

/// A namespace whose loopback device is up.
pub(crate) fn namespace(name: &str) -> Namespace {
    let namespace = Namespace::new(name).unwrap_or_else(|error| panic!("{error}"));
    namespace.exec("ip", &["link", "set", "lo", "up"]).unwrap();
    namespace.exec("ip", &["address", "add", "10.0.0.1/32", "dev", "lo"]).unwrap();
    namespace
}

/// A server on all addresses of a port, which answers its name and the client's address. It ends with this.
pub(crate) struct Server {
    ends: Arc<AtomicBool>,
    pub(crate) port: u16,
}

impl Server {
    pub(crate) fn start(namespace: &Namespace, address: &str, name: &'static str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        let listener = namespace.run(|| TcpListener::bind((address, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        let ends = Arc::new(AtomicBool::new(false));
        let flag = ends.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(mut stream) = stream {
                    drop(stream.write_all(name.as_bytes()));
                }
            }
        });
        Self { ends, port }
    }

    /// Ends the server's thread.
    pub(crate) fn stop(self, namespace: &Namespace, address: &str) {
        self.ends.store(true, Ordering::SeqCst);
        let address: IpAddr = address.parse().unwrap();
        namespace.run(|| drop(TcpStream::connect((address, self.port))));
    }
}

/// Who answers, and the address that the socket shows as its peer's.
pub(crate) fn ask(from: &Namespace, to: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        let peer = stream.peer_addr()?;
        let mut text = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.read_to_string(&mut text)?;
        Ok((text, peer))
    })
}

/// A frontend of Service `name`.
pub(crate) fn frontend<F: Family>(
    name: &str,
    address: FrontendAddress<F>,
    port: u16,
    endpoints: &[(F::Addr, u16)],
) -> Frontend<F> {
    let destination = |(address, port): &(F::Addr, u16)| Destination {
        address: *address,
        port: *port,
        node: EndpointNode::This,
    };
    let service = ServicePortName {
        service: ObjectName::new("ns", name),
        port: "http".into(),
        protocol: Protocol::Tcp,
    };
    let pool = Pool::new(endpoints.iter().map(destination).collect(), Verdict::Reject);
    Frontend::new(
        FrontendKey { address, protocol: Protocol::Tcp, port },
        AddressKind::ClusterIp,
        service,
        pool,
    )
}

/// The same for UDP.
pub(crate) fn datagram_frontend<F: Family>(
    name: &str,
    address: F::Addr,
    endpoints: &[(F::Addr, u16)],
) -> Frontend<F> {
    let mut frontend = frontend(name, FrontendAddress::Ip(address), 53, endpoints);
    (frontend.key.protocol, frontend.service.protocol) = (Protocol::Udp, Protocol::Udp);
    frontend.flow_endpoints = frontend.pool.endpoints().into();
    frontend
}

/// Everything of these frontends.
pub(crate) fn all<F: Family>(frontends: Vec<Frontend<F>>) -> Change<F> {
    Change::All(Wanted::of(&table(frontends), &RuleSettings::default(), &Options::default()))
}

/// The same, also those of UDP.
pub(crate) fn all_with_datagrams<F: Family>(frontends: Vec<Frontend<F>>) -> Change<F> {
    let options = Options { datagrams: true, ..Options::default() };
    Change::All(Wanted::of(&table(frontends), &RuleSettings::default(), &options))
}

fn table<F: Family>(frontends: Vec<Frontend<F>>) -> Table<F> {
    let mut table = Table::default();
    for frontend in frontends {
        let service = frontend.service.service.clone();
        let mut own: Vec<_> = table.of_service(&service).cloned().collect();
        own.push(frontend);
        table.set_service(&service, own);
    }
    table
}

/// Makes a change, again while programs that another test has just begun to start hold the maps' lock.
pub(crate) fn change<F: Family>(path: &mut SocketPath<F>, wanted: &Change<F>) -> Condition {
    loop {
        match path.change(wanted) {
            Condition::Off(why) if why.contains("another process") => std::thread::yield_now(),
            condition => return condition,
        }
    }
}

/// Makes a change from inside the node.
#[track_caller]
pub(crate) fn apply<F: Family>(site: &Site, path: &mut SocketPath<F>, change: &Change<F>) {
    assert_eq!(site.node.run(|| self::change(path, change)), Condition::On);
}

/// The kernel takes a program off some time after its link is gone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Service `web` at [`VIP`] with one endpoint.
pub(crate) fn web(endpoint: (Ipv4Addr, u16)) -> Frontend<V4> {
    frontend("web", FrontendAddress::Ip(VIP), 80, &[endpoint])
}
