//! Documents of the forms that HNS takes and gives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use hcn::{
    Distribution, Endpoint, Guid, Kind, LoadBalancer, LoadBalancerFlags, Mac, Network, PortMapping,
    PortMappingFlags, Query, guids, network_type, read,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const ID: &str = "0f2c8b3a-1d4e-4f5a-9b6c-7d8e9fa0b1c2";

fn id() -> Guid {
    ID.parse().unwrap()
}

fn shape<T: serde::de::DeserializeOwned>(kind: Kind, text: &str) -> T {
    read(kind, id(), serde_json::from_str(text).unwrap()).unwrap()
}

#[test]
fn a_cluster_ip_is_written_without_what_is_empty() {
    let balancer = LoadBalancer {
        host_compute_endpoints: vec![id()],
        frontend_vips: vec!["10.96.0.10".into()],
        port_mappings: vec![PortMapping {
            protocol: 6,
            internal_port: 8080,
            external_port: 80,
            ..PortMapping::default()
        }],
        ..LoadBalancer::default()
    };
    let expected = json!({
        "HostComputeEndpoints": [ID],
        "FrontendVIPs": ["10.96.0.10"],
        "PortMappings": [{ "Protocol": 6, "InternalPort": 8080, "ExternalPort": 80 }],
        "SchemaVersion": { "Major": 2, "Minor": 0 },
    });
    assert_eq!(serde_json::to_value(balancer).unwrap(), expected);
}

#[test]
fn a_node_port_with_everything_is_read_as_it_was_written() {
    let balancer = LoadBalancer {
        id: Some(id()),
        host_compute_endpoints: vec![id(), Guid::named("other")],
        source_vip: "10.244.1.200".into(),
        frontend_vips: Vec::new(),
        port_mappings: vec![PortMapping {
            protocol: 17,
            internal_port: 53,
            external_port: 30053,
            distribution_type: Distribution::Client,
            flags: PortMappingFlags::LOCAL_ROUTED_VIP.with(PortMappingFlags::EXTERNAL_VIP),
        }],
        flags: LoadBalancerFlags::DSR.with(LoadBalancerFlags::IPV6),
        ..LoadBalancer::default()
    };
    let value = serde_json::to_value(&balancer).unwrap();
    assert_eq!(value["Flags"], 3);
    assert_eq!(value["PortMappings"][0]["Flags"], 18);
    assert_eq!(value["PortMappings"][0]["DistributionType"], 2);
    assert_eq!(read::<LoadBalancer>(Kind::LoadBalancer, id(), value).unwrap(), balancer);
}

#[test]
fn an_overlay_is_read_with_its_remote_subnets() {
    let network: Network = shape(Kind::Network, include_str!("shapes/network-overlay.json"));
    assert!(network.is(network_type::OVERLAY) && !network.is(network_type::L2_BRIDGE));
    assert_eq!(network.name, "flannel.4096");
    assert_eq!(network.prefixes().collect::<Vec<_>>(), ["10.244.1.0/24"]);
    let subnets: Vec<_> = network.remote_subnets().collect();
    assert_eq!(subnets.len(), 1, "one is malformed");
    assert_eq!(subnets[0].destination_prefix, "10.244.2.0/24");
    assert_eq!(subnets[0].provider_address, "192.168.1.12");
    assert_eq!(subnets[0].distributed_router_mac_address, Some(Mac([0, 0x15, 0x5d, 0x0a, 0, 2])));
}

#[test]
fn a_bridge_with_both_families_is_read() {
    let network: Network = shape(Kind::Network, include_str!("shapes/network-l2bridge.json"));
    assert!(network.is(network_type::L2_BRIDGE));
    assert_eq!(network.prefixes().collect::<Vec<_>>(), ["10.244.1.0/24", "fd00:10:244:1::/64"]);
    assert_eq!(network.remote_subnets().count(), 0);
}

#[test]
fn endpoints_are_read_with_what_hosts_add() {
    let pod: Endpoint = shape(Kind::Endpoint, include_str!("shapes/endpoint-pod.json"));
    assert!(!pod.is_remote());
    let addresses: Vec<IpAddr> = pod.addresses().collect();
    assert_eq!(addresses, ["10.244.1.5".parse::<IpAddr>().unwrap(), "fd00:10:244:1::5".parse().unwrap()]);
    let remote: Endpoint = shape(Kind::Endpoint, include_str!("shapes/endpoint-remote.json"));
    assert!(remote.is_remote());
    assert_eq!(remote.provider_address(), Some([192, 168, 1, 12].into()));
}

#[test]
fn a_remote_endpoint_is_written_with_its_node() {
    let address = IpAddr::from([10, 244, 2, 7]);
    let endpoint = Endpoint::remote(address, id(), Mac::of_remote(address), Some([192, 168, 1, 12].into()));
    let expected = json!({
        "HostComputeNetwork": ID,
        "IpConfigurations": [{ "IpAddress": "10.244.2.7" }],
        "MacAddress": "02-11-0A-F4-02-07",
        "Flags": 1,
        "Policies": [{ "Type": "ProviderAddress", "Settings": { "ProviderAddress": "192.168.1.12" } }],
        "SchemaVersion": { "Major": 2, "Minor": 0 },
    });
    assert_eq!(serde_json::to_value(endpoint).unwrap(), expected);
}

#[test]
fn a_load_balancer_of_upstream_is_read() {
    let balancer: LoadBalancer = shape(Kind::LoadBalancer, include_str!("shapes/load-balancer.json"));
    assert_eq!(balancer.frontend_vips, ["10.96.0.10"]);
    assert_eq!(balancer.port_mappings[0].internal_port, 53);
    assert_eq!(balancer.host_compute_endpoints.len(), 2);
}

#[test]
fn a_filter_is_json_in_a_string() {
    let expected = json!({
        "SchemaVersion": { "Major": 2, "Minor": 0 }, "Flags": 0, "Filter": "{\"Name\":\"cbr0\"}",
    });
    assert_eq!(serde_json::to_value(Query::of_name("cbr0")).unwrap(), expected);
    assert_eq!(Query::of_id(id()).filter, format!("{{\"ID\":\"{ID}\"}}"));
    assert_eq!(serde_json::to_value(Query::all()).unwrap().get("Filter"), None);
}

#[test]
fn lists_of_ids_are_read() {
    let upper = format!("[\"{}\"]", ID.to_uppercase());
    assert_eq!(guids(Kind::Endpoint, &upper).unwrap(), [id()]);
    assert_eq!(guids(Kind::Endpoint, "null").unwrap(), []);
    assert_eq!(
        guids(Kind::Endpoint, "{}").unwrap_err().to_string(),
        "the list of each endpoint is not of the form that HNS documents"
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("IpConfigurations"),
        Just("Policies"),
        Just("Settings"),
        Just("Type"),
        Just("PortMappings"),
        Just("Flags"),
        Just("HostComputeEndpoints"),
        Just("Ipams"),
        Just("Subnets"),
        Just("ID"),
    ];
    leaf.prop_recursive(4, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_panic(value in any_json(), text in "\\PC{0,40}") {
        if let Ok(network) = read::<Network>(Kind::Network, id(), value.clone()) {
            prop_assert!(network.remote_subnets().count() <= network.policies.len());
        }
        if let Ok(endpoint) = read::<Endpoint>(Kind::Endpoint, id(), value.clone()) {
            let _addresses = (endpoint.addresses().count(), endpoint.provider_address());
        }
        let _balancer = read::<LoadBalancer>(Kind::LoadBalancer, id(), value);
        let _ids = guids(Kind::Network, &text);
    }
}
