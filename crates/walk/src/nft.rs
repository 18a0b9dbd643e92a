//! What a ruleset does to the first packet of a flow, worked out without a kernel: a small machine for the expressions of
//! [`nft::Expr`], walked through the hooks in the kernel's order.
//!
//! It knows one table and what that table can say ([`Elements`] may be asked of the kernel one by one). Connection tracking is what a first packet needs: the flow is new, and
//! its destination is translated or not. Timeouts of learnt elements do not pass by themselves.

mod balancer;
mod eval;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeBounds;
use std::sync::Arc;

use nft::{BaseChain, Bytes, Element, Family, Hook, Name, Ruleset, Set, Verdict};

use crate::{Origin, Outcome, Packet, Path, Paths};
use balancer::Taken;
pub use balancer::{BALANCER_CHAIN, Balanced, Balancer};
use eval::End;
use state::State;

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
    /// What the load balancer does could not be learnt.
    #[error("look into the load balancer: {why}")]
    Balancer {
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

/// A host with one table.
#[derive(Clone)]
pub struct Tracer {
    ruleset: Arc<Ruleset>,
    elements: Arc<dyn Elements>,
    balancer: Option<Arc<dyn Balancer>>,
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
            balancer: None,
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
        self.each_path(usize::MAX, |tracer, pick| {
            outcomes.insert(tracer.trace(packet, pick)?);
            Ok(())
        })?;
        Ok(outcomes)
    }

    /// The paths that a packet can go, whatever numbers are drawn, with the rules that match; at most so many. What rules learn on
    /// the way is forgotten.
    ///
    /// Numbers that lead to nothing, after which others are drawn, do not count for how probable a path is: what follows is
    /// taken to be as probable as what would have been there.
    ///
    /// # Errors
    /// The ruleset can't be followed.
    pub fn paths(&self, packet: &Packet, limit: usize) -> Result<Paths, TraceError> {
        let mut paths = Vec::new();
        let complete = self.each_path(limit, |tracer, pick| {
            let mut drawn = Vec::new();
            let mut noting = |below: u32| {
                drawn.push(below);
                pick(below)
            };
            let mut state = State { steps: Some(Vec::new()), ..State::new(packet) };
            let outcome = tracer.go(&mut state, &mut noting)?;
            let counted = drawn.iter().enumerate().filter(|(idx, _)| !tracer.in_vain.contains(idx));
            let probability = counted.map(|(_, below)| 1.0 / f64::from((*below).max(1))).product();
            paths.push(Path { outcome, steps: state.steps.unwrap_or_default(), probability });
            Ok(())
        })?;
        let sum: f64 = paths.iter().map(|path| path.probability).sum();
        for path in &mut paths {
            path.probability /= sum;
        }
        Ok(Paths { paths, complete, ..Paths::default() })
    }

    /// Has each combination of numbers that can be drawn walked with, so often at most; false if there are more.
    fn each_path(
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
        let end = match state.packet.origin {
            Origin::Host => self.leave(state, pick)?,
            Origin::Interface(_) => self.arrive(state, pick)?,
        };
        let to = state.packet.destination;
        Ok(end.unwrap_or(Outcome::Delivered { to, masqueraded: state.masqueraded }))
    }

    /// A packet from elsewhere. Here and in what follows, `Some` when it goes no further.
    fn arrive(&mut self, state: &mut State, pick: Pick<'_>) -> Result<Option<Outcome>, TraceError> {
        if let Some(outcome) = self.pass(Hook::Prerouting, state, pick)? {
            return Ok(Some(outcome));
        }
        if self.is_local(state.packet.destination.ip()) {
            return self.come_in(state, pick);
        }
        match self.pass(Hook::Forward, state, pick)? {
            None => self.pass(Hook::Postrouting, state, pick),
            end => Ok(end),
        }
    }

    /// A packet for the host itself, or for the load balancer.
    fn come_in(&mut self, state: &mut State, pick: Pick<'_>) -> Result<Option<Outcome>, TraceError> {
        if let Some(outcome) = self.pass_some(Hook::Input, ..=balancer::IN, state, pick)? {
            return Ok(Some(outcome));
        }
        match self.balance(Hook::Input, state, pick)? {
            Taken::Refused => Ok(Some(Outcome::Refused)),
            Taken::Sent if !self.is_local(state.packet.destination.ip()) => self.send(state, pick),
            Taken::Sent | Taken::No => self.pass_some(Hook::Input, balancer::IN + 1.., state, pick),
        }
    }

    /// A packet of the host itself.
    fn leave(&mut self, state: &mut State, pick: Pick<'_>) -> Result<Option<Outcome>, TraceError> {
        if let Some(outcome) = self.pass_some(Hook::Output, ..balancer::OUT, state, pick)? {
            return Ok(Some(outcome));
        }
        let taken = self.balance(Hook::Output, state, pick)?;
        match taken {
            Taken::Refused => return Ok(Some(Outcome::Refused)),
            Taken::Sent if !self.is_local(state.packet.destination.ip()) => return self.send(state, pick),
            Taken::Sent | Taken::No => {}
        }
        for (hook, from) in [(Hook::Output, balancer::OUT), (Hook::Postrouting, i32::MIN)] {
            if let Some(outcome) = self.pass_some(hook, from.., state, pick)? {
                return Ok(Some(outcome));
            }
        }
        let is_local = self.is_local(state.packet.destination.ip());
        if is_local { self.pass(Hook::Input, state, pick) } else { Ok(None) }
    }

    /// A packet that the load balancer sends on.
    fn send(&mut self, state: &mut State, pick: Pick<'_>) -> Result<Option<Outcome>, TraceError> {
        match self.pass(Hook::Output, state, pick)? {
            None => self.pass(Hook::Postrouting, state, pick),
            end => Ok(end),
        }
    }

    fn is_local(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.addresses.contains(&addr)
    }

    /// The base chains of a hook, in their order. `Some` when the packet goes no further.
    fn pass(&mut self, hook: Hook, state: &mut State, pick: Pick<'_>) -> Result<Option<Outcome>, TraceError> {
        self.pass_some(hook, .., state, pick)
    }

    /// Those of some priorities.
    fn pass_some(
        &mut self,
        hook: Hook,
        priorities: impl RangeBounds<i32>,
        state: &mut State,
        pick: Pick<'_>,
    ) -> Result<Option<Outcome>, TraceError> {
        state.hook = hook;
        let attached = |(name, chain): (&Name, &nft::ChainState)| Some((name.clone(), chain.base?));
        let mut chains: Vec<(Name, BaseChain)> = self.ruleset.chains.iter().filter_map(attached).collect();
        chains.retain(|(_, base)| base.hook == hook && priorities.contains(&base.priority));
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
}

/// A number that was drawn, and below which.
struct Drawn {
    number: u32,
    below: u32,
    /// It, or a smaller one in its place, led to nothing, and all that comes of that was followed.
    followed_in_vain: bool,
}

/// What evaluation of a chain comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Continue,
    Accept,
    Drop,
    Reject,
}
