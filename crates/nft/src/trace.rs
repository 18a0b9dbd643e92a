//! Tracing of packets: a table of its own that has the kernel tell what rules do to some packets, and what it tells.
//!
//! The table belongs to the socket that made it (`flags owner`, since Linux 5.12): nobody else can change it, and it goes when that
//! socket is closed, however its process ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::encode::exprs::put_expr;
use crate::encode::objects::put_chain;
use crate::wire::{Attrs, Writer, attr, be_u32, flag, kind, put_batch_message};
use crate::{BaseChain, ChainType, CmpOp, Expr, Family, Hook, MetaKey, Name, PayloadBase, Register};

pub use netlink::{Message, messages};

/// What is traced: packets to this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traced {
    /// The address; none: any of the host's own.
    pub address: Option<IpAddr>,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// `NFT_TABLE_F_OWNER`
const OWNER: u32 = 2;
/// Before anything else that a rule of ours could do: `NF_IP_PRI_CONNTRACK_DEFRAG` is -400, `NF_IP_PRI_RAW` -300.
const PRIORITY: i32 = -350;
/// Sequence number of every message: each is acknowledged or refused.
const SEQ: u32 = 1;

/// The batch that begins the tracing of these in a family: as many packets a second as said, so that a busy Service does not
/// drown anybody. None of it stays when the socket is closed.
pub fn begin(family: Family, table: &Name, traced: &[Traced], per_second: u32) -> Vec<u8> {
    let mut out = Writer::default();
    put_batch_message(&mut out, kind::BATCH_BEGIN, 0);
    message(&mut out, kind::NEW_TABLE, flag::CREATE, family, |out| {
        out.text(attr::TABLE_NAME, table);
        out.u32(attr::TABLE_FLAGS, OWNER);
    });
    for (chain, hook) in SEEN {
        put_base_chain(
            &mut out,
            family,
            table,
            chain,
            BaseChain { kind: ChainType::Filter, hook, priority: AFTER },
        );
        put_rule(&mut out, family, (table, chain), put_continue);
    }
    for (chain, hook) in CHAINS {
        put_base_chain(
            &mut out,
            family,
            table,
            chain,
            BaseChain { kind: ChainType::Filter, hook, priority: PRIORITY },
        );
        for one in traced.iter().filter(|one| one.address.is_none_or(|address| Family::of(address) == family))
        {
            put_rule(&mut out, family, (table, chain), |out| put_traced(out, family, one, per_second));
        }
    }
    put_batch_message(&mut out, kind::BATCH_END, SEQ + 1);
    out.out
}

/// Where tracing begins.
const CHAINS: [(&str, Hook); 2] = [("prerouting", Hook::Prerouting), ("output", Hook::Output)];
/// Where the kernel is made to tell where a packet goes by then: it tells that with rules that match alone.
const SEEN: [(&str, Hook); 3] =
    [("seen-input", Hook::Input), ("seen-forward", Hook::Forward), ("seen-output", Hook::Output)];
/// Behind the choice of endpoints and what may drop packets at the usual priorities.
const AFTER: i32 = 1;

fn put_base_chain(out: &mut Writer, family: Family, table: &Name, chain: &'static str, base: BaseChain) {
    message(out, kind::NEW_CHAIN, flag::CREATE, family, |out| {
        out.text(attr::CHAIN_TABLE, table);
        put_chain(out, &Name::from_static(chain), Some(&base));
    });
}

fn put_rule(
    out: &mut Writer,
    family: Family,
    (table, chain): (&Name, &'static str),
    expressions: impl FnOnce(&mut Writer),
) {
    message(out, kind::NEW_RULE, flag::CREATE | flag::APPEND, family, |out| {
        out.text(attr::RULE_TABLE, table);
        out.text(attr::RULE_CHAIN, chain);
        out.nest(attr::RULE_EXPRESSIONS, expressions);
    });
}

/// `continue`: matches, and changes nothing.
fn put_continue(out: &mut Writer) {
    /// `NFT_CONTINUE`
    const CONTINUE: i32 = -1;
    named(out, "immediate", |out| {
        // The register of verdicts.
        out.u32(1, 0);
        out.nest(2, |out| {
            out.nest(attr::DATA_VERDICT, |out| out.u32(attr::VERDICT_CODE, CONTINUE.cast_unsigned()));
        });
    });
}

fn message(out: &mut Writer, kind: u16, flags: u16, family: Family, write: impl FnOnce(&mut Writer)) {
    let start = out.begin_message(kind, flag::REQUEST | flag::ACK | flags, SEQ, family.nfproto(), 0);
    write(out);
    out.end_message(start);
}

fn put_traced(out: &mut Writer, family: Family, traced: &Traced, per_second: u32) {
    let first = Register(0);
    let equals = |data| Expr::Cmp { sreg: first, op: CmpOp::Eq, data };
    let (offset, len) = match family {
        Family::Ip => (16, 4),
        Family::Ip6 => (24, 16),
    };
    let destination = match traced.address {
        Some(IpAddr::V4(address)) => vec![load(offset, len), equals(address.octets().to_vec())],
        Some(IpAddr::V6(address)) => vec![load(offset, len), equals(address.octets().to_vec())],
        // RTN_LOCAL
        None => vec![Expr::FibDestType { dreg: first }, equals(2_u32.to_ne_bytes().to_vec())],
    };
    let port = Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: first };
    let protocol = Expr::Meta { key: MetaKey::L4Proto, dreg: first };
    let rest = [protocol, equals(vec![traced.protocol]), port, equals(traced.port.to_be_bytes().to_vec())];
    for expr in destination.iter().chain(&rest) {
        out.nest(attr::LIST_ELEM, |out| put_expr(out, expr));
    }
    // `limit rate N/second burst 5 packets`
    named(out, "limit", |out| {
        out.bytes(1, &u64::from(per_second).to_be_bytes());
        out.bytes(2, &1_u64.to_be_bytes());
        out.u32(3, BURST);
        out.u32(4, 0);
        out.u32(5, 0);
    });
    // `meta nftrace set 1`
    let one = Expr::Immediate { dreg: first, data: vec![1] };
    out.nest(attr::LIST_ELEM, |out| put_expr(out, &one));
    named(out, "meta", |out| {
        out.u32(2, NFTRACE);
        out.u32(3, crate::encode::exprs::register_number(first));
    });
}

/// nft's default.
const BURST: u32 = 5;
/// `NFT_META_NFTRACE`
const NFTRACE: u32 = 12;

fn load(offset: u32, len: u32) -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset, len, dreg: Register(0) }
}

/// An expression that no rule of the proxy has.
fn named(out: &mut Writer, name: &str, write: impl FnOnce(&mut Writer)) {
    out.nest(attr::LIST_ELEM, |out| {
        out.text(attr::EXPR_NAME, name);
        out.nest(attr::EXPR_DATA, write);
    });
}

/// Something that happened to a traced packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The packet's own number, for as long as it is on its way.
    pub id: u32,
    /// The table whose rules it passes.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What happened.
    pub what: What,
    /// Source and destination as they are now; told with the first rule that matches in each hook's chain.
    pub ends: Option<Ends>,
    /// The index of the interface that it came in by.
    pub input: Option<u32>,
    /// The index of the interface that it goes out by.
    pub output: Option<u32>,
}

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The transport protocol's number.
    pub protocol: u8,
    /// Who sends it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// What happened to a packet in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A rule matched.
    Rule {
        /// Its handle in the table.
        handle: u64,
        /// What it ends with.
        verdict: Verdict,
    },
    /// No rule ended it: the chain's policy did.
    Policy {
        /// The policy is to drop.
        drops: bool,
    },
    /// The chain returned to where it was called.
    Return,
}

/// What a rule ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next rule.
    Continue,
    /// Another chain, or back.
    Elsewhere,
    /// The packet goes on, out of this hook.
    Accept,
    /// The packet is gone. A refusal ends so as well.
    Drop,
    /// Something else took it, such as a queue.
    Stolen,
}

/// What came of waiting for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traces {
    /// This happened, in order.
    Events(Vec<Event>),
    /// Nothing, for as long as was waited.
    Nothing,
    /// The kernel had to drop some.
    Lost,
}

/// Attribute numbers, `NFTA_TRACE_*`.
mod number {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const TYPE: u16 = 4;
    pub(super) const VERDICT: u16 = 5;
    pub(super) const ID: u16 = 6;
    pub(super) const NETWORK_HEADER: u16 = 8;
    pub(super) const TRANSPORT_HEADER: u16 = 9;
    pub(super) const IIF: u16 = 10;
    pub(super) const OIF: u16 = 12;
    pub(super) const POLICY: u16 = 16;
}

impl Event {
    /// Whether it is the one that tracing of the packet began with, if the table that traces has this name.
    pub fn begins(&self, table: &str) -> bool {
        self.table == table
            && matches!(self.what, What::Rule { .. })
            && CHAINS.iter().any(|(chain, _)| *chain == self.chain)
    }
}

/// What a message tells of a traced packet; `None` if it is about something else.
pub fn event(message: &Message<'_>) -> Option<Event> {
    let attrs = message.attrs().filter(|_| message.kind == kind::TRACE)?;
    let text = |number| attrs.text(number).unwrap_or_default().to_owned();
    let what = match attrs.u32(number::TYPE)? {
        1 => What::Policy { drops: attrs.u32(number::POLICY) == Some(0) },
        2 => What::Return,
        3 => {
            let handle = attrs.find(number::RULE_HANDLE).and_then(|bytes| bytes.try_into().ok());
            What::Rule { handle: u64::from_be_bytes(handle?), verdict: verdict(&attrs) }
        }
        _ => return None,
    };
    let header = |number| attrs.find(number);
    let ends =
        header(number::NETWORK_HEADER).and_then(|network| ends(network, header(number::TRANSPORT_HEADER)?));
    Some(Event {
        id: attrs.u32(number::ID)?,
        table: text(number::TABLE),
        chain: text(number::CHAIN),
        what,
        ends,
        input: attrs.u32(number::IIF),
        output: attrs.u32(number::OIF),
    })
}

fn verdict(attrs: &Attrs<'_>) -> Verdict {
    let code =
        attrs.nest(number::VERDICT).and_then(|verdict| verdict.find(attr::VERDICT_CODE).and_then(be_u32));
    match code.map(u32::cast_signed) {
        Some(0) => Verdict::Drop,
        Some(1) => Verdict::Accept,
        Some(2..) => Verdict::Stolen,
        // NFT_CONTINUE
        Some(-1) | None => Verdict::Continue,
        Some(_) => Verdict::Elsewhere,
    }
}

/// Of headers that are cut off nothing is told.
fn ends(network: &[u8], transport: &[u8]) -> Option<Ends> {
    let [s0, s1, d0, d1, ..] = *transport else { return None };
    let (source_port, port) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    let (protocol, source, destination): (u8, IpAddr, IpAddr) = match network.first()? >> 4 {
        4 => {
            let address = |at: usize| Some(Ipv4Addr::from(*network.get(at..)?.first_chunk::<4>()?).into());
            (*network.get(9)?, address(12)?, address(16)?)
        }
        6 => {
            let address = |at: usize| Some(Ipv6Addr::from(*network.get(at..)?.first_chunk::<16>()?).into());
            (*network.get(6)?, address(8)?, address(24)?)
        }
        _ => return None,
    };
    Some(Ends {
        protocol,
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_are_cut_off_tell_nothing() {
        let mut v4 = [0; 20];
        (v4[0], v4[9]) = (0x45, 6);
        v4[12..].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let expected = Ends {
            protocol: 6,
            source: "10.0.0.1:513".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
        };
        assert_eq!(ends(&v4, &[2, 1, 0, 80]), Some(expected));
        assert_eq!(ends(&v4[..19], &[2, 1, 0, 80]), None);
        assert_eq!(ends(&v4, &[2, 1, 0]), None);
        assert_eq!(ends(&[], &[2, 1, 0, 80]), None);
        assert_eq!(ends(&[0x65; 39], &[2, 1, 0, 80]), None);
    }
}
