//! Chains and rules.

use crate::{Expr, Family, Name, Statement};

/// Where in the packet's path a base chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Every packet received, before routing.
    Prerouting,
    /// Packets for this host.
    Input,
    /// Packets routed through this host.
    Forward,
    /// Packets that this host sends, after the first routing.
    Output,
    /// Every packet about to leave.
    Postrouting,
}

impl Hook {
    /// nft's keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    /// `NF_INET_*` of `linux/netfilter.h`.
    pub const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    /// Reverse of [`Hook::number`].
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Prerouting,
            1 => Self::Input,
            2 => Self::Forward,
            3 => Self::Output,
            4 => Self::Postrouting,
            _ => return None,
        })
    }
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainType {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection.
    Nat,
}

impl ChainType {
    /// nft's and the kernel's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// How a chain is attached to the packet's path. The policy is always accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseChain {
    /// Type of the chain.
    pub kind: ChainType,
    /// Where it is called.
    pub hook: Hook,
    /// Order among the chains of the hook, lowest first. nft's names: raw -300, mangle -150, dstnat -100, filter 0,
    /// security 50, srcnat 100.
    pub priority: i32,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name within the table.
    pub name: Name,
    /// Attachment; `None` for a chain that others go or jump to.
    pub base: Option<BaseChain>,
    /// Rules, evaluated in order.
    pub rules: Vec<Rule>,
}

/// A rule: statements evaluated from left to right until one does not match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What the rule says.
    pub statements: Vec<Statement>,
    /// A note for people who list the ruleset; at most 128 bytes, what exceeds them is cut.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without comment.
    pub fn new(statements: Vec<Statement>) -> Self {
        Self { statements, comment: None }
    }

    /// The kernel's expressions for the rule, as they are sent and as they read back.
    pub fn compile(&self, family: Family) -> Vec<Expr> {
        self.statements.iter().flat_map(|statement| statement.compile(family)).collect()
    }
}
