//! Session affinity: clients of a Service come back to the endpoint that they were given.
//!
//! The rules are those that a planner would write; clients, endpoints, virtual address and node address are all on
//! the loopback interface of a namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nft::{
    AddrField, BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Op, Rule, Set, SetData,
    SetKind, Statement, Verdict,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use tokio::time::Instant;

use crate::common::{FAMILIES, add_address, apply, in_netns, ip, nft, read, tx};

/// How long a client is remembered after its last new flow: longer than any test takes.
const TIMEOUT_SECS: u32 = 900;
const ENDPOINTS: u8 = 8;
const CLIENTS: u8 = 12;
const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const ENDPOINT_PORT: u16 = 8080;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Kinds of addresses in the namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Host {
    Client = 1,
    Endpoint = 2,
    Node = 3,
    Service = 96,
}

fn addr(family: Family, host: Host, n: u8) -> IpAddr {
    match family {
        Family::Ip => IpAddr::from([10, host as u8, 0, n]),
        Family::Ip6 => IpAddr::from([0xfd, host as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]),
    }
}

/// A frontend's way: by virtual address, or by node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Service,
    NodePort,
}

impl Target {
    const ALL: [Self; 2] = [Self::Service, Self::NodePort];

    fn address(self, family: Family) -> SocketAddr {
        match self {
            Self::Service => (addr(family, Host::Service, 1), SERVICE_PORT).into(),
            Self::NodePort => (addr(family, Host::Node, 1), NODE_PORT).into(),
        }
    }

    fn frontend(self) -> Vec<Field> {
        match self {
            Self::Service => vec![Field::DestAddr, Field::L4Proto, Field::DestPort],
            Self::NodePort => vec![Field::L4Proto, Field::DestPort],
        }
    }

    fn frontend_key(self, family: Family, proto: u8) -> Bytes {
        let target = self.address(family);
        let key = match self {
            Self::Service => Bytes::new().addr(target.ip()),
            Self::NodePort => Bytes::new(),
        };
        key.proto(proto).port(target.port())
    }

    fn client(self) -> Vec<Field> {
        [vec![Field::SourceAddr], self.frontend()].concat()
    }

    fn name(self, what: &str) -> nft::Name {
        match self {
            Self::Service => format!("service-{what}").into(),
            Self::NodePort => format!("node-port-{what}").into(),
        }
    }

    fn dispatch(self) -> Arc<Set> {
        Arc::new(Set::new(self.name("dispatch"), self.frontend(), SetData::Verdict))
    }

    /// Client and frontend to the endpoint's number, written by the rules.
    fn affinity(self, size: u32) -> Arc<Set> {
        Arc::new(Set::learnt(self.name("affinity"), self.client(), vec![Field::Priority], size))
    }

    /// Frontend and slot to the number of the endpoint in it.
    fn slots(self) -> Arc<Set> {
        let key = [self.frontend(), vec![Field::NumgenRandom { modulus: 65536 }]].concat();
        Arc::new(Set::new(self.name("slots"), key, SetData::Fields(vec![Field::Priority])))
    }

    /// Frontend and number to the endpoint; has only those that serve.
    fn endpoints(self) -> Arc<Set> {
        let key = [self.frontend(), vec![Field::Priority]].concat();
        let data = SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
        Arc::new(Set::new(self.name("endpoints"), key, data))
    }

    /// The chain for frontends with this many endpoints: back to the remembered endpoint if it still serves, else to a
    /// random one, which is remembered if there is room.
    fn chain(self, n_endpoints: usize) -> Op {
        let rules =
            [self.rule_for_known_clients()].into_iter().chain(self.rules_for_new_clients(n_endpoints));
        Op::SetRules { chain: self.name("chain"), rules: rules.collect() }
    }

    fn rule_for_known_clients(self) -> Rule {
        let remembered = Statement::SetPriority { key: self.client(), map: self.name("affinity") };
        Rule::new(vec![remembered, self.learn(), self.dnat()])
    }

    fn rules_for_new_clients(self, n_endpoints: usize) -> [Rule; 4] {
        let modulus = u32::try_from(n_endpoints).unwrap();
        let slot = [self.frontend(), vec![Field::NumgenRandom { modulus }]].concat();
        let forget =
            Statement::Forget { map: self.name("affinity"), key: self.client(), data: vec![Field::Priority] };
        [
            Rule::new(vec![forget]),
            Rule::new(vec![Statement::SetPriority { key: slot, map: self.name("slots") }]),
            Rule::new(vec![self.learn()]),
            Rule::new(vec![self.dnat()]),
        ]
    }

    fn learn(self) -> Statement {
        Statement::Learn {
            map: self.name("affinity"),
            key: self.client(),
            data: vec![Field::Priority],
            timeout_secs: TIMEOUT_SECS,
        }
    }

    fn dnat(self) -> Statement {
        let key = [self.frontend(), vec![Field::Priority]].concat();
        Statement::DnatMap { key, map: self.name("endpoints") }
    }
}

/// A number that an endpoint keeps, whatever slot it is in.
fn number(endpoint: u8) -> u32 {
    0x1a2b_0000 + u32::from(endpoint)
}

fn base_chain(name: &str, kind: ChainType, hook: Hook, priority: i32, rules: Vec<Rule>) -> [Op; 2] {
    let base = Some(BaseChain { kind, hook, priority });
    [Op::AddChain { name: name.into(), base }, Op::SetRules { chain: name.into(), rules }]
}

/// Everything but the elements about endpoints.
fn ruleset(family: Family, size: u32) -> Vec<Op> {
    let mut ops = vec![Op::AddTable];
    for target in Target::ALL {
        let sets = [target.dispatch(), target.affinity(size), target.slots(), target.endpoints()];
        ops.extend(sets.map(Op::AddSet));
        ops.push(Op::AddChain { name: target.name("chain"), base: None });
    }
    let vmap = |target: Target| Statement::Vmap { key: target.frontend(), map: target.name("dispatch") };
    let node = AddrField::Dest;
    let net = (addr(family, Host::Node, 0), 16);
    let rules = vec![
        Rule::new(vec![vmap(Target::Service)]),
        Rule::new(vec![Statement::AddrMatch { field: node, net, negate: false }, vmap(Target::NodePort)]),
    ];
    ops.extend(base_chain("nat-output", ChainType::Nat, Hook::Output, -100, rules));
    let clear = Rule::new(vec![Statement::CtStateNew, Statement::CtStatusDnat, Statement::ClearPriority]);
    ops.extend(base_chain("filter-output", ChainType::Filter, Hook::Output, 0, vec![clear]));
    ops
}

/// Elements and chains that have exactly these endpoints serve, from whatever served before.
fn serve(family: Family, before: &[u8], after: &[u8]) -> Vec<Op> {
    let mut ops = Vec::new();
    for (target, proto) in Target::ALL.into_iter().flat_map(|target| [(target, TCP), (target, UDP)]) {
        let key = target.frontend_key(family, proto);
        let slot_keys = |n| (0..u32::try_from(n).unwrap()).map(move |slot| key.index(slot));
        let data = |endpoint| Bytes::new().addr(addr(family, Host::Endpoint, endpoint)).port(ENDPOINT_PORT);
        let element = |key, data| Element { key, data: Data::Value(data), comment: None };
        let slots = slot_keys(after.len()).zip(after);
        let slots = slots.map(|(key, endpoint)| element(key, Bytes::new().index(number(*endpoint))));
        let numbers = after.iter().map(|endpoint| element(key.index(number(*endpoint)), data(*endpoint)));
        let gone = before.iter().map(|endpoint| key.index(number(*endpoint)));
        let goto = Data::Verdict(Verdict::Goto(target.name("chain")));
        ops.extend([
            Op::DeleteElements { set: target.slots(), elements: slot_keys(before.len()).collect() },
            Op::DeleteElements { set: target.endpoints(), elements: gone.collect() },
            Op::AddElements { set: target.slots(), elements: slots.collect() },
            Op::AddElements { set: target.endpoints(), elements: numbers.collect() },
            target.chain(after.len()),
            Op::AddElements {
                set: target.dispatch(),
                elements: vec![Element { key, data: goto, comment: None }],
            },
        ]);
    }
    ops
}

/// Addresses, and endpoints that answer every flow with their number.
fn start_network(family: Family) {
    ip(family, "link set lo up");
    let hosts = (1..=CLIENTS).map(|n| (Host::Client, n)).chain((1..=ENDPOINTS).map(|n| (Host::Endpoint, n)));
    for (host, n) in hosts.chain([(Host::Node, 1)]) {
        add_address(family, addr(family, host, n));
    }
    ip(family, &format!("route add {} dev lo", addr(family, Host::Service, 1)));
    for n in 1..=ENDPOINTS {
        let at = (addr(family, Host::Endpoint, n), ENDPOINT_PORT);
        let (tcp, udp) = (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
        thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                stream.write_all(&[n]).unwrap();
            }
        });
        thread::spawn(move || {
            while let Ok((_, from)) = udp.recv_from(&mut [0]) {
                udp.send_to(&[n], from).unwrap();
            }
        });
    }
}

/// A new flow of the client; yields the endpoint that answers.
fn ask(family: Family, client: u8, target: Target, proto: u8) -> u8 {
    let from: SocketAddr = (addr(family, Host::Client, client), 0).into();
    let to = target.address(family);
    let mut answer = [0];
    if proto == UDP {
        let socket = UdpSocket::bind(from).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(to).unwrap();
        socket.send(&[0]).unwrap();
        socket.recv(&mut answer).unwrap();
    } else {
        let address_family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(address_family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.read_exact(&mut answer).unwrap();
    }
    answer[0]
}

/// A client, where it goes, and how.
type Flow = (u8, Target, u8);

/// A new flow of every client to everything; yields who answered.
fn ask_all(family: Family) -> BTreeMap<Flow, u8> {
    let ways = Target::ALL.into_iter().flat_map(|target| [(target, TCP), (target, UDP)]);
    let flows = ways.flat_map(|(target, proto)| (1..=CLIENTS).map(move |client| (client, target, proto)));
    flows.map(|flow| (flow, ask(family, flow.0, flow.1, flow.2))).collect()
}

fn everybody() -> Vec<u8> {
    (1..=ENDPOINTS).collect()
}

/// A namespace in which all endpoints serve and `size` clients are remembered.
fn in_network(size: u32, run: impl Fn(Family) + Sync) {
    for family in FAMILIES {
        in_netns(|| {
            start_network(family);
            apply(&tx(family, ruleset(family, size)));
            apply(&tx(family, serve(family, &[], &everybody())));
            run(family);
        });
    }
}

/// The operations with another time for which clients are remembered.
fn remembering(mut ops: Vec<Op>, secs: u32) -> Vec<Op> {
    let rules = ops.iter_mut().filter_map(|op| match op {
        Op::SetRules { rules, .. } => Some(rules),
        _ => None,
    });
    for statement in rules.flatten().flat_map(|rule| &mut rule.statements) {
        if let Statement::Learn { timeout_secs, .. } = statement {
            *timeout_secs = secs;
        }
    }
    ops
}

/// Whether clients came back in time all along, which a busy machine may not let them. Each new flow starts the time anew:
/// together they take longer than clients are remembered.
fn come_back(family: Family, secs: u32) -> bool {
    let limit = Duration::from_secs(secs.into());
    let mut asked = Instant::now();
    let first = ask_all(family);
    let answered: BTreeSet<_> = first.values().collect();
    assert!(answered.len() > usize::from(ENDPOINTS / 2), "{first:?}");
    for _ in 0..3 {
        thread::sleep(limit / 2);
        let began = Instant::now();
        let again = ask_all(family);
        if asked.elapsed() >= limit {
            return false;
        }
        assert_eq!(again, first);
        asked = began;
    }
    thread::sleep(limit + Duration::from_secs(1));
    assert_ne!(ask_all(family), first);
    true
}

#[test]
fn clients_spread_and_come_back_until_they_stay_away() {
    in_network(1000, |family| {
        let seen = [2, 8, 32].into_iter().any(|secs| {
            let served = serve(family, &everybody(), &everybody());
            apply(&tx(family, remembering(served, secs)));
            come_back(family, secs)
        });
        assert!(seen, "too slow a machine to see it");
    });
}

#[test]
fn clients_of_an_endpoint_that_is_gone_get_another_and_the_rest_stay() {
    in_network(1000, |family| {
        let before = ask_all(family);
        let gone = before[&(1, Target::Service, TCP)];
        // The last endpoint takes the slot of the one that is gone: slots move, numbers don't.
        let mut rest = everybody();
        rest.swap_remove(usize::from(gone - 1));
        apply(&tx(family, serve(family, &everybody(), &rest)));
        let after = ask_all(family);
        for (flow, endpoint) in &before {
            if *endpoint == gone {
                assert_ne!(after[flow], gone, "{flow:?}");
            } else {
                assert_eq!(after[flow], *endpoint, "{flow:?}");
            }
        }
        assert_eq!(ask_all(family), after, "the new choice is remembered too");
    });
}

#[test]
fn what_is_remembered_lists_well_and_outlives_a_restart() {
    in_network(1000, |family| {
        let before = ask_all(family);
        let listed = nft(&["list", "ruleset"], "");
        assert!(listed.contains(" timeout 15m expires 1"), "{listed}");
        assert!(listed.contains(" : 1a2b:"), "{listed}");
        for target in Target::ALL {
            let rules = [target.rule_for_known_clients()];
            for rule in rules.into_iter().chain(target.rules_for_new_clients(usize::from(ENDPOINTS))) {
                let text = rule.text(family).to_string();
                assert!(listed.lines().any(|line| line.trim() == text), "{text:?} is not in\n{listed}");
            }
        }
        assert!(nft(&["-j", "list", "ruleset"], "").contains("service-affinity"));
        let found = read(family);
        for target in Target::ALL {
            let state = &found.sets[&target.name("affinity")];
            assert!(state.matches(&target.affinity(1000)), "{state:?}");
            assert!(!state.matches(&target.affinity(1001)));
            assert!(state.elements.is_empty(), "they are nobody's to compare");
        }
        apply(&tx(family, ruleset(family, 1000)));
        assert_eq!(ask_all(family), before);
    });
}

#[test]
fn flows_are_served_also_when_no_more_clients_can_be_remembered() {
    in_network(4, |family| {
        let first = ask_all(family);
        assert_ne!(ask_all(family), first);
        let listed = nft(&["list", "ruleset"], "");
        assert!(listed.contains("size 4"), "{listed}");
        assert_eq!(listed.matches(" expires ").count(), 2 * 4, "{listed}");
    });
}

/// The priority is only a note from one rule to the next: queueing disciplines must not see it.
#[test]
fn the_priority_of_packets_is_cleared() {
    in_network(1000, |family| {
        let hook = "{ type filter hook postrouting priority 200; }";
        let probe = format!(
            "add table {family} probe\n\
             add chain {family} probe every {hook}\n\
             add rule {family} probe every ct state new counter\n\
             add chain {family} probe noted {hook}\n\
             add rule {family} probe noted ct state new meta priority != none counter\n"
        );
        nft(&["-f", "-"], &probe);
        ask_all(family);
        let counted = |chain| nft(&["list", "chain", family.as_str(), "probe", chain], "");
        assert!(!counted("every").contains("packets 0 "), "{}", counted("every"));
        assert!(counted("noted").contains("packets 0 "), "{}", counted("noted"));
    });
}

#[test]
fn a_learnt_map_of_others_is_foreign() {
    let ours = Target::Service.affinity(1000);
    assert_eq!(ours.kind, SetKind::Learnt { size: 1000 });
    for options in [
        "flags dynamic,timeout; size 999",
        "flags timeout; size 1000",
        "flags dynamic,timeout; size 1000; timeout 1h",
        "flags dynamic,timeout",
        "size 1000",
    ] {
        let text = "typeof ip saddr . ip daddr . meta l4proto . th dport : meta priority";
        let state = in_netns(|| {
            let table = crate::common::TABLE;
            let map = format!("add map ip {table} {} {{ {text}; {options}; }}", ours.name);
            nft(&["-f", "-"], &format!("add table ip {table}\n{map}"));
            read(Family::Ip).sets[&ours.name].clone()
        });
        assert!(!state.matches(&ours), "{options}: {state:?}");
    }
}
