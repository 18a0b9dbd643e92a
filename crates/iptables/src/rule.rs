//! Rules: what they match and what they do.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{IpFamily, Protocol};

use crate::ChainName;

/// One rule. Matches are tried in the order in which they are printed; the target acts if all of them match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Source network.
    pub source: Option<Negatable<IpNet>>,
    /// Destination network.
    pub dest: Option<Negatable<IpNet>>,
    /// The interface that the packet arrives on; packets of the host itself have none.
    pub in_interface: Option<Negatable<Interface>>,
    /// Transport protocol.
    pub protocol: Option<Protocol>,
    /// Further matches, in order.
    pub matches: Vec<Match>,
    /// What happens to a packet that matches; `None`: nothing, the rule only counts.
    pub target: Option<Target>,
}

/// A condition, or its contrary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negatable<T> {
    /// What is compared with.
    pub value: T,
    /// Whether it must differ.
    pub negate: bool,
}

/// Which interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The one of this name.
    Named(String),
    /// Those whose names begin so.
    Prefix(String),
}

/// A match of an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `comment`: matches always.
    Comment(Comment),
    /// Destination port, of this protocol; `None` only loads the protocol's extension.
    Port(Protocol, Option<u16>),
    /// `addrtype`: the address is one of the host's own.
    IsLocal(Negatable<AddrField>),
    /// `conntrack`: the flow is in one of these states.
    CtState(Negatable<&'static [&'static str]>),
    /// `mark`: this bit of the packet's mark is set.
    MarkBit(Negatable<u32>),
    /// `statistic`: by chance, once in so many times.
    OneIn(u32),
    /// `recent`: a list of client addresses that rules write.
    Recent {
        /// The name of the list, which is also that of its file below `/proc/net/xt_recent`.
        list: ChainName,
        /// What is done with it.
        action: Recent,
        /// The family, which decides how the mask is printed.
        family: IpFamily,
    },
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddrField {
    /// The sender's.
    Source,
    /// The receiver's.
    Dest,
}

/// What a rule does with a list of client addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recent {
    /// Enters the client or renews its entry; matches always.
    Set,
    /// Matches if the client was entered less than so many seconds ago. Older entries go.
    Check {
        /// How long an entry counts.
        seconds: u32,
    },
    /// The same, and renews the client's entry if it matches.
    Update {
        /// How long an entry counts.
        seconds: u32,
    },
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Goes on in a chain, and after its end behind this rule.
    Jump(ChainName),
    /// Accepts the packet.
    Accept,
    /// Discards it.
    Drop,
    /// Leaves the chain.
    Return,
    /// Answers it with an ICMP port unreachable of the family.
    Reject(IpFamily),
    /// Changes the packet's mark: the bits of `mask` are cleared, then those of `xor` flipped.
    Mark {
        /// Bits to flip.
        xor: u32,
        /// Bits to clear first.
        mask: u32,
    },
    /// Rewrites the source to an address of the host, with a random port (`--random-fully`), so that flows that begin together
    /// do not collide.
    Masquerade,
    /// Rewrites the destination.
    Dnat(SocketAddr),
}

/// The text of a comment: printable, at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment(Box<str>);

impl Comment {
    /// `XT_MAX_COMMENT_LEN` of `linux/netfilter/xt_comment.h` less the final zero.
    const MAX_BYTES: usize = 255;

    /// This text, cut to what fits. What is not printable ASCII becomes `?`: a line break would end the rule.
    pub fn new(text: &str) -> Self {
        let printable = text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' });
        Self(printable.take(Self::MAX_BYTES).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Rule {
    /// A rule for all packets.
    pub fn to(target: Target) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    /// A rule that sends all packets to a chain.
    pub fn jump(chain: ChainName) -> Self {
        Self::to(Target::Jump(chain))
    }

    /// Only packets from this network.
    #[must_use]
    pub fn from_net(self, net: IpNet) -> Self {
        Self { source: Some(Negatable::is(net)), ..self }
    }

    /// Only packets to this address.
    #[must_use]
    pub fn to_addr(self, addr: impl Into<IpAddr>) -> Self {
        self.to_net(IpNet::from(addr.into()))
    }

    /// Only packets to this network.
    #[must_use]
    pub fn to_net(self, net: IpNet) -> Self {
        Self { dest: Some(Negatable::is(net)), ..self }
    }

    /// Only packets of this protocol.
    #[must_use]
    pub fn of(self, protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), ..self }
    }

    /// Only packets that match this too.
    #[must_use]
    pub fn when(mut self, matches: Match) -> Self {
        self.matches.push(matches);
        self
    }

    /// With this comment.
    #[must_use]
    pub fn comment(self, text: &str) -> Self {
        self.when(Match::Comment(Comment::new(text)))
    }

    /// Only packets to this port of this protocol.
    #[must_use]
    pub fn to_port(self, protocol: Protocol, port: u16) -> Self {
        self.of(protocol).when(Match::Port(protocol, Some(port)))
    }

    /// Only packets of flows in one of these states, in the order in which `iptables-save` prints them.
    #[must_use]
    pub fn in_state(self, states: &'static [&'static str]) -> Self {
        self.when(Match::CtState(Negatable::is(states)))
    }
}

impl<T> Negatable<T> {
    /// The condition itself.
    pub fn is(value: T) -> Self {
        Self { value, negate: false }
    }

    /// Its contrary.
    pub fn is_not(value: T) -> Self {
        Self { value, negate: true }
    }
}
