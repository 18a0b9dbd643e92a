//! What is loaded, and where it is attached.

use std::fmt;

use model::IpFamily;

use crate::instruction::Line;
use crate::listing;

/// A place at which the kernel runs programs for the sockets of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// `connect` of an IPv4 socket.
    Connect4,
    /// `connect` of an IPv6 socket.
    Connect6,
    /// `getpeername` of an IPv4 socket.
    PeerName4,
    /// `getpeername` of an IPv6 socket.
    PeerName6,
    /// A datagram to an IPv4 address that is given with it.
    SendMessage4,
    /// A datagram to an IPv6 address that is given with it.
    SendMessage6,
    /// A datagram that an IPv4 socket receives.
    ReceiveMessage4,
    /// A datagram that an IPv6 socket receives.
    ReceiveMessage6,
}

impl Hook {
    /// `enum bpf_attach_type` of `linux/bpf.h`.
    pub fn attach_type(self) -> u32 {
        match self {
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::PeerName4 => 29,
            Self::PeerName6 => 30,
            Self::SendMessage4 => 14,
            Self::SendMessage6 => 15,
            Self::ReceiveMessage4 => 19,
            Self::ReceiveMessage6 => 20,
        }
    }

    /// Whether its programs change where a connection or a datagram goes.
    pub fn translates(self) -> bool {
        matches!(self, Self::Connect4 | Self::Connect6 | Self::SendMessage4 | Self::SendMessage6)
    }

    /// Whether it is run for each datagram.
    pub fn is_for_datagrams(self) -> bool {
        !matches!(self, Self::Connect4 | Self::Connect6 | Self::PeerName4 | Self::PeerName6)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::PeerName4 => "getpeername4",
            Self::PeerName6 => "getpeername6",
            Self::SendMessage4 => "sendmsg4",
            Self::SendMessage6 => "sendmsg6",
            Self::ReceiveMessage4 => "recvmsg4",
            Self::ReceiveMessage6 => "recvmsg6",
        })
    }
}

/// A program of the listing.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// As the kernel lists it; at most 15 characters.
    pub name: &'static str,
    /// Where it runs.
    pub hook: Hook,
    /// What it does.
    pub lines: &'static [Line],
}

/// The program that tells of a socket what it keeps in the map `original`: its cookie first (`struct told4`, `struct told6` of
/// `bpf/schema.h`). The kernel runs it for each socket of UDP of a network namespace (`bpf_iter_udp`).
pub fn told_program(family: IpFamily) -> (&'static str, &'static [Line]) {
    match family {
        IpFamily::V4 => ("kp_kept4", listing::KP_KEPT4),
        IpFamily::V6 => ("kp_kept6", listing::KP_KEPT6),
    }
}

/// A family's programs, with those for datagrams, in the order in which they are attached: those that only read come first, so that whatever is
/// translated can be shown.
pub fn programs(family: IpFamily) -> &'static [Program] {
    const V4: &[Program] = &[
        Program { name: "kp_peername4", hook: Hook::PeerName4, lines: listing::KP_PEERNAME4 },
        Program { name: "kp_peername4in6", hook: Hook::PeerName6, lines: listing::KP_PEERNAME4IN6 },
        Program { name: "kp_recvmsg4", hook: Hook::ReceiveMessage4, lines: listing::KP_RECVMSG4 },
        Program { name: "kp_recvmsg4in6", hook: Hook::ReceiveMessage6, lines: listing::KP_RECVMSG4IN6 },
        Program { name: "kp_connect4", hook: Hook::Connect4, lines: listing::KP_CONNECT4 },
        Program { name: "kp_connect4in6", hook: Hook::Connect6, lines: listing::KP_CONNECT4IN6 },
        Program { name: "kp_sendmsg4", hook: Hook::SendMessage4, lines: listing::KP_SENDMSG4 },
    ];
    const V6: &[Program] = &[
        Program { name: "kp_peername6", hook: Hook::PeerName6, lines: listing::KP_PEERNAME6 },
        Program { name: "kp_recvmsg6", hook: Hook::ReceiveMessage6, lines: listing::KP_RECVMSG6 },
        Program { name: "kp_connect6", hook: Hook::Connect6, lines: listing::KP_CONNECT6 },
        Program { name: "kp_sendmsg6", hook: Hook::SendMessage6, lines: listing::KP_SENDMSG6 },
    ];
    match family {
        IpFamily::V4 => V4,
        IpFamily::V6 => V6,
    }
}
