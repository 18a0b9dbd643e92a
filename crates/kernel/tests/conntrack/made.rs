//! Flows made by netlink messages instead of packets: thousands a millisecond.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use conntrack::Family;
use netlink::{Writer, flag, messages};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const NEW: u16 = 1 << 8;
const DELETE: u16 = NEW + 2;
/// `IPS_CONFIRMED`, `IPS_ASSURED` and `IPS_SEEN_REPLY`, without which the kernel makes no flow or forgets it early.
const STATUS: u32 = 0xe;
/// Bytes of one sending.
const CHUNK_BYTES: usize = 100_000;

/// A flow to make.
#[derive(Clone, Copy)]
pub(crate) struct Made {
    pub(crate) protocol: u8,
    pub(crate) client: SocketAddr,
    pub(crate) service: SocketAddr,
    pub(crate) endpoint: SocketAddr,
}

impl Made {
    /// The n-th UDP flow of a family: to port 53 of the Service with this number, answered by the endpoint with this
    /// number.
    pub(crate) fn new(family: Family, n: u32, service: u32, endpoint: u32) -> Self {
        let addr = |net: u8, n: u32| {
            let [_, b, c, d] = n.to_be_bytes();
            match family {
                Family::Ip => IpAddr::from([net, b, c, d]),
                Family::Ip6 => IpAddr::from([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b, c, d]),
            }
        };
        Self {
            protocol: 17,
            client: SocketAddr::new(addr(10, n), 40_000),
            service: SocketAddr::new(addr(11, service), 53),
            endpoint: SocketAddr::new(addr(12, endpoint), 5353),
        }
    }

    fn put(&self, out: &mut Writer, kind: u16, flags: u16) {
        let family = Family::of(self.service.ip()).nfproto();
        let start = out.begin_message(kind, flag::REQUEST | flags, 0, family, 0);
        for (kind, src, dst) in [(1, self.client, self.service), (2, self.endpoint, self.client)] {
            out.nest(kind, |out| {
                out.nest(1, |out| {
                    for (kind, addr) in [(1, src.ip()), (2, dst.ip())] {
                        match addr {
                            IpAddr::V4(addr) => out.bytes(kind, &addr.octets()),
                            IpAddr::V6(addr) => out.bytes(kind + 2, &addr.octets()),
                        }
                    }
                });
                out.nest(2, |out| {
                    out.u8(1, self.protocol);
                    out.u16(2, src.port());
                    out.u16(3, dst.port());
                });
            });
        }
        if kind == NEW {
            out.u32(3, STATUS);
            out.u32(7, 3600);
        }
        out.end_message(start);
    }
}

/// A socket to make flows and to make them disappear, in the namespace of the thread that opened it.
pub(crate) struct Maker(OwnedFd);

impl Maker {
    pub(crate) fn open() -> Self {
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
        Self(fd.expect("there are netfilter sockets"))
    }

    #[track_caller]
    pub(crate) fn make(&self, flows: impl IntoIterator<Item = Made>) {
        self.send_all(flows, NEW, flag::CREATE);
    }

    #[track_caller]
    pub(crate) fn delete(&self, flows: impl IntoIterator<Item = Made>) {
        self.send_all(flows, DELETE, 0);
    }

    #[track_caller]
    fn send_all(&self, flows: impl IntoIterator<Item = Made>, kind: u16, flags: u16) {
        let mut out = Writer::default();
        for flow in flows {
            flow.put(&mut out, kind, flags);
            if out.out.len() > CHUNK_BYTES {
                self.send(&mut out);
            }
        }
        self.send(&mut out);
    }

    /// Fails unless the kernel accepts all of it. Only refusals are answered.
    #[track_caller]
    fn send(&self, out: &mut Writer) {
        let fd = self.0.as_raw_fd();
        send(fd, &std::mem::take(&mut out.out), MsgFlags::empty()).expect("netlink takes it");
        let mut answer = [0; 4096];
        match recv(fd, &mut answer, MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(errno) => unreachable!("{errno}"),
            Ok(len) => {
                unreachable!(
                    "refused: {:?}",
                    messages(&answer[..len]).filter_map(|m| m.ack()).collect::<Vec<_>>()
                )
            }
        }
    }
}
