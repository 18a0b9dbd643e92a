//! What a ruleset does to the first packet of a flow, worked out without a kernel: a small machine for the expressions of
//! [`nft::Expr`], walked through the hooks in the kernel's order.
//!
//! It knows one table and what that table can say. Connection tracking is what a first packet needs: the flow is new, and
//! its destination is translated or not. Timeouts of learnt elements do not pass by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nft::{
    BaseChain, Bytes, CmpOp, CtKey, Data, DynsetOp, Expr, Family, Hook, LookupResult, MetaKey, Name,
    PayloadBase, Register, Ruleset, SetState, Verdict,
};

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
}

/// A host with one table.
#[derive(Clone, Debug)]
pub struct Tracer {
    ruleset: Arc<Ruleset>,
    family: Family,
    /// The host's addresses besides loopback.
    addresses: BTreeSet<IpAddr>,
    /// Elements that rules wrote, by map.
    learnt: BTreeMap<Name, BTreeMap<Bytes, Bytes>>,
    /// How many numbers were drawn, and which of them led to nothing: the rule that drew them went no further.
    n_drawn: usize,
    in_vain: BTreeSet<usize>,
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
        Self {
            ruleset: Arc::new(ruleset),
            family,
            addresses: addresses.into_iter().collect(),
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
        let mut drawn: Vec<Drawn> = Vec::new();
        loop {
            let mut n = 0;
            let mut pick = |below: u32| {
                if n == drawn.len() {
                    drawn.push(Drawn { number: 0, below, followed_in_vain: false });
                }
                n += 1;
                drawn[n - 1].number
            };
            let mut tracer = Self { n_drawn: 0, in_vain: BTreeSet::new(), ..self.clone() };
            outcomes.insert(tracer.trace(packet, &mut pick)?);
            let again =
                |(idx, drawn): (usize, &Drawn)| drawn.followed_in_vain && tracer.in_vain.contains(&idx);
            if let Some(idx) = drawn.iter().enumerate().position(again) {
                drawn.truncate(idx + 1);
            }
            // The next numbers in order: the last one that can be raised is, those behind it begin anew.
            while drawn.last().is_some_and(|last| last.number + 1 >= last.below) {
                drawn.pop();
            }
            let Some(last) = drawn.len().checked_sub(1) else { return Ok(outcomes) };
            drawn[last].number += 1;
            drawn[last].followed_in_vain |= tracer.in_vain.contains(&last);
        }
    }

    /// What becomes of a packet; rules may learn from it.
    ///
    /// # Errors
    /// The ruleset can't be followed.
    pub fn trace(&mut self, packet: &Packet, pick: Pick<'_>) -> Result<Outcome, TraceError> {
        let mut state = State::new(packet);
        let hooks: &[Hook] = match packet.origin {
            Origin::Host => &[Hook::Output, Hook::Postrouting],
            Origin::Interface(_) => &[Hook::Prerouting],
        };
        for hook in hooks {
            if let Some(outcome) = self.pass(*hook, &mut state, pick)? {
                return Ok(outcome);
            }
        }
        let is_local = self.is_local(state.packet.destination.ip());
        let hooks: &[Hook] = match (&packet.origin, is_local) {
            (_, true) => &[Hook::Input],
            (Origin::Host, false) => &[],
            (Origin::Interface(_), false) => &[Hook::Forward, Hook::Postrouting],
        };
        for hook in hooks {
            if let Some(outcome) = self.pass(*hook, &mut state, pick)? {
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
        let ruleset = Arc::clone(&self.ruleset);
        let chain = ruleset.chains.get(name).ok_or_else(|| TraceError::Missing(name.clone()))?;
        for rule in &chain.rules {
            let decision = match self.rule(name, rule, state, pick)? {
                Step::Next | Step::Break => continue,
                Step::Verdict(Verdict::Return) => return Ok(Decision::Continue),
                Step::Verdict(Verdict::Goto(to)) => return self.chain(&to, state, pick),
                Step::Verdict(Verdict::Jump(to)) => self.chain(&to, state, pick)?,
                Step::Verdict(Verdict::Accept) => Decision::Accept,
                Step::Verdict(Verdict::Drop) => Decision::Drop,
                Step::Reject => Decision::Reject,
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
    ) -> Result<Step, TraceError> {
        let mut registers = Registers::default();
        let drawn_before = self.n_drawn;
        for expr in rule {
            match self.step(chain, expr, &mut registers, state, pick)? {
                Step::Next => {}
                Step::Break => {
                    self.in_vain.extend(drawn_before..self.n_drawn);
                    return Ok(Step::Break);
                }
                end => return Ok(end),
            }
        }
        Ok(Step::Next)
    }

    fn step(
        &mut self,
        chain: &Name,
        expr: &Expr,
        registers: &mut Registers,
        state: &mut State,
        pick: Pick<'_>,
    ) -> Result<Step, TraceError> {
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
            Expr::Verdict(verdict) => return Ok(Step::Verdict(verdict.clone())),
            Expr::Immediate { dreg, data } => registers.load(*dreg, data),
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let value = registers.bytes(*sreg, mask.len());
                let parts = value.iter().zip(mask.as_slice()).zip(xor.as_slice());
                let result: Vec<u8> = parts.map(|((value, mask), xor)| value & mask ^ xor).collect();
                registers.load(*dreg, &result);
            }
            Expr::Cmp { sreg, op, data } => {
                let equal = registers.bytes(*sreg, data.len()) == *data;
                return Ok(Step::unless_broken(equal == (*op == CmpOp::Eq)));
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
                return self.lookup(set, *sreg, *dreg, *invert, registers);
            }
            Expr::Dynset { set, op, key, data } => return self.dynset(set, *op, *key, *data, registers),
            Expr::Dnat { addr, port, .. } => {
                let port = port.map_or(state.packet.destination.port(), |port| registers.port(port));
                state.packet.destination = (registers.addr(*addr, self.family), port).into();
                state.translated = true;
                return Ok(Step::Verdict(Verdict::Accept));
            }
            Expr::Masquerade { .. } => {
                state.masqueraded = true;
                return Ok(Step::Verdict(Verdict::Accept));
            }
            Expr::Reject { .. } => return Ok(Step::Reject),
            Expr::MetaSet { .. } | Expr::Unknown { .. } => return Err(unknown()),
        }
        Ok(Step::Next)
    }

    fn route_type(&self, addr: IpAddr) -> u32 {
        if self.is_local(addr) { ROUTE_LOCAL } else { ROUTE_UNICAST }
    }

    fn set(&self, name: &Name) -> Result<&SetState, TraceError> {
        self.ruleset.sets.get(name).ok_or_else(|| TraceError::Missing(name.clone()))
    }

    fn lookup(
        &self,
        name: &Name,
        sreg: Register,
        dreg: LookupResult,
        invert: bool,
        registers: &mut Registers,
    ) -> Result<Step, TraceError> {
        let set = self.set(name)?;
        let key = registers.bytes(sreg, set.set.key_bytes(self.family));
        let learnt = self.learnt.get(name).into_iter().flatten();
        let mut learnt = learnt.map(|(known, data)| (known, Data::Value(*data)));
        let written = || set.elements.iter().find(|element| covers(&element.key, &key, self.family));
        let found = learnt
            .find(|(known, _)| covers(known, &key, self.family))
            .or_else(|| written().map(|element| (&element.key, element.data.clone())));
        match (found, dreg) {
            (found, LookupResult::None) => Ok(Step::unless_broken(found.is_some() != invert)),
            (Some((_, Data::Verdict(verdict))), LookupResult::Verdict) => Ok(Step::Verdict(verdict)),
            (Some((_, Data::Value(data))), LookupResult::Data(dreg)) => {
                registers.load(dreg, data.as_slice());
                Ok(Step::Next)
            }
            _ => Ok(Step::Break),
        }
    }

    fn dynset(
        &mut self,
        name: &Name,
        op: DynsetOp,
        key: Register,
        data: Option<Register>,
        registers: &Registers,
    ) -> Result<Step, TraceError> {
        let set = self.set(name)?;
        let too_long = || TraceError::Missing(name.clone());
        let key =
            Bytes::from_slice(&registers.bytes(key, set.set.key_bytes(self.family))).ok_or_else(too_long)?;
        // Every map that rules write has a number as data.
        let data = data.map(|data| Bytes::new().index(registers.number(data))).unwrap_or_default();
        let known = self.learnt.entry(name.clone()).or_default();
        match op {
            DynsetOp::Update { .. } => _ = known.entry(key).or_insert(data),
            DynsetOp::Delete => _ = known.remove(&key),
        }
        Ok(Step::Next)
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
enum Step {
    /// On with the next expression.
    Next,
    /// On with the next rule.
    Break,
    Verdict(Verdict),
    Reject,
}

impl Step {
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
}

impl State {
    fn new(packet: &Packet) -> Self {
        Self {
            packet: packet.clone(),
            hook: Hook::Prerouting,
            mark: 0,
            priority: 0,
            translated: false,
            masqueraded: false,
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
