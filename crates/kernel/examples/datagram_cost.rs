//! Measures what programs at the socket cost a datagram: `cargo run --release -p kernel --example datagram_cost`, as root.
//!
//! A datagram and its answer on loopback, both of a socket without a peer, in blocks that take turns: without programs, with programs
//! and no Service, and through a Service.
#![expect(clippy::print_stdout, reason = "prints its measurements")]

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use ebpf::{Capacity, Contents, Endpoint, FastPath as _, FrontendValue, Slot};
use kernel::{Bpf, FastPathPlace, KernelFastPath};
use lab::Namespace;
use lab::cgroup::SocketSite;
use model::{FrontendAddress, FrontendKey, Protocol, V4};
use tokio::time::Instant;

const BLOCKS: usize = 60;
const EXCHANGES: u32 = 3000;
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn main() -> Result<(), Box<dyn Error>> {
    let site = SocketSite::enter()?;
    let (without, with) = (Namespace::new("without")?, Namespace::new("with")?);
    without.is_of_another_node(site.outside());
    let pairs = [pair(&without)?, pair(&with)?];
    let endpoint = pairs[1].1.local_addr()?;
    let place = FastPathPlace { cgroup_root: site.cgroup().into(), bpffs: site.bpffs().into() };
    let mut programs = KernelFastPath::<V4>::open(place, Bpf::default())?.with_datagrams()?;
    programs.rebuild(&contents(endpoint.port()), &[])?;
    with.run(|| programs.prove())?;
    programs.switch(true);
    let mut found = BTreeMap::<&str, Vec<f64>>::new();
    for _ in 0..BLOCKS {
        let runs = [
            ("without programs", &pairs[0], pairs[0].1.local_addr()?),
            ("no Service", &pairs[1], endpoint),
            ("a Service", &pairs[1], (SERVICE, 53).into()),
        ];
        for (name, pair, to) in runs {
            found.entry(name).or_default().push(block(pair, to)?);
        }
    }
    for (name, mut nanos) in found {
        nanos.sort_by(f64::total_cmp);
        println!("{name:<20} {:>8.0} ns, lower quartile of {BLOCKS} blocks", nanos[nanos.len() / 4]);
    }
    Ok(())
}

/// A client and a server.
fn pair(namespace: &Namespace) -> std::io::Result<(UdpSocket, UdpSocket)> {
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    namespace.run(|| Ok((bind()?, bind()?)))
}

/// Time of an exchange.
fn block((client, server): &(UdpSocket, UdpSocket), to: SocketAddr) -> std::io::Result<f64> {
    let begun = Instant::now();
    for _ in 0..EXCHANGES {
        client.send_to(b"?", to)?;
        let (_, from) = server.recv_from(&mut [0; 1])?;
        server.send_to(b"!", from)?;
        client.recv_from(&mut [0; 1])?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e9 / f64::from(EXCHANGES))
}

/// One Service with one endpoint on loopback.
fn contents(port: u16) -> Contents<V4> {
    let mut contents = Contents::empty(Capacity { frontends: 1024, slots: 4096, endpoints: 1024 });
    let key = FrontendKey { address: FrontendAddress::Ip(SERVICE), protocol: Protocol::Udp, port: 53 };
    let value = FrontendValue { base: 0, count: 1, host_only: false, epoch: 1, pool: 1 };
    contents.frontends.insert(key, value);
    contents.slots[0] = Slot { endpoint: 0, extent_epoch: 1, endpoint_epoch: 2 };
    contents.endpoints[0] = Some(Endpoint { address: Ipv4Addr::LOCALHOST, port, epoch: 2 });
    contents
}
