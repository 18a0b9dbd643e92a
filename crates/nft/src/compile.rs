//! Lowers statements to the kernel's expressions, one for one as nft 1.0.6 does, so that its listing reads back the
//! statement. Checked against its output of `--debug=netlink`.

use std::net::IpAddr;

use crate::expr::{DynsetOp, LookupResult};
use crate::statement::AddrField;
use crate::{
    Bytes, CmpOp, CtKey, Expr, Family, Field, MetaKey, Name, PayloadBase, Register, Statement, Verdict,
};

/// The first data register; every statement starts there, because no value outlives its statement.
const FIRST: Register = Register(0);
/// `IP_CT_NEW` as `ct state` yields it: `NF_CT_STATE_BIT(IP_CT_NEW)` of `linux/netfilter/nf_conntrack_common.h`.
const CT_STATE_NEW: u32 = 8;
/// `IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`.
const CT_STATUS_DNAT: u32 = 32;
/// `RTN_LOCAL` of `linux/rtnetlink.h`.
const ROUTE_LOCAL: u32 = 2;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of `linux/netfilter/nf_nat.h`.
const NAT_FULLY_RANDOM: u32 = 0x10;

impl Statement {
    /// The kernel's expressions for the statement in a table of the family.
    pub fn compile(&self, family: Family) -> Vec<Expr> {
        match self {
            Self::Vmap { key, map } => lookup(key, map, LookupResult::Verdict, false, family),
            Self::InSet { key, set, negate } => lookup(key, set, LookupResult::None, *negate, family),
            Self::AddrMatch { field, net, negate } => addr_match(*field, *net, *negate),
            Self::IfnameMatch { name, prefix, negate } => {
                vec![meta(MetaKey::InputIfname), cmp(*negate, ifname_bytes(name, *prefix))]
            }
            Self::L4Proto(proto) => vec![meta(MetaKey::L4Proto), cmp(false, vec![*proto])],
            Self::DestIsLocal => vec![Expr::FibDestType { dreg: FIRST }, cmp_u32(false, ROUTE_LOCAL)],
            Self::SourceIsLocal => vec![Expr::FibSourceType { dreg: FIRST }, cmp_u32(false, ROUTE_LOCAL)],
            Self::CtStateNew => ct_bit(CtKey::State, CT_STATE_NEW),
            Self::CtStatusDnat => ct_bit(CtKey::Status, CT_STATUS_DNAT),
            Self::MarkBitSet { bit, negate } => {
                vec![meta(MetaKey::Mark), bitwise_u32(*bit, 0), cmp_u32(!negate, 0)]
            }
            Self::SetMarkBit(mask) => change_mark(!mask, *mask),
            Self::XorMark(mask) => change_mark(u32::MAX, *mask),
            Self::DnatMap { key, map } => dnat(key, map, family),
            Self::SetPriority { key, map } => {
                let mut exprs = lookup(key, map, LookupResult::Data(FIRST), false, family);
                exprs.push(Expr::MetaSet { key: MetaKey::Priority, sreg: FIRST });
                exprs
            }
            Self::MaskPriority(mask) => vec![
                meta(MetaKey::Priority),
                bitwise_u32(*mask, 0),
                Expr::MetaSet { key: MetaKey::Priority, sreg: FIRST },
            ],
            Self::PriorityBitsAre { mask, value } => {
                vec![meta(MetaKey::Priority), bitwise_u32(*mask, 0), cmp_u32(false, *value)]
            }
            Self::ClearPriority => vec![
                Expr::Immediate { dreg: FIRST, data: 0_u32.to_ne_bytes().to_vec() },
                Expr::MetaSet { key: MetaKey::Priority, sreg: FIRST },
            ],
            Self::Learn { map, key, data, timeout_secs } => {
                let timeout_ms = u64::from(*timeout_secs) * 1000;
                dynset(map, DynsetOp::Update { timeout_ms }, key, data, family)
            }
            Self::Forget { map, key, data } => dynset(map, DynsetOp::Delete, key, data, family),
            Self::MasqueradeFullyRandom => vec![Expr::Masquerade { flags: NAT_FULLY_RANDOM }],
            Self::Reject => vec![Expr::Reject { kind: 0, code: port_unreachable(family) }],
            Self::Drop => vec![Expr::Verdict(Verdict::Drop)],
            Self::Accept => vec![Expr::Verdict(Verdict::Accept)],
            Self::Return => vec![Expr::Verdict(Verdict::Return)],
            Self::Goto(chain) => vec![Expr::Verdict(Verdict::Goto(chain.clone()))],
            Self::Jump(chain) => vec![Expr::Verdict(Verdict::Jump(chain.clone()))],
        }
    }
}

/// Loads fields into consecutive registers, and yields the register behind them.
fn load_fields(exprs: &mut Vec<Expr>, fields: &[Field], first: Register, family: Family) -> Register {
    let mut word = first.0;
    for field in fields {
        exprs.push(load_field(*field, Register(word), family));
        if let Field::PriorityBits { mask } = field {
            exprs.push(bits_of(Register(word), *mask));
        }
        word = word.saturating_add(u8::try_from(field.padded_bytes(family) / 4).unwrap_or(u8::MAX));
    }
    Register(word)
}

fn load_field(field: Field, dreg: Register, family: Family) -> Expr {
    match field {
        Field::SourceAddr => load_addr(AddrField::Source, family, family.addr_len(), dreg),
        Field::DestAddr => load_addr(AddrField::Dest, family, family.addr_len(), dreg),
        Field::L4Proto => Expr::Meta { key: MetaKey::L4Proto, dreg },
        Field::DestPort => Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg },
        Field::NumgenRandom { modulus } => Expr::NumgenRandom { modulus, dreg },
        Field::Priority | Field::PriorityBits { .. } => Expr::Meta { key: MetaKey::Priority, dreg },
    }
}

fn load_addr(field: AddrField, family: Family, len: usize, dreg: Register) -> Expr {
    let offset = match (family, field) {
        (Family::Ip, AddrField::Source) => 12,
        (Family::Ip, AddrField::Dest) => 16,
        (Family::Ip6, AddrField::Source) => 8,
        (Family::Ip6, AddrField::Dest) => 24,
    };
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    Expr::Payload { base: PayloadBase::Network, offset, len, dreg }
}

fn lookup(key: &[Field], set: &Name, dreg: LookupResult, invert: bool, family: Family) -> Vec<Expr> {
    let mut exprs = Vec::with_capacity(key.len() + 2);
    load_fields(&mut exprs, key, FIRST, family);
    exprs.push(Expr::Lookup { set: set.clone(), sreg: FIRST, dreg, invert });
    exprs
}

/// The data go into the first register of 16 bytes behind the key, as nft puts them.
fn dynset(map: &Name, op: DynsetOp, key: &[Field], data: &[Field], family: Family) -> Vec<Expr> {
    let mut exprs = Vec::with_capacity(key.len() + data.len() + 1);
    let Register(end) = load_fields(&mut exprs, key, FIRST, family);
    let sreg = Register(end.next_multiple_of(4));
    load_fields(&mut exprs, data, sreg, family);
    let data = (!data.is_empty()).then_some(sreg);
    exprs.push(Expr::Dynset { set: map.clone(), op, key: FIRST, data });
    exprs
}

/// The map yields the address in the first registers and the port in the word behind it.
fn dnat(key: &[Field], map: &Name, family: Family) -> Vec<Expr> {
    let mut exprs = lookup(key, map, LookupResult::Data(FIRST), false, family);
    let addr_words = match family {
        Family::Ip => 1,
        Family::Ip6 => 4,
    };
    exprs.push(Expr::Dnat { family: family.nfproto(), addr: FIRST, port: Some(Register(addr_words)) });
    exprs
}

/// Prefixes of whole bytes load only those bytes; others load the address and mask it.
fn addr_match(field: AddrField, (addr, prefix): (IpAddr, u8), negate: bool) -> Vec<Expr> {
    let family = Family::of(addr);
    let bits = usize::from(prefix).min(family.addr_len() * 8);
    let octets = netlink::octets(addr);
    if bits.is_multiple_of(8) && bits > 0 {
        let network = octets[..bits / 8].to_vec();
        return vec![load_addr(field, family, bits / 8, FIRST), cmp(negate, network)];
    }
    let mask = prefix_mask(bits, family);
    let network = octets.iter().zip(&mask).map(|(octet, mask)| octet & mask).collect();
    let mask = as_bytes(&mask);
    let xor = as_bytes(&vec![0; mask.len()]);
    vec![
        load_addr(field, family, family.addr_len(), FIRST),
        Expr::Bitwise { sreg: FIRST, dreg: FIRST, mask, xor },
        cmp(negate, network),
    ]
}

fn prefix_mask(bits: usize, family: Family) -> Vec<u8> {
    let mut mask = vec![0; family.addr_len()];
    mask[..bits / 8].fill(0xff);
    if !bits.is_multiple_of(8) {
        mask[bits / 8] = 0xff << (8 - bits % 8);
    }
    mask
}

/// Compares all 16 bytes of the name, or only those of the prefix.
fn ifname_bytes(name: &str, prefix: bool) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    if !prefix {
        bytes.resize(16, 0);
    }
    bytes
}

fn ct_bit(key: CtKey, bit: u32) -> Vec<Expr> {
    vec![Expr::Ct { key, dreg: FIRST }, bitwise_u32(bit, 0), cmp_u32(true, 0)]
}

fn change_mark(mask: u32, xor: u32) -> Vec<Expr> {
    vec![meta(MetaKey::Mark), bitwise_u32(mask, xor), Expr::MetaSet { key: MetaKey::Mark, sreg: FIRST }]
}

const fn meta(key: MetaKey) -> Expr {
    Expr::Meta { key, dreg: FIRST }
}

fn bits_of(register: Register, mask: u32) -> Expr {
    let (mask, xor) = (as_bytes(&mask.to_ne_bytes()), as_bytes(&[0; 4]));
    Expr::Bitwise { sreg: register, dreg: register, mask, xor }
}

fn bitwise_u32(mask: u32, xor: u32) -> Expr {
    let (mask, xor) = (as_bytes(&mask.to_ne_bytes()), as_bytes(&xor.to_ne_bytes()));
    Expr::Bitwise { sreg: FIRST, dreg: FIRST, mask, xor }
}

fn cmp(negate: bool, data: Vec<u8>) -> Expr {
    Expr::Cmp { sreg: FIRST, op: if negate { CmpOp::Neq } else { CmpOp::Eq }, data }
}

fn cmp_u32(negate: bool, value: u32) -> Expr {
    cmp(negate, value.to_ne_bytes().to_vec())
}

/// Addresses and marks fit always.
fn as_bytes(bytes: &[u8]) -> Bytes {
    Bytes::from_slice(bytes).unwrap_or_default()
}

/// `ICMP_PORT_UNREACH` and `ICMPV6_PORT_UNREACH`: what plain `reject` means to nft.
const fn port_unreachable(family: Family) -> u8 {
    match family {
        Family::Ip => 3,
        Family::Ip6 => 4,
    }
}
