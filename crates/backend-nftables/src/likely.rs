//! What the largest maps hold, worked out from the smaller ones, so that they can be read by key.

use nft::{Bytes, Data, Name, Ruleset};

use crate::chains::ChainId;
use crate::layout::{Map, Way};

/// The keys of a map of slots, if the table is as we left it: for each frontend, as many slots as the chain has that its
/// number names. None for all other sets, and too few or wrong ones if somebody else has been at the table.
pub fn likely_keys(set: &Name, smaller: &Ruleset) -> Vec<Bytes> {
    let is_it = |map: Map| map.name() == *set;
    for way in Way::ALL {
        if is_it(Map::Slots(way)) {
            return slots(smaller, way, false);
        }
        if is_it(Map::AffinitySlots(way)) {
            return slots(smaller, way, true);
        }
    }
    Vec::new()
}

fn slots(smaller: &Ruleset, way: Way, wanted_sticky: bool) -> Vec<Bytes> {
    let dispatch = smaller.sets.get(&Map::Dispatch(way).name());
    let elements = dispatch.map_or(&[][..], |state| &state.elements);
    let slots = elements.iter().flat_map(|element| {
        let number = match &element.data {
            Data::Value(data) => data.reader().index().unwrap_or_default(),
            Data::None | Data::Verdict(_) => 0,
        };
        let (count, sticky) = ChainId::slots_of(number);
        let count = if sticky == wanted_sticky { count.min(MOST_SLOTS) } else { 0 };
        (0..count).map(|slot| element.key.index(slot))
    });
    slots.take(MOST_KEYS).collect()
}

/// Where a number asks for more slots than any frontend has, somebody else wrote it.
const MOST_SLOTS: u32 = 1 << 16;
/// Beyond, keys are not worth their memory.
const MOST_KEYS: usize = 1 << 23;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::{
        AddressKind, Destination, Frontend, FrontendAddress, FrontendKey, Masquerade, ObjectName, Pool,
        Protocol, ServicePortName, Table, V4, Verdict,
    };
    use nft::Kernel;
    use testkit::fake_kernel::FakeKernel;

    use super::*;
    use crate::{Backend, Config, Extent, table_name};

    fn frontend(n: u8, sticky: bool) -> Frontend<V4> {
        let destination = |last| Destination { address: [10, 244, n, last].into(), port: 80, local: false };
        let protocol = Protocol::Tcp;
        Frontend {
            key: FrontendKey { address: FrontendAddress::Ip([10, 96, 0, n].into()), protocol, port: 80 },
            kind: AddressKind::ClusterIp,
            service: ServicePortName {
                service: ObjectName::new("ns", &format!("svc-{n}")),
                port: "".into(),
                protocol,
            },
            pool: Pool::new((0..n).map(destination).collect::<BTreeSet<_>>(), Verdict::Reject),
            internal_pool: None,
            affinity: sticky.then_some(std::time::Duration::from_secs(30)),
            masquerade: Masquerade::UnlessFromPod,
            allowed_sources: None,
            flow_endpoints: std::sync::Arc::default(),
        }
    }

    #[test]
    fn slots_are_known_from_the_numbers_of_chains() {
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
        for map in [Map::Slots(Way::ALL[0]), Map::AffinitySlots(Way::ALL[0])] {
            let held: Vec<Bytes> =
                ruleset.sets[&map.name()].elements.iter().map(|element| element.key).collect();
            let mut likely = likely_keys(&map.name(), &ruleset);
            likely.sort_unstable();
            assert!(held.len() > 50);
            assert_eq!(likely, held);
        }
        assert_eq!(likely_keys(&Map::Dispatch(Way::ALL[0]).name(), &ruleset), []);
    }
}
