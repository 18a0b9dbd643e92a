//! The lease that a proxy of this node has on flows ([`Balancer::Proxies`]).
//!
//! All frontends have what they have where rules choose endpoints. Those that a proxy is to serve have a bit more in the number that
//! their packets get as priority; a packet with that bit goes to the proxy's listener, if maps `proxies` and `internal-proxies`
//! say where that is. Their elements go by themselves after [`LEASE_SECS`] unless they are renewed, and from then on new
//! flows go to endpoints by the rules alone. So a proxy that dies, with whoever looks after it, can't take Services with it.
//!
//! There are two listeners for each protocol, since only the rules can tell internal flows that take the short cut of
//! `externalTrafficPolicy: Local`, and the proxy has to know.

use std::net::IpAddr;

use model::{Balancer, Family, Protocol};
use nft::{Bytes, Data, Element, Name, Op, Rule, Statement, Transaction};

use crate::chains::rule;
use crate::layout::{Map, Traffic, proxy_key};
use crate::priority::{PROXIED, PROXIED_INTERNAL};

/// For how long a lease is, in seconds: as long may new flows fail after a proxy and its agent were killed. It outlasts whatever may
/// keep an agent from its renewal for a while: a commit, a reading of the table, a proxy that is slow to take its routes.
pub const LEASE_SECS: u32 = 6;

/// Where proxies listen, all at one local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    /// An address of this node.
    pub address: IpAddr,
    /// The ports for flows from anywhere.
    pub any: Ports,
    /// The ports for internal flows that take the short cut.
    pub internal: Ports,
}

/// A port for each protocol, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// TCP
    pub tcp: u16,
    /// UDP
    pub udp: u16,
}

/// Whether proxies know the protocol; other flows go by the rules.
pub const fn can_be_proxied(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Udp)
}

/// The rules that hand flows over, ahead of those that mark and choose. What no proxy takes goes on to IPVS as if nothing had been,
/// where that chooses.
pub(crate) fn rules(balancer: &Balancer) -> Vec<Rule> {
    let hand_over = |bit, traffic| rule([is_proxied(bit), to_proxy(traffic)]);
    let mut rules = vec![hand_over(PROXIED_INTERNAL, Traffic::Internal), hand_over(PROXIED, Traffic::Any)];
    if !balancer.has_rules_for_all() {
        rules.push(rule([is_proxied(PROXIED), Statement::ClearPriority, Statement::Return]));
    }
    rules
}

fn is_proxied(bit: u32) -> Statement {
    Statement::PriorityBitsAre { mask: bit, value: bit }
}

/// Fails where there is no lease.
fn to_proxy(traffic: Traffic) -> Statement {
    Statement::DnatMap { key: proxy_key(), map: Map::Proxies(traffic).name() }
}

/// All that is done with packets where rules of others choose. What no proxy takes goes on as it came, but for its priority.
pub(crate) fn rules_beside_others() -> Vec<Rule> {
    let hand_over = |bit, traffic| rule([is_proxied(bit), Statement::ClearPriority, to_proxy(traffic)]);
    vec![hand_over(PROXIED_INTERNAL, Traffic::Internal), hand_over(PROXIED, Traffic::Any)]
}

/// The rules that take the mark from the node's own flows that a proxy has. Where IPVS chooses, all of them are marked before it is
/// known who has them; a proxy is to see who they are from.
pub(crate) fn unmark(mask: u32) -> Vec<Rule> {
    let unmark = |bit| {
        let is_marked = Statement::MarkBitSet { bit: mask, negate: false };
        rule([
            Statement::CtStateNew,
            Statement::CtStatusDnat,
            is_proxied(bit),
            Statement::DestIsLocal,
            is_marked,
            Statement::XorMark(mask),
        ])
    };
    [PROXIED_INTERNAL, PROXIED].map(unmark).into()
}

/// Begins a lease in our table of this name. Refused if there is one already with other listeners.
pub fn begin<F: Family>(table: Name, listeners: &Listeners) -> Transaction {
    transaction::<F>(table, |traffic| Op::AddElements {
        set: Map::Proxies(traffic).set(),
        elements: elements(listeners, traffic),
    })
}

/// Renews a lease. Refused if it is over.
pub fn renew<F: Family>(table: Name, listeners: &Listeners) -> Transaction {
    transaction::<F>(table, |traffic| Op::ReplaceElements {
        set: Map::Proxies(traffic).set(),
        elements: elements(listeners, traffic),
    })
}

/// Ends a lease. Refused if it is over.
pub fn end<F: Family>(table: Name) -> Transaction {
    let keys = || [Protocol::Tcp, Protocol::Udp].map(key).to_vec();
    transaction::<F>(table, |traffic| Op::DeleteElements {
        set: Map::Proxies(traffic).set(),
        elements: keys(),
    })
}

fn transaction<F: Family>(table: Name, op: impl Fn(Traffic) -> Op) -> Transaction {
    let ops = Traffic::ALL.map(op).into();
    Transaction { ops, ..Transaction::new(F::FAMILY.into(), table) }
}

fn key(protocol: Protocol) -> Bytes {
    Bytes::new().proto(protocol.number())
}

fn elements(listeners: &Listeners, traffic: Traffic) -> Vec<Element> {
    let ports = match traffic {
        Traffic::Any => listeners.any,
        Traffic::Internal => listeners.internal,
    };
    let element = |protocol, port| {
        let data = Data::Value(Bytes::new().addr(listeners.address).port(port));
        Element { key: key(protocol), data, comment: None }
    };
    vec![element(Protocol::Tcp, ports.tcp), element(Protocol::Udp, ports.udp)]
}
