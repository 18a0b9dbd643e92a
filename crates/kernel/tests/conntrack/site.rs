//! A namespace with a client, two endpoints and rules that send the client to one of them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use conntrack::{Conntrack, Family, Filter};
use kernel::Flows;
use nix::sched::{CloneFlags, unshare};

pub(crate) const UDP: u8 = 17;
pub(crate) const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];
/// Longer than any answer on a loopback interface takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the closure on a thread in a network namespace that ends with it.
pub(crate) fn in_netns<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need the right to make network namespaces");
            command("ip", &["link", "set", "lo", "up"], "");
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program in the namespace of the calling thread; fails unless it succeeds.
#[track_caller]
pub(crate) fn command(program: &str, args: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program is installed");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("the program reads it");
    let output = child.wait_with_output().expect("the program ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}\n{input}");
    String::from_utf8(output.stdout).expect("the program prints text")
}

/// The addresses of one family. All are on the loopback interface, except the virtual one, which is on none.
#[derive(Clone, Copy)]
pub(crate) struct Site {
    pub(crate) family: Family,
    pub(crate) client: IpAddr,
    pub(crate) virtual_ip: IpAddr,
    pub(crate) endpoints: [SocketAddr; 2],
}

impl Site {
    /// Sets up addresses, routes and a table without rules.
    pub(crate) fn new(family: Family) -> Self {
        let (client, virtual_ip, endpoints) = match family {
            Family::Ip => ("127.0.0.1", "10.96.0.10", ["127.0.0.2:5353", "127.0.0.3:5353"]),
            Family::Ip6 => ("fd00:1::1", "fd00:96::10", ["[fd00:1::2]:5353", "[fd00:1::3]:5353"]),
        };
        let ip = |args: &str| drop(command("ip", &args.split(' ').collect::<Vec<_>>(), ""));
        match family {
            Family::Ip => ip("route add 10.96.0.0/16 dev lo"),
            // Packets that go out of the loopback interface to an address that is nowhere are no flow in IPv6.
            Family::Ip6 => {
                ip("link add out type veth peer name far");
                ip("link set out up");
                ip("link set far up");
                for addr in ["fd00:1::1", "fd00:1::2", "fd00:1::3"] {
                    ip(&format!("-6 addr add {addr}/128 dev lo nodad"));
                    // The kernel makes this route later (`addrconf_dad_start`), and without it a packet is lost.
                    ip(&format!("-6 route add local {addr} dev lo"));
                }
                ip("-6 route add fd00:96::/64 dev out");
                ip("-6 neigh add fd00:96::10 lladdr 02:00:00:00:00:01 dev out");
            }
        }
        command(
            "nft",
            &["-f", "-"],
            // Flows are tracked only where a rule asks for it, which those to come may be too late for.
            &format!(
                "table {family} t {{
                     chain c {{
                         type nat hook output priority -100
                     }}
                     chain tracking {{
                         type filter hook output priority 0
                         ct state new accept
                     }}
                 }}"
            ),
        );
        Self {
            family,
            client: address(client),
            virtual_ip: address(virtual_ip),
            endpoints: endpoints.map(socket_address),
        }
    }

    /// The virtual address with this port.
    pub(crate) const fn service(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.virtual_ip, port)
    }

    /// From now on new flows to these ports of the virtual address go to these endpoints.
    pub(crate) fn balance(&self, services: &[(u16, SocketAddr)]) {
        let Self { family, virtual_ip, .. } = self;
        let rules = services.iter().flat_map(|(port, endpoint)| {
            ["tcp", "udp"].map(|protocol| {
                let matched = format!("{family} daddr {virtual_ip} {protocol} dport {port}");
                format!("add rule {family} t c {matched} dnat to {endpoint}\n")
            })
        });
        let flush = format!("flush chain {family} t c\n");
        command("nft", &["-f", "-"], &[flush].into_iter().chain(rules).collect::<String>());
    }

    /// A socket of the client.
    pub(crate) fn client(&self) -> UdpSocket {
        bound(SocketAddr::new(self.client, 0))
    }

    /// The sockets of the endpoints.
    pub(crate) fn servers(&self) -> [UdpSocket; 2] {
        self.endpoints.map(bound)
    }

    pub(crate) fn udp(&self) -> Filter {
        Filter::new(self.family, UDP)
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn socket_address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn bound(addr: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(addr).expect("the address is on the loopback interface");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket has a time limit");
    socket
}

pub(crate) fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("it is bound").port()
}

/// A packet from the client to the address and one back; fails unless this server gets the one, and the client gets
/// the other from the address that it knows.
#[track_caller]
pub(crate) fn exchange(client: &UdpSocket, to: SocketAddr, server: &UdpSocket) {
    let mut received = [0; 16];
    client.send_to(b"question", to).expect("the client can send");
    let (len, from) = server.recv_from(&mut received).expect("the packet comes to the server");
    assert_eq!(&received[..len], b"question");
    server.send_to(b"answer", from).expect("the server can send");
    let (len, from) = client.recv_from(&mut received).expect("the answer comes to the client");
    assert_eq!((&received[..len], from), (&b"answer"[..], to));
}

/// A flow as the `conntrack` command lists it: protocol, and source and destination port of the side that began.
pub(crate) type Listed = (String, u16, u16);

pub(crate) fn udp(client: &UdpSocket, port_of_service: u16) -> Listed {
    ("udp".to_owned(), port(client), port_of_service)
}

/// All flows of the family, read by the `conntrack` command.
pub(crate) fn listed(family: Family) -> BTreeSet<Listed> {
    let family = if family == Family::Ip { "ipv4" } else { "ipv6" };
    let lines = command("conntrack", &["-L", "-f", family], "");
    lines
        .lines()
        .map(|line| {
            let number = |key| {
                let field = line.split(' ').find_map(|field| field.strip_prefix(key)).expect("it has ports");
                field.parse().expect("a port")
            };
            let protocol = line.split(' ').next().expect("a line has a first word");
            (protocol.to_owned(), number("sport="), number("dport="))
        })
        .collect()
}

/// Number of flows that the filter selects.
#[track_caller]
pub(crate) fn count(flows: &mut Flows, filter: &Filter) -> usize {
    let mut n_flows = 0;
    flows.each(filter, &mut |_| n_flows += 1).expect("the table can be read");
    n_flows
}
