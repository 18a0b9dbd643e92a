//! Messages of `sock_diag` about sockets of the internet's families (`linux/sock_diag.h`, `linux/inet_diag.h`).

use std::net::SocketAddr;

use crate::{NLMSG_HEADER_BYTES, Writer, flag, octets};

/// `SOCK_DIAG_BY_FAMILY`: a list, and each of its answers.
pub const LIST: u16 = 20;
/// `SOCK_DESTROY`: ends one socket, whose owner gets an error.
const DESTROY: u16 = 21;
/// Size of `struct inet_diag_sockid`: ports and addresses of the socket and of its peer, interface, cookie.
pub const ID_BYTES: usize = 48;
/// Where the cookie is in it.
pub const COOKIE_AT: usize = 40;
/// `INET_DIAG_NOCOOKIE`: whichever socket has these ends.
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// A set of states with `TCP_ESTABLISHED`, in which sockets of UDP are that have a peer.
const CONNECTED: u32 = 1 << 1;

/// Asks for all sockets of a family (`AF_INET`, `AF_INET6`) and protocol that have a peer.
pub fn list_request(family: u8, protocol: u8, seq: u32) -> Vec<u8> {
    request(LIST, flag::REQUEST | flag::DUMP, family, protocol, &[0; ID_BYTES], seq)
}

/// Asks to end the socket with this identity, as an answer has told it. Whichever socket has its ends meanwhile is left alone.
pub fn destroy_request(family: u8, protocol: u8, id: &[u8; ID_BYTES], seq: u32) -> Vec<u8> {
    request(DESTROY, flag::REQUEST | flag::ACK, family, protocol, id, seq)
}

/// The family of a socket, and the identity of whichever has these ends, which are of the same family.
pub fn identity(local: SocketAddr, peer: SocketAddr) -> (u8, [u8; ID_BYTES]) {
    let mut id = [0; ID_BYTES];
    id[..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&peer.port().to_be_bytes());
    for (at, address) in [(4, local.ip()), (20, peer.ip())] {
        let bytes = octets(address);
        id[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    id[COOKIE_AT..].copy_from_slice(&ANY_COOKIE);
    (if local.is_ipv4() { 2 } else { 10 }, id)
}

/// With `struct inet_diag_req_v2`: family, protocol, what is wanted besides, padding, states, identity.
fn request(kind: u16, flags: u16, family: u8, protocol: u8, id: &[u8; ID_BYTES], seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(kind, flags, seq, family, 0);
    out.out[start + NLMSG_HEADER_BYTES + 1] = protocol;
    out.out.extend(CONNECTED.to_ne_bytes());
    out.out.extend(id);
    out.end_message(start);
    out.out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_socket() {
        let ends = ["10.244.0.1:40000", "10.96.0.10:80"].map(|end| end.parse().unwrap());
        let (family, id) = identity(ends[0], ends[1]);
        let bytes = destroy_request(family, 6, &id, 7);
        assert_eq!(bytes.len(), 72);
        assert_eq!(bytes[..8], [72, 0, 0, 0, 21, 0, 5, 0]);
        assert_eq!(bytes[16..24], [2, 6, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[24..32], [0x9c, 0x40, 0, 80, 10, 244, 0, 1]);
        assert_eq!(bytes[44..48], [10, 96, 0, 10]);
        assert_eq!(bytes[64..], [0xff; 8]);
    }

    #[test]
    fn ipv6_alike() {
        let ends = ["[fd00::1]:40000", "[fd00:10:96::a]:80"].map(|end| end.parse().unwrap());
        let (family, id) = identity(ends[0], ends[1]);
        assert_eq!((family, &id[4..6], id[19], id[35]), (10, &[0xfd, 0][..], 1, 10));
    }
}
