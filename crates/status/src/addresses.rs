//! The addresses of this network namespace, and when they change.

#[cfg_attr(windows, path = "addresses/windows.rs")]
#[cfg_attr(not(windows), path = "addresses/linux.rs")]
mod system;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::IpFamily;

pub(crate) use self::system::{AddressWatch, local_addresses};

/// Where to listen in a family: on the unspecified address if a range holds everything, else on each local address that is in
/// a range.
pub(crate) fn listen_addresses(
    family: IpFamily,
    ranges: &[IpNet],
    local: &BTreeSet<SocketAddr>,
) -> BTreeSet<SocketAddr> {
    let own: Vec<&IpNet> = ranges.iter().filter(|range| IpFamily::of(range.addr()) == family).collect();
    if own.iter().any(|range| range.prefix_len() == 0) {
        let any: IpAddr = match family {
            IpFamily::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpFamily::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        return [SocketAddr::new(any, 0)].into();
    }
    local.iter().filter(|addr| own.iter().any(|range| range.contains(&addr.ip()))).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(family: IpFamily, ranges: &[&str], expected: &[&str]) {
        let local = ["127.0.0.1:0", "192.168.0.7:0", "10.1.0.7:0", "[::1]:0", "[fd00::7]:0"];
        let local = local.map(|addr| addr.parse().unwrap()).into();
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let found: Vec<String> =
            listen_addresses(family, &ranges, &local).iter().map(|addr| addr.ip().to_string()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn ranges_choose_among_local_addresses() {
        check(IpFamily::V4, &["192.168.0.0/24", "10.0.0.0/8", "fd00::/64"], &["10.1.0.7", "192.168.0.7"]);
        check(IpFamily::V6, &["192.168.0.0/24", "fd00::7/128"], &["fd00::7"]);
        check(IpFamily::V4, &["172.16.0.0/12"], &[]);
        check(IpFamily::V4, &[], &[]);
    }

    #[test]
    fn everything_is_one_address() {
        check(IpFamily::V4, &["10.0.0.0/8", "0.0.0.0/0"], &["0.0.0.0"]);
        check(IpFamily::V6, &["::/0"], &["::"]);
        check(IpFamily::V6, &["0.0.0.0/0"], &[]);
    }

    #[test]
    fn loopback_is_an_address() {
        assert!(local_addresses().unwrap().contains(&"127.0.0.1:0".parse().unwrap()));
    }
}
