//! Any sequence of changes, at any write of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ebpf::{Capacity, Contents, FrontendValue, Write};
use model::{FrontendAddress, FrontendKey, ObjectName, Protocol, ServicePortName, TrafficPolicy, V4};
use proptest::prelude::*;

use crate::served::{Served, Socket};
use crate::state::{Outgrown, State, capacity_for};

type Key = FrontendKey<V4>;
type AllServed = BTreeMap<Key, Served<V4>>;

/// A Service port: its endpoints under each policy, and its frontends.
#[derive(Clone, Debug)]
struct Service {
    endpoints: [BTreeSet<u8>; 2],
    frontends: BTreeSet<(u8, bool, bool)>,
}

fn service() -> impl Strategy<Value = Service> {
    let endpoints = || proptest::collection::btree_set(0u8..12, 0..9);
    let frontends = proptest::collection::btree_set((0u8..4, any::<bool>(), any::<bool>()), 0..5);
    (endpoints(), endpoints(), frontends)
        .prop_map(|(cluster, local, frontends)| Service { endpoints: [cluster, local], frontends })
}

/// Which Service becomes what.
fn changes() -> impl Strategy<Value = Vec<(u8, Service)>> {
    proptest::collection::vec((0u8..5, service()), 1..14)
}

fn key(service: u8, address: u8) -> Key {
    let address = Ipv4Addr::new(10, 96, service, address);
    FrontendKey { address: FrontendAddress::Ip(address), protocol: Protocol::Tcp, port: 80 }
}

/// Services have endpoints in common: the numbers of one are used by others later.
fn socket(endpoint: u8) -> Socket<V4> {
    Socket { address: Ipv4Addr::new(10, 244, 0, endpoint), port: 8080 }
}

fn served(number: u8, service: &Service) -> AllServed {
    let name = ServicePortName {
        service: ObjectName::new("ns", &format!("s-{number}")),
        port: "http".into(),
        protocol: Protocol::Tcp,
    };
    let of = |&(address, is_local, host_only): &(u8, bool, bool)| {
        let endpoints: Arc<[Socket<V4>]> =
            service.endpoints[usize::from(is_local)].iter().copied().map(socket).collect();
        let policy = if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        (!endpoints.is_empty())
            .then(|| (key(number, address), Served { pool: (name.clone(), policy), endpoints, host_only }))
    };
    service.frontends.iter().filter_map(of).collect()
}

/// What a change of one Service is, and what is wanted after it.
fn change(wanted: &mut AllServed, number: u8, service: &Service) -> BTreeMap<Key, Option<Served<V4>>> {
    let is_own =
        |key: &Key| matches!(key.address, FrontendAddress::Ip(address) if address.octets()[2] == number);
    let gone: Vec<Key> = wanted.keys().filter(|key| is_own(key)).copied().collect();
    let mut change: BTreeMap<Key, Option<Served<V4>>> = gone.iter().map(|key| (*key, None)).collect();
    wanted.retain(|key, _| !is_own(key));
    for (key, served) in served(number, service) {
        wanted.insert(key, served.clone());
        change.insert(key, Some(served));
    }
    change
}

fn endpoints(wanted: &AllServed, key: Key) -> BTreeSet<Socket<V4>> {
    wanted.get(&key).into_iter().flat_map(|served| served.endpoints.iter().copied()).collect()
}

fn choices(contents: &Contents<V4>, value: &FrontendValue) -> BTreeSet<Socket<V4>> {
    let choices = contents.choices(value).into_iter().flatten();
    choices.map(|endpoint| Socket { address: endpoint.address, port: endpoint.port }).collect()
}

/// The maps serve exactly what is wanted.
#[track_caller]
fn check_exact(contents: &Contents<V4>, wanted: &AllServed) {
    let keys: Vec<_> = contents.frontends.keys().collect();
    assert_eq!(keys, wanted.keys().collect::<Vec<_>>());
    for (key, value) in &contents.frontends {
        assert!(contents.choices(value).iter().all(Option::is_some), "{key:?} {value}");
        assert_eq!(choices(contents, value), endpoints(wanted, *key), "{key:?} {value}");
        assert_eq!(value.host_only, wanted[key].host_only);
    }
    // A socket's datagrams go on to an endpoint for as long as it is there, so what nobody has any more is not.
    let had: BTreeSet<u32> = contents
        .frontends
        .values()
        .flat_map(|value| &contents.slots[value.base as usize..][..value.count as usize])
        .map(|slot| slot.endpoint)
        .collect();
    let there: BTreeSet<u32> =
        (0..).zip(&contents.endpoints).filter_map(|(n, endpoint)| endpoint.map(|_| n)).collect();
    assert_eq!(there, had);
    // Frontends whose pool is the same have the same number, and no others.
    let pools: BTreeSet<_> =
        contents.frontends.iter().map(|(key, value)| (value.pool, &wanted[key].pool)).collect();
    let numbers: BTreeSet<u32> = pools.iter().map(|(number, _)| *number).collect();
    let names: BTreeSet<_> = pools.iter().map(|(_, name)| *name).collect();
    assert_eq!((pools.len(), pools.len()), (numbers.len(), names.len()), "{pools:?}");
}

fn capacity(slots: u32) -> Capacity {
    Capacity { frontends: 64, slots, endpoints: 64 }
}

/// Whoever reads between two writes, or goes on with an element from before them, meets only endpoints that are wanted
/// before or after.
fn check_prefixes(before: &Contents<V4>, writes: &[Write<V4>], old: &AllServed, new: &AllServed) {
    let mut contents = before.clone();
    for write in writes {
        assert!(contents.make(write), "{write}");
        for (key, value) in contents.frontends.iter().chain(&before.frontends) {
            let allowed = &endpoints(old, *key) | &endpoints(new, *key);
            let possible = choices(&contents, value);
            assert!(possible.is_subset(&allowed), "{key:?} {value}: {possible:?} after {write}");
        }
    }
}

proptest! {
    #[test]
    fn every_prefix_of_a_change_chooses_only_what_is_wanted(changes in changes()) {
        let mut state = State::<V4>::empty(capacity(256));
        let mut wanted = AllServed::new();
        for (number, service) in &changes {
            let (before, old) = (state.contents().clone(), wanted.clone());
            let change = change(&mut wanted, *number, service);
            let writes = state.change(&change).unwrap();
            check_prefixes(&before, &writes, &old, &wanted);
            check_exact(state.contents(), &wanted);
            let again = change.into_iter().collect();
            prop_assert_eq!(state.change(&again).unwrap(), [], "nothing is written twice");
        }
    }

    /// A program that was interrupted goes on with an element that is long gone.
    #[test]
    fn what_was_read_long_ago_leads_nowhere_else(changes in changes()) {
        let mut state = State::<V4>::empty(capacity(64));
        let (mut wanted, mut ever) = (AllServed::new(), BTreeMap::<Key, BTreeSet<Socket<V4>>>::new());
        let mut read: Vec<(Key, FrontendValue)> = Vec::new();
        for (number, service) in &changes {
            let change = change(&mut wanted, *number, service);
            let Ok(_) = state.change(&change) else { break };
            for key in wanted.keys() {
                ever.entry(*key).or_default().extend(endpoints(&wanted, *key));
            }
            read.extend(state.contents().frontends.iter().map(|(key, value)| (*key, *value)));
            for (key, value) in &read {
                // Under a policy that it had once: frontends of a Service share pools.
                let of_service: BTreeSet<Socket<V4>> =
                    ever.iter().filter(|(other, _)| same_service(*key, **other)).flat_map(|(_, sockets)| sockets.clone()).collect();
                prop_assert!(choices(state.contents(), value).is_subset(&of_service));
            }
        }
    }

    #[test]
    fn an_unchanged_restart_writes_nothing_and_another_one_converges(changes in changes(), others in changes()) {
        let (mut state, mut wanted) = (State::<V4>::empty(capacity(256)), AllServed::new());
        for (number, service) in &changes {
            let change = change(&mut wanted, *number, service);
            state.change(&change).unwrap();
        }
        let mut same = State::adopt(state.contents().clone(), &wanted).unwrap();
        prop_assert_eq!(same.set_all(&wanted).unwrap(), []);
        prop_assert_eq!(same.contents(), state.contents());

        let (before, old) = (state.contents().clone(), wanted.clone());
        for (number, service) in &others {
            drop(change(&mut wanted, *number, service));
        }
        let mut other = State::adopt(before.clone(), &wanted).unwrap();
        let writes = other.set_all(&wanted).unwrap();
        check_prefixes(&before, &writes, &old, &wanted);
        check_exact(other.contents(), &wanted);
    }

    /// Whatever an earlier version, or somebody else, has left: it is taken over rightly, or not at all.
    #[test]
    fn maps_that_contradict_themselves_are_not_believed(
        changes in changes(), damage in proptest::collection::vec((0u8..5, any::<u32>(), any::<u32>()), 1..6),
    ) {
        let (mut state, mut wanted) = (State::<V4>::empty(capacity(256)), AllServed::new());
        for (number, service) in &changes {
            let change = change(&mut wanted, *number, service);
            state.change(&change).unwrap();
        }
        let mut contents = state.contents().clone();
        for (kind, which, value) in damage {
            hurt(&mut contents, kind, which, value);
        }
        if let Some(mut adopted) = State::adopt(contents, &wanted) {
            adopted.set_all(&wanted).unwrap();
            check_exact(adopted.contents(), &wanted);
        }
    }

    /// So that sockets' datagrams go on to where they went.
    #[test]
    fn what_stays_has_the_same_numbers_in_new_maps(changes in changes(), others in changes()) {
        let (mut state, mut wanted) = (State::<V4>::empty(capacity(256)), AllServed::new());
        for (number, service) in &changes {
            let change = change(&mut wanted, *number, service);
            state.change(&change).unwrap();
        }
        for (number, service) in others.iter().take(2) {
            drop(change(&mut wanted, *number, service));
        }
        let (mut new, renumbered) = State::in_new_maps(Some(&state), &wanted).unwrap();
        prop_assert!(renumbered.iter().all(|renumbered| renumbered.from == renumbered.to));
        check_exact(new.contents(), &wanted);
        let of = |state: &State<V4>| -> BTreeMap<_, _> {
            state.counted().map(|it| ((it.service.clone(), it.socket), (it.number, it.epoch))).collect()
        };
        let (before, after) = (of(&state), of(&new));
        prop_assert!(after.iter().all(|(name, found)| before.get(name).is_none_or(|known| known == found)));
        for (key, value) in &new.contents().frontends {
            let has_same = state.pools.get(&wanted[key].pool).is_none_or(|pool| pool.number == value.pool);
            prop_assert!(has_same, "{key:?}");
        }
        // And all else is free.
        for (number, service) in others.iter().skip(2) {
            let change = change(&mut wanted, *number, service);
            new.change(&change).unwrap();
            check_exact(new.contents(), &wanted);
        }
    }

    #[test]
    fn what_outgrows_the_maps_fits_into_new_ones(changes in changes()) {
        let (mut state, mut wanted) = (State::<V4>::empty(capacity(16)), AllServed::new());
        for (number, service) in &changes {
            let change = change(&mut wanted, *number, service);
            if state.change(&change) == Err(Outgrown) {
                state = State::empty(capacity_for(&wanted));
                state.set_all(&wanted).unwrap();
            }
            check_exact(state.contents(), &wanted);
        }
    }
}

fn same_service(a: Key, b: Key) -> bool {
    let of = |key: Key| match key.address {
        FrontendAddress::Ip(address) => address.octets()[2],
        FrontendAddress::Node => 0,
    };
    of(a) == of(b)
}

fn hurt(contents: &mut Contents<V4>, kind: u8, which: u32, value: u32) {
    let slot = which as usize % contents.slots.len();
    let id = which as usize % contents.endpoints.len();
    let n_frontends = contents.frontends.len().max(1);
    let frontend = contents.frontends.values_mut().nth(which as usize % n_frontends);
    match (kind, frontend) {
        (0, _) => contents.slots[slot].endpoint = value % 70,
        (1, _) => contents.slots[slot].extent_epoch = u16::try_from(value % 40).unwrap(),
        (2, _) => contents.endpoints[id] = None,
        (3, Some(frontend)) => frontend.base = value % 300,
        (4, Some(frontend)) => frontend.count = value % 20,
        _ => {}
    }
}

/// A change of one endpoint of many costs two writes at most, however many there are.
#[test]
fn the_work_is_that_of_the_change() {
    let all = |endpoints: std::ops::Range<u8>| Service {
        endpoints: [endpoints.collect(), BTreeSet::new()],
        frontends: BTreeSet::from([(1, false, false), (2, false, false)]),
    };
    let (mut state, mut wanted) = (State::<V4>::empty(capacity(256)), AllServed::new());
    let mut writes = |service: &Service| {
        let change = change(&mut wanted, 0, service);
        state.change(&change).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(writes(&all(0..10)).len(), 10 + 10 + 2, "endpoints, slots, frontends");
    assert_eq!(
        writes(&all(1..11)),
        ["endpoint 10@12 = 10.244.0.10:8080", "slot 0@11 = 10@12", "remove endpoint 0"],
        "one is replaced"
    );
    assert_eq!(
        writes(&all(1..10)),
        [
            "slot 0@11 = 9@10",
            "frontend 10.96.0.1 port 80/TCP = 0+9@11",
            "frontend 10.96.0.2 port 80/TCP = 0+9@11",
            "remove endpoint 10"
        ],
        "one is gone"
    );
}
