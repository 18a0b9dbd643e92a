//! Namespaces, the `nft` command, and a ruleset that uses everything.

use std::fmt::Write;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use kernel::Nftables;
use nft::{
    AddrField, BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Kernel, Name, Op, Rule,
    Ruleset, Set, SetData, Statement, Transaction, Verdict,
};
use nix::sched::{CloneFlags, unshare};

pub(crate) const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];
pub(crate) const TABLE: &str = "kube-proxy";

/// Runs the closure on a thread in a network namespace that ends with it.
pub(crate) fn in_netns<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need the right to make network namespaces");
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `nft` in the namespace of the calling thread; fails unless it succeeds.
#[track_caller]
pub(crate) fn nft(args: &[&str], input: &str) -> String {
    let (stdout, stderr) = (Stdio::piped(), Stdio::piped());
    let mut command = Command::new("nft");
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(stdout).stderr(stderr).spawn().expect("run nft");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {args:?}: {}: {errors}\n{input}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `ip` for the family.
pub(crate) fn ip(family: Family, args: &str) {
    let version = if family == Family::Ip { "-4" } else { "-6" };
    let status = Command::new("ip").arg(version).args(args.split(' ')).status().expect("run ip");
    assert!(status.success(), "ip {version} {args}");
}

/// Gives the loopback interface an address that packets can be sent to at once.
pub(crate) fn add_address(family: Family, addr: IpAddr) {
    match family {
        Family::Ip => ip(family, &format!("address add {addr} dev lo")),
        Family::Ip6 => {
            ip(family, &format!("address add {addr} dev lo nodad"));
            // The kernel makes this route later (`addrconf_dad_start`), and without it a packet is lost.
            ip(family, &format!("route add local {addr} dev lo"));
        }
    }
}

/// What `nft list ruleset` prints, with the elements of each set sorted.
pub(crate) fn listing() -> String {
    let listed = nft(&["list", "ruleset"], "");
    let mut parts = listed.split("elements = {");
    let mut sorted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (elements, rest) = part.split_once('}').unwrap();
        let mut elements: Vec<_> = elements.split(',').map(str::trim).collect();
        elements.sort_unstable();
        write!(sorted, "elements = {{ {} }}{rest}", elements.join(", ")).unwrap();
    }
    sorted
}

#[track_caller]
pub(crate) fn read(family: Family) -> Ruleset {
    Nftables::open().unwrap().read(family, &TABLE.into()).unwrap().whole().unwrap().expect("the table exists")
}

#[track_caller]
pub(crate) fn apply(tx: &Transaction) {
    Nftables::open().unwrap().apply(tx).unwrap();
}

pub(crate) fn tx(family: Family, ops: Vec<Op>) -> Transaction {
    Transaction { family, table: TABLE.into(), ops }
}

/// The n-th address of a kind.
pub(crate) fn addr(family: Family, n: u32) -> IpAddr {
    match family {
        Family::Ip => IpAddr::from((0x0a60_0000 + n).to_be_bytes()),
        Family::Ip6 => IpAddr::from(((0xfd00_u128 << 112) + u128::from(n)).to_be_bytes()),
    }
}

pub(crate) fn service_key(family: Family, n: u32) -> Bytes {
    Bytes::new().addr(addr(family, n)).proto(6).port(80)
}

pub(crate) fn verdict(key: Bytes, verdict: Verdict) -> Element {
    Element { key, data: Data::Verdict(verdict), comment: None }
}

pub(crate) fn goto(key: Bytes, chain: &str) -> Element {
    verdict(key, Verdict::Goto(chain.into()))
}

/// The declarations, and the same as found in a fixture.
pub(crate) struct Sets {
    pub(crate) services: Arc<Set>,
    pub(crate) node_ports: Arc<Set>,
    pub(crate) endpoints: Arc<Set>,
    pub(crate) hairpin: Arc<Set>,
    pub(crate) node_ips: Arc<Set>,
    pub(crate) protocols: Arc<Set>,
    pub(crate) ports: Arc<Set>,
    pub(crate) priorities: Arc<Set>,
    /// What each client was given, as priority.
    pub(crate) affinity: Arc<Set>,
    /// Priority of the endpoint in a slot.
    pub(crate) affinity_slots: Arc<Set>,
    /// Endpoint of a priority.
    pub(crate) affinity_endpoints: Arc<Set>,
    pub(crate) allowed_sources: Arc<Set>,
    pub(crate) service_cidrs: Arc<Set>,
}

impl Sets {
    pub(crate) fn new() -> Self {
        use Field::{DestAddr, DestPort, L4Proto, NumgenRandom, Priority, SourceAddr};
        let service = [DestAddr, L4Proto, DestPort];
        let with = |field| [service.as_slice(), &[field]].concat();
        let set = |name, key: &[Field], data| Arc::new(Set::new(Name::from_static(name), key.to_vec(), data));
        let endpoint = SetData::Fields(vec![DestAddr, DestPort]);
        let mut hairpin = Set::new("hairpin".into(), vec![SourceAddr, DestAddr], SetData::None);
        hairpin.comment = Some("endpoint to itself".into());
        Self {
            services: set("service-ips", &[DestAddr, L4Proto, DestPort], SetData::Verdict),
            node_ports: set("service-nodeports", &[L4Proto, DestPort], SetData::Verdict),
            endpoints: Arc::new(
                Set::new("endpoints".into(), with(NumgenRandom { modulus: 65536 }), endpoint).counted(),
            ),
            hairpin: Arc::new(hairpin),
            node_ips: set("nodeport-ips", &[DestAddr], SetData::None),
            protocols: set("protocols", &[L4Proto], SetData::Verdict),
            priorities: set("priorities", &[Priority], SetData::Verdict),
            ports: set("ports", &[DestPort], SetData::Fields(vec![DestPort])),
            affinity: Arc::new(Set::learnt("affinity".into(), vec![SourceAddr], vec![Priority], 1000)),
            affinity_slots: set(
                "affinity-slots",
                &with(NumgenRandom { modulus: 65536 }),
                SetData::Fields(vec![Priority]),
            ),
            affinity_endpoints: set(
                "affinity-endpoints",
                &with(Priority),
                SetData::Fields(vec![DestAddr, DestPort]),
            ),
            allowed_sources: Arc::new(Set::networks("allowed-sources".into(), with(SourceAddr))),
            service_cidrs: Arc::new(Set::networks("service-cidrs".into(), vec![DestAddr])),
        }
    }

    pub(crate) fn all(&self) -> [&Arc<Set>; 13] {
        let Self { services, node_ports, endpoints, hairpin, node_ips, protocols, ports, .. } = self;
        let Self {
            affinity,
            affinity_slots,
            affinity_endpoints,
            allowed_sources,
            service_cidrs,
            priorities,
            ..
        } = self;
        [
            services,
            node_ports,
            endpoints,
            hairpin,
            node_ips,
            protocols,
            ports,
            affinity,
            affinity_slots,
            affinity_endpoints,
            allowed_sources,
            service_cidrs,
            priorities,
        ]
    }

    /// Remembers the packet's priority for its client.
    pub(crate) fn learn(&self, timeout_secs: u32) -> Statement {
        let (map, key) = (self.affinity.name.clone(), self.affinity.key.clone());
        Statement::Learn { map, key, data: vec![Field::Priority], timeout_secs }
    }

    /// Likewise forgets it.
    pub(crate) fn forget(&self) -> Statement {
        let (map, key) = (self.affinity.name.clone(), self.affinity.key.clone());
        Statement::Forget { map, key, data: vec![Field::Priority] }
    }
}

fn chain(name: &str, base: Option<BaseChain>, rules: &[Rule]) -> nft::Chain {
    nft::Chain { name: name.into(), base, rules: rules.to_vec() }
}

fn rule(statements: &[Statement]) -> Rule {
    Rule::new(statements.to_vec())
}

fn in_set(set: &Arc<Set>, negate: bool) -> Statement {
    Statement::InSet { key: set.key.clone(), set: set.name.clone(), negate }
}

/// Chains with their rules, of both kinds.
pub(crate) fn chains(family: Family) -> Vec<nft::Chain> {
    let sets = Sets::new();
    let mut chains = plain_chains(family, &sets);
    chains.extend(base_chains(&sets));
    chains
}

fn plain_chains(family: Family, sets: &Sets) -> Vec<nft::Chain> {
    use Statement as S;
    let numgen = Field::NumgenRandom { modulus: 3 };
    let service = sets.services.key.clone();
    let node_port = sets.node_ports.key.clone();
    let dnat_key = [service.as_slice(), &[numgen]].concat();
    let source =
        |negate, n, prefix| S::AddrMatch { field: AddrField::Source, net: (addr(family, n), prefix), negate };
    let dest =
        |prefix| S::AddrMatch { field: AddrField::Dest, net: (addr(family, 0), prefix), negate: false };
    let whole = u8::try_from(family.addr_len() * 8).unwrap();
    let ifname = |name: &str, prefix, negate| S::IfnameMatch { name: name.into(), prefix, negate };
    let vmap = |key: &[Field], map: &Arc<Set>| S::Vmap { key: key.to_vec(), map: map.name.clone() };
    let remembered = S::SetPriority { key: sets.affinity.key.clone(), map: sets.affinity.name.clone() };
    let chosen = S::SetPriority { key: dnat_key.clone(), map: sets.affinity_slots.name.clone() };
    let to_priority =
        S::DnatMap { key: sets.affinity_endpoints.key.clone(), map: sets.affinity_endpoints.name.clone() };
    let commented =
        |statements: &[S]| Rule { statements: statements.to_vec(), comment: Some("why, for people".into()) };
    vec![
        chain("reject-chain", None, &[rule(&[S::Reject])]),
        chain("set-mark", None, &[rule(&[S::SetMarkBit(0x4000)])]),
        chain(
            "service-3-endpoints",
            None,
            &[
                commented(&[source(true, 0, 16), S::Jump("set-mark".into())]),
                rule(&[S::DnatMap { key: dnat_key, map: sets.endpoints.name.clone() }]),
            ],
        ),
        chain(
            "affinity-3-endpoints",
            None,
            &[
                rule(&[remembered.clone(), sets.learn(10_800), to_priority.clone()]),
                rule(&[S::CtStateNew, sets.forget()]),
                rule(&[S::MaskPriority(0x000f_ffff)]),
                rule(&[S::PriorityBitsAre { mask: 0xc000_0000, value: 0 }, chosen.clone(), S::Return]),
                rule(&[S::PriorityBitsAre { mask: 0xc000_0000, value: 0x4000_0000 }, chosen]),
                rule(&[sets.learn(90_061), sets.learn(86_400), to_priority]),
            ],
        ),
        chain(
            "services",
            None,
            &[
                rule(&[vmap(&service, &sets.services)]),
                rule(&[S::DestIsLocal, dest(8), vmap(&node_port, &sets.node_ports)]),
                rule(&[in_set(&sets.node_ips, false), vmap(&node_port, &sets.node_ports)]),
                rule(&[in_set(&sets.node_ips, true), source(false, 7, whole), S::Return]),
                rule(&[source(false, 7, 13), dest(13), S::Return]),
                rule(&[vmap(&[Field::L4Proto], &sets.protocols)]),
                rule(&[vmap(&[Field::PriorityBits { mask: 0x3ff0_0000 }], &sets.priorities)]),
                rule(&[ifname("cni0", false, false), ifname("veth", true, true), S::Accept]),
                rule(&[
                    ifname("abcdefghijklmno", false, true),
                    ifname("abcdefghijklmn", true, false),
                    S::Return,
                ]),
                rule(&[S::L4Proto(17), S::CtStateNew, S::Drop]),
                rule(&[in_set(&sets.service_cidrs, false), S::SourceIsLocal, S::ClearPriority, S::Drop]),
            ],
        ),
    ]
}

fn base_chains(sets: &Sets) -> Vec<nft::Chain> {
    use Statement as S;
    let base = |kind, hook, priority| Some(BaseChain { kind, hook, priority });
    vec![
        chain(
            "nat-prerouting",
            base(ChainType::Nat, Hook::Prerouting, -100),
            &[rule(&[S::CtStateNew, S::Goto("services".into())])],
        ),
        chain("nat-output", base(ChainType::Nat, Hook::Output, -100), &[rule(&[S::Jump("services".into())])]),
        chain(
            "nat-postrouting",
            base(ChainType::Nat, Hook::Postrouting, 100),
            &[
                rule(&[S::MarkBitSet { bit: 0x4000, negate: true }, S::Return]),
                rule(&[
                    S::MarkBitSet { bit: 0x4000, negate: false },
                    S::XorMark(0x4000),
                    S::MasqueradeFullyRandom,
                ]),
                rule(&[S::CtStatusDnat, in_set(&sets.hairpin, false), S::MasqueradeFullyRandom]),
            ],
        ),
        chain(
            "filter-input",
            base(ChainType::Filter, Hook::Input, -110),
            &[rule(&[S::CtStateNew, S::Accept])],
        ),
        chain("filter-forward", base(ChainType::Filter, Hook::Forward, 0), &[]),
        chain("filter-output", base(ChainType::Filter, Hook::Output, -150), &[]),
    ]
}

/// Elements of the fixture, by set.
pub(crate) fn elements(family: Family) -> Vec<(Arc<Set>, Vec<Element>)> {
    let sets = Sets::new();
    let mut first = goto(service_key(family, 1), "service-3-endpoints");
    first.comment = Some("default/web:http".into());
    let whole = u8::try_from(family.addr_len() * 8).unwrap();
    let highest: IpAddr = match family {
        Family::Ip => [255; 4].into(),
        Family::Ip6 => [255; 16].into(),
    };
    let priority = |key, priority| {
        let data = Data::Value(Bytes::new().index(priority));
        Element { key, data, comment: None }
    };
    let endpoint = |n: u32, index| {
        let data = Data::Value(Bytes::new().addr(addr(family, 500 + index % 100)).port(8080));
        Element { key: service_key(family, n).index(index), data, comment: None }
    };
    let plain = |key| Element { key, data: Data::None, comment: None };
    let port = |port| Bytes::new().proto(132).port(port);
    let pair = Bytes::new().addr(addr(family, 500)).addr(addr(family, 500));
    vec![
        (sets.services, vec![first, verdict(service_key(family, 2), Verdict::Drop)]),
        (sets.node_ports, vec![goto(port(30080), "reject-chain"), verdict(port(30081), Verdict::Return)]),
        (sets.endpoints, (0..3).map(|index| endpoint(1, index)).collect()),
        (sets.hairpin, vec![Element { comment: Some("pod".into()), ..plain(pair) }]),
        (sets.node_ips, vec![plain(Bytes::new().addr(addr(family, 9)))]),
        (sets.protocols, vec![verdict(Bytes::new().proto(6), Verdict::Jump("set-mark".into()))]),
        (
            sets.ports,
            vec![Element { data: Data::Value(Bytes::new().port(2)), ..plain(Bytes::new().port(1)) }],
        ),
        (
            sets.affinity_slots,
            vec![
                priority(service_key(family, 1).index(0), 0),
                priority(service_key(family, 1).index(1), u32::MAX),
                priority(service_key(family, 1).index(2), 0x1a2b_0c4d),
            ],
        ),
        (sets.affinity_endpoints, vec![endpoint(1, 0x1a2b_0c4d)]),
        (sets.priorities, vec![goto(Bytes::new().index(0x2000_0000), "set-mark")]),
        (sets.allowed_sources, allowed_sources(family)),
        (
            sets.service_cidrs,
            vec![
                plain(Bytes::new().net(addr(family, 0), whole - 19)),
                Element {
                    comment: Some("next to it".into()),
                    ..plain(Bytes::new().net(addr(family, 0x8_0000), whole))
                },
                plain(Bytes::new().net(highest, 24)),
            ],
        ),
    ]
}

/// Networks next to each other, the same for another service, and all addresses.
fn allowed_sources(family: Family) -> Vec<Element> {
    let whole = u8::try_from(family.addr_len() * 8).unwrap();
    let networks = [
        (1, 0, whole - 19),
        (1, 0x8_0000, whole),
        (1, 0x8_0001, whole),
        (1, 0x10_0000, whole - 7),
        (2, 0x8_0000, whole - 19),
        (3, 0, 0),
    ];
    let key = |(service, n, prefix)| service_key(family, service).net(addr(family, n), prefix);
    let plain = |key| Element { key, data: Data::None, comment: None };
    let mut elements: Vec<_> = networks.map(key).map(plain).into();
    elements[0].comment = Some("office".into());
    elements
}

/// Makes the whole fixture from nothing.
pub(crate) fn fixture(family: Family) -> Transaction {
    let mut ops = vec![Op::AddTable];
    ops.extend(Sets::new().all().map(|set| Op::AddSet(Arc::clone(set))));
    let chains = chains(family);
    ops.extend(chains.iter().map(|chain| Op::AddChain { name: chain.name.clone(), base: chain.base }));
    ops.extend(chains.into_iter().map(|chain| Op::SetRules { chain: chain.name, rules: chain.rules }));
    ops.extend(elements(family).into_iter().map(|(set, elements)| Op::AddElements { set, elements }));
    tx(family, ops)
}

/// Adds an element to either of two sets of the fixture, which had as many of each before.
pub(crate) fn pair(n: u32) -> Transaction {
    let (family, sets) = (Family::Ip, Sets::new());
    let key = Bytes::new().addr(addr(family, n));
    let add =
        |set, key| Op::AddElements { set, elements: vec![Element { key, data: Data::None, comment: None }] };
    tx(family, vec![add(sets.node_ips, key), add(sets.hairpin, key.addr(addr(family, n)))])
}

/// The ruleset that the fixture should read back as.
#[track_caller]
pub(crate) fn assert_is_fixture(ruleset: &Ruleset, family: Family) {
    for (set, mut wanted) in elements(family) {
        let state = &ruleset.sets[&set.name];
        assert!(state.matches(&set), "{state:?}");
        assert_eq!(state.set, *set, "comments too");
        wanted.sort_unstable();
        assert_eq!(state.elements, wanted, "elements of {}", set.name);
    }
    assert_eq!(ruleset.sets.len(), Sets::new().all().len());
    for chain in chains(family) {
        let state = &ruleset.chains[&chain.name];
        let compiled: Vec<_> = chain.rules.iter().map(|rule| rule.compile(family)).collect();
        assert_eq!(state.rules, compiled, "rules of {}", chain.name);
        assert!(state.matches(chain.base.as_ref(), &chain.rules, family), "{}: {state:?}", chain.name);
    }
    assert_eq!(ruleset.chains.len(), chains(family).len());
    assert!(!ruleset.dormant);
}
