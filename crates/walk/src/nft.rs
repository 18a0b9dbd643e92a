//! What a ruleset does to the first packet of a flow, worked out without a kernel: a small machine for the expressions of
//! [`nft::Expr`], walked through the hooks in the kernel's order.
//!
//! It knows one table and what that table can say ([`Elements`] may be asked of the kernel one by one). Connection tracking is what a first packet needs: the flow is new, and
//! its destination is translated or not. Timeouts of learnt elements do not pass by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use nft::{
    BaseChain, Bytes, CmpOp, CtKey, Data, DynsetOp, Element, Expr, Family, Hook, LookupResult, MetaKey, Name,
    PayloadBase, Register, Ruleset, Set, Verdict, rule_text,
};

use crate::{Origin, Outcome, Packet, Step, Way, Ways};

/// The ruleset can't be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A rule or an element refers to what is not there.
    #[error("no {0}")]
    Missing(Name),
    /// A rule does what this machine does not know, or what makes no sense.
    #[error("chain {chain}: can't follow {expr}")]
    Unknown {
        /// Where the rule is.
        chain: Name,
        /// What can't be followed.
        expr: String,
    },
    /// What a set holds could not be learnt.
    #[error("look into set {set}: {why}")]
    Elements {
        /// The set or map.
        set: Name,
        /// Why not.
        why: String,
    },
}

/// What sets and maps hold.
pub trait Elements: Send + Sync {
    /// The element of a set that covers a key, which is laid out as in [`Bytes`].
    ///
    /// # Errors
    /// Why that can't be learnt.
    fn find(&self, set: &Set, key: &Bytes) -> Result<Option<Element>, String>;
}

/// What was read together with the chains.
#[derive(Clone, Debug)]
pub struct InRuleset(Arc<Ruleset>, Family);

impl InRuleset {
    /// The elements of this table.
    pub fn new(ruleset: Arc<Ruleset>, family: Family) -> Self {
        Self(ruleset, family)
    }
}

impl Elements for InRuleset {
    fn find(&self, set: &Set, key: &Bytes) -> Result<Option<Element>, String> {
        let elements = self.0.sets.get(&set.name).map_or(&[][..], |state| &state.elements);
        Ok(elements.iter().find(|element| covers(&element.key, key.as_slice(), self.1)).cloned())
    }
}

/// A host with one table.
#[derive(Clone)]
pub struct Tracer {
    ruleset: Arc<Ruleset>,
    elements: Arc<dyn Elements>,
    family: Family,
    /// The host's addresses besides loopback.
    addresses: BTreeSet<IpAddr>,
    /// Elements that rules wrote, by map; `None`: deleted.
    learnt: BTreeMap<Name, BTreeMap<Bytes, Option<Bytes>>>,
    /// How many numbers were drawn, and which of them led to nothing: the rule that drew them went no further.
    n_drawn: usize,
    in_vain: BTreeSet<usize>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("ruleset", &self.ruleset)
            .field("family", &self.family)
            .finish_non_exhaustive()
    }
}

/// `IP_CT_NEW` as a state bit, `IPS_DST_NAT`, and route types of `linux/rtnetlink.h`.
const STATE_NEW: u32 = 8;
const STATUS_DNAT: u32 = 32;
const ROUTE_UNICAST: u32 = 1;
const ROUTE_LOCAL: u32 = 2;

/// A source of `numgen`'s numbers: one below the argument.
type Pick<'a> = &'a mut dyn FnMut(u32) -> u32;

impl Tracer {
    /// A host with these addresses, besides loopback ones.
    pub fn new(ruleset: Ruleset, family: Family, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let ruleset = Arc::new(ruleset);
        let elements = Arc::new(InRuleset::new(ruleset.clone(), family));
        Self::with_elements(ruleset, elements, family, addresses)
    }

    /// The same, with elements from elsewhere than the ruleset, of which only chains and declarations are used then.
    pub fn with_elements(
        ruleset: Arc<Ruleset>,
        elements: Arc<dyn Elements>,
        family: Family,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let addresses = addresses.into_iter().collect();
        Self {
            ruleset,
            elements,
            family,
            addresses,
            learnt: BTreeMap::new(),
            n_drawn: 0,
            in_vain: BTreeSet::new(),
        }
    }

    /// All that can become of a packet, whatever numbers are drawn. What rules learn on the way is forgotten.
    ///
    /// Of numbers that lead to nothing only the first is followed: whatever comes next is the same for all of them.
    ///
    /// # Errors
    /// The ruleset can't be followed.
    pub fn outcomes(&self, packet: &Packet) -> Result<BTreeSet<Outcome>, TraceError> {
        let mut outcomes = BTreeSet::new();
        self.each_way(usize::MAX, |tracer, pick| {
            outcomes.insert(tracer.trace(packet, pick)?);
            Ok(())
        })?;
        Ok(outcomes)
    }

    /// The ways that a packet can go, whatever numbers are drawn, with the rules that match; at most so many. What rules learn on
    /// the way is forgotten.
    ///
    /// Numbers that lead to nothing, after which others are drawn, do not count for how probable a way is: what follows is
    /// taken to be as probable as what would have been there.
    ///
    /// # Errors
    /// The ruleset can't be followed.
    pub fn ways(&self, packet: &Packet, limit: usize) -> Result<Ways, TraceError> {
        let mut ways = Vec::new();
        let complete = self.each_way(limit, |tracer, pick| {
            let mut drawn = Vec::new();
            let mut noting = |below: u32| {
                drawn.push(below);
                pick(below)
            };
            let mut state = State { steps: Some(Vec::new()), ..State::new(packet) };
            let outcome = tracer.go(&mut state, &mut noting)?;
            let counted = drawn.iter().enumerate().filter(|(idx, _)| !tracer.in_vain.contains(idx));
            let probability = counted.map(|(_, below)| 1.0 / f64::from((*below).max(1))).product();
            ways.push(Way { outcome, steps: state.steps.unwrap_or_default(), probability });
            Ok(())
        })?;
        let sum: f64 = ways.iter().map(|way| way.probability).sum();
        for way in &mut ways {
            way.probability /= sum;
        }
        Ok(Ways { ways, complete })
    }

    /// Has each combination of numbers that can be drawn walked with, so often at most; false if there are more.
    fn each_way(
        &self,
        limit: usize,
        mut walk: impl FnMut(&mut Self, Pick<'_>) -> Result<(), TraceError>,
    ) -> Result<bool, TraceError> {
        let mut drawn: Vec<Drawn> = Vec::new();
        for _ in 0..limit {
            let mut n = 0;
            let mut pick = |below: u32| {
                if n == drawn.len() {
                    drawn.push(Drawn { number: 0, below, followed_in_vain: false });
                }
                n += 1;
                drawn[n - 1].number
            };
            let mut tracer = Self { n_drawn: 0, in_vain: BTreeSet::new(), ..self.clone() };
            walk(&mut tracer, &mut pick)?;
            let again =
                |(idx, drawn): (usize, &Drawn)| drawn.followed_in_vain && tracer.in_vain.contains(&idx);
            if let Some(idx) = drawn.iter().enumerate().position(again) {
                drawn.truncate(idx + 1);
            }
            // The next numbers in order: the last one that can be raised is, those behind it begin anew.
            while drawn.last().is_some_and(|last| last.number + 1 >= last.below) {
                drawn.pop();
            }
            let Some(last) = drawn.len().checked_sub(1) else { return Ok(true) };
            drawn[last].number += 1;
            drawn[last].followed_in_vain |= tracer.in_vain.contains(&last);
        }
        Ok(false)
    }

    /// What becomes of a packet; rules may learn from it.
    ///
    /// # Errors
    /// The ruleset can't be followed.
    pub fn trace(&mut self, packet: &Packet, pick: Pick<'_>) -> Result<Outcome, TraceError> {
        self.go(&mut State::new(packet), pick)
    }

    fn go(&mut self, state: &mut State, pick: Pick<'_>) -> Result<Outcome, TraceError> {
        let origin = state.packet.origin.clone();
        let hooks: &[Hook] = match origin {
            Origin::Host => &[Hook::Output, Hook::Postrouting],
            Origin::Interface(_) => &[Hook::Prerouting],
        };
        for hook in hooks {
            if let Some(outcome) = self.pass(*hook, state, pick)? {
                return Ok(outcome);
            }
        }
        let is_local = self.is_local(state.packet.destination.ip());
        let hooks: &[Hook] = match (origin, is_local) {
            (_, true) => &[Hook::Input],
            (Origin::Host, false) => &[],
            (Origin::Interface(_), false) => &[Hook::Forward, Hook::Postrouting],
        };
        for hook in hooks {
            if let Some(outcome) = self.pass(*hook, state, pick)? {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Delivered { to: state.packet.destination, masqueraded: state.masqueraded })
    }

    fn is_local(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.addresses.contains(&addr)
    }

    /// The base chains of a hook, in their order. `Some` when the packet goes no further.
    fn pass(&mut self, hook: Hook, state: &mut State, pick: Pick<'_>) -> Result<Option<Outcome>, TraceError> {
        state.hook = hook;
        let attached = |(name, chain): (&Name, &nft::ChainState)| Some((name.clone(), chain.base?));
        let mut chains: Vec<(Name, BaseChain)> = self.ruleset.chains.iter().filter_map(attached).collect();
        chains.retain(|(_, base)| base.hook == hook);
        chains.sort_by_key(|(_, base)| base.priority);
        for (name, _) in chains {
            match self.chain(&name, state, pick)? {
                Decision::Continue | Decision::Accept => {}
                Decision::Drop => return Ok(Some(Outcome::Dropped)),
                Decision::Reject => return Ok(Some(Outcome::Refused)),
            }
        }
        Ok(None)
    }

    fn chain(&mut self, name: &Name, state: &mut State, pick: Pick<'_>) -> Result<Decision, TraceError> {
        let ruleset = self.ruleset.clone();
        let chain = ruleset.chains.get(name).ok_or_else(|| TraceError::Missing(name.clone()))?;
        for rule in &chain.rules {
            state.found.clear();
            let end = self.rule(name, rule, state, pick)?;
            if !matches!(end, End::Break) {
                state.note(name, rule, self.family);
            }
            let decision = match end {
                End::Next | End::Break => continue,
                End::Verdict(Verdict::Return) => return Ok(Decision::Continue),
                End::Verdict(Verdict::Goto(to)) => return self.chain(&to, state, pick),
                End::Verdict(Verdict::Jump(to)) => self.chain(&to, state, pick)?,
                End::Verdict(Verdict::Accept) => Decision::Accept,
                End::Verdict(Verdict::Drop) => Decision::Drop,
                End::Reject => Decision::Reject,
            };
            if decision != Decision::Continue {
                return Ok(decision);
            }
        }
        Ok(Decision::Continue)
    }

    fn rule(
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
        let unknown = || TraceError::Unknown { chain: chain.clone(), expr: format!("{expr:?}") };
        match expr {
            Expr::Payload { base, offset, len, dreg } => {
                let header = state.header(*base);
                let range = *offset as usize..(*offset + *len) as usize;
                registers.load(*dreg, header.get(range).ok_or_else(unknown)?);
            }
            Expr::Meta { key, dreg } => registers.load(*dreg, &state.meta(*key)),
            Expr::MetaSet { key: MetaKey::Mark, sreg } => state.mark = registers.number(*sreg),
            Expr::MetaSet { key: MetaKey::Priority, sreg } => state.priority = registers.number(*sreg),
            Expr::Verdict(verdict) => return Ok(End::Verdict(verdict.clone())),
            Expr::Immediate { dreg, data } => registers.load(*dreg, data),
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let value = registers.bytes(*sreg, mask.len());
                let parts = value.iter().zip(mask.as_slice()).zip(xor.as_slice());
                let result: Vec<u8> = parts.map(|((value, mask), xor)| value & mask ^ xor).collect();
                registers.load(*dreg, &result);
            }
            Expr::Cmp { sreg, op, data } => {
                let equal = registers.bytes(*sreg, data.len()) == *data;
                return Ok(End::unless_broken(equal == (*op == CmpOp::Eq)));
            }
            Expr::Ct { key, dreg } => registers.load(*dreg, &state.ct(*key).to_ne_bytes()),
            Expr::FibDestType { dreg } => {
                registers.load(*dreg, &self.route_type(state.packet.destination.ip()).to_ne_bytes());
            }
            Expr::FibSourceType { dreg } => {
                registers.load(*dreg, &self.route_type(state.packet.source.ip()).to_ne_bytes());
            }
            Expr::NumgenRandom { modulus, dreg } => {
                self.n_drawn += 1;
                registers.load(*dreg, &pick(*modulus).to_ne_bytes());
            }
            Expr::Lookup { set, sreg, dreg, invert } => {
                return self.lookup((set, *sreg), *dreg, *invert, registers, state);
            }
            Expr::Dynset { set, op, key, data } => return self.dynset(set, *op, *key, *data, registers),
            Expr::Dnat { addr, port, .. } => {
                let port = port.map_or(state.packet.destination.port(), |port| registers.port(port));
                state.packet.destination = (registers.addr(*addr, self.family), port).into();
                state.translated = true;
                return Ok(End::Verdict(Verdict::Accept));
            }
            Expr::Masquerade { .. } => {
                state.masqueraded = true;
                return Ok(End::Verdict(Verdict::Accept));
            }
            Expr::Reject { .. } => return Ok(End::Reject),
            Expr::MetaSet { .. } | Expr::Unknown { .. } => return Err(unknown()),
        }
        Ok(End::Next)
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

/// A number that was drawn, and below which.
struct Drawn {
    number: u32,
    below: u32,
    /// It, or a smaller one in its place, led to nothing, and all that comes of that was followed.
    followed_in_vain: bool,
}

/// Whether an element's key, whose last field may be a network, covers the bytes.
fn covers(element: &Bytes, key: &[u8], family: Family) -> bool {
    let host_bits = element.prefix_bits().map_or(0, |prefix| family.addr_len() * 8 - usize::from(prefix));
    let bits = element.len() * 8 - host_bits;
    let (whole, rest) = (bits / 8, bits % 8);
    let element = element.as_slice();
    element.len() == key.len()
        && element[..whole] == key[..whole]
        && (rest == 0 || (element[whole] ^ key[whole]) >> (8 - rest) == 0)
}

/// What evaluation of a chain comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Continue,
    Accept,
    Drop,
    Reject,
}

/// What evaluation of an expression comes to.
enum End {
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

/// The packet under way and what the kernel knows of it.
struct State {
    packet: Packet,
    hook: Hook,
    mark: u32,
    priority: u32,
    translated: bool,
    masqueraded: bool,
    /// The rules that matched, if somebody wants to know.
    steps: Option<Vec<Step>>,
    /// What the present rule found.
    found: Vec<String>,
}

impl State {
    /// A rule has matched.
    fn note(&mut self, chain: &Name, rule: &[Expr], family: Family) {
        let (hook, found) = (self.hook.as_str(), std::mem::take(&mut self.found));
        if let Some(steps) = &mut self.steps {
            let (chain, rule) = (chain.to_string(), rule_text(rule, family));
            steps.push(Step { hook, table: "", chain, rule, found });
        }
    }

    fn note_element(&mut self, set: &Set, element: &Element, family: Family) {
        if self.steps.is_some() {
            self.found.push(format!("{} {}: {}", set.keyword(), set.name, set.element_text(element, family)));
        }
    }

    fn new(packet: &Packet) -> Self {
        Self {
            packet: packet.clone(),
            hook: Hook::Prerouting,
            mark: 0,
            priority: 0,
            translated: false,
            masqueraded: false,
            steps: None,
            found: Vec::new(),
        }
    }

    /// The header with those fields that rules look at; all others are zero.
    fn header(&self, base: PayloadBase) -> Vec<u8> {
        let Packet { source, destination, .. } = &self.packet;
        match (base, source.ip(), destination.ip()) {
            (PayloadBase::Transport, ..) => {
                [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
            }
            (PayloadBase::Network, IpAddr::V4(from), IpAddr::V4(to)) => {
                [vec![0; 12], from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            (PayloadBase::Network, IpAddr::V6(from), IpAddr::V6(to)) => {
                [vec![0; 8], from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            (PayloadBase::Network, ..) => Vec::new(),
        }
    }

    fn meta(&self, key: MetaKey) -> Vec<u8> {
        match key {
            MetaKey::Priority => self.priority.to_ne_bytes().to_vec(),
            MetaKey::Mark => self.mark.to_ne_bytes().to_vec(),
            MetaKey::L4Proto => vec![self.packet.protocol],
            MetaKey::InputIfname => {
                let name = match (&self.packet.origin, self.hook) {
                    (Origin::Host, Hook::Input) => "lo",
                    (Origin::Interface(name), Hook::Prerouting | Hook::Input | Hook::Forward) => name,
                    _ => "",
                };
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(16, 0);
                bytes
            }
        }
    }

    fn ct(&self, key: CtKey) -> u32 {
        match key {
            CtKey::State => STATE_NEW,
            CtKey::Status if self.translated => STATUS_DNAT,
            CtKey::Status => 0,
        }
    }
}

/// Sixteen words of four bytes.
#[derive(Default)]
struct Registers {
    bytes: [[u8; 32]; 2],
}

impl Registers {
    /// Fills the last word with zeros, as the kernel does.
    fn load(&mut self, Register(first): Register, value: &[u8]) {
        let bytes = self.bytes.as_flattened_mut();
        let start = usize::from(first) * 4;
        let padded = value.len().next_multiple_of(4);
        if let Some(place) = bytes.get_mut(start..start + padded) {
            place.fill(0);
            place[..value.len()].copy_from_slice(value);
        }
    }

    fn bytes(&self, Register(first): Register, len: usize) -> Vec<u8> {
        let start = usize::from(first) * 4;
        self.bytes.as_flattened().iter().skip(start).take(len).copied().collect()
    }

    fn array<const N: usize>(&self, register: Register) -> [u8; N] {
        self.bytes(register, N).try_into().unwrap_or([0; N])
    }

    /// A number in host byte order.
    fn number(&self, register: Register) -> u32 {
        u32::from_ne_bytes(self.array(register))
    }

    fn port(&self, register: Register) -> u16 {
        u16::from_be_bytes(self.array(register))
    }

    fn addr(&self, register: Register, family: Family) -> IpAddr {
        match family {
            Family::Ip => self.array::<4>(register).into(),
            Family::Ip6 => self.array::<16>(register).into(),
        }
    }
}
