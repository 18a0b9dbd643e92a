//! Sockets of UDP that programs have connected to an endpoint: what sockets keep of where they wanted to go, and messages of `sock_diag`
//! that list sockets of a network namespace and that end one (`linux/inet_diag.h`, `linux/sock_diag.h`).
//!
//! Nothing runs when a connected socket sends, so it can't be sent elsewhere when its endpoint is gone. The kernel ends it instead: the
//! program's next call fails, and it connects anew. A socket is known by what it keeps, not by its peer's address alone, which others
//! may have as theirs too.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use model::IpFamily;
use netlink::sock_diag::{self, COOKIE_AT, ID_BYTES, LIST};
use netlink::{Message, octets};

const UDP: u8 = 17;
/// Where the identity is in `struct inet_diag_msg`, and the size of that.
const ID_AT: usize = 4;
const ANSWER_BYTES: usize = 72;

/// The number of a socket's own family.
pub fn socket_family(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// A connected socket of UDP that a program has sent to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslatedSocket {
    /// Where it wanted to go: an address of a Service.
    pub wanted: SocketAddr,
    /// The endpoint, which it is connected to.
    pub endpoint: SocketAddr,
    /// Its own address.
    pub local: SocketAddr,
    family: u8,
    id: [u8; ID_BYTES],
}

/// What sockets keep, by cookie: where each wanted to go, and the endpoint that it was sent to.
pub type Told = HashMap<u64, (SocketAddr, SocketAddr)>;

/// Reads what [`crate::told_program`] has written for a family. What is no such thing is left out.
pub fn read_told(family: IpFamily, bytes: &[u8]) -> Told {
    let value_bytes = match family {
        IpFamily::V4 => 16,
        IpFamily::V6 => 40,
    };
    let read = |told: &[u8]| {
        let (cookie, value) = told.split_at_checked(8)?;
        Some((u64::from_ne_bytes(cookie.try_into().ok()?), read_original(value)?))
    };
    bytes.chunks_exact(8 + value_bytes).filter_map(read).collect()
}

/// Asks for all connected sockets of UDP of a family (`AF_INET`, `AF_INET6`).
pub fn list_request(family: u8, seq: u32) -> Vec<u8> {
    sock_diag::list_request(family, UDP, seq)
}

impl TranslatedSocket {
    /// Reads one of the answers; `None`: it keeps nothing, or is not connected to what it keeps.
    pub fn read(message: &Message<'_>, told: &Told) -> Option<Self> {
        let head = message.payload().get(..ANSWER_BYTES)?;
        let id: [u8; ID_BYTES] = head.get(ID_AT..ID_AT + ID_BYTES)?.try_into().ok()?;
        let family = *head.first()?;
        let cookie = u64::from_ne_bytes(id.get(COOKIE_AT..)?.try_into().ok()?);
        let (wanted, endpoint) = *told.get(&cookie)?;
        let (local, peer) = ends(family, &id)?;
        (message.kind == LIST && peer == endpoint).then_some(Self { wanted, endpoint, local, family, id })
    }

    /// Asks to end it. Whichever socket has its ends meanwhile is left alone.
    pub fn destroy_request(&self, seq: u32) -> Vec<u8> {
        sock_diag::destroy_request(self.family, UDP, &self.id, seq)
    }
}

/// What connected sockets keep (`struct original4`, `struct original6` of `bpf/schema.h`): where they wanted to go, and the endpoint.
fn read_original(value: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let len = match value.len() {
        16 => 4,
        40 => 16,
        _ => return None,
    };
    let port = |at: usize| value.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let (wanted, endpoint) = (address(value.get(..len)?)?, address(value.get(len..2 * len)?)?);
    let (wanted_port, endpoint_port) = (port(2 * len)?, port(2 * len + 2)?);
    (endpoint_port != 0)
        .then(|| (SocketAddr::new(wanted, wanted_port), SocketAddr::new(endpoint, endpoint_port)))
}

/// What a connected socket keeps, as [`read_told`] reads it behind the cookie.
pub fn original(wanted: SocketAddr, endpoint: SocketAddr) -> Vec<u8> {
    let mut value = [octets(wanted.ip()), octets(endpoint.ip())].concat();
    value.extend([wanted.port(), endpoint.port()].map(u16::to_be_bytes).as_flattened());
    value.extend([0; 4]);
    value
}

/// Own and peer's end in `struct inet_diag_sockid`.
fn ends(family: u8, id: &[u8; ID_BYTES]) -> Option<(SocketAddr, SocketAddr)> {
    let len = if family == socket_family(IpFamily::V4) { 4 } else { 16 };
    let port = |at: usize| id.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let end = |at: usize, port| Some(SocketAddr::new(address(id.get(at..at + len)?)?.to_canonical(), port));
    Some((end(4, port(0)?)?, end(20, port(2)?)?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use netlink::{NLMSG_HEADER_BYTES, Writer, messages};
    use proptest::prelude::*;

    use super::*;

    const COOKIE: u64 = 0x1_0000_0007;

    /// An answer of the kernel's: a socket from `local` to `peer`.
    fn answer(family: u8, local: &[u8], peer: &[u8]) -> Vec<u8> {
        let mut out = Writer::default();
        let start = out.begin_message(LIST, 0, 1, family, 0);
        let mut id = [0; ID_BYTES];
        id[..2].copy_from_slice(&40_000u16.to_be_bytes());
        id[2..4].copy_from_slice(&53u16.to_be_bytes());
        id[4..4 + local.len()].copy_from_slice(local);
        id[20..20 + peer.len()].copy_from_slice(peer);
        id[COOKIE_AT..].copy_from_slice(&COOKIE.to_ne_bytes());
        out.out.extend(id);
        out.out.extend([0; 20]);
        out.end_message(start);
        out.out
    }

    fn read(bytes: &[u8], told: &Told) -> Option<TranslatedSocket> {
        TranslatedSocket::read(&messages(bytes).next().unwrap(), told)
    }

    /// The socket keeps this, and another one something else.
    fn told(family: IpFamily, cookie: u64, value: &[u8]) -> Told {
        let other = [&9u64.to_ne_bytes()[..], &vec![7; value.len()]].concat();
        read_told(family, &[&other[..], &cookie.to_ne_bytes(), value].concat())
    }

    #[test]
    fn a_socket_is_known_by_what_it_keeps() {
        let value = original("10.96.0.10:53".parse().unwrap(), "10.244.0.3:53".parse().unwrap());
        let mapped = |last: u8| [&[0; 10][..], &[255, 255, 10, 244, 0, last]].concat();
        let keeps = told(IpFamily::V4, COOKIE, &value);
        assert_eq!(keeps.len(), 2);
        for bytes in [answer(2, &[10, 244, 0, 9], &[10, 244, 0, 3]), answer(10, &mapped(9), &mapped(3))] {
            let found = read(&bytes, &keeps).unwrap();
            assert_eq!(found.wanted, "10.96.0.10:53".parse().unwrap());
            assert_eq!(found.endpoint, "10.244.0.3:53".parse().unwrap());
            assert_eq!(found.local, "10.244.0.9:40000".parse().unwrap());
            // What asks for its end names exactly this socket.
            let destroy = found.destroy_request(7);
            assert_eq!(destroy[NLMSG_HEADER_BYTES + 8..], bytes[NLMSG_HEADER_BYTES + ID_AT..][..ID_BYTES]);
        }
        // Connected to somebody else since, and to nobody that a program has chosen.
        assert_eq!(read(&answer(2, &[10, 244, 0, 9], &[10, 244, 0, 4]), &keeps), None);
        let direct = answer(2, &[10, 244, 0, 9], &[10, 244, 0, 3]);
        assert_eq!(read(&direct, &told(IpFamily::V4, 8, &value)), None);
        assert_eq!(read(&direct, &told(IpFamily::V4, COOKIE, &[0; 16])), None);
    }

    #[test]
    fn ipv6_alike() {
        let endpoint: SocketAddr = "[fd00::3]:53".parse().unwrap();
        let value = original("[fd00:10:96::a]:53".parse().unwrap(), endpoint);
        let peer = "fd00::3".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let keeps = told(IpFamily::V6, COOKIE, &value);
        assert_eq!(read(&answer(10, &peer, &peer), &keeps).unwrap().endpoint, endpoint);
    }

    proptest! {
        #[test]
        fn anything_is_read_without_harm(bytes: Vec<u8>) {
            let told = read_told(IpFamily::V4, &bytes);
            for message in messages(&bytes) {
                let _ = TranslatedSocket::read(&message, &told);
            }
            let _ = read_told(IpFamily::V6, &bytes);
        }
    }
}
