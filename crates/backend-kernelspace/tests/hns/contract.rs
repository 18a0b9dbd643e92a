//! The packet contract on load balancers as values: what VFP does with each packet is what is asked for, but for a list of
//! expected differences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backend_kernelspace::{DIFFERENCES, HnsTarget, KernelspacePlanner, Options};
use fakes::contract::{AddressKind, Answer, Case, Client, Contract, target};
use fakes::hns::{FakeHns, Knobs, Objects, Verdict, judge};
use fakes::objects::{LINE_PORT, NODE, UDP_PORT};
use fakes::on_paper::{Places, store};
use hcn::network_type;
use mode::{Cause, Planner as _, Reading, Settled, Target as _};
use model::view::{ThisNode, frontends};
use model::{Family, RuleSettings, Table, V4, V6};

/// Where VFP differs: name of the difference, clients, addresses. With direct server return, which is recommended.
const EXPECTED: [(&str, &str, &str); 3] = [
    ("no refusal", "pod,host,outside", "cluster-ip,external-ip,lb-ip,node-port"),
    ("short cut", "pod,host", "external-ip,lb-ip,node-port"),
    ("masquerading", "host,outside", "cluster-ip"),
];

const TCP: u32 = 6;
const UDP: u32 = 17;

/// What HNS holds for the contract's Services.
fn programmed<F: Family>(contract: &Contract, places: &Places) -> Objects {
    let mut objects = Objects::default();
    let subnets = ["10.244.0.0/24", "fd00:10:244::/64"];
    let network = objects.add_network("cbr0", network_type::L2_BRIDGE, &subnets);
    objects.add_pod(network, "endpoint", &[places.local]);
    objects.add_pod(network, "client", &[places.pod]);
    let hns = FakeHns::with(Knobs::default(), objects);
    let store = store(contract).unwrap();
    let node = ThisNode::new(NODE.into(), store.node(NODE));
    let node = ThisNode { served_by_hns: true, ..node };
    let mut table: Table<F> = Table::default();
    for (name, entry) in store.entries() {
        table.set_service(name, frontends(&node, entry));
    }
    let options = Arc::new(Options { network_name: "cbr0".into(), dsr: true, ..Options::default() });
    let mut planner = KernelspacePlanner::<F>::new(options.clone());
    let adapters = Arc::new(BTreeMap::new);
    let mut connection = HnsTarget::<F>::new(Box::new(hns.clone()), options, adapters);
    let Reading::Whole(found) = connection.read() else { panic!("it can be read") };
    let settings = RuleSettings { node_address: Some(places.node), ..RuleSettings::default() };
    let plan = planner.plan(&table, &settings, Cause::Found(&found)).unwrap();
    let applied = connection.apply(plan.steps, &|| false);
    let results = applied.results.into_iter().map(|result| result.map_err(Arc::new)).collect();
    assert_eq!(planner.settle(plan.held, results), Settled::done());
    hns.objects()
}

/// How VFP differs from what a case asks for; `None`: it does not.
fn difference(objects: &Objects, case: &Case, places: &Places, protocol: u32) -> Option<&'static str> {
    let at = target(case.address, case.n, places.node.is_ipv6(), places.node);
    let verdict = judge(objects, at, protocol, places.node);
    let Answer::By { local, remote, sees_node } = case.answer else {
        return Some(match verdict {
            Verdict::Passes => "no refusal",
            // Others reach endpoints by the same address that this client is kept from.
            Verdict::To { .. } => "reached although it should not be",
        });
    };
    let wanted = [(local, places.local), (remote, places.remote)].into_iter().filter(|(wanted, _)| *wanted);
    let wanted: BTreeSet<_> = wanted.map(|(_, address)| address).collect();
    let wanted_port = if protocol == TCP { LINE_PORT } else { UDP_PORT };
    match verdict {
        Verdict::To { port, .. } if port != wanted_port => Some("wrong port"),
        Verdict::To { endpoints, keeps_client, .. } if endpoints == wanted => {
            (keeps_client == sees_node).then_some("masquerading")
        }
        // The endpoints are those of policy Local, whoever asks.
        Verdict::To { .. } | Verdict::Passes => Some("short cut"),
    }
}

fn client(client: Client) -> &'static str {
    match client {
        Client::Pod => "pod",
        Client::Host => "host",
        Client::Outside => "outside",
    }
}

fn address(kind: AddressKind) -> &'static str {
    match kind {
        AddressKind::ClusterIp => "cluster-ip",
        AddressKind::ExternalIp => "external-ip",
        AddressKind::LbIp => "lb-ip",
        AddressKind::NodePort => "node-port",
    }
}

fn check<F: Family>() {
    let (contract, places) = (Contract::read(), Places::of(F::FAMILY));
    let objects = programmed::<F>(&contract, &places);
    let mut found = BTreeSet::new();
    for case in &contract.cases {
        for protocol in [TCP, UDP] {
            if let Some(name) = difference(&objects, case, &places, protocol) {
                found.insert((name, client(case.client), address(case.address)));
            }
        }
    }
    let pairs = |(name, clients, addresses): &(&'static str, &'static str, &'static str)| {
        let (name, addresses): (_, Vec<&str>) = (*name, addresses.split(',').collect());
        let clients = clients.split(',');
        clients
            .flat_map(move |client| addresses.clone().into_iter().map(move |address| (name, client, address)))
            .collect::<Vec<_>>()
    };
    let expected: BTreeSet<_> = EXPECTED.iter().flat_map(pairs).collect();
    assert_eq!(found, expected, "{:?}", F::FAMILY);
}

#[test]
fn packets_go_where_the_contract_says_but_for_what_is_expected() {
    check::<V4>();
    check::<V6>();
}

#[test]
fn expected_differences_are_known_ones() {
    for (name, ..) in EXPECTED {
        assert!(DIFFERENCES.iter().any(|known| known.name == name), "{name}");
    }
}
