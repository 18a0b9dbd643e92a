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
}

impl Hook {
    /// `enum bpf_attach_type` of `linux/bpf.h`.
    pub fn attach_type(self) -> u32 {
        match self {
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::PeerName4 => 29,
            Self::PeerName6 => 30,
        }
    }

    /// Whether its programs change where a connection goes.
    pub fn translates(self) -> bool {
        matches!(self, Self::Connect4 | Self::Connect6)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::PeerName4 => "getpeername4",
            Self::PeerName6 => "getpeername6",
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

/// A family's programs, in the order in which they are attached: those that only read come first, so that whatever is
/// translated can be shown.
pub fn programs(family: IpFamily) -> &'static [Program] {
    const V4: &[Program] = &[
        Program { name: "kp_peername4", hook: Hook::PeerName4, lines: listing::KP_PEERNAME4 },
        Program { name: "kp_peername4in6", hook: Hook::PeerName6, lines: listing::KP_PEERNAME4IN6 },
        Program { name: "kp_connect4", hook: Hook::Connect4, lines: listing::KP_CONNECT4 },
        Program { name: "kp_connect4in6", hook: Hook::Connect6, lines: listing::KP_CONNECT4IN6 },
    ];
    const V6: &[Program] = &[
        Program { name: "kp_peername6", hook: Hook::PeerName6, lines: listing::KP_PEERNAME6 },
        Program { name: "kp_connect6", hook: Hook::Connect6, lines: listing::KP_CONNECT6 },
    ];
    match family {
        IpFamily::V4 => V4,
        IpFamily::V6 => V6,
    }
}
