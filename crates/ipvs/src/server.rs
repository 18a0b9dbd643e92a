//! Virtual and real servers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use crate::Scheduler;

/// What packets of a virtual server match. (Those by packet mark are others' and not read.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId {
    /// Its address.
    pub address: IpAddr,
    /// Number of the protocol.
    pub protocol: u8,
    /// Its port, in host byte order; 0 for all.
    pub port: u16,
}

/// A virtual server: where packets go to be distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualServer {
    /// What packets match.
    pub id: ServerId,
    /// How they are distributed.
    pub scheduler: Scheduler,
    /// How the scheduler does it.
    pub flags: Flags,
    /// How long a client stays with its real server, in seconds. Persistence is by whole addresses.
    pub persistence: Option<NonZeroU32>,
}

/// Flags of a virtual server (`IP_VS_SVC_F_*`), without those that the kernel sets and without the one for persistence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags(u32);

impl Flags {
    /// `sh`, `mh`: where the chosen real server is not available, another one.
    pub const FALLBACK: Self = Self(0x08);
    /// `sh`, `mh`: by the client's port too.
    pub const PORT: Self = Self(0x10);
    /// For a third flag of schedulers, which none has so far: what kube-proxy tells its own virtual servers by.
    pub const OWN: Self = Self(0x20);
    /// Everything but persistence (0x1) and what the kernel sets (0x2).
    const SETTABLE: u32 = !0x3;

    /// Those of the bits that can be set.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::SETTABLE)
    }

    /// As the kernel has them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// All of these too.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether all of these are there.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// What tells a real server from others of the same virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerId {
    /// Its address.
    pub address: IpAddr,
    /// Its port, in host byte order.
    pub port: u16,
}

impl From<RealServerId> for SocketAddr {
    fn from(id: RealServerId) -> Self {
        Self::new(id.address, id.port)
    }
}

/// A real server: where packets end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServer {
    /// Which one.
    pub id: RealServerId,
    /// Its share of new connections; 0: none, while those that it has go on.
    pub weight: u32,
    /// How packets get there.
    pub forwarding: Forwarding,
}

/// How packets get to a real server (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forwarding {
    /// With its address as destination, and back with the virtual server's as source.
    #[default]
    Masquerade,
    /// Another way, by its number: tunnels, direct routing.
    Other(u8),
}

impl RealServer {
    /// A real server that takes its share.
    pub const fn new(id: RealServerId, weight: u32) -> Self {
        Self { id, weight, forwarding: Forwarding::Masquerade }
    }
}

/// How many connections a real server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connections {
    /// Established ones.
    pub active: u32,
    /// All others: such as have ended, and UDP.
    pub inactive: u32,
    /// Clients that persistence remembers.
    pub persistent: u32,
}

impl Connections {
    /// Whether nothing would be lost with the real server.
    pub const fn is_idle(&self) -> bool {
        self.active == 0 && self.inactive == 0
    }
}

/// What went through a virtual or real server since it was made. Clients' packets are those in, answers those out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// New connections; of UDP, flows that IPVS had not remembered.
    pub connections: u64,
    /// Packets of clients.
    pub packets_in: u64,
    /// Packets of answers.
    pub packets_out: u64,
    /// Bytes of clients' packets, from the IP header on.
    pub bytes_in: u64,
    /// Bytes of answers, from the IP header on.
    pub bytes_out: u64,
}

/// How long IPVS remembers connections without packets, in seconds; 0: as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections that one side has closed.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            6 => f.write_str("TCP ")?,
            17 => f.write_str("UDP ")?,
            132 => f.write_str("SCTP ")?,
            other => write!(f, "protocol {other} ")?,
        }
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl fmt::Display for VirtualServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.scheduler)?;
        if let Some(seconds) = self.persistence {
            write!(f, " persistent {seconds}")?;
        }
        match self.flags.bits() {
            0 => Ok(()),
            bits => write!(f, " flags {bits:#x}"),
        }
    }
}

impl fmt::Display for RealServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} weight {}", self.id, self.weight)?;
        match self.forwarding {
            Forwarding::Masquerade => Ok(()),
            Forwarding::Other(number) => write!(f, " forwarding {number}"),
        }
    }
}
