//! Rules, expression by expression.

use std::net::IpAddr;

use nft::{Bytes, CmpOp, Data, DynsetOp, Element, Expr, LookupResult, MetaKey, Name, Register, Set, Verdict};

use super::state::{Registers, State};
use super::{Pick, TraceError, Tracer};
use crate::Packet;

/// Route types of `linux/rtnetlink.h`.
const ROUTE_UNICAST: u32 = 1;
const ROUTE_LOCAL: u32 = 2;

/// What evaluation of an expression comes to.
pub(super) enum End {
    /// On with the next expression.
    Next,
    /// On with the next rule.
    Break,
    Verdict(Verdict),
    Reject,
}

impl End {
    fn unless_broken(holds: bool) -> Self {
        if holds { Self::Next } else { Self::Break }
    }
}

impl Tracer {
    pub(super) fn rule(
        &mut self,
        chain: &Name,
        rule: &[Expr],
        state: &mut State,
        pick: Pick<'_>,
    ) -> Result<End, TraceError> {
        let mut registers = Registers::default();
        let drawn_before = self.n_drawn;
        for expr in rule {
            match self.step(chain, expr, &mut registers, state, pick)? {
                End::Next => {}
                End::Break => {
                    self.in_vain.extend(drawn_before..self.n_drawn);
                    return Ok(End::Break);
                }
                end => return Ok(end),
            }
        }
        Ok(End::Next)
    }

    fn step(
        &mut self,
        chain: &Name,
        expr: &Expr,
        registers: &mut Registers,
        state: &mut State,
        pick: Pick<'_>,
    ) -> Result<End, TraceError> {
        if let Some((dreg, value)) = self.value(expr, registers, state, pick) {
            registers.load(dreg, &value);
            return Ok(End::Next);
        }
        match expr {
            Expr::MetaSet { key: MetaKey::Mark, sreg } => state.mark = registers.number(*sreg),
            Expr::MetaSet { key: MetaKey::Priority, sreg } => state.priority = registers.number(*sreg),
            Expr::Verdict(verdict) => return Ok(End::Verdict(verdict.clone())),
            Expr::Cmp { sreg, op, data } => {
                let equal = registers.bytes(*sreg, data.len()) == *data;
                return Ok(End::unless_broken(equal == (*op == CmpOp::Eq)));
            }
            Expr::Lookup { set, sreg, dreg, invert } => {
                return self.lookup((set, *sreg), *dreg, *invert, registers, state);
            }
            Expr::Dynset { set, op, key, data } => return self.dynset(set, *op, *key, *data, registers),
            Expr::Dnat { addr, port, .. } => {
                let port = port.map_or(state.packet.destination.port(), |port| registers.port(port));
                state.translate((registers.addr(*addr, self.family), port).into());
                return Ok(End::Verdict(Verdict::Accept));
            }
            Expr::Masquerade { .. } => {
                state.masqueraded = true;
                return Ok(End::Verdict(Verdict::Accept));
            }
            Expr::Reject { .. } => return Ok(End::Reject),
            Expr::Payload { .. }
            | Expr::Meta { .. }
            | Expr::MetaSet { .. }
            | Expr::Immediate { .. }
            | Expr::Bitwise { .. }
            | Expr::Ct { .. }
            | Expr::FibDestType { .. }
            | Expr::FibSourceType { .. }
            | Expr::NumgenRandom { .. }
            | Expr::Unknown { .. } => {
                return Err(TraceError::Unknown { chain: chain.clone(), expr: format!("{expr:?}") });
            }
        }
        Ok(End::Next)
    }

    /// What an expression loads into which register, if that is what it does.
    fn value(
        &mut self,
        expr: &Expr,
        registers: &Registers,
        state: &State,
        pick: Pick<'_>,
    ) -> Option<(Register, Vec<u8>)> {
        let Packet { source, destination, .. } = &state.packet;
        Some(match expr {
            Expr::Payload { base, offset, len, dreg } => {
                let range = *offset as usize..(*offset + *len) as usize;
                (*dreg, state.header(*base).get(range)?.to_vec())
            }
            Expr::Meta { key, dreg } => (*dreg, state.meta(*key)),
            Expr::Immediate { dreg, data } => (*dreg, data.clone()),
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let value = registers.bytes(*sreg, mask.len());
                let parts = value.iter().zip(mask.as_slice()).zip(xor.as_slice());
                (*dreg, parts.map(|((value, mask), xor)| value & mask ^ xor).collect())
            }
            Expr::Ct { key, dreg } => (*dreg, state.ct(*key).to_ne_bytes().to_vec()),
            Expr::FibDestType { dreg } => (*dreg, self.route_type(destination.ip()).to_ne_bytes().to_vec()),
            Expr::FibSourceType { dreg } => (*dreg, self.route_type(source.ip()).to_ne_bytes().to_vec()),
            Expr::NumgenRandom { modulus, dreg } => {
                self.n_drawn += 1;
                (*dreg, pick(*modulus).to_ne_bytes().to_vec())
            }
            _ => return None,
        })
    }

    fn route_type(&self, addr: IpAddr) -> u32 {
        if self.is_local(addr) { ROUTE_LOCAL } else { ROUTE_UNICAST }
    }

    fn set(&self, name: &Name) -> Result<&Set, TraceError> {
        let state = self.ruleset.sets.get(name).ok_or_else(|| TraceError::Missing(name.clone()))?;
        Ok(&state.set)
    }

    /// The key in these registers, for a set.
    fn key(&self, set: &Set, first: Register, registers: &Registers) -> Result<Bytes, TraceError> {
        let key = registers.bytes(first, set.key_bytes(self.family));
        Bytes::from_slice(&key).ok_or_else(|| TraceError::Missing(set.name.clone()))
    }

    /// The element that covers a key, as rules and others have written it.
    fn find(&self, set: &Set, key: &Bytes) -> Result<Option<Element>, TraceError> {
        match self.learnt.get(&set.name).and_then(|known| known.get(key)) {
            Some(learnt) => {
                Ok(learnt.map(|data| Element { key: *key, data: Data::Value(data), comment: None }))
            }
            None => self
                .elements
                .find(set, key)
                .map_err(|why| TraceError::Elements { set: set.name.clone(), why }),
        }
    }

    fn lookup(
        &self,
        (name, sreg): (&Name, Register),
        dreg: LookupResult,
        invert: bool,
        registers: &mut Registers,
        state: &mut State,
    ) -> Result<End, TraceError> {
        let set = self.set(name)?;
        let key = self.key(set, sreg, registers)?;
        let found = self.find(set, &key)?;
        if let Some(element) = &found {
            state.note_element(set, element, self.family);
        }
        match (found.map(|element| element.data), dreg) {
            (found, LookupResult::None) => Ok(End::unless_broken(found.is_some() != invert)),
            (Some(Data::Verdict(verdict)), LookupResult::Verdict) => Ok(End::Verdict(verdict)),
            (Some(Data::Value(data)), LookupResult::Data(dreg)) => {
                registers.load(dreg, data.as_slice());
                Ok(End::Next)
            }
            _ => Ok(End::Break),
        }
    }

    fn dynset(
        &mut self,
        name: &Name,
        op: DynsetOp,
        key: Register,
        data: Option<Register>,
        registers: &Registers,
    ) -> Result<End, TraceError> {
        let set = self.set(name)?;
        let key = self.key(set, key, registers)?;
        let is_known = self.find(set, &key)?.is_some();
        // Every map that rules write has a number as data.
        let data = data.map(|data| Bytes::new().index(registers.number(data))).unwrap_or_default();
        let known = self.learnt.entry(name.clone()).or_default();
        match op {
            DynsetOp::Update { .. } if is_known => {}
            DynsetOp::Update { .. } => _ = known.insert(key, Some(data)),
            DynsetOp::Delete => _ = known.insert(key, None),
        }
        Ok(End::Next)
    }
}
