//! Programs against a model of them: whatever is in the maps, each connection goes where the model says.
//!
//! The kernel offers no `BPF_PROG_TEST_RUN` for programs at sockets' addresses (it says `ENOTSUPP`), so what goes in is a real
//! `connect` or `sendto`, and what comes out is where it arrives and what the socket shows. In each namespace all addresses are its own, and
//! somebody listens on all ports in question, so every connection arrives somewhere.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ebpf::{Capacity, Contents, Endpoint, FastPath as _, FrontendValue, Slot};
use fakes::ebpf::destinations;
use kernel::{Bpf, KernelFastPath};
use lab::Namespace;
use model::{Family, FrontendAddress, FrontendKey, Protocol, V4, V6};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::site::{Site, namespace};

const CAPACITY: Capacity = Capacity { frontends: 32, slots: 16, endpoints: 8 };
const PORTS: [u16; 3] = [7001, 7002, 7003];
const ADDRESSES: u8 = 4;

/// The addresses of a family, all of them everywhere.
trait Everywhere: Family {
    const ANY: IpAddr;

    fn address(n: u8) -> Self::Addr;

    /// How sockets can name an address.
    fn names(address: Self::Addr) -> Vec<IpAddr>;
}

impl Everywhere for V4 {
    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn address(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 64, 0, 1 + n)
    }

    fn names(address: Ipv4Addr) -> Vec<IpAddr> {
        vec![address.into(), address.to_ipv6_mapped().into()]
    }
}

impl Everywhere for V6 {
    const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

    fn address(n: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 1 + u16::from(n))
    }

    fn names(address: Ipv6Addr) -> Vec<IpAddr> {
        vec![address.into()]
    }
}

/// Anything that maps can hold, consistent or not.
fn contents<F: Everywhere>() -> impl Strategy<Value = Contents<F>> {
    let port = || proptest::sample::select(&PORTS[..]);
    // Often the same, so that much is translated.
    let epoch = || prop_oneof![6 => Just(1u16), 1 => Just(2)];
    let address = || (0..ADDRESSES).prop_map(F::address);
    let endpoint = (address(), port(), epoch()).prop_map(|(address, port, epoch)| Endpoint::<F> {
        address,
        port,
        epoch,
    });
    let endpoints = proptest::collection::vec(proptest::option::weighted(0.8, endpoint), 8);
    let slot = (0u32..9, epoch(), epoch()).prop_map(|(endpoint, extent_epoch, endpoint_epoch)| Slot {
        endpoint,
        extent_epoch,
        endpoint_epoch,
    });
    let slots = proptest::collection::vec(slot, 16);
    let at = prop_oneof![1 => Just(FrontendAddress::Node), 2 => address().prop_map(FrontendAddress::Ip)];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let key =
        (at, protocol, port()).prop_map(|(address, protocol, port)| FrontendKey { address, protocol, port });
    let value = (0u32..18, 1u32..5, proptest::bool::weighted(0.25), epoch())
        .prop_map(|(base, count, host_only, epoch)| FrontendValue { base, count, host_only, epoch, pool: 1 });
    let frontends = proptest::collection::btree_map(key, value, 6..20);
    let node_addresses = proptest::collection::btree_map(address(), any::<bool>(), 0..3);
    (endpoints, slots, frontends, node_addresses).prop_map(|(endpoints, slots, frontends, node_addresses)| {
        Contents { capacity: CAPACITY, frontends, slots, endpoints, node_addresses, unreadable: 0 }
    })
}

/// Listeners on all ports of a namespace that has all addresses; each tells who arrives where that was.
struct Everybody<'a> {
    namespace: &'a Namespace,
    ends: Arc<AtomicBool>,
    any: IpAddr,
}

impl<'a> Everybody<'a> {
    fn listen<F: Everywhere>(namespace: &'a Namespace) -> Self {
        for n in 0..ADDRESSES {
            let address: IpAddr = F::address(n).into();
            namespace.exec("ip", &["address", "add", &address.to_string(), "dev", "lo"]).unwrap();
        }
        let ends = Arc::new(AtomicBool::new(false));
        for port in PORTS {
            let listener = namespace.run(|| TcpListener::bind((F::ANY, port)).unwrap());
            let ends = ends.clone();
            std::thread::spawn(move || {
                while !ends.load(Ordering::SeqCst) {
                    let Ok((mut stream, _)) = listener.accept() else { return };
                    let at = stream.local_addr().map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()));
                    drop(stream.write_all(at.map(|at| at.to_string()).unwrap_or_default().as_bytes()));
                }
            });
        }
        answer_datagrams::<F>(namespace, &ends);
        Self { namespace, ends, any: F::ANY }
    }
}

impl Drop for Everybody<'_> {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let own = match self.any {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        self.namespace.run(|| PORTS.map(|port| drop(TcpStream::connect((own, port)))));
    }
}

/// A thread for each address and port, which tells who sends where that was.
fn answer_datagrams<F: Everywhere>(namespace: &Namespace, ends: &Arc<AtomicBool>) {
    for (n, port) in (0..ADDRESSES).flat_map(|n| PORTS.map(|port| (n, port))) {
        let at = SocketAddr::new(F::address(n).into(), port);
        let socket = namespace.run(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let ends = ends.clone();
        std::thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                if let Ok((_, from)) = socket.recv_from(&mut [0; 1]) {
                    drop(socket.send_to(at.to_string().as_bytes(), from));
                }
            }
        });
    }
}

/// A way to reach somebody.
#[derive(Clone, Copy, Debug)]
enum Way {
    Connection,
    /// From a socket that has no peer.
    Datagram,
    /// From a socket that is connected.
    ConnectedDatagram,
}

impl Way {
    fn protocol(self) -> Protocol {
        match self {
            Self::Connection => Protocol::Tcp,
            Self::Datagram | Self::ConnectedDatagram => Protocol::Udp,
        }
    }

    /// Where it arrives, and whom the socket shows.
    fn ask(self, to: SocketAddr) -> (SocketAddr, SocketAddr) {
        match self {
            Self::Connection => {
                let mut stream = TcpStream::connect(to).unwrap();
                let (mut text, shown) = (String::new(), stream.peer_addr().unwrap());
                stream.read_to_string(&mut text).unwrap();
                (text.parse().unwrap(), shown)
            }
            Self::Datagram => {
                let socket = datagram_socket(to);
                socket.send_to(b"?", to).unwrap();
                answer(&socket)
            }
            Self::ConnectedDatagram => {
                let socket = datagram_socket(to);
                socket.connect(to).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), to);
                socket.send(b"?").unwrap();
                answer(&socket)
            }
        }
    }
}

fn datagram_socket(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn answer(socket: &UdpSocket) -> (SocketAddr, SocketAddr) {
    let mut text = [0; 256];
    let (len, from) = socket.recv_from(&mut text).unwrap();
    (String::from_utf8_lossy(&text[..len]).parse().unwrap(), from)
}

/// Where what goes to each address and port arrives, by way and by what was named, and what the sockets show.
fn ask_everywhere<F: Everywhere>(from: &Namespace) -> Vec<(Way, SocketAddr, (SocketAddr, SocketAddr))> {
    let names = (0..ADDRESSES).flat_map(|n| F::names(F::address(n)));
    let all = names.flat_map(|name| PORTS.map(|port| SocketAddr::new(name, port)));
    let ways = [Way::Connection, Way::Datagram, Way::ConnectedDatagram];
    from.run(|| all.flat_map(|to| ways.map(|way| (way, to, way.ask(to)))).collect())
}

fn goes_where_the_model_says<F: Everywhere>() {
    let site = Site::new();
    let (node, pod) = (&site.node, namespace("pod"));
    let _listeners = [node, &pod].map(Everybody::listen::<F>);
    let mut path = KernelFastPath::<F>::open(site.place(), Bpf::default()).unwrap().with_datagrams().unwrap();
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let mut n_translated = 0;
    let mut check = |maps: Contents<F>, is_on: bool| {
        path.rebuild(&maps, &[]).unwrap();
        node.run(|| path.prove()).unwrap();
        path.switch(is_on);
        for (from, is_host) in [(node, true), (&pod, false)] {
            for (way, named, (arrived, shown)) in ask_everywhere::<F>(from) {
                prop_assert_eq!(shown, named, "what the socket shows, {:?}", way);
                let address = F::narrow(named.ip().to_canonical()).unwrap();
                let allowed = if is_on {
                    destinations(&maps, is_host, way.protocol(), (address, named.port()))
                } else {
                    BTreeSet::from([(address, named.port())])
                };
                let found = (F::narrow(arrived.ip()).unwrap(), arrived.port());
                prop_assert!(allowed.contains(&found), "{:?} {} from {:?}: {:?}", way, named, is_host, found);
                n_translated += usize::from(found != (address, named.port()));
            }
        }
        Ok(())
    };
    let mut runner = TestRunner::new(config);
    let maps = (contents::<F>(), proptest::bool::weighted(0.9));
    // The runner wants a function that changes nothing.
    let check = std::cell::RefCell::new(&mut check);
    runner.run(&maps, |(maps, is_on)| check.borrow_mut()(maps, is_on)).unwrap();
    // Some hundred, by chance.
    assert!(n_translated > 20, "{n_translated}");
}

#[test]
fn what_goes_over_ipv4_goes_where_the_model_says() {
    goes_where_the_model_says::<V4>();
}

#[test]
fn what_goes_over_ipv6_goes_where_the_model_says() {
    goes_where_the_model_says::<V6>();
}
