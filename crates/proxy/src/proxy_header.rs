//! Headers of the PROXY protocol ("The PROXY protocol, Versions 1 & 2", sections 2.1 and 2.2).

use std::net::{IpAddr, SocketAddr};

use balance::ProxyProtocol;

/// With what each header of version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and who it is about: whoever connects (`LOCAL`), or somebody else (`PROXY`).
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header of a connection that a client made to an address. Both are of one family; if they are not, nothing is said of them.
pub(crate) fn of_client(version: ProxyProtocol, client: SocketAddr, sent_to: SocketAddr) -> Vec<u8> {
    let is_v4 = match (client, sent_to) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => true,
        (SocketAddr::V6(_), SocketAddr::V6(_)) => false,
        _ => return of_nobody(version),
    };
    match version {
        ProxyProtocol::V1 => {
            let family = if is_v4 { "TCP4" } else { "TCP6" };
            let (from, to) = (client.ip(), sent_to.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), sent_to.port()).into()
        }
        ProxyProtocol::V2 => {
            let addresses = [octets(client.ip()), octets(sent_to.ip())].concat();
            let ports = [client.port().to_be_bytes(), sent_to.port().to_be_bytes()].concat();
            let len = if is_v4 { 12_u16 } else { 36 };
            let mut header = SIGNATURE.to_vec();
            header.extend([PROXY, if is_v4 { TCP4 } else { TCP6 }]);
            header.extend(len.to_be_bytes());
            header.extend(addresses);
            header.extend(ports);
            header
        }
    }
}

/// The header of a connection that is nobody's but ours, as that of a health check.
pub(crate) fn of_nobody(version: ProxyProtocol) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        ProxyProtocol::V2 => [&SIGNATURE[..], &[LOCAL, 0, 0, 0]].concat(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(version: ProxyProtocol, client: &str, sent_to: &str, expected: &[u8]) {
        assert_eq!(of_client(version, client.parse().unwrap(), sent_to.parse().unwrap()), expected);
    }

    #[test]
    fn version_1_is_a_line() {
        let v1 = ProxyProtocol::V1;
        check(v1, "192.0.2.9:56324", "10.96.0.10:80", b"PROXY TCP4 192.0.2.9 10.96.0.10 56324 80\r\n");
        check(v1, "[2001:db8::9]:56324", "[fd00::10]:443", b"PROXY TCP6 2001:db8::9 fd00::10 56324 443\r\n");
        check(v1, "192.0.2.9:1", "[fd00::10]:443", b"PROXY UNKNOWN\r\n");
        let longest = SocketAddr::from(([0xffff; 8], 65_535));
        // What the specification gives for the longest line of addresses.
        assert_eq!(of_client(v1, longest, longest).len(), 104);
    }

    #[test]
    fn version_2_is_binary() {
        let v2 = ProxyProtocol::V2;
        check(
            v2,
            "192.0.2.9:56324",
            "10.96.0.10:80",
            b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c\xc0\x00\x02\x09\x0a\x60\x00\x0a\xdc\x04\x00\x50",
        );
        check(
            v2,
            "[2001:db8::9]:56324",
            "[fd00::10]:443",
            b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x21\x00\x24\
              \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\xdc\x04\x01\xbb",
        );
        let nobody = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x20\x00\x00\x00";
        check(v2, "192.0.2.9:1", "[fd00::10]:443", nobody);
        assert_eq!(of_nobody(v2), nobody);
    }
}
