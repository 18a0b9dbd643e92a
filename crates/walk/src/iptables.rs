//! What iptables' rules do to the first packet of a flow, worked out from the text that `iptables-save` prints, without a
//! kernel. It knows the matches and targets that a service proxy uses and refuses to guess about others: in a service proxy's own
//! chains (`KUBE-`) they are errors; rules of others in shared chains are passed over, and told.
//!
//! Connection tracking is what a first packet needs: the flow is new, and its destination is translated or not. Time does not
//! pass: clients that a list remembers stay in it.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::vec::IntoIter;

use ipnet::IpNet;
use iptables::{Saved, TableName};

use crate::{Origin, Outcome, Packet, Path, Paths, Step};

/// A host with these tables.
#[derive(Clone, Debug)]
pub struct Tracer {
    tables: Saved,
    /// The host's addresses besides loopback.
    addresses: BTreeSet<IpAddr>,
    /// Lists of clients (`recent`).
    lists: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// A rule can't be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("can't follow {word:?} in the rule {rule:?}")]
pub struct TraceError {
    rule: String,
    word: String,
}

/// How the names of a service proxy's chains begin.
const OWN: &str = "KUBE-";

/// Decides by chance: whether something of this probability happens.
type Chance<'a> = &'a mut dyn FnMut(f64) -> bool;

/// A packet on its way.
struct State<'a> {
    packet: &'a Packet,
    destination: SocketAddr,
    mark: u32,
    hook: &'static str,
    masqueraded: bool,
    /// The rules that matched, if somebody wants to know.
    steps: Option<Vec<Step>>,
    /// Rules of others that can't be followed.
    passed_over: BTreeSet<String>,
}

/// What a chain says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Continue,
    Accept,
    Drop,
    Reject,
}

/// What a rule that matches asks for.
enum Effect {
    Verdict(Verdict),
    Return,
    Jump(String),
}

impl Tracer {
    /// A host with these addresses, besides loopback ones.
    pub fn new(tables: Saved, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { tables, addresses: addresses.into_iter().collect(), lists: BTreeMap::new() }
    }

    /// All that can become of a packet, with the probability of each. Nothing is remembered.
    ///
    /// # Errors
    /// A rule can't be followed.
    pub fn outcomes(&self, packet: &Packet) -> Result<BTreeMap<Outcome, f64>, TraceError> {
        let mut outcomes: BTreeMap<Outcome, f64> = BTreeMap::new();
        Self::each_path(
            usize::MAX,
            |chance| self.clone().trace(packet, chance),
            |outcome, probability| {
                *outcomes.entry(outcome).or_default() += probability;
            },
        )?;
        Ok(outcomes)
    }

    /// The paths that a packet can go, with the rules that match; at most so many. Nothing is remembered.
    ///
    /// # Errors
    /// A rule can't be followed.
    pub fn paths(&self, packet: &Packet, limit: usize) -> Result<Paths, TraceError> {
        let mut paths = Vec::new();
        let mut passed_over = BTreeSet::new();
        let walk = |chance: Chance<'_>| {
            let mut state = State { steps: Some(Vec::new()), ..State::new(packet) };
            let outcome = self.clone().go(&mut state, chance)?;
            Ok((outcome, state.steps.unwrap_or_default(), state.passed_over))
        };
        let complete = Self::each_path(limit, walk, |(outcome, steps, others), probability| {
            paths.push(Path { outcome, steps, probability });
            passed_over.extend(others);
        })?;
        Ok(Paths { paths, complete, passed_over })
    }

    /// Walks with each combination of decisions that chance can take, so often at most; false if there are more.
    fn each_path<T>(
        limit: usize,
        mut walk: impl FnMut(Chance<'_>) -> Result<T, TraceError>,
        mut take: impl FnMut(T, f64),
    ) -> Result<bool, TraceError> {
        let mut decided: Vec<(bool, f64)> = Vec::new();
        for _ in 0..limit {
            let mut n = 0;
            let mut chance = |probability: f64| {
                if n == decided.len() {
                    decided.push((true, probability));
                }
                n += 1;
                decided[n - 1].0
            };
            let walked = walk(&mut chance)?;
            let weight = |(happens, probability): &(bool, f64)| {
                if *happens { *probability } else { 1.0 - probability }
            };
            take(walked, decided.iter().map(weight).product());
            // The last decision that can still be taken otherwise is; those behind it begin anew.
            while decided.last().is_some_and(|(happens, _)| !happens) {
                decided.pop();
            }
            match decided.last_mut() {
                Some((happens, _)) => *happens = false,
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    /// What becomes of a packet; lists of clients are written.
    ///
    /// # Errors
    /// A rule can't be followed.
    pub fn trace(&mut self, packet: &Packet, chance: Chance<'_>) -> Result<Outcome, TraceError> {
        self.go(&mut State::new(packet), chance)
    }

    fn go(&mut self, state: &mut State<'_>, chance: Chance<'_>) -> Result<Outcome, TraceError> {
        let from_host = state.packet.origin == Origin::Host;
        let before: &[_] = if from_host { &["OUTPUT", "POSTROUTING"] } else { &["PREROUTING"] };
        if let Some(outcome) = self.hooks(before, state, chance)? {
            return Ok(outcome);
        }
        let after: &[_] = match (self.is_local(state.destination.ip()), from_host) {
            (true, _) => &["INPUT"],
            (false, true) => &[],
            (false, false) => &["FORWARD", "POSTROUTING"],
        };
        let end = self.hooks(after, state, chance)?;
        Ok(end.unwrap_or(Outcome::Delivered { to: state.destination, masqueraded: state.masqueraded }))
    }

    fn is_local(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.addresses.contains(&addr)
    }

    /// The tables of some hooks, in the kernel's order. `Some` when the packet goes no further.
    fn hooks(
        &mut self,
        hooks: &[&'static str],
        state: &mut State<'_>,
        chance: Chance<'_>,
    ) -> Result<Option<Outcome>, TraceError> {
        for hook in hooks {
            state.hook = hook;
            let tables = match *hook {
                "INPUT" => [TableName::Mangle, TableName::Filter, TableName::Nat],
                _ => [TableName::Mangle, TableName::Nat, TableName::Filter],
            };
            for table in tables {
                match self.chain(table, hook, state, chance)? {
                    Verdict::Continue | Verdict::Accept => {}
                    Verdict::Drop => return Ok(Some(Outcome::Dropped)),
                    Verdict::Reject => return Ok(Some(Outcome::Refused)),
                }
            }
        }
        Ok(None)
    }

    fn chain(
        &mut self,
        table: TableName,
        name: &str,
        state: &mut State<'_>,
        chance: Chance<'_>,
    ) -> Result<Verdict, TraceError> {
        let rules = self.tables.table(table).rules(name).unwrap_or_default().to_vec();
        for rule in rules {
            let effect = match self.effect(table, name, &rule, state, chance) {
                Ok(effect) => effect,
                Err(_of_others) if !name.starts_with(OWN) => {
                    state.passed_over.insert(format!("{name}: {rule}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let verdict = match effect {
                Effect::Verdict(verdict) => verdict,
                Effect::Return => return Ok(Verdict::Continue),
                Effect::Jump(chain) => self.chain(table, &chain, state, chance)?,
            };
            if verdict != Verdict::Continue {
                return Ok(verdict);
            }
        }
        Ok(Verdict::Continue)
    }

    /// What a rule does to the packet, and what it asks for; an error changes nothing.
    fn effect(
        &mut self,
        table: TableName,
        chain: &str,
        rule: &str,
        state: &mut State<'_>,
        chance: Chance<'_>,
    ) -> Result<Effect, TraceError> {
        let Some(target) = self.target(rule, state, chance)? else {
            return Ok(Effect::Verdict(Verdict::Continue));
        };
        let argument = |option: &str| {
            let at = target.iter().position(|word| word == option).unwrap_or(target.len());
            target.get(at + 1).map(String::as_str).ok_or_else(|| unknown(rule, option))
        };
        let (verdict, word) = (Effect::Verdict, target.first().map_or("", String::as_str));
        let effect = match word {
            "" => verdict(Verdict::Continue),
            "RETURN" => Effect::Return,
            "ACCEPT" => verdict(Verdict::Accept),
            "DROP" => verdict(Verdict::Drop),
            "REJECT" => verdict(Verdict::Reject),
            "MARK" => {
                let (xor, mask) = pair(argument("--set-xmark")?).ok_or_else(|| unknown(rule, "MARK"))?;
                state.mark = state.mark & !mask ^ xor;
                verdict(Verdict::Continue)
            }
            "MASQUERADE" => {
                state.masqueraded = true;
                verdict(Verdict::Accept)
            }
            "DNAT" => {
                let to = argument("--to-destination")?;
                state.destination = to.parse().map_err(|_unreadable| unknown(rule, to))?;
                verdict(Verdict::Accept)
            }
            other if self.tables.table(table).rules(other).is_some() => Effect::Jump(other.to_owned()),
            other => return Err(unknown(rule, other)),
        };
        state.note(table, chain, rule);
        Ok(effect)
    }

    /// The words behind `-j` if the packet matches; none if the rule only counts.
    fn target(
        &mut self,
        rule: &str,
        state: &State<'_>,
        chance: Chance<'_>,
    ) -> Result<Option<Vec<String>>, TraceError> {
        let mut words = words(rule).into_iter().peekable();
        let mut module = String::new();
        while let Some(word) = words.next() {
            let (negate, option) = match word.as_str() {
                "!" => (true, words.next().unwrap_or_default()),
                _ => (false, word),
            };
            let mut value = || words.next().unwrap_or_default();
            let holds = match option.as_str() {
                "-j" => return Ok(Some(words.collect())),
                "-m" => {
                    module = value();
                    self.module(&module, rule, &mut words, state, chance)?
                }
                _ => self.matches(&module, &option, &value(), state).ok_or_else(|| unknown(rule, &option))?,
            };
            if holds == negate {
                return Ok(None);
            }
        }
        Ok(Some(Vec::new()))
    }

    /// Whether a match of several options holds for the packet, which takes their words. Of others the options tell.
    fn module(
        &mut self,
        name: &str,
        rule: &str,
        words: &mut Peekable<IntoIter<String>>,
        state: &State<'_>,
        chance: Chance<'_>,
    ) -> Result<bool, TraceError> {
        match name {
            "recent" => {
                let mut options = Vec::new();
                while let Some(word) = words.next_if(|word| word != "-m" && word != "-j") {
                    options.push(word);
                }
                self.recent(rule, &options, state)
            }
            "statistic" => {
                let options: Vec<String> = words.by_ref().take(4).collect();
                let probability = options.get(3).and_then(|text| text.parse().ok());
                Ok(chance(probability.ok_or_else(|| unknown(rule, "statistic"))?))
            }
            _ => Ok(true),
        }
    }

    /// Whether an option of one value holds for the packet; `None` for what is not known.
    fn matches(&self, module: &str, option: &str, value: &str, state: &State<'_>) -> Option<bool> {
        let State { packet, destination, mark, .. } = state;
        let within = |addr: IpAddr| value.parse::<IpNet>().ok().map(|net| net.contains(&addr));
        Some(match (module, option) {
            (_, "-s") => within(packet.source.ip())?,
            (_, "-d") => within(destination.ip())?,
            (_, "-i") => match value.strip_suffix('+') {
                Some(prefix) => interface(state).starts_with(prefix),
                None => interface(state) == value,
            },
            (_, "-p") => packet.protocol == number(value)?,
            ("comment", "--comment") => true,
            ("tcp" | "udp" | "sctp", "--dport") => value.parse() == Ok(destination.port()),
            ("addrtype", "--src-type") if value == "LOCAL" => self.is_local(packet.source.ip()),
            ("addrtype", "--dst-type") if value == "LOCAL" => self.is_local(destination.ip()),
            ("conntrack", "--ctstate") => {
                let is_translated = *destination != packet.destination;
                value.split(',').any(|word| word == "NEW" || word == "DNAT" && is_translated)
            }
            ("mark", "--mark") => {
                let (wanted, mask) = pair(value)?;
                mark & mask == wanted
            }
            _ => return None,
        })
    }

    fn recent(&mut self, rule: &str, options: &[String], state: &State<'_>) -> Result<bool, TraceError> {
        let has = |option: &str| options.iter().any(|word| word == option);
        let at = options.iter().position(|word| word == "--name").unwrap_or(options.len());
        let list = options.get(at + 1).ok_or_else(|| unknown(rule, "--name"))?;
        let list = self.lists.entry(list.clone()).or_default();
        let client = state.packet.source.ip();
        if has("--set") {
            list.insert(client);
            return Ok(true);
        }
        if has("--rcheck") || has("--update") {
            return Ok(list.contains(&client));
        }
        Err(unknown(rule, "recent"))
    }
}

impl<'a> State<'a> {
    fn new(packet: &'a Packet) -> Self {
        let destination = packet.destination;
        let passed_over = BTreeSet::new();
        Self { packet, destination, mark: 0, hook: "", masqueraded: false, steps: None, passed_over }
    }

    /// A rule has matched.
    fn note(&mut self, table: TableName, chain: &str, rule: &str) {
        if let Some(steps) = &mut self.steps {
            let (hook, table) = (self.hook, table.as_str());
            steps.push(Step {
                hook,
                table,
                chain: chain.to_owned(),
                rule: rule.to_owned(),
                found: Vec::new(),
            });
        }
    }
}

/// The interface that the packet arrives on, at the hook where it is.
fn interface<'a>(state: &State<'a>) -> &'a str {
    match (&state.packet.origin, state.hook) {
        (Origin::Host, "INPUT") => "lo",
        (Origin::Interface(name), "PREROUTING" | "INPUT" | "FORWARD") => name,
        _ => "",
    }
}

fn number(protocol: &str) -> Option<u8> {
    protocol.to_uppercase().parse::<model::Protocol>().ok().map(model::Protocol::number)
}

fn unknown(rule: &str, word: &str) -> TraceError {
    TraceError { rule: rule.to_owned(), word: word.to_owned() }
}

/// `0x4000/0x4000`.
fn pair(text: &str) -> Option<(u32, u32)> {
    let (value, mask) = text.split_once('/')?;
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    Some((hex(value)?, hex(mask)?))
}

/// Words, of which those in quotes are one.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in rule.chars().chain([' ']) {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(c),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT: &str = "\
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ
-A POSTROUTING -m set --match-set pools src -j MASQUERADE
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING RULE
COMMIT
";

    fn paths(rule: &str) -> Result<Paths, TraceError> {
        let mut saved = Saved::default();
        saved.read(TableName::Nat, "KUBE-", &NAT.replace("RULE", rule)).unwrap();
        let packet = Packet {
            source: "192.168.50.1:4000".parse().unwrap(),
            destination: "192.168.50.2:80".parse().unwrap(),
            protocol: 6,
            origin: Origin::Host,
        };
        Tracer::new(saved, []).paths(&packet, 10)
    }

    #[test]
    fn rules_of_others_are_passed_over_and_told() {
        let Paths { paths, passed_over, .. } = paths("-j MASQUERADE --random-fully").unwrap();
        assert!(matches!(paths[0].outcome, Outcome::Delivered { masqueraded: true, .. }), "ours is followed");
        let told: Vec<&str> = passed_over.iter().map(String::as_str).collect();
        let others = [
            "POSTROUTING: -m addrtype ! --dst-type LOCAL -j IP-MASQ",
            "POSTROUTING: -m set --match-set pools src -j MASQUERADE",
        ];
        assert_eq!(told, others);
    }

    #[test]
    fn a_rule_of_ours_that_cant_be_followed_is_an_error() {
        for rule in ["-m set --match-set pools src -j MASQUERADE", "-j ELSEWHERE"] {
            assert!(paths(rule).is_err(), "{rule}");
        }
    }
}
