//! Large tables are read by key, and give the same as when they are read whole.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use backend_nftables::{Backend, Config, Extent, slot_keys, table_name};
use kernel::Nftables;
use lab::Namespace;
use model::{
    AddressKind, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey, ObjectName, Pool,
    Protocol, ServicePortName, Table, V4, Verdict,
};
use nft::{Family, Kernel, Op, Transaction};

const SERVICES: u32 = 6000;
const ENDPOINTS: u32 = 10;

fn frontend(n: u32) -> Frontend<V4> {
    let address = |from: [u8; 4], n: u32| std::net::Ipv4Addr::from(u32::from_be_bytes(from) + n);
    let destination = |which| Destination {
        address: address([10, 128, 0, 0], n * ENDPOINTS + which),
        port: 8080,
        node: EndpointNode::Other,
    };
    let protocol = Protocol::Tcp;
    let ip = FrontendAddress::Ip(address([10, 96, 0, 0], n));
    Frontend::new(
        FrontendKey { address: ip, protocol, port: 80 },
        AddressKind::ClusterIp,
        ServicePortName {
            service: ObjectName::new("ns", &format!("svc-{n}")),
            port: "http".into(),
            protocol,
        },
        Pool::new((0..ENDPOINTS).map(destination).collect::<BTreeSet<_>>(), Verdict::Reject),
    )
}

#[test]
fn a_large_table_reads_the_same_by_key_as_whole() {
    let mut table = Table::default();
    for frontend in (0..SERVICES).map(frontend) {
        table.set_service(&frontend.service.service.clone(), vec![frontend]);
    }
    let config = Config::default();
    let plan = Backend::<V4>::new(config.clone()).repair(&config, &table, None, Extent::Difference);
    Namespace::new("large").unwrap().run(|| {
        let (mut whole, by_key) = (Nftables::open().unwrap(), Nftables::open().unwrap());
        let mut by_key = by_key.expecting(slot_keys).with_large_sets_from(50_000);
        whole.apply(&plan.transaction).unwrap();
        let mut check = || {
            let found = by_key.read(Family::Ip, &table_name()).unwrap().whole().unwrap().unwrap();
            assert!(
                found == whole.read(Family::Ip, &table_name()).unwrap().whole().unwrap().unwrap(),
                "they differ"
            );
            found
        };
        let found = check();
        let repair =
            Backend::<V4>::new(config.clone()).repair(&config, &table, Some(&found), Extent::Difference);
        assert!(repair.transaction.is_empty());
        // Somebody takes one away, and puts another one in: as many as are expected, but not the same.
        let slots = &found.sets["endpoints"];
        let (first, mut other) = (slots.elements[0].clone(), slots.elements[1].clone());
        other.key = other
            .key
            .as_slice()
            .chunks(4)
            .take(3)
            .fold(nft::Bytes::new(), |key, word| key.index(u32::from_ne_bytes(word.try_into().unwrap())));
        other.key = other.key.index(60_000);
        let set = std::sync::Arc::new(slots.set.clone());
        let delete = Op::DeleteElements { set: set.clone(), elements: vec![first.key] };
        let add = Op::AddElements { set, elements: vec![other] };
        for ops in [vec![delete], vec![add]] {
            Nftables::open()
                .unwrap()
                .apply(&Transaction { family: Family::Ip, table: table_name(), ops })
                .unwrap();
            check();
        }
    });
}
