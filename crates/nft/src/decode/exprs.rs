//! Attributes of expressions to [`Expr`].

use crate::encode::exprs::{cmp_op, ct_key, meta_key, number, payload_base, value, verdict_parts};
use crate::expr::{DynsetOp, LookupResult};
use crate::wire::{Attrs, attr};
use crate::{Bytes, CmpOp, CtKey, Expr, MetaKey, Name, PayloadBase, Register, Verdict};

/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`: the kernel adds these flags itself where an address or port
/// is given.
const NAT_IMPLIED_FLAGS: u32 = 3;

/// One expression of a rule; what is not exactly something that this crate writes is [`Expr::Unknown`].
pub(super) fn parse(attrs: &Attrs<'_>) -> Expr {
    let name = attrs.text(attr::EXPR_NAME).unwrap_or_default();
    let bytes = attrs.find(attr::EXPR_DATA).unwrap_or_default();
    parse_known(name, &Attrs::new(bytes))
        .unwrap_or_else(|| Expr::Unknown { name: name.to_owned(), bytes: bytes.to_vec() })
}

fn parse_known(name: &str, attrs: &Attrs<'_>) -> Option<Expr> {
    match name {
        "payload" => payload(attrs),
        "meta" => meta(attrs),
        "lookup" => lookup(attrs),
        "dynset" => dynset(attrs),
        "immediate" => immediate(attrs),
        "bitwise" => bitwise(attrs),
        "cmp" => cmp(attrs),
        "ct" => ct(attrs),
        "fib" => fib(attrs),
        "numgen" => numgen(attrs),
        "nat" => nat(attrs),
        "masq" => masquerade(attrs),
        "reject" => reject(attrs),
        _ => None,
    }
}

/// An attribute that we don't know could change the meaning.
fn only(attrs: &Attrs<'_>, highest: u16) -> Option<()> {
    attrs.clone().all(|(kind, _)| (1..=highest).contains(&kind)).then_some(())
}

fn register(attrs: &Attrs<'_>, kind: u16) -> Option<Register> {
    let word = match attrs.u32(kind)? {
        number @ 1..=4 => (number - 1) * 4,
        number @ 8..=23 => number - 8,
        _ => return None,
    };
    u8::try_from(word).ok().map(Register)
}

fn bytes(attrs: &Attrs<'_>, kind: u16) -> Option<Bytes> {
    let data = Attrs::new(attrs.find(kind)?).find(attr::DATA_VALUE)?;
    // Padding would make different lengths look the same.
    Bytes::from_slice(data).filter(|bytes| bytes.len() == data.len())
}

fn payload(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::PAYLOAD_LEN)?;
    let base = attrs.u32(number::PAYLOAD_BASE)?;
    let base =
        [PayloadBase::Network, PayloadBase::Transport].into_iter().find(|b| payload_base(*b) == base)?;
    Some(Expr::Payload {
        base,
        offset: attrs.u32(number::PAYLOAD_OFFSET)?,
        len: attrs.u32(number::PAYLOAD_LEN)?,
        dreg: register(attrs, number::PAYLOAD_DREG)?,
    })
}

fn meta(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::META_SREG)?;
    let key = attrs.u32(number::META_KEY)?;
    let known = [MetaKey::Priority, MetaKey::Mark, MetaKey::InputIfname, MetaKey::L4Proto];
    let key = known.into_iter().find(|k| meta_key(*k) == key)?;
    match register(attrs, number::META_SREG) {
        Some(sreg) => Some(Expr::MetaSet { key, sreg }),
        None => Some(Expr::Meta { key, dreg: register(attrs, number::META_DREG)? }),
    }
}

fn lookup(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::LOOKUP_FLAGS)?;
    let dreg = match attrs.u32(number::LOOKUP_DREG) {
        None => LookupResult::None,
        Some(value::REG_VERDICT) => LookupResult::Verdict,
        Some(_) => LookupResult::Data(register(attrs, number::LOOKUP_DREG)?),
    };
    let invert = match attrs.u32(number::LOOKUP_FLAGS).unwrap_or_default() {
        0 => false,
        value::LOOKUP_INVERT => true,
        _ => return None,
    };
    let set = Name::from(attrs.text(number::LOOKUP_SET)?);
    Some(Expr::Lookup { set, sreg: register(attrs, number::LOOKUP_SREG)?, dreg, invert })
}

fn immediate(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::IMMEDIATE_DATA)?;
    let data = attrs.find(number::IMMEDIATE_DATA)?;
    if attrs.u32(number::IMMEDIATE_DREG)? == value::REG_VERDICT {
        return parse_verdict(data).map(Expr::Verdict);
    }
    let data = Attrs::new(data).find(attr::DATA_VALUE)?.to_vec();
    Some(Expr::Immediate { dreg: register(attrs, number::IMMEDIATE_DREG)?, data })
}

/// The kernel tells the flags even if there are none, and aligns the timeout with an attribute of nothing.
fn dynset(attrs: &Attrs<'_>) -> Option<Expr> {
    let known = [
        number::DYNSET_SET,
        number::DYNSET_OP,
        number::DYNSET_SREG_KEY,
        number::DYNSET_SREG_DATA,
        number::DYNSET_TIMEOUT,
        number::DYNSET_PAD,
        number::DYNSET_FLAGS,
    ];
    attrs.clone().all(|(kind, _)| known.contains(&kind)).then_some(())?;
    (attrs.u32(number::DYNSET_FLAGS).unwrap_or_default() == 0).then_some(())?;
    let timeout_ms = match attrs.find(number::DYNSET_TIMEOUT) {
        Some(bytes) => u64::from_be_bytes(bytes.try_into().ok()?),
        None => 0,
    };
    let op = match attrs.u32(number::DYNSET_OP)? {
        value::DYNSET_UPDATE => DynsetOp::Update { timeout_ms },
        value::DYNSET_DELETE if timeout_ms == 0 => DynsetOp::Delete,
        _ => return None,
    };
    let data = match attrs.find(number::DYNSET_SREG_DATA) {
        Some(_) => Some(register(attrs, number::DYNSET_SREG_DATA)?),
        None => None,
    };
    let set = Name::from(attrs.text(number::DYNSET_SET)?);
    Some(Expr::Dynset { set, op, key: register(attrs, number::DYNSET_SREG_KEY)?, data })
}

/// Data that is a verdict which this crate writes.
pub(super) fn parse_verdict(data: &[u8]) -> Option<Verdict> {
    let attrs = Attrs::new(Attrs::new(data).find(attr::DATA_VERDICT)?);
    let code = attrs.u32(attr::VERDICT_CODE)?.cast_signed();
    let chain = attrs.text(attr::VERDICT_CHAIN);
    let candidates = match chain {
        Some(chain) => vec![Verdict::Goto(chain.into()), Verdict::Jump(chain.into())],
        None => vec![Verdict::Accept, Verdict::Drop, Verdict::Return],
    };
    candidates.into_iter().find(|verdict| verdict_parts(verdict) == (code, chain))
}

fn bitwise(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::BITWISE_OP)?;
    let (mask, xor) = (bytes(attrs, number::BITWISE_MASK)?, bytes(attrs, number::BITWISE_XOR)?);
    let len = usize::try_from(attrs.u32(number::BITWISE_LEN)?).ok()?;
    let is_mask_and_xor = attrs.u32(number::BITWISE_OP).unwrap_or_default() == value::BITWISE_MASK_XOR;
    (is_mask_and_xor && len == mask.len() && len == xor.len()).then_some(())?;
    Some(Expr::Bitwise {
        sreg: register(attrs, number::BITWISE_SREG)?,
        dreg: register(attrs, number::BITWISE_DREG)?,
        mask,
        xor,
    })
}

fn cmp(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::CMP_DATA)?;
    let op = attrs.u32(number::CMP_OP)?;
    let op = [CmpOp::Eq, CmpOp::Neq].into_iter().find(|o| cmp_op(*o) == op)?;
    let data = Attrs::new(attrs.find(number::CMP_DATA)?).find(attr::DATA_VALUE)?.to_vec();
    Some(Expr::Cmp { sreg: register(attrs, number::CMP_SREG)?, op, data })
}

fn ct(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::CT_KEY)?;
    let key = attrs.u32(number::CT_KEY)?;
    let key = [CtKey::State, CtKey::Status].into_iter().find(|k| ct_key(*k) == key)?;
    Some(Expr::Ct { key, dreg: register(attrs, number::CT_DREG)? })
}

fn fib(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::FIB_FLAGS)?;
    (attrs.u32(number::FIB_RESULT)? == value::FIB_ADDRTYPE).then_some(())?;
    let dreg = register(attrs, number::FIB_DREG)?;
    match attrs.u32(number::FIB_FLAGS)? {
        value::FIB_DADDR => Some(Expr::FibDestType { dreg }),
        value::FIB_SADDR => Some(Expr::FibSourceType { dreg }),
        _ => None,
    }
}

fn numgen(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::NUMGEN_OFFSET)?;
    let is_plain_random = attrs.u32(number::NUMGEN_TYPE)? == value::NUMGEN_RANDOM
        && attrs.u32(number::NUMGEN_OFFSET).unwrap_or_default() == 0;
    is_plain_random.then_some(())?;
    Some(Expr::NumgenRandom {
        modulus: attrs.u32(number::NUMGEN_MODULUS)?,
        dreg: register(attrs, number::NUMGEN_DREG)?,
    })
}

/// The kernel repeats the lower ends of the ranges as the upper ones.
fn nat(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::NAT_FLAGS)?;
    let same_end = |min, max| attrs.find(max).is_none_or(|end| attrs.find(min) == Some(end));
    let is_plain_dnat = attrs.u32(number::NAT_TYPE)? == value::NAT_DNAT
        && same_end(number::NAT_ADDR_MIN, number::NAT_ADDR_MAX)
        && same_end(number::NAT_PORT_MIN, number::NAT_PORT_MAX)
        && attrs.u32(number::NAT_FLAGS).unwrap_or_default() & !NAT_IMPLIED_FLAGS == 0;
    is_plain_dnat.then_some(())?;
    let port = match attrs.find(number::NAT_PORT_MIN) {
        Some(_) => Some(register(attrs, number::NAT_PORT_MIN)?),
        None => None,
    };
    Some(Expr::Dnat {
        family: u8::try_from(attrs.u32(number::NAT_FAMILY)?).ok()?,
        addr: register(attrs, number::NAT_ADDR_MIN)?,
        port,
    })
}

fn masquerade(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::MASQ_FLAGS)?;
    Some(Expr::Masquerade { flags: attrs.u32(number::MASQ_FLAGS).unwrap_or_default() })
}

fn reject(attrs: &Attrs<'_>) -> Option<Expr> {
    only(attrs, number::REJECT_CODE)?;
    let code = attrs.find(number::REJECT_CODE).and_then(|code| code.first()).copied().unwrap_or_default();
    Some(Expr::Reject { kind: attrs.u32(number::REJECT_TYPE)?, code })
}
