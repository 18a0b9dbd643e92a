//! Expressions to attributes, in the order in which nft writes them.

use crate::expr::{DynsetOp, LookupResult};
use crate::wire::{Writer, attr};
use crate::{CmpOp, CtKey, Expr, MetaKey, Name, PayloadBase, Register, Verdict};

/// Attribute numbers of expressions, `NFTA_<NAME>_*`.
pub(crate) mod number {
    pub(crate) const PAYLOAD_DREG: u16 = 1;
    pub(crate) const PAYLOAD_BASE: u16 = 2;
    pub(crate) const PAYLOAD_OFFSET: u16 = 3;
    pub(crate) const PAYLOAD_LEN: u16 = 4;
    pub(crate) const META_DREG: u16 = 1;
    pub(crate) const META_KEY: u16 = 2;
    pub(crate) const META_SREG: u16 = 3;
    pub(crate) const LOOKUP_SET: u16 = 1;
    pub(crate) const LOOKUP_SREG: u16 = 2;
    pub(crate) const LOOKUP_DREG: u16 = 3;
    pub(crate) const LOOKUP_FLAGS: u16 = 5;
    pub(crate) const DYNSET_SET: u16 = 1;
    pub(crate) const DYNSET_OP: u16 = 3;
    pub(crate) const DYNSET_SREG_KEY: u16 = 4;
    pub(crate) const DYNSET_SREG_DATA: u16 = 5;
    pub(crate) const DYNSET_TIMEOUT: u16 = 6;
    pub(crate) const DYNSET_PAD: u16 = 8;
    pub(crate) const DYNSET_FLAGS: u16 = 9;
    pub(crate) const IMMEDIATE_DREG: u16 = 1;
    pub(crate) const IMMEDIATE_DATA: u16 = 2;
    pub(crate) const BITWISE_SREG: u16 = 1;
    pub(crate) const BITWISE_DREG: u16 = 2;
    pub(crate) const BITWISE_LEN: u16 = 3;
    pub(crate) const BITWISE_MASK: u16 = 4;
    pub(crate) const BITWISE_XOR: u16 = 5;
    pub(crate) const BITWISE_OP: u16 = 6;
    pub(crate) const CMP_SREG: u16 = 1;
    pub(crate) const CMP_OP: u16 = 2;
    pub(crate) const CMP_DATA: u16 = 3;
    pub(crate) const CT_DREG: u16 = 1;
    pub(crate) const CT_KEY: u16 = 2;
    pub(crate) const FIB_DREG: u16 = 1;
    pub(crate) const FIB_RESULT: u16 = 2;
    pub(crate) const FIB_FLAGS: u16 = 3;
    pub(crate) const NUMGEN_DREG: u16 = 1;
    pub(crate) const NUMGEN_MODULUS: u16 = 2;
    pub(crate) const NUMGEN_TYPE: u16 = 3;
    pub(crate) const NUMGEN_OFFSET: u16 = 4;
    pub(crate) const NAT_TYPE: u16 = 1;
    pub(crate) const NAT_FAMILY: u16 = 2;
    pub(crate) const NAT_ADDR_MIN: u16 = 3;
    pub(crate) const NAT_ADDR_MAX: u16 = 4;
    pub(crate) const NAT_PORT_MIN: u16 = 5;
    pub(crate) const NAT_PORT_MAX: u16 = 6;
    pub(crate) const NAT_FLAGS: u16 = 7;
    pub(crate) const MASQ_FLAGS: u16 = 1;
    pub(crate) const REJECT_TYPE: u16 = 1;
    pub(crate) const REJECT_CODE: u16 = 2;
}

/// Values of those attributes.
pub(crate) mod value {
    /// `NFT_REG_VERDICT`
    pub(crate) const REG_VERDICT: u32 = 0;
    /// `NFT_LOOKUP_F_INV`
    pub(crate) const LOOKUP_INVERT: u32 = 1;
    /// `NFT_DYNSET_OP_UPDATE`
    pub(crate) const DYNSET_UPDATE: u32 = 1;
    /// `NFT_DYNSET_OP_DELETE`
    pub(crate) const DYNSET_DELETE: u32 = 2;
    /// `NFT_BITWISE_MASK_XOR` (`NFT_BITWISE_BOOL` before Linux 6.13)
    pub(crate) const BITWISE_MASK_XOR: u32 = 0;
    /// `NFT_FIB_RESULT_ADDRTYPE`
    pub(crate) const FIB_ADDRTYPE: u32 = 3;
    /// `NFTA_FIB_F_DADDR`
    pub(crate) const FIB_DADDR: u32 = 2;
    /// `NFTA_FIB_F_SADDR`
    pub(crate) const FIB_SADDR: u32 = 1;
    /// `NFT_NG_RANDOM`
    pub(crate) const NUMGEN_RANDOM: u32 = 1;
    /// `NFT_NAT_DNAT`
    pub(crate) const NAT_DNAT: u32 = 1;
}

/// The register's number for the kernel: one of 16 bytes where it begins such a one (1 to 4), else one of 4 bytes
/// (from 8). The kernel's own dumps choose alike.
pub(crate) const fn register_number(register: Register) -> u32 {
    let word = register.0 as u32;
    if word.is_multiple_of(4) { word / 4 + 1 } else { word + 8 }
}

/// `NFT_PAYLOAD_*_HEADER`
pub(crate) const fn payload_base(base: PayloadBase) -> u32 {
    match base {
        PayloadBase::Network => 1,
        PayloadBase::Transport => 2,
    }
}

/// `NFT_META_*`
pub(crate) const fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::Priority => 2,
        MetaKey::Mark => 3,
        MetaKey::InputIfname => 6,
        MetaKey::L4Proto => 16,
    }
}

/// `NFT_CT_*`
pub(crate) const fn ct_key(key: CtKey) -> u32 {
    match key {
        CtKey::State => 0,
        CtKey::Status => 2,
    }
}

/// `NFT_CMP_*`
pub(crate) const fn cmp_op(op: CmpOp) -> u32 {
    match op {
        CmpOp::Eq => 0,
        CmpOp::Neq => 1,
    }
}

/// `NF_*` and `NFT_*` verdict codes, and the chain.
pub(crate) fn verdict_parts(verdict: &Verdict) -> (i32, Option<&str>) {
    match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    }
}

/// `NFT_DYNSET_OP_*`, and the timeout in milliseconds.
const fn dynset_op(op: DynsetOp) -> (u32, u64) {
    match op {
        DynsetOp::Update { timeout_ms } => (value::DYNSET_UPDATE, timeout_ms),
        DynsetOp::Delete => (value::DYNSET_DELETE, 0),
    }
}

fn put_fib_type(out: &mut Writer, of: u32, dreg: Register) {
    out.u32(number::FIB_FLAGS, of);
    out.u32(number::FIB_RESULT, value::FIB_ADDRTYPE);
    out.u32(number::FIB_DREG, register_number(dreg));
}

/// Data that is a verdict.
pub(super) fn put_verdict(out: &mut Writer, verdict: &Verdict) {
    let (code, chain) = verdict_parts(verdict);
    out.nest(attr::DATA_VERDICT, |out| {
        out.u32(attr::VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            out.text(attr::VERDICT_CHAIN, chain);
        }
    });
}

/// An expression's name and attributes.
pub(crate) fn put_expr(out: &mut Writer, expr: &Expr) {
    out.text(attr::EXPR_NAME, name(expr));
    match expr {
        Expr::Unknown { bytes, .. } => out.bytes(attr::EXPR_DATA, bytes),
        _ => out.nest(attr::EXPR_DATA, |out| put_attributes(out, expr)),
    }
}

/// The kernel's name for the expression.
pub(crate) fn name(expr: &Expr) -> &str {
    match expr {
        Expr::Payload { .. } => "payload",
        Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
        Expr::Lookup { .. } => "lookup",
        Expr::Dynset { .. } => "dynset",
        Expr::Verdict(_) | Expr::Immediate { .. } => "immediate",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Cmp { .. } => "cmp",
        Expr::Ct { .. } => "ct",
        Expr::FibDestType { .. } | Expr::FibSourceType { .. } => "fib",
        Expr::NumgenRandom { .. } => "numgen",
        Expr::Dnat { .. } => "nat",
        Expr::Masquerade { .. } => "masq",
        Expr::Reject { .. } => "reject",
        Expr::Unknown { name, .. } => name,
    }
}

fn put_attributes(out: &mut Writer, expr: &Expr) {
    match expr {
        Expr::Payload { base, offset, len, dreg } => {
            out.u32(number::PAYLOAD_DREG, register_number(*dreg));
            out.u32(number::PAYLOAD_BASE, payload_base(*base));
            out.u32(number::PAYLOAD_OFFSET, *offset);
            out.u32(number::PAYLOAD_LEN, *len);
        }
        Expr::Meta { key, dreg } => {
            out.u32(number::META_KEY, meta_key(*key));
            out.u32(number::META_DREG, register_number(*dreg));
        }
        Expr::MetaSet { key, sreg } => {
            out.u32(number::META_KEY, meta_key(*key));
            out.u32(number::META_SREG, register_number(*sreg));
        }
        Expr::Lookup { set, sreg, dreg, invert } => put_lookup(out, set, *sreg, *dreg, *invert),
        Expr::Dynset { set, op, key, data } => put_dynset(out, set, *op, *key, *data),
        Expr::Immediate { dreg, data } => {
            out.u32(number::IMMEDIATE_DREG, register_number(*dreg));
            out.nest(number::IMMEDIATE_DATA, |out| out.bytes(attr::DATA_VALUE, data));
        }
        Expr::Verdict(verdict) => {
            out.u32(number::IMMEDIATE_DREG, value::REG_VERDICT);
            out.nest(number::IMMEDIATE_DATA, |out| put_verdict(out, verdict));
        }
        Expr::Bitwise { sreg, dreg, mask, xor } => {
            out.u32(number::BITWISE_SREG, register_number(*sreg));
            out.u32(number::BITWISE_DREG, register_number(*dreg));
            out.u32(number::BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            out.nest(number::BITWISE_MASK, |out| out.bytes(attr::DATA_VALUE, mask.as_slice()));
            out.nest(number::BITWISE_XOR, |out| out.bytes(attr::DATA_VALUE, xor.as_slice()));
        }
        Expr::Cmp { sreg, op, data } => {
            out.u32(number::CMP_SREG, register_number(*sreg));
            out.u32(number::CMP_OP, cmp_op(*op));
            out.nest(number::CMP_DATA, |out| out.bytes(attr::DATA_VALUE, data));
        }
        Expr::Ct { key, dreg } => {
            out.u32(number::CT_KEY, ct_key(*key));
            out.u32(number::CT_DREG, register_number(*dreg));
        }
        Expr::FibDestType { dreg } => put_fib_type(out, value::FIB_DADDR, *dreg),
        Expr::FibSourceType { dreg } => put_fib_type(out, value::FIB_SADDR, *dreg),
        Expr::NumgenRandom { modulus, dreg } => {
            out.u32(number::NUMGEN_DREG, register_number(*dreg));
            out.u32(number::NUMGEN_MODULUS, *modulus);
            out.u32(number::NUMGEN_TYPE, value::NUMGEN_RANDOM);
            out.u32(number::NUMGEN_OFFSET, 0);
        }
        Expr::Dnat { family, addr, port } => {
            out.u32(number::NAT_TYPE, value::NAT_DNAT);
            out.u32(number::NAT_FAMILY, u32::from(*family));
            out.u32(number::NAT_ADDR_MIN, register_number(*addr));
            if let Some(port) = port {
                out.u32(number::NAT_PORT_MIN, register_number(*port));
            }
        }
        Expr::Masquerade { flags } => out.u32(number::MASQ_FLAGS, *flags),
        Expr::Reject { kind, code } => {
            out.u32(number::REJECT_TYPE, *kind);
            out.u8(number::REJECT_CODE, *code);
        }
        Expr::Unknown { .. } => {}
    }
}

fn put_lookup(out: &mut Writer, set: &Name, sreg: Register, dreg: LookupResult, invert: bool) {
    out.u32(number::LOOKUP_SREG, register_number(sreg));
    match dreg {
        LookupResult::None => {}
        LookupResult::Verdict => out.u32(number::LOOKUP_DREG, value::REG_VERDICT),
        LookupResult::Data(dreg) => out.u32(number::LOOKUP_DREG, register_number(dreg)),
    }
    out.text(number::LOOKUP_SET, set);
    if invert {
        out.u32(number::LOOKUP_FLAGS, value::LOOKUP_INVERT);
    }
}

fn put_dynset(out: &mut Writer, set: &Name, op: DynsetOp, key: Register, data: Option<Register>) {
    out.u32(number::DYNSET_SREG_KEY, register_number(key));
    if let Some(data) = data {
        out.u32(number::DYNSET_SREG_DATA, register_number(data));
    }
    let (op, timeout_ms) = dynset_op(op);
    out.u32(number::DYNSET_OP, op);
    if timeout_ms > 0 {
        out.bytes(number::DYNSET_TIMEOUT, &timeout_ms.to_be_bytes());
    }
    out.text(number::DYNSET_SET, set);
}
