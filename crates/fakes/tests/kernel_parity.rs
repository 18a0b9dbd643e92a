//! The kernel in memory against the real one: the same transactions are accepted and refused, with the same error
//! numbers, and leave the same ruleset.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use fakes::kernel::FakeKernel;
use lab::Namespace;
use nft::{
    BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Kernel, Name, Op, Rule, Set, SetData,
    Statement, Transaction, Verdict,
};

fn table() -> Name {
    Name::from_static("kube-proxy")
}

fn name(text: &'static str) -> Name {
    Name::from_static(text)
}

fn ports() -> Arc<Set> {
    Arc::new(Set::new(name("ports"), vec![Field::L4Proto, Field::DestPort], SetData::Verdict))
}

fn addresses() -> Arc<Set> {
    Arc::new(Set::new(name("addresses"), vec![Field::DestAddr], SetData::None))
}

fn targets() -> Arc<Set> {
    let data = SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
    Arc::new(Set::new(name("targets"), vec![Field::L4Proto, Field::DestPort], data))
}

fn port_key(port: u16) -> Bytes {
    Bytes::new().proto(6).port(port)
}

fn verdict(port: u16, verdict: Verdict) -> Element {
    Element { key: port_key(port), data: Data::Verdict(verdict), comment: None }
}

fn target(port: u16, last: u8) -> Element {
    let data = Bytes::new().addr([10, 0, 0, last].into()).port(80);
    Element { key: port_key(port), data: Data::Value(data), comment: None }
}

fn chain(text: &'static str) -> Op {
    Op::AddChain { name: name(text), base: None }
}

fn base_chain(text: &'static str, kind: ChainType, hook: Hook, priority: i32) -> Op {
    Op::AddChain { name: name(text), base: Some(BaseChain { kind, hook, priority }) }
}

fn rules(chain: &'static str, rules: Vec<Vec<Statement>>) -> Op {
    Op::SetRules { chain: name(chain), rules: rules.into_iter().map(Rule::new).collect() }
}

fn vmap() -> Statement {
    Statement::Vmap { key: vec![Field::L4Proto, Field::DestPort], map: name("ports") }
}

fn dnat() -> Statement {
    Statement::DnatMap { key: vec![Field::L4Proto, Field::DestPort], map: name("targets") }
}

fn add(set: Arc<Set>, elements: Vec<Element>) -> Op {
    Op::AddElements { set, elements }
}

fn replace(set: Arc<Set>, elements: Vec<Element>) -> Op {
    Op::ReplaceElements { set, elements }
}

fn delete(set: Arc<Set>, elements: Vec<Bytes>) -> Op {
    Op::DeleteElements { set, elements }
}

/// Applies the transactions to both kernels. `refused` has the index of the transaction that is refused, and the error
/// number.
#[track_caller]
fn check(what: &str, transactions: Vec<Vec<Op>>, refused: Option<(usize, i32)>) {
    let namespace = Namespace::new("parity").unwrap();
    let mut real = namespace.run(kernel::Nftables::open).unwrap();
    let mut fake = FakeKernel::new();
    for (idx, ops) in transactions.into_iter().enumerate() {
        let tx = Transaction { family: Family::Ip, table: table(), ops };
        let errno =
            |result: Result<nft::Applied, netlink::NetlinkError>| result.err().map(|error| error.errno());
        let in_real = errno(real.apply(&tx));
        let in_fake = errno(fake.apply(&tx));
        let expected = refused.filter(|(at, _)| *at == idx).map(|(_, errno)| Some(errno));
        assert_eq!(in_real, expected, "{what}: real kernel, transaction {idx}");
        assert_eq!(in_fake, expected, "{what}: kernel in memory, transaction {idx}");
        let read = |kernel: &mut dyn Kernel| kernel.read(Family::Ip, &table()).unwrap().whole().unwrap();
        assert_eq!(read(&mut fake), read(&mut real), "{what}: after transaction {idx}");
    }
}

const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EMLINK: i32 = 31;
const EOPNOTSUPP: i32 = 95;

#[test]
fn tables_and_chains() {
    use Op::{AddTable, DeleteChain, DeleteTable};
    check("twice", vec![vec![AddTable, chain("a")], vec![AddTable, chain("a")]], None);
    check("no table", vec![vec![chain("a")]], Some((0, ENOENT)));
    check("delete no table", vec![vec![DeleteTable]], Some((0, ENOENT)));
    check(
        "delete and write again",
        vec![vec![AddTable, chain("a")], vec![DeleteTable, AddTable, chain("b")]],
        None,
    );
    let counter = Op::DeleteObject(nft::ObjectType(1), name("a"));
    check("delete no counter", vec![vec![AddTable, counter]], Some((0, ENOENT)));
    check("delete no flowtable", vec![vec![AddTable, Op::DeleteFlowtable(name("a"))]], Some((0, ENOENT)));
    check("delete no chain", vec![vec![AddTable, DeleteChain(name("a"))]], Some((0, ENOENT)));
    check("delete chain", vec![vec![AddTable, chain("a")], vec![DeleteChain(name("a"))]], None);
    let jump = || rules("a", vec![vec![Statement::Jump(name("b"))]]);
    check("jump to nowhere", vec![vec![AddTable, chain("a"), jump()]], Some((0, ENOENT)));
    let both = || vec![AddTable, chain("a"), chain("b"), jump()];
    check("delete a chain that is jumped to", vec![both(), vec![DeleteChain(name("b"))]], Some((1, EBUSY)));
    check("delete a chain with rules", vec![both(), vec![DeleteChain(name("a"))]], None);
    check(
        "delete both, from the top",
        vec![both(), vec![DeleteChain(name("a")), DeleteChain(name("b"))]],
        None,
    );
    let back = rules("b", vec![vec![Statement::Jump(name("a"))]]);
    check("loop that no packet enters", vec![both(), vec![back.clone()]], None);
    let enter = || {
        let base = base_chain("base", ChainType::Filter, Hook::Input, 0);
        vec![base, rules("base", vec![vec![Statement::Jump(name("a"))]])]
    };
    check("loop", vec![both(), enter(), vec![back]], Some((2, EMLINK)));
    check(
        "rules of no chain",
        vec![vec![AddTable, rules("a", vec![vec![Statement::Drop]])]],
        Some((0, ENOENT)),
    );
}

#[test]
fn hooks() {
    let setup = |kind, hook, statement: Statement| {
        let base = base_chain("base", kind, hook, -100);
        vec![vec![Op::AddTable, Op::AddSet(targets()), base, rules("base", vec![vec![statement]])]]
    };
    check("dnat in prerouting", setup(ChainType::Nat, Hook::Prerouting, dnat()), None);
    check("dnat in output", setup(ChainType::Nat, Hook::Output, dnat()), None);
    check("dnat in postrouting", setup(ChainType::Nat, Hook::Postrouting, dnat()), Some((0, EOPNOTSUPP)));
    check("dnat in a filter", setup(ChainType::Filter, Hook::Prerouting, dnat()), Some((0, EOPNOTSUPP)));
    let masquerade = || Statement::MasqueradeFullyRandom;
    check("masquerade in postrouting", setup(ChainType::Nat, Hook::Postrouting, masquerade()), None);
    check(
        "masquerade in prerouting",
        setup(ChainType::Nat, Hook::Prerouting, masquerade()),
        Some((0, EOPNOTSUPP)),
    );
    check("reject in forward", setup(ChainType::Filter, Hook::Forward, Statement::Reject), None);
    check(
        "reject in postrouting",
        setup(ChainType::Filter, Hook::Postrouting, Statement::Reject),
        Some((0, EOPNOTSUPP)),
    );
    let base = |hook| base_chain("base", ChainType::Filter, hook, 0);
    check(
        "another hook",
        vec![vec![Op::AddTable, base(Hook::Input)], vec![base(Hook::Output)]],
        Some((1, EOPNOTSUPP)),
    );
    let jump = rules("a", vec![vec![Statement::Jump(name("base"))]]);
    check(
        "jump to a base chain",
        vec![vec![Op::AddTable, base(Hook::Input), chain("a"), jump]],
        Some((0, EOPNOTSUPP)),
    );
}

#[test]
fn sets() {
    use Op::{AddSet, AddTable, DeleteSet};
    let other = Arc::new(Set::new(name("ports"), vec![Field::DestAddr], SetData::None));
    check("another type", vec![vec![AddTable, AddSet(ports())], vec![AddSet(other)]], Some((1, EEXIST)));
    check("the same type", vec![vec![AddTable, AddSet(ports())], vec![AddSet(ports())]], None);
    check("delete no set", vec![vec![AddTable, DeleteSet(name("ports"))]], Some((0, ENOENT)));
    let used = || vec![AddTable, AddSet(ports()), chain("a"), rules("a", vec![vec![vmap()]])];
    check("delete a used set", vec![used(), vec![DeleteSet(name("ports"))]], Some((1, EBUSY)));
    check(
        "rule with no set",
        vec![vec![AddTable, chain("a"), rules("a", vec![vec![vmap()]])]],
        Some((0, ENOENT)),
    );
    check(
        "delete with its user",
        vec![used(), vec![Op::DeleteChain(name("a")), DeleteSet(name("ports"))]],
        None,
    );
}

#[test]
fn elements() {
    let setup = || vec![Op::AddTable, Op::AddSet(targets()), Op::AddSet(addresses())];
    let added = || vec![setup(), vec![add(targets(), vec![target(1, 1), target(2, 2)])]];
    let then = |op: Op| [added(), vec![vec![op]]].concat();
    check("the same again", then(add(targets(), vec![target(1, 1)])), None);
    check("another value", then(add(targets(), vec![target(1, 9)])), Some((2, EEXIST)));
    check("replaced", then(replace(targets(), vec![target(1, 9)])), None);
    check("replaced, not there", then(replace(targets(), vec![target(3, 9)])), Some((2, ENOENT)));
    check("deleted", then(delete(targets(), vec![port_key(1)])), None);
    check("deleted, not there", then(delete(targets(), vec![port_key(3)])), Some((2, ENOENT)));
    let half = then(add(targets(), vec![target(3, 3), target(1, 9)]));
    check("all or nothing", half, Some((2, EEXIST)));
    let missing = vec![vec![Op::AddTable, add(targets(), vec![target(1, 1)])]];
    check("no set", missing, Some((0, ENOENT)));
    let address = Element { key: Bytes::new().addr([10, 0, 0, 1].into()), data: Data::None, comment: None };
    check("set element", then(add(addresses(), vec![address])), None);
}

#[test]
fn verdicts() {
    let setup = |more: Vec<Op>| [vec![Op::AddTable, Op::AddSet(ports()), chain("a")], more].concat();
    let goto = || verdict(1, Verdict::Goto(name("a")));
    check(
        "goto nowhere",
        vec![vec![Op::AddTable, Op::AddSet(ports()), add(ports(), vec![goto()])]],
        Some((0, ENOENT)),
    );
    let used = || setup(vec![add(ports(), vec![goto()])]);
    check(
        "delete a chain that an element goes to",
        vec![used(), vec![Op::DeleteChain(name("a"))]],
        Some((1, EBUSY)),
    );
    let both = vec![delete(ports(), vec![port_key(1)]), Op::DeleteChain(name("a"))];
    check("delete both in one", vec![used(), both], None);
    let moved = vec![
        chain("b"),
        replace(ports(), vec![verdict(1, Verdict::Goto(name("b")))]),
        Op::DeleteChain(name("a")),
    ];
    check("move and delete in one", vec![used(), moved], None);
    let input = base_chain("base", ChainType::Filter, Hook::Input, 0);
    let enter =
        vec![input, rules("base", vec![vec![Statement::Jump(name("a"))]]), rules("a", vec![vec![vmap()]])];
    check("loop through a map", vec![setup(enter), vec![add(ports(), vec![goto()])]], Some((1, EMLINK)));
    let to_drop = replace(ports(), vec![verdict(1, Verdict::Drop)]);
    check("another verdict", vec![used(), vec![to_drop]], None);
    let base = base_chain("base", ChainType::Nat, Hook::Postrouting, 100);
    let nat = vec![
        Op::AddSet(targets()),
        rules("a", vec![vec![dnat()]]),
        base,
        rules("base", vec![vec![vmap()]]),
        add(ports(), vec![goto()]),
    ];
    check("a forbidden expression through a map", vec![setup(nat)], Some((0, EOPNOTSUPP)));
}
