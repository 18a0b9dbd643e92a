//! Packets, and what becomes of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// The first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends it.
    pub source: SocketAddr,
    /// What it is sent to.
    pub destination: SocketAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The host itself.
    Host,
    /// This interface.
    Interface(String),
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It goes to this address, translated or not; `masqueraded`: with a source address of the host.
    Delivered {
        /// Its destination in the end.
        to: SocketAddr,
        /// Whether the source was rewritten.
        masqueraded: bool,
    },
    /// It is answered with an ICMP error.
    Refused,
    /// It is discarded.
    Dropped,
}

/// A rule that matched: all that it asks for held, and what it says was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// netfilter's hook, as the rules' tool spells it: `prerouting`, `PREROUTING`.
    pub hook: &'static str,
    /// The table within the family; empty where there is only one.
    pub table: &'static str,
    /// The chain that the rule is in.
    pub chain: String,
    /// The rule, as its tool prints it.
    pub rule: String,
    /// What it found in sets and maps, in its order: `map service-ips: 10.96.0.10 . tcp . 80 comment "default/web:http" : 0:3`.
    pub found: Vec<String>,
}

/// One path that a packet can go.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// The rules that matched, in their order.
    pub steps: Vec<Step>,
    /// How probable the path is, from 0 to 1.
    pub probability: f64,
}

/// The paths that a packet can go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Paths {
    /// As they were found; each is possible.
    pub paths: Vec<Path>,
    /// These are all.
    pub complete: bool,
    /// Rules of others in shared chains that can't be followed, as if they did not match: `POSTROUTING: -j FLANNEL-POSTRTG`.
    pub passed_over: BTreeSet<String>,
}
