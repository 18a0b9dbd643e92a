//! Addresses, families and protocols, parsed once and leniently.

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// A transport protocol that a Service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the API's default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this number in the IP header.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }
}

/// Parses the API's spelling: `TCP`, `UDP` or `SCTP`.
impl FromStr for Protocol {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// An IP family as a value, where a type ([`V4`], [`V6`]) can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An IP family as a type: a table, a ruleset and an endpoint belong to one, so that an IPv4 address can't meet an IPv6
/// set.
pub trait Family: Copy + Clone + fmt::Debug + Default + Eq + Ord + Hash + Send + Sync + 'static {
    /// An address of this family.
    type Addr: Copy + fmt::Debug + fmt::Display + Eq + Ord + Hash + Send + Sync + Into<IpAddr> + 'static;
    /// The same family as a value.
    const FAMILY: IpFamily;
    /// The address, if it is of this family.
    fn narrow(addr: IpAddr) -> Option<Self::Addr>;
    /// Whether a range is of this family.
    fn owns(range: &IpNet) -> bool {
        IpFamily::of(range.addr()) == Self::FAMILY
    }
    /// The endpoints of a slice, if the slice is of this family.
    fn endpoints(endpoints: &crate::SliceEndpoints) -> Option<&[crate::Endpoint<Self>]>;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6;

impl Family for V4 {
    type Addr = Ipv4Addr;
    const FAMILY: IpFamily = IpFamily::V4;
    fn narrow(addr: IpAddr) -> Option<Ipv4Addr> {
        match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        }
    }
    fn endpoints(endpoints: &crate::SliceEndpoints) -> Option<&[crate::Endpoint<V4>]> {
        match endpoints {
            crate::SliceEndpoints::V4(endpoints) => Some(endpoints),
            crate::SliceEndpoints::V6(_) => None,
        }
    }
}

impl Family for V6 {
    type Addr = Ipv6Addr;
    const FAMILY: IpFamily = IpFamily::V6;
    fn narrow(addr: IpAddr) -> Option<Ipv6Addr> {
        match addr {
            IpAddr::V4(_) => None,
            IpAddr::V6(addr) => Some(addr),
        }
    }
    fn endpoints(endpoints: &crate::SliceEndpoints) -> Option<&[crate::Endpoint<V6>]> {
        match endpoints {
            crate::SliceEndpoints::V4(_) => None,
            crate::SliceEndpoints::V6(endpoints) => Some(endpoints),
        }
    }
}

/// A text that is no IP address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IP address")]
pub struct AddrError(
    /// The text, cut to its first 64 characters.
    pub String,
);

/// A text that is no CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a CIDR")]
pub struct CidrError(
    /// The text, cut to its first 64 characters.
    pub String,
);

/// Parses an address as Kubernetes does for stored objects: leading zeros are allowed and decimal (`172.30.0.041` is
/// `172.30.0.41`), and an IPv4-mapped IPv6 address is its IPv4 address.
///
/// Source of the rule: `k8s.io/utils/net`, `ParseIPSloppy` (the parser of Go before 1.17).
///
/// # Errors
/// Names the text when it is no address.
pub fn parse_addr(text: &str) -> Result<IpAddr, AddrError> {
    let parsed =
        if text.contains(':') { parse_v6(text).map(canonical) } else { parse_v4(text).map(IpAddr::V4) };
    parsed.ok_or_else(|| AddrError(shorten(text)))
}

/// Parses a CIDR as leniently as [`parse_addr`] and masks host bits: `10.0.0.5/024` is `10.0.0.0/24`.
///
/// # Errors
/// Names the text when it is no CIDR.
pub fn parse_cidr(text: &str) -> Result<IpNet, CidrError> {
    let parse = || {
        let (addr, length) = text.split_once('/')?;
        let bits = decimal(length, 3)?;
        let addr = parse_addr(addr).ok()?;
        IpNet::new(addr, u8::try_from(bits).ok()?).ok().map(|net| net.trunc())
    };
    parse().ok_or_else(|| CidrError(shorten(text)))
}

/// What makes an address useless for a Service or an endpoint: it means something on every node, or is not one host. To
/// translate it would take that away. Addresses of class E (`240.0.0.0/4`) serve some clusters and are none of these.
///
/// Source of the rule: `ValidateNonSpecialIP` of `pkg/apis/core/validation/validation.go`, which the API holds external IPs and
/// endpoints to (but not cluster IPs and load balancers' addresses); and beyond it all multicast, and broadcast.
pub fn special_use(addr: IpAddr) -> Option<&'static str> {
    let is_link_local = match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    };
    if addr.is_unspecified() {
        Some("the unspecified address")
    } else if addr.is_loopback() {
        Some("a loopback address")
    } else if is_link_local {
        Some("a link-local address")
    } else if addr.is_multicast() {
        Some("a multicast address")
    } else if addr == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else {
        None
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

fn canonical(addr: Ipv6Addr) -> IpAddr {
    addr.to_ipv4_mapped().map_or(IpAddr::V6(addr), IpAddr::V4)
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?, usize::MAX)?).ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// The standard parser refuses leading zeros only in a dotted tail, so that tail is parsed by [`parse_v4`].
fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    if let Ok(addr) = text.parse() {
        return Some(addr);
    }
    let (head, tail) = text.rsplit_once(':')?;
    let tail = parse_v4(tail)?.octets();
    let [a, b, c, d] = tail.map(u16::from);
    format!("{head}:{:x}:{:x}", a << 8 | b, c << 8 | d).parse().ok()
}

/// Plain decimal digits, at most `max_len` of them; no sign, no white space.
fn decimal(text: &str, max_len: usize) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= max_len && text.bytes().all(|b| b.is_ascii_digit());
    let digits = text.trim_start_matches('0');
    (plain && digits.len() <= 9).then(|| digits.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn addr(text: &str, expected: Option<&str>) {
        let parsed = parse_addr(text).ok().map(|addr| addr.to_string());
        assert_eq!(parsed.as_deref(), expected, "{text:?}");
    }

    #[test]
    fn addresses_are_parsed_leniently_and_made_canonical() {
        addr("10.96.0.1", Some("10.96.0.1"));
        addr("172.30.0.041", Some("172.30.0.41"));
        addr("000010.00096.0.01", Some("10.96.0.1"));
        addr("::ffff:1.2.3.4", Some("1.2.3.4"));
        addr("::ffff:1.2.3.04", Some("1.2.3.4"));
        addr("FD00:0:0::0001", Some("fd00::1"));
        addr("::", Some("::"));
        for bad in [
            "",
            " 10.0.0.1",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.1.1",
            "10.0.0.-1",
            "10.0.0.+1",
            "fd00::1%eth0",
            "a",
        ] {
            addr(bad, None);
        }
    }

    #[test]
    fn cidrs_are_masked() {
        let show = |text: &str| parse_cidr(text).ok().map(|net| net.to_string());
        assert_eq!(show("10.0.0.5/024").as_deref(), Some("10.0.0.0/24"));
        assert_eq!(show("fd00::1/64").as_deref(), Some("fd00::/64"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "fd00::/129", "10.0.0.0/-1", "/8"] {
            assert_eq!(show(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn special_addresses_are_known() {
        for (special, usual) in [
            ("0.0.0.0", "0.0.0.1"),
            ("127.0.0.1", "126.255.255.255"),
            ("127.255.255.255", "128.0.0.0"),
            ("169.254.169.254", "169.255.0.0"),
            ("224.0.0.251", "223.255.255.255"),
            ("239.1.1.1", "240.0.0.1"),
            ("255.255.255.255", "255.255.255.254"),
            ("::", "::2"),
            ("::1", "2001:db8::1"),
            ("fe80::1", "fec0::1"),
            ("febf::1", "fd00::1"),
            ("ff02::fb", "fe00::1"),
            ("ff0e::1", "64:ff9b::1"),
            ("::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        ] {
            assert!(special_use(parse_addr(special).unwrap()).is_some(), "{special}");
            assert_eq!(special_use(parse_addr(usual).unwrap()), None, "{usual}");
        }
    }

    #[test]
    fn long_garbage_is_cut_in_the_error() {
        let error = parse_addr(&"x".repeat(1 << 20)).unwrap_err();
        assert!(error.to_string().len() < 100);
    }
}
