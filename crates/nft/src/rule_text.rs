//! A rule's expressions, as they are read from the kernel, in nft's words.

use std::net::IpAddr;

use crate::expr::{DynsetOp, LookupResult};
use crate::text::{net, priority, proto, seconds};
use crate::{Bytes, CmpOp, CtKey, Expr, Family, MetaKey, PayloadBase, Register};

/// The rule as nft prints it, without its comment. What this crate does not write is shown as `[name]`.
pub fn rule_text(rule: &[Expr], family: Family) -> String {
    let mut printer = Printer { family, loaded: Default::default(), words: Vec::new() };
    for expr in rule {
        printer.take(expr);
    }
    printer.words.join(" ")
}

/// What the registers hold, in words, and the words so far.
struct Printer {
    family: Family,
    loaded: [Option<Loaded>; 16],
    words: Vec<String>,
}

/// What was loaded into a register.
#[derive(Clone, Debug)]
struct Loaded {
    text: String,
    kind: Kind,
    /// What was done to it since.
    masked: Option<(Bytes, Bytes)>,
}

/// How values of it are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Address,
    Ifname,
    Protocol,
    Mark,
    Priority,
    State,
    Status,
    RouteType,
    Other,
}

impl Printer {
    fn take(&mut self, expr: &Expr) {
        if let Some((dreg, text, kind)) = value(expr, self.family) {
            return self.put(dreg, Loaded { text, kind, masked: None });
        }
        match expr {
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let mut value = self.register(*sreg);
                value.masked = Some((*mask, *xor));
                self.put(*dreg, value);
            }
            Expr::Cmp { sreg, op, data } => {
                let compared = compare(&self.register(*sreg), *op, data);
                self.words.push(compared);
            }
            Expr::MetaSet { key, sreg } => {
                let value = masked_text(&self.register(*sreg));
                self.words.push(format!("{} set {value}", meta(*key).0));
            }
            Expr::Lookup { set, sreg, dreg, invert } => self.lookup(set.as_str(), *sreg, *dreg, *invert),
            Expr::Dynset { set, op, key, data } => {
                let text = self.dynset(set.as_str(), *op, *key, *data);
                self.words.push(text);
            }
            Expr::Dnat { addr, .. } => {
                let text = format!("dnat {} to {}", self.family, self.register(*addr).text);
                self.words.push(text);
            }
            Expr::Verdict(verdict) => self.words.push(verdict.to_string()),
            Expr::Masquerade { flags } => self.words.push(masquerade(*flags).to_owned()),
            Expr::Reject { .. } => self.words.push("reject".to_owned()),
            Expr::Unknown { name, .. } => self.words.push(format!("[{name}]")),
            Expr::Payload { .. }
            | Expr::Meta { .. }
            | Expr::Ct { .. }
            | Expr::FibDestType { .. }
            | Expr::FibSourceType { .. }
            | Expr::NumgenRandom { .. }
            | Expr::Immediate { .. } => {}
        }
    }

    fn put(&mut self, Register(word): Register, value: Loaded) {
        if let Some(place) = self.loaded.get_mut(usize::from(word)) {
            *place = Some(value);
        }
    }

    fn register(&self, Register(word): Register) -> Loaded {
        let loaded = self.loaded.get(usize::from(word)).cloned().flatten();
        loaded.unwrap_or(Loaded { text: format!("[register {word}]"), kind: Kind::Other, masked: None })
    }

    /// Takes what is loaded from a register on as one key: `ip daddr . meta l4proto . th dport`.
    fn key(&mut self, first: Register, end: Option<Register>) -> String {
        let end = end.map_or(self.loaded.len(), |Register(word)| usize::from(word));
        let start = usize::from(first.0).min(end);
        let parts: Vec<String> =
            self.loaded[start..end].iter_mut().filter_map(|slot| Some(masked_text(&slot.take()?))).collect();
        parts.join(" . ")
    }

    fn lookup(&mut self, set: &str, sreg: Register, dreg: LookupResult, invert: bool) {
        let key = self.key(sreg, None);
        match dreg {
            LookupResult::None => {
                let not = if invert { "!= " } else { "" };
                self.words.push(format!("{key} {not}@{set}"));
            }
            LookupResult::Verdict => self.words.push(format!("{key} vmap @{set}")),
            LookupResult::Data(dreg) => {
                let text = format!("{key} map @{set}");
                self.put(dreg, Loaded { text, kind: Kind::Other, masked: None });
            }
        }
    }

    fn dynset(&mut self, set: &str, op: DynsetOp, key: Register, data: Option<Register>) -> String {
        let key = self.key(key, data);
        let data = data.map(|data| format!(" : {}", self.key(data, None))).unwrap_or_default();
        match op {
            DynsetOp::Update { timeout_ms } => {
                let secs = u32::try_from(timeout_ms / 1000).unwrap_or(u32::MAX);
                let timeout = if secs == 0 { String::new() } else { format!(" timeout {}", seconds(secs)) };
                format!("update @{set} {{ {key}{timeout}{data} }}")
            }
            DynsetOp::Delete => format!("delete @{set} {{ {key}{data} }}"),
        }
    }
}

/// What an expression loads into which register, if that is what it does.
fn value(expr: &Expr, family: Family) -> Option<(Register, String, Kind)> {
    Some(match expr {
        Expr::Payload { base, offset, dreg, .. } => {
            let (text, kind) = payload(*base, *offset, family);
            (*dreg, text, kind)
        }
        Expr::Meta { key, dreg } => {
            let (text, kind) = meta(*key);
            (*dreg, text.to_owned(), kind)
        }
        Expr::Ct { key: CtKey::State, dreg } => (*dreg, "ct state".to_owned(), Kind::State),
        Expr::Ct { key: CtKey::Status, dreg } => (*dreg, "ct status".to_owned(), Kind::Status),
        Expr::FibDestType { dreg } => (*dreg, "fib daddr type".to_owned(), Kind::RouteType),
        Expr::FibSourceType { dreg } => (*dreg, "fib saddr type".to_owned(), Kind::RouteType),
        Expr::NumgenRandom { modulus, dreg } => (*dreg, format!("numgen random mod {modulus}"), Kind::Other),
        Expr::Immediate { dreg, data } if data.iter().all(|byte| *byte == 0) => {
            (*dreg, "none".to_owned(), Kind::Other)
        }
        Expr::Immediate { dreg, data } => (*dreg, format!("{:?}", hex(data)), Kind::Other),
        _ => return None,
    })
}

fn masquerade(flags: u32) -> &'static str {
    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
    const FULLY_RANDOM: u32 = 1 << 4;
    if flags & FULLY_RANDOM == 0 { "masquerade" } else { "masquerade fully-random" }
}

fn payload(base: PayloadBase, offset: u32, family: Family) -> (String, Kind) {
    match (base, offset, family) {
        (PayloadBase::Network, 12, Family::Ip) | (PayloadBase::Network, 8, Family::Ip6) => {
            (format!("{family} saddr"), Kind::Address)
        }
        (PayloadBase::Network, 16, Family::Ip) | (PayloadBase::Network, 24, Family::Ip6) => {
            (format!("{family} daddr"), Kind::Address)
        }
        (PayloadBase::Transport, 0, _) => ("th sport".to_owned(), Kind::Other),
        (PayloadBase::Transport, 2, _) => ("th dport".to_owned(), Kind::Other),
        (PayloadBase::Network, offset, _) => (format!("[network header at {offset}]"), Kind::Other),
        (PayloadBase::Transport, offset, _) => (format!("[transport header at {offset}]"), Kind::Other),
    }
}

fn meta(key: MetaKey) -> (&'static str, Kind) {
    match key {
        MetaKey::Priority => ("meta priority", Kind::Priority),
        MetaKey::Mark => ("meta mark", Kind::Mark),
        MetaKey::InputIfname => ("iifname", Kind::Ifname),
        MetaKey::L4Proto => ("meta l4proto", Kind::Protocol),
    }
}

fn compare(value: &Loaded, op: CmpOp, data: &[u8]) -> String {
    let is_zero = data.iter().all(|byte| *byte == 0);
    let not = if op == CmpOp::Neq { "!= " } else { "" };
    match (value.kind, &value.masked) {
        (Kind::State, Some((mask, _))) if is_zero && number(mask.as_slice()) == 8 => {
            "ct state new".to_owned()
        }
        (Kind::Status, Some((mask, _))) if is_zero && number(mask.as_slice()) == 32 => {
            "ct status dnat".to_owned()
        }
        (Kind::Address, masked) => {
            let prefix = masked.map_or(data.len() * 8, |(mask, _)| {
                mask.as_slice().iter().map(|byte| byte.count_ones() as usize).sum()
            });
            format!("{} {not}{}", value.text, network(data, prefix, &value.text))
        }
        (_, Some((mask, _))) => {
            let sign = if op == CmpOp::Neq { "!=" } else { "==" };
            let [mask, data] = [mask.as_slice(), data].map(|bytes| bits(value.kind, number(bytes)));
            format!("{} & {mask} {sign} {data}", value.text)
        }
        (Kind::Ifname, None) => {
            let name = String::from_utf8_lossy(data);
            let rest = if data.len() < 16 { "*" } else { "" };
            format!("{} {not}\"{}{rest}\"", value.text, name.trim_end_matches('\0'))
        }
        (Kind::Protocol, None) => {
            format!("{} {not}{}", value.text, proto(data.first().copied().unwrap_or_default()))
        }
        (Kind::RouteType, None) if number(data) == 2 => format!("{} {not}local", value.text),
        (Kind::Mark, None) => format!("{} {not}{:#010x}", value.text, number(data)),
        (_, None) => format!("{} {not}{}", value.text, hex(data)),
    }
}

/// A value, with what was done to its bits.
fn masked_text(value: &Loaded) -> String {
    let Some((mask, xor)) = &value.masked else { return value.text.clone() };
    let (mask, xor) = (number(mask.as_slice()), number(xor.as_slice()));
    let [mask_text, xor_text] = [mask, xor].map(|number| bits(value.kind, number));
    match mask {
        u32::MAX => format!("{} ^ {xor_text}", value.text),
        mask if mask == !xor => format!("{} | {xor_text}", value.text),
        _ if xor == 0 => format!("{} & {mask_text}", value.text),
        _ => format!("{} & {mask_text} ^ {xor_text}", value.text),
    }
}

/// Bits as nft prints them for what they are of.
fn bits(kind: Kind, number: u32) -> String {
    match kind {
        Kind::Priority => priority(number).to_string(),
        _ => format!("{number:#010x}"),
    }
}

/// The first bytes of an address as a network.
fn network(data: &[u8], prefix: usize, field: &str) -> String {
    let full = |len: usize| {
        let mut bytes = data.to_vec();
        bytes.resize(len, 0);
        bytes
    };
    let addr: Option<IpAddr> = if field.starts_with("ip6") {
        <[u8; 16]>::try_from(full(16)).ok().map(IpAddr::from)
    } else {
        <[u8; 4]>::try_from(full(4)).ok().map(IpAddr::from)
    };
    let prefix = u8::try_from(prefix).unwrap_or(u8::MAX);
    addr.map_or_else(|| hex(data), |addr| net(addr, prefix).to_string())
}

/// A number in host byte order; 0 if it has not four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
