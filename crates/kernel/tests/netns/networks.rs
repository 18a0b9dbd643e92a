//! Sets of networks: who may send to what, and what belongs to a range.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use kernel::Nftables;
use netlink::NetlinkError;
use nft::{
    BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Kernel, Op, Rule, Set, SetData,
    Statement,
};

use crate::common::{FAMILIES, TABLE, add_address, addr, apply, in_netns, ip, listing, nft, read, tx};

const UDP: u8 = 17;
const PORT: u16 = 80;
/// Addresses of the n-th kind are `addr(family, n * BLOCK + ...)`, and a block is a network of its own.
const BLOCK: u32 = 0x1_0000;
const BLOCK_BITS: u8 = 16;

fn frontend() -> Vec<Field> {
    vec![Field::DestAddr, Field::L4Proto, Field::DestPort]
}

/// Frontends with a list of sources.
fn restricted() -> Arc<Set> {
    Arc::new(Set::new("restricted".into(), frontend(), SetData::None))
}

/// The sources in those lists.
fn allowed() -> Arc<Set> {
    let key = [frontend(), vec![Field::SourceAddr]].concat();
    Arc::new(Set::networks("allowed-sources".into(), key))
}

fn cidrs() -> Arc<Set> {
    Arc::new(Set::networks("service-cidrs".into(), vec![Field::DestAddr]))
}

fn plain(key: Bytes) -> Element {
    Element { key, data: Data::None, comment: None }
}

fn frontend_key(family: Family, n: u32) -> Bytes {
    Bytes::new().addr(addr(family, n)).proto(UDP).port(PORT)
}

fn prefix(family: Family, host_bits: u8) -> u8 {
    u8::try_from(family.addr_len() * 8).unwrap() - host_bits
}

/// The network of 2^`host_bits` addresses that has the n-th address.
fn net(family: Family, n: u32, host_bits: u8) -> Bytes {
    Bytes::new().net(addr(family, n), prefix(family, host_bits))
}

fn source(family: Family, service: u32, n: u32, host_bits: u8) -> Bytes {
    frontend_key(family, service).net(addr(family, n), prefix(family, host_bits))
}

fn rules() -> Vec<Rule> {
    let in_set =
        |set: &Arc<Set>, negate| Statement::InSet { key: set.key.clone(), set: set.name.clone(), negate };
    vec![
        Rule::new(vec![
            Statement::CtStateNew,
            in_set(&restricted(), false),
            in_set(&allowed(), true),
            Statement::Drop,
        ]),
        Rule::new(vec![in_set(&cidrs(), false), Statement::Drop]),
    ]
}

fn ruleset() -> Vec<Op> {
    let base = BaseChain { kind: ChainType::Filter, hook: Hook::Output, priority: -110 };
    let chain = "filter-output-pre-dnat";
    let mut ops = vec![Op::AddTable];
    ops.extend([restricted(), allowed(), cidrs()].map(Op::AddSet));
    ops.push(Op::AddChain { name: chain.into(), base: Some(base) });
    ops.push(Op::SetRules { chain: chain.into(), rules: rules() });
    ops
}

fn add(set: Arc<Set>, keys: &[Bytes]) -> Op {
    Op::AddElements { set, elements: keys.iter().copied().map(plain).collect() }
}

/// Whether a datagram leaves: the kernel tells a sender in the same host that it was dropped.
fn passes(from: IpAddr, to: IpAddr) -> bool {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    match socket.send_to(&[0], (to, PORT)) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            false
        }
    }
}

fn start_network(family: Family, hosts: &[u32]) {
    ip(family, "link set lo up");
    for host in hosts {
        add_address(family, addr(family, *host));
    }
}

#[test]
fn only_sources_in_the_list_of_a_frontend_reach_it() {
    const OPEN: u32 = 1;
    const LISTED: u32 = 2;
    const CLOSED: u32 = 3;
    const IN_BLOCK: u32 = BLOCK + 77;
    const SINGLE: u32 = 2 * BLOCK + 1;
    const NEXT_TO_SINGLE: u32 = 2 * BLOCK + 2;
    for family in FAMILIES {
        in_netns(|| {
            start_network(family, &[OPEN, LISTED, CLOSED, IN_BLOCK, SINGLE, NEXT_TO_SINGLE]);
            let mut ops = ruleset();
            ops.push(add(restricted(), &[frontend_key(family, LISTED), frontend_key(family, CLOSED)]));
            ops.push(add(
                allowed(),
                &[source(family, LISTED, BLOCK, BLOCK_BITS), source(family, LISTED, SINGLE, 0)],
            ));
            apply(&tx(family, ops));
            let reached = |to| {
                [IN_BLOCK, SINGLE, NEXT_TO_SINGLE].map(|from| passes(addr(family, from), addr(family, to)))
            };
            assert_eq!(reached(OPEN), [true, true, true]);
            assert_eq!(reached(LISTED), [true, true, false]);
            assert_eq!(reached(CLOSED), [false, false, false]);
            let delete = Op::DeleteElements {
                set: allowed(),
                elements: vec![source(family, LISTED, BLOCK, BLOCK_BITS)],
            };
            apply(&tx(family, vec![delete]));
            assert_eq!(reached(LISTED), [false, true, false]);
        });
    }
}

#[test]
fn destinations_in_a_network_are_matched() {
    const HOSTS: [u32; 4] = [BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK];
    for family in FAMILIES {
        in_netns(|| {
            start_network(family, &HOSTS);
            let mut ops = ruleset();
            ops.push(add(cidrs(), &[net(family, BLOCK, BLOCK_BITS)]));
            apply(&tx(family, ops));
            let from = addr(family, BLOCK - 1);
            assert_eq!(HOSTS.map(|to| passes(from, addr(family, to))), [true, false, false, true]);
        });
    }
}

/// Next to each other and next to the lowest and the highest address there are.
fn all_over(family: Family) -> Vec<Bytes> {
    let mut nets: Vec<_> = [(0, 4), (16, 4), (32, 0), (33, 0), (64, 6), (BLOCK, BLOCK_BITS)]
        .map(|(n, host_bits)| net(family, n, host_bits))
        .into();
    let (lowest, highest): (IpAddr, IpAddr) = match family {
        Family::Ip => ([0; 4].into(), [255; 4].into()),
        Family::Ip6 => ([0; 16].into(), [255; 16].into()),
    };
    nets.extend([Bytes::new().net(lowest, prefix(family, 8)), Bytes::new().net(highest, prefix(family, 0))]);
    nets.sort_unstable();
    nets
}

#[test]
fn networks_list_well_and_are_read_back_deleted_and_replaced() {
    for family in FAMILIES {
        let nets = all_over(family);
        let of_frontend = |n: &Bytes| {
            let (addr, prefix) = n.reader().net(family).unwrap();
            frontend_key(family, 1).net(addr, prefix)
        };
        let sources: Vec<_> = nets.iter().map(of_frontend).collect();
        let filled = [ruleset(), vec![add(cidrs(), &nets), add(allowed(), &sources)]].concat();
        let by_bytes = in_netns(|| {
            apply(&tx(family, filled.clone()));
            let found = read(family);
            for (set, keys) in [(cidrs(), &nets), (allowed(), &sources)] {
                let elements: Vec<_> = keys.iter().copied().map(plain).collect();
                assert!(found.sets[&set.name].matches(&set));
                assert_eq!(found.sets[&set.name].elements, elements);
            }
            let listed = listing();
            for rule in rules() {
                let text = rule.text(family).to_string();
                assert!(listed.lines().any(|line| line.trim() == text), "{text:?} is not in\n{listed}");
            }
            assert!(nft(&["-j", "list", "ruleset"], "").contains("service-cidrs"));
            delete_and_replace(family, &nets, &sources);
            listed
        });
        let by_text = in_netns(|| {
            nft(&["-f", "-"], &tx(family, filled).to_string());
            listing()
        });
        assert_eq!(by_bytes, by_text);
    }
}

/// Deletes every other network, and replaces the others by what all of them are part of.
fn delete_and_replace(family: Family, nets: &[Bytes], sources: &[Bytes]) {
    let every_other =
        |keys: &[Bytes], skip| -> Vec<_> { keys.iter().skip(skip).step_by(2).copied().collect() };
    let delete = |set, elements| Op::DeleteElements { set, elements };
    apply(&tx(
        family,
        vec![delete(cidrs(), every_other(nets, 0)), delete(allowed(), every_other(sources, 0))],
    ));
    let keys = |set: &Arc<Set>| -> Vec<_> {
        read(family).sets[&set.name].elements.iter().map(|element| element.key).collect()
    };
    assert_eq!(keys(&cidrs()), every_other(nets, 1));
    assert_eq!(keys(&allowed()), every_other(sources, 1));
    let everything = net(family, 0, prefix(family, 0));
    let from_everywhere = source(family, 1, 0, prefix(family, 0));
    apply(&tx(
        family,
        vec![
            delete(cidrs(), every_other(nets, 1)),
            add(cidrs(), &[everything]),
            delete(allowed(), every_other(sources, 1)),
            add(allowed(), &[from_everywhere]),
        ],
    ));
    assert_eq!(keys(&cidrs()), [everything]);
    assert_eq!(keys(&allowed()), [from_everywhere]);
    nft(&["list", "ruleset"], "");
}

/// What overlaps must be merged before; what is there already may be said again.
#[test]
fn overlapping_networks_are_refused_and_named() {
    in_netns(|| {
        let family = Family::Ip;
        let mut kernel = Nftables::open().unwrap();
        kernel.apply(&tx(family, ruleset())).unwrap();
        let mut add = |set, keys: &[Bytes]| kernel.apply(&tx(family, vec![add(set, keys)]));
        add(cidrs(), &[net(family, 0, 8)]).unwrap();
        add(cidrs(), &[net(family, 0, 8)]).unwrap();
        add(allowed(), &[source(family, 1, 0, 8)]).unwrap();
        add(allowed(), &[source(family, 1, 0, 8)]).unwrap();
        for host_bits in [4, 12] {
            let refused = [
                (add(cidrs(), &[net(family, 0, host_bits)]), "of set service-cidrs"),
                (add(allowed(), &[source(family, 1, 0, host_bits)]), "of set allowed-sources"),
            ];
            for (result, set) in refused {
                let Err(NetlinkError::Refused { object, errno, .. }) = result else {
                    panic!("{set} took an overlapping network of {host_bits} bits")
                };
                assert!(object.ends_with(set), "{object}");
                assert!(matches!(errno, libc::EEXIST | libc::ENOTEMPTY), "{object}: {errno}");
            }
        }
        let object = match add(allowed(), &[source(family, 2, 0, 8), source(family, 1, 0, 4)]) {
            Err(NetlinkError::Refused { object, .. }) => object,
            other => panic!("{other:?}"),
        };
        assert_eq!(object, "element 10.96.0.1 . udp . 80 . 10.96.0.0/28 of set allowed-sources");
    });
}

#[test]
fn ranges_that_are_no_networks_make_a_set_foreign() {
    for family in FAMILIES {
        let range = format!("{}-{}", addr(family, 1), addr(family, 2));
        let frontend = addr(family, 9);
        for (set, element) in
            [(cidrs(), range.clone()), (allowed(), format!("{frontend} . udp . 80 . {range}"))]
        {
            in_netns(|| {
                apply(&tx(family, ruleset()));
                assert!(read(family).sets[&set.name].matches(&set));
                nft(&[&format!("add element {family} {TABLE} {} {{ {element} }}", set.name)], "");
                let state = &read(family).sets[&set.name];
                assert!(state.foreign && state.elements.is_empty() && !state.matches(&set), "{state:?}");
            });
        }
    }
}
