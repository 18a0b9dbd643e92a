//! The text form, as `nft list ruleset` prints it and `nft -f -` reads it.

use std::fmt::{self, Display, Formatter, Write};
use std::net::IpAddr;

use crate::bytes::{addr_bits, network};
use crate::rule_text::rule_text;
use crate::statement::AddrField;
use crate::{
    BaseChain, Bytes, Data, Element, Family, Field, Hook, Op, Reader, Rule, Set, SetData, SetKind, Statement,
    Transaction, Verdict,
};

impl Display for Transaction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| write_op(f, self, op))
    }
}

/// One line for each command, elements one to a line.
fn write_op(f: &mut Formatter<'_>, tx: &Transaction, op: &Op) -> fmt::Result {
    let (family, table) = (tx.family, &tx.table);
    match op {
        Op::AddTable => writeln!(f, "add table {family} {table}"),
        Op::DeleteTable => writeln!(f, "delete table {family} {table}"),
        Op::AddSet(set) => {
            writeln!(
                f,
                "add {} {family} {table} {} {{ {}}}",
                set.keyword(),
                set.name,
                declaration(set, family)
            )
        }
        Op::DeleteSet(name) => writeln!(f, "delete set {family} {table} {name}"),
        Op::AddChain { name, base: None } => writeln!(f, "add chain {family} {table} {name}"),
        Op::AddChain { name, base: Some(base) } => {
            writeln!(f, "add chain {family} {table} {name} {{ {base} policy accept; }}")
        }
        Op::DeleteChain(name) => writeln!(f, "delete chain {family} {table} {name}"),
        Op::DeleteObject(kind, name) => writeln!(f, "delete {kind} {family} {table} {name}"),
        Op::DeleteFlowtable(name) => writeln!(f, "delete flowtable {family} {table} {name}"),
        Op::SetRules { chain, rules } => {
            writeln!(f, "flush chain {family} {table} {chain}")?;
            rules
                .iter()
                .try_for_each(|rule| writeln!(f, "add rule {family} {table} {chain} {}", rule.text(family)))
        }
        Op::CopyRules { chain, rules } => {
            writeln!(f, "flush chain {family} {table} {chain}")?;
            rules.iter().try_for_each(|rule| {
                writeln!(f, "add rule {family} {table} {chain} {}", rule_text(rule, family))
            })
        }
        Op::AddElements { set, elements } => write_elements(f, tx, "add", set, elements, Part::Whole),
        Op::ReplaceElements { set, elements } => {
            write_elements(f, tx, "delete", set, elements, Part::Key)?;
            write_elements(f, tx, "add", set, elements, Part::Whole)
        }
        Op::DeleteElements { set, elements } => {
            write_list(f, tx, "delete", set, elements, |f, key| write!(f, "{}", set.key_text(key, family)))
        }
    }
}

/// How much of an element a command needs.
#[derive(Clone, Copy)]
enum Part {
    Key,
    Whole,
}

fn write_elements(
    f: &mut Formatter<'_>,
    tx: &Transaction,
    verb: &str,
    set: &Set,
    elements: &[Element],
    part: Part,
) -> fmt::Result {
    write_list(f, tx, verb, set, elements, |f, element| match part {
        Part::Key => write!(f, "{}", set.key_text(&element.key, tx.family)),
        Part::Whole => write!(f, "{}", set.element_text(element, tx.family)),
    })
}

/// nft has no text for a list of no elements, so there is none.
fn write_list<T>(
    f: &mut Formatter<'_>,
    tx: &Transaction,
    verb: &str,
    set: &Set,
    items: &[T],
    write_item: impl Fn(&mut Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(f, "{verb} element {} {} {} {{", tx.family, tx.table, set.name)?;
    for item in items {
        f.write_char('\t')?;
        write_item(f, item)?;
        f.write_str(",\n")?;
    }
    f.write_str("}\n")
}

fn declaration(set: &Set, family: Family) -> impl Display {
    fmt::from_fn(move |f| {
        write!(f, "typeof {}", fields(&set.key, family))?;
        match &set.data {
            SetData::None => {}
            SetData::Verdict => f.write_str(" : verdict")?,
            SetData::Fields(data) => write!(f, " : {}", fields(data, family))?,
        }
        f.write_str("; ")?;
        match set.kind {
            SetKind::Exact => {}
            SetKind::Networks => f.write_str("flags interval; ")?,
            SetKind::Learnt { size } => write!(f, "size {size}; flags dynamic,timeout; ")?,
            SetKind::Leased { timeout_secs } => write!(f, "flags timeout; timeout {timeout_secs}s; ")?,
        }
        if set.is_counted {
            f.write_str("counter; ")?;
        }
        match &set.comment {
            Some(comment) => write!(f, "comment {}; ", quoted(comment)),
            None => Ok(()),
        }
    })
}

impl Set {
    /// A key of the set as nft prints it: `10.96.0.10 . tcp . 80`. Bytes that don't fit the set are shown in hex.
    pub fn key_text(&self, key: &Bytes, family: Family) -> impl Display {
        values(&self.key, key, family)
    }

    /// An element of the set as nft prints it: `10.96.0.10 . tcp . 80 comment "default/web" : goto chain`.
    pub fn element_text(&self, element: &Element, family: Family) -> impl Display {
        fmt::from_fn(move |f| {
            write!(f, "{}", self.key_text(&element.key, family))?;
            if let Some(comment) = &element.comment {
                write!(f, " comment {}", quoted(comment))?;
            }
            match (&element.data, &self.data) {
                (Data::None, _) => Ok(()),
                (Data::Verdict(verdict), _) => write!(f, " : {verdict}"),
                (Data::Value(value), SetData::Fields(data)) => {
                    write!(f, " : {}", values(data, value, family))
                }
                (Data::Value(value), _) => write!(f, " : {value:?}"),
            }
        })
    }
}

impl Field {
    /// nft's expression for the field.
    pub fn text(self, family: Family) -> impl Display {
        fmt::from_fn(move |f| match self {
            Self::SourceAddr => write!(f, "{family} saddr"),
            Self::DestAddr => write!(f, "{family} daddr"),
            Self::L4Proto => f.write_str("meta l4proto"),
            Self::DestPort => f.write_str("th dport"),
            Self::NumgenRandom { modulus } => write!(f, "numgen random mod {modulus}"),
            Self::Priority => f.write_str("meta priority"),
            Self::PriorityBits { mask } => write!(f, "meta priority & {}", priority(mask)),
        })
    }
}

fn fields(fields: &[Field], family: Family) -> impl Display {
    fmt::from_fn(move |f| {
        for (i, field) in fields.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { " . " } else { "" }, field.text(family))?;
        }
        Ok(())
    })
}

/// An empty key is the catch-all element.
fn values(fields: &[Field], bytes: &Bytes, family: Family) -> impl Display {
    fmt::from_fn(move |f| {
        if bytes.is_empty() {
            return f.write_char('*');
        }
        let mut text = String::new();
        let mut reader = bytes.reader();
        for (i, field) in fields.iter().enumerate() {
            text.push_str(if i > 0 { " . " } else { "" });
            if write_value(&mut text, *field, &mut reader, family).is_none() {
                return write!(f, "{bytes:?}");
            }
        }
        if reader.is_empty() { f.write_str(&text) } else { write!(f, "{bytes:?}") }
    })
}

fn write_value(out: &mut String, field: Field, reader: &mut Reader<'_>, family: Family) -> Option<()> {
    match field {
        Field::SourceAddr | Field::DestAddr => {
            let (addr, prefix) = reader.net(family)?;
            write!(out, "{}", net(addr, prefix))
        }
        Field::L4Proto => write!(out, "{}", proto(reader.proto()?)),
        Field::DestPort => write!(out, "{}", reader.port()?),
        Field::NumgenRandom { .. } => write!(out, "{}", reader.index()?),
        Field::Priority | Field::PriorityBits { .. } => write!(out, "{}", priority(reader.index()?)),
    }
    .ok()
}

/// nft prints priorities as handles of traffic classes, and has names for two of them.
pub(crate) fn priority(number: u32) -> impl Display {
    fmt::from_fn(move |f| match number {
        0 => f.write_str("none"),
        u32::MAX => f.write_str("root"),
        _ => write!(f, "{:x}:{:x}", number >> 16, number & 0xffff),
    })
}

/// A network, or the address alone if the prefix is all of it.
pub(crate) fn net(addr: IpAddr, prefix: u8) -> impl Display {
    fmt::from_fn(move |f| {
        write!(f, "{}", network(addr, prefix))?;
        if prefix < addr_bits(Family::of(addr)) { write!(f, "/{prefix}") } else { Ok(()) }
    })
}

/// A time as nft prints it: `1d2h3m4s`, without the parts that are 0.
pub(crate) fn seconds(secs: u32) -> impl Display {
    let parts = [(secs / 86_400, 'd'), (secs / 3600 % 24, 'h'), (secs / 60 % 60, 'm'), (secs % 60, 's')];
    fmt::from_fn(move |f| {
        parts.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    })
}

/// The names that nft prints for the protocols of Services; it reads numbers too.
pub(crate) fn proto(number: u8) -> impl Display {
    fmt::from_fn(move |f| match number {
        6 => f.write_str("tcp"),
        17 => f.write_str("udp"),
        132 => f.write_str("sctp"),
        other => write!(f, "{other}"),
    })
}

/// nft knows no way to write a quote, so it becomes an apostrophe, and control characters become spaces.
fn quoted(text: &str) -> impl Display {
    fmt::from_fn(move |f| {
        f.write_char('"')?;
        for c in text.chars() {
            f.write_char(match c {
                '"' => '\'',
                c if c.is_control() => ' ',
                c => c,
            })?;
        }
        f.write_char('"')
    })
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
        }
    }
}

impl Display for BaseChain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "type {} hook {} priority ", self.kind.as_str(), self.hook.as_str())?;
        // The names that nft 1.0.6 knows at this hook.
        match (self.priority, self.hook) {
            (-300, _) => f.write_str("raw")?,
            (-150, _) => f.write_str("mangle")?,
            (-100, Hook::Prerouting) => f.write_str("dstnat")?,
            (0, _) => f.write_str("filter")?,
            (50, _) => f.write_str("security")?,
            (100, Hook::Postrouting) => f.write_str("srcnat")?,
            (other, _) => write!(f, "{other}")?,
        }
        f.write_char(';')
    }
}

impl Rule {
    /// The rule as nft prints it.
    pub fn text(&self, family: Family) -> impl Display {
        fmt::from_fn(move |f| {
            for (i, statement) in self.statements.iter().enumerate() {
                write!(f, "{}{}", if i > 0 { " " } else { "" }, statement.text(family))?;
            }
            match &self.comment {
                Some(comment) => write!(f, " comment {}", quoted(comment)),
                None => Ok(()),
            }
        })
    }
}

impl Statement {
    /// The statement as nft prints it.
    pub fn text(&self, family: Family) -> impl Display {
        fmt::from_fn(move |f| match self {
            Self::Vmap { key, map } => write!(f, "{} vmap @{map}", fields(key, family)),
            Self::InSet { key, set, negate } => write!(f, "{} {}@{set}", fields(key, family), not(*negate)),
            Self::AddrMatch { field, net: (addr, prefix), negate } => {
                let field = match field {
                    AddrField::Source => Field::SourceAddr,
                    AddrField::Dest => Field::DestAddr,
                };
                write!(f, "{} {}{}", field.text(family), not(*negate), net(*addr, *prefix))
            }
            Self::IfnameMatch { name, prefix, negate } => {
                write!(f, "iifname {}\"{name}{}\"", not(*negate), if *prefix { "*" } else { "" })
            }
            Self::L4Proto(number) => write!(f, "meta l4proto {}", proto(*number)),
            Self::DestIsLocal => f.write_str("fib daddr type local"),
            Self::SourceIsLocal => f.write_str("fib saddr type local"),
            Self::CtStateNew => f.write_str("ct state new"),
            Self::CtStatusDnat => f.write_str("ct status dnat"),
            Self::MarkBitSet { bit, negate } => {
                write!(f, "meta mark & {bit:#010x} {} 0x00000000", if *negate { "==" } else { "!=" })
            }
            Self::SetMarkBit(mask) => write!(f, "meta mark set meta mark | {mask:#010x}"),
            Self::XorMark(mask) => write!(f, "meta mark set meta mark ^ {mask:#010x}"),
            Self::DnatMap { key, map } => write!(f, "dnat {family} to {} map @{map}", fields(key, family)),
            Self::SetPriority { key, map } => {
                write!(f, "meta priority set {} map @{map}", fields(key, family))
            }
            Self::MaskPriority(mask) => write!(f, "meta priority set meta priority & {}", priority(*mask)),
            Self::PriorityBitsAre { mask, value } => {
                write!(f, "meta priority & {} == {}", priority(*mask), priority(*value))
            }
            Self::ClearPriority => f.write_str("meta priority set none"),
            Self::Learn { map, key, data, timeout_secs } => {
                let (key, data) = (fields(key, family), fields(data, family));
                write!(f, "update @{map} {{ {key} timeout {} : {data} }}", seconds(*timeout_secs))
            }
            Self::Forget { map, key, data } => {
                write!(f, "delete @{map} {{ {} : {} }}", fields(key, family), fields(data, family))
            }
            Self::MasqueradeFullyRandom => f.write_str("masquerade fully-random"),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::Accept => f.write_str("accept"),
            Self::Return => f.write_str("return"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
        })
    }
}

const fn not(negate: bool) -> &'static str {
    if negate { "!= " } else { "" }
}
