//! Tables of iptables-nft, which keeps the same chains and rules in `nf_tables`: a chain is a chain, a match is an
//! expression `match`, a jump is a verdict.

use std::collections::{BTreeMap, BTreeSet};

use netlink::{Attrs, Family, Message, Writer, flag};

use crate::graph::{ChainFacts, removable};
use crate::legacy::is_state_new;
use crate::upstream::{self, Jump, Table};

/// Numbers of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`.
mod number {
    const fn nft(message: u16) -> u16 {
        10 << 8 | message
    }
    pub(super) const SUBSYS: u16 = 10;
    pub(super) const BATCH_BEGIN: u16 = 16;
    pub(super) const BATCH_END: u16 = 17;
    pub(super) const NEW_CHAIN: u16 = nft(3);
    pub(super) const GET_CHAIN: u16 = nft(4);
    pub(super) const DEL_CHAIN: u16 = nft(5);
    pub(super) const NEW_RULE: u16 = nft(6);
    pub(super) const GET_RULE: u16 = nft(7);
    pub(super) const DEL_RULE: u16 = nft(8);

    /// The table of a chain or rule.
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_USE: u16 = 6;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const RULE_USERDATA: u16 = 7;

    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const MATCH_NAME: u16 = 1;
    pub(super) const MATCH_REVISION: u16 = 2;
    pub(super) const MATCH_INFO: u16 = 3;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    /// `NFT_JUMP`
    pub(super) const JUMP: i32 = -3;
}

/// The tables of one family, as far as they concern us, from the answers to [`request_chains`] and [`request_rules`].
#[derive(Clone, Debug)]
pub struct Reader {
    family: Family,
    tables: BTreeMap<Table, BTreeMap<String, Chain>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    is_base: bool,
    /// Its rules and whatever refers to it, as the kernel counts.
    uses: usize,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    handle: u64,
    leads_to: Option<String>,
    is_upstream_jump: bool,
}

/// What to send so that the leftovers of one family go, all at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// A complete batch.
    pub batch: Vec<u8>,
    /// The object of each message of the batch between its framing, for people. The first has sequence number 1.
    pub objects: Vec<String>,
    /// Table and name of the chains that go.
    pub chains: Vec<(Table, String)>,
    /// How many jumps to such chains go.
    pub jumps: usize,
    /// Upstream's chains that stay, because something foreign needs them.
    pub kept: Vec<(Table, String)>,
}

/// Asks for the chains of all tables of a family.
pub fn request_chains(family: Family, seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(number::GET_CHAIN, flag::REQUEST | flag::DUMP, seq, family.nfproto(), 0);
    out.end_message(start);
    out.out
}

/// Asks for the rules of a table.
pub fn request_rules(family: Family, table: Table, seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(number::GET_RULE, flag::REQUEST | flag::DUMP, seq, family.nfproto(), 0);
    out.text(number::TABLE, table.as_str());
    out.end_message(start);
    out.out
}

impl Reader {
    /// Nothing read yet.
    pub fn new(family: Family) -> Self {
        Self { family, tables: BTreeMap::new() }
    }

    /// Takes in a message about a chain or, later, a rule.
    pub fn add(&mut self, message: &Message<'_>) {
        let Some(attrs) = message.attrs().filter(|_| message.family() == Some(self.family.nfproto())) else {
            return;
        };
        match message.kind {
            number::NEW_CHAIN => self.add_chain(&attrs),
            number::NEW_RULE => self.add_rule(&attrs),
            _ => None,
        };
    }

    fn add_chain(&mut self, attrs: &Attrs<'_>) -> Option<()> {
        let table = Table::parse(attrs.text(number::TABLE)?)?;
        let uses = usize::try_from(attrs.u32(number::CHAIN_USE)?).ok()?;
        let is_base = attrs.find(number::CHAIN_HOOK).is_some();
        let name = attrs.text(number::CHAIN_NAME)?.to_owned();
        self.tables.entry(table).or_default().insert(name, Chain { is_base, uses, rules: Vec::new() });
        Some(())
    }

    fn add_rule(&mut self, attrs: &Attrs<'_>) -> Option<()> {
        let table = Table::parse(attrs.text(number::TABLE)?)?;
        let name = attrs.text(number::RULE_CHAIN)?;
        let chain = self.tables.get_mut(&table)?.get_mut(name)?;
        let rule = read_rule(table, name, chain.is_base, attrs)?;
        chain.rules.push(rule);
        Some(())
    }

    /// The tables that have a chain of upstream's, whose rules are to be asked for.
    pub fn tables(&self) -> Vec<Table> {
        let has_upstreams = |(table, chains): &(&Table, &BTreeMap<String, Chain>)| {
            chains.iter().any(|(name, chain)| !chain.is_base && upstream::is_chain(**table, name))
        };
        self.tables.iter().filter(has_upstreams).map(|(table, _)| *table).collect()
    }

    /// What to send. `None` if there is nothing to take out.
    pub fn plan(&self) -> Option<Plan> {
        let mut plan = Plan { batch: vec![], objects: vec![], chains: vec![], jumps: 0, kept: vec![] };
        let mut batch = Batch::new(self.family);
        for table in self.tables() {
            plan_table(table, &self.tables[&table], &mut batch, &mut plan);
        }
        (plan.batch, plan.objects) = batch.finish();
        (!plan.objects.is_empty()).then_some(plan)
    }
}

fn plan_table(table: Table, chains: &BTreeMap<String, Chain>, batch: &mut Batch, plan: &mut Plan) {
    let facts = facts(table, chains);
    let gone: BTreeSet<&str> = removable(&facts);
    for (name, chain) in chains {
        for rule in chain.rules.iter().filter(|rule| rule.is_upstream_jump) {
            batch.delete_rule(table, name, rule.handle);
            plan.jumps += 1;
        }
    }
    // Emptied first, since they refer to one another.
    for name in gone.iter().filter(|name| !chains[**name].rules.is_empty()) {
        batch.flush_chain(table, name);
    }
    for name in &gone {
        batch.delete_chain(table, name);
    }
    let kept = facts.iter().filter(|(name, facts)| facts.is_upstream && !gone.contains(*name));
    plan.kept.extend(kept.map(|(name, _)| (table, (*name).to_owned())));
    plan.chains.extend(gone.into_iter().map(|name| (table, name.to_owned())));
}

fn facts<'a>(table: Table, chains: &'a BTreeMap<String, Chain>) -> BTreeMap<&'a str, ChainFacts<'a>> {
    let mut known_uses: BTreeMap<&str, usize> = BTreeMap::new();
    for rule in chains.values().flat_map(|chain| &chain.rules) {
        if let Some(to) = &rule.leads_to {
            *known_uses.entry(to).or_default() += 1;
        }
    }
    let of_chain = |(name, chain): (&'a String, &'a Chain)| {
        let known = chain.rules.len() + known_uses.get(name.as_str()).copied().unwrap_or_default();
        let staying = chain.rules.iter().filter(|rule| !rule.is_upstream_jump);
        let facts = ChainFacts {
            is_upstream: !chain.is_base && upstream::is_chain(table, name),
            leads_to: staying.filter_map(|rule| rule.leads_to.as_deref()).collect(),
            // Elements of verdict maps refer to chains too, which only the kernel's count tells.
            is_held: chain.uses > known,
        };
        (name.as_str(), facts)
    };
    chains.iter().map(of_chain).collect()
}

// === rules ===

fn read_rule(table: Table, from: &str, in_base_chain: bool, attrs: &Attrs<'_>) -> Option<Rule> {
    let handle = u64::from_be_bytes(attrs.find(number::RULE_HANDLE)?.try_into().ok()?);
    let expressions: Vec<Expression<'_>> = attrs
        .nest(number::RULE_EXPRESSIONS)
        .into_iter()
        .flatten()
        .filter_map(|(_, bytes)| read_expression(&Attrs::new(bytes)))
        .collect();
    let verdict = expressions.iter().find_map(|expression| match expression {
        Expression::Verdict { to, is_jump } => Some((*to, *is_jump)),
        _ => None,
    });
    let is_upstream_jump = in_base_chain
        && verdict.is_some_and(|(to, is_jump)| {
            let jump = plain_jump(from, to, &expressions, attrs.find(number::RULE_USERDATA));
            is_jump && jump.is_some_and(|jump| upstream::is_jump(table, &jump))
        });
    Some(Rule { handle, leads_to: verdict.map(|(to, _)| to.to_owned()), is_upstream_jump })
}

/// An expression, as far as it can be in a jump of upstream's.
enum Expression<'a> {
    Comment(&'a str),
    StateNew,
    Counter,
    Verdict { to: &'a str, is_jump: bool },
    Other,
}

fn read_expression<'a>(attrs: &Attrs<'a>) -> Option<Expression<'a>> {
    let data = attrs.nest(number::EXPR_DATA);
    let known = match (attrs.text(number::EXPR_NAME)?, data) {
        ("counter", _) => Some(Expression::Counter),
        ("match", Some(data)) => read_match(&data),
        ("immediate", Some(data)) => read_verdict(&data),
        _ => None,
    };
    Some(known.unwrap_or(Expression::Other))
}

fn read_match<'a>(data: &Attrs<'a>) -> Option<Expression<'a>> {
    let info = data.find(number::MATCH_INFO)?;
    let revision = u8::try_from(data.u32(number::MATCH_REVISION)?).ok()?;
    match data.text(number::MATCH_NAME)? {
        "comment" => netlink::text(info).map(Expression::Comment),
        "conntrack" => is_state_new(revision, info).then_some(Expression::StateNew),
        _ => None,
    }
}

fn read_verdict<'a>(data: &Attrs<'a>) -> Option<Expression<'a>> {
    let verdict = data.nest(number::IMMEDIATE_DATA)?.nest(number::DATA_VERDICT)?;
    let to = verdict.text(number::VERDICT_CHAIN)?;
    let is_jump = verdict.u32(number::VERDICT_CODE)?.cast_signed() == number::JUMP;
    Some(Expression::Verdict { to, is_jump })
}

fn plain_jump<'a>(
    from: &'a str,
    to: &'a str,
    expressions: &[Expression<'a>],
    userdata: Option<&'a [u8]>,
) -> Option<Jump<'a>> {
    let (mut comment, mut only_new) = (userdata.and_then(userdata_comment), false);
    for expression in expressions {
        match expression {
            Expression::Comment(text) if comment.is_none() => comment = Some(text),
            Expression::StateNew if !only_new => only_new = true,
            Expression::Counter | Expression::Verdict { .. } => {}
            Expression::Comment(_) | Expression::StateNew | Expression::Other => return None,
        }
    }
    Some(Jump { from, to, comment: comment?, only_new })
}

/// Where some versions of iptables-nft keep a comment: the first of type-length-value triples with type 0
/// (`NFTNL_UDATA_RULE_COMMENT` of libnftnl).
fn userdata_comment(userdata: &[u8]) -> Option<&str> {
    let mut rest = userdata;
    while let [kind, len, tail @ ..] = rest {
        let (value, next) = tail.split_at_checked(usize::from(*len))?;
        if *kind == 0 {
            return netlink::text(value);
        }
        rest = next;
    }
    None
}

// === the batch ===

struct Batch {
    family: Family,
    out: Writer,
    objects: Vec<String>,
    last: usize,
}

impl Batch {
    fn new(family: Family) -> Self {
        let mut out = Writer::default();
        let start = out.begin_message(number::BATCH_BEGIN, flag::REQUEST, 0, 0, number::SUBSYS);
        out.end_message(start);
        Self { family, out, objects: Vec::new(), last: 0 }
    }

    fn delete_rule(&mut self, table: Table, chain: &str, handle: u64) {
        let object = format!("rule {handle} of chain {chain} of table {} {table}", self.family);
        self.put(number::DEL_RULE, table, object, |out| {
            out.text(number::RULE_CHAIN, chain);
            out.bytes(number::RULE_HANDLE, &handle.to_be_bytes());
        });
    }

    fn flush_chain(&mut self, table: Table, chain: &str) {
        let object = format!("rules of chain {chain} of table {} {table}", self.family);
        self.put(number::DEL_RULE, table, object, |out| out.text(number::RULE_CHAIN, chain));
    }

    fn delete_chain(&mut self, table: Table, chain: &str) {
        let object = format!("chain {chain} of table {} {table}", self.family);
        self.put(number::DEL_CHAIN, table, object, |out| out.text(number::CHAIN_NAME, chain));
    }

    fn put(&mut self, kind: u16, table: Table, object: String, write: impl FnOnce(&mut Writer)) {
        self.objects.push(object);
        let seq = self.seq();
        self.last = self.out.begin_message(kind, flag::REQUEST, seq, self.family.nfproto(), 0);
        self.out.text(number::TABLE, table.as_str());
        write(&mut self.out);
        self.out.end_message(self.last);
    }

    fn seq(&self) -> u32 {
        u32::try_from(self.objects.len()).unwrap_or(u32::MAX)
    }

    /// Asks for an acknowledgement of the last message, and closes the batch.
    fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        self.out.add_flags(self.last, flag::ACK);
        let seq = self.seq() + 1;
        let start = self.out.begin_message(number::BATCH_END, flag::REQUEST, seq, 0, number::SUBSYS);
        self.out.end_message(start);
        (self.out.out, self.objects)
    }
}
