//! What the largest maps hold, worked out from the smaller ones, so that they can be read by key.

use std::collections::BTreeSet;

use nft::{Bytes, Data, Name, Ruleset};

use crate::layout::{Map, parse_pool};

/// The keys of a map of slots, if the table is as we left it: for each pool as many slots as it says to have endpoints. `None`
/// for all other sets, and too few or wrong ones if somebody else has been at the table.
pub fn slot_keys(set: &Name, smaller: &Ruleset) -> Option<Vec<Bytes>> {
    if Map::Endpoints.name() == *set {
        Some(slots(smaller, false))
    } else if Map::AffinitySlots.name() == *set {
        Some(slots(smaller, true))
    } else {
        None
    }
}

fn slots(smaller: &Ruleset, with_affinity: bool) -> Vec<Bytes> {
    let elements = |map: Map| smaller.sets.get(&map.name()).map_or(&[][..], |state| &state.elements);
    let chains = elements(Map::AffinityChains).iter();
    let with_clients: BTreeSet<u32> = chains.filter_map(|element| element.key.reader().index()).collect();
    // In order, so that what is read by these keys need not be sorted.
    let mut pools: Vec<_> = elements(Map::Pools).iter().collect();
    pools.sort_unstable_by_key(|element| element.key);
    let slots = pools.into_iter().flat_map(|element| {
        let is_asked_for = parse_pool(&element.key)
            .is_some_and(|(_, number)| with_clients.contains(&number) == with_affinity);
        let count = match &element.data {
            Data::Value(data) if is_asked_for => data.reader().index().unwrap_or_default(),
            _ => 0,
        };
        (0..count.min(MOST_SLOTS)).map(|slot| element.key.index(slot))
    });
    slots.take(MOST_KEYS).collect()
}

/// Where a pool says to have more slots than any has, somebody else wrote it.
const MOST_SLOTS: u32 = 1 << 16;
/// Beyond, keys are not worth their memory.
const MOST_KEYS: usize = 1 << 23;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fakes::kernel::FakeKernel;
    use model::{
        AddressKind, Affinity, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey, ObjectName,
        Pool, Protocol, ServicePortName, Table, V4, Verdict,
    };
    use nft::Kernel;

    use super::*;
    use crate::{Backend, Config, Extent, table_name};

    fn frontend(n: u8, sticky: bool) -> Frontend<V4> {
        let destination =
            |last| Destination { address: [10, 244, n, last].into(), port: 80, node: EndpointNode::Other };
        let protocol = Protocol::Tcp;
        let timeout = std::time::Duration::from_secs(30);
        Frontend {
            affinity: sticky.then_some(Affinity { timeout, service: None }),
            ..Frontend::new(
                FrontendKey { address: FrontendAddress::Ip([10, 96, 0, n].into()), protocol, port: 80 },
                AddressKind::ClusterIp,
                ServicePortName {
                    service: ObjectName::new("ns", &format!("svc-{n}")),
                    port: "".into(),
                    protocol,
                },
                Pool::new((0..n).map(destination).collect::<BTreeSet<_>>(), Verdict::Reject),
            )
        }
    }

    #[test]
    fn slots_are_known_from_the_sizes_of_pools() {
        let mut table = Table::default();
        for n in 0..20 {
            let frontend = frontend(n, n % 3 == 0);
            table.set_service(&frontend.service.service.clone(), vec![frontend]);
        }
        let config = Config::default();
        let plan = Backend::<V4>::new(config.clone()).repair(&config, &table, None, Extent::Difference);
        let mut kernel = FakeKernel::new();
        kernel.apply(&plan.transaction).unwrap();
        let ruleset = kernel.table(nft::Family::Ip, &table_name()).unwrap();
        for map in [Map::Endpoints, Map::AffinitySlots] {
            let held: Vec<Bytes> =
                ruleset.sets[&map.name()].elements.iter().map(|element| element.key).collect();
            let mut keys = slot_keys(&map.name(), &ruleset).unwrap();
            keys.sort_unstable();
            assert!(held.len() > 50);
            assert_eq!(keys, held);
        }
        assert_eq!(slot_keys(&Map::Pools.name(), &ruleset), None);
    }
}
