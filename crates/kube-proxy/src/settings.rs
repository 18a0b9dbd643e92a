//! From the configuration to what each part of the program wants to know of it.

use std::path::PathBuf;
use std::sync::Arc;

use agent::{NodePorts, Notices, Pods, Settings};
use config::{Config, DetectLocal, Mode, NodePortAddresses};
use ipnet::{IpNet, Ipv4Net};
use logs::Vmodule;
use model::view::ExternalIps;
use model::{IpFamily, ProxyingRules};
use source::{ApiConfig, ContentType, Timings};

use crate::platform;
use crate::plausibility::Checked;

/// How the program logs.
pub(crate) fn logs(logging: &config::Logging, as_service: bool) -> logs::Config {
    let vmodule = logging.vmodule.iter().map(|item| (item.file_pattern.clone(), item.verbosity));
    logs::Config {
        format: match logging.format {
            config::LogFormat::Text => logs::Format::Text,
            config::LogFormat::Json => logs::Format::Json,
        },
        verbosity: logging.verbosity,
        vmodule: Vmodule::new(vmodule.collect()),
        split_stream: logging.split_stream,
        info_buffer_bytes: logging.info_buffer_size.bytes(),
        flush_every: logging.flush_frequency,
        // A service has no streams.
        file: logging.to_file.clone().or_else(|| as_service.then(log_beside_program)),
    }
}

fn log_beside_program() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.with_file_name("kube-proxy.log")
}

/// The API server, and who asks it.
pub(crate) fn api(config: &Config, node_name: &str, version: &str) -> ApiConfig {
    ApiConfig {
        kubeconfig: config.client_connection.kubeconfig.clone(),
        server: config.client_connection.server.clone(),
        node_name: node_name.to_owned(),
        content_type: match config.client_connection.content_type {
            config::ContentType::Protobuf => ContentType::Protobuf,
            config::ContentType::Json => ContentType::Json,
        },
        user_agent: source::user_agent(version),
        timings: Timings::default(),
    }
}

/// What the agent does.
pub(crate) fn agent(config: &Config, node_name: &str, notices: Notices) -> Settings {
    Settings {
        node_ports: node_ports(config),
        localhost_node_ports: serves_localhost(config),
        external_ips: external_ips(config),
        resets_connections: config.connection_reset,
        served_by_hns: config.mode == Mode::Kernelspace,
        proxying: Arc::new(proxying(config)),
        pods: pods(config),
        masquerade_all: config.masquerade_all,
        masquerade_mark: 1 << config.masquerade_bit,
        bind_address: Some(config.bind_address),
        sync_period: config.sync_period,
        min_sync_period: config.min_sync_period,
        notices,
        release_memory: platform::release_memory,
        ..Settings::new(node_name.into())
    }
}

/// Which external IPs are served: none if the gate says so, whatever is allowed.
pub(crate) fn external_ips(config: &Config) -> ExternalIps {
    if !config.gates.enabled(config::ALLOW_SERVICE_EXTERNAL_IPS) {
        ExternalIps::None
    } else if config.allowed_external_ips.is_empty() {
        ExternalIps::All
    } else {
        ExternalIps::Within(config.allowed_external_ips.as_slice().into())
    }
}

/// What is looked at once the Node is known.
pub(crate) fn checked(config: &Config, families: Vec<IpFamily>) -> Checked {
    let listeners = [
        ("healthzBindAddress", config.healthz_bind_address),
        ("metricsBindAddress", config.metrics_bind_address),
    ];
    Checked {
        families,
        pods: pods(config),
        cluster_cidrs: match &config.detect_local {
            DetectLocal::ClusterCidr(ranges) => ranges.clone(),
            _ => Vec::new(),
        },
        node_ports: node_ports(config),
        ipvs_exclude_cidrs: config.ipvs.exclude_cidrs.clone(),
        listeners: listeners.into_iter().filter_map(|(name, addr)| Some((name, addr?.ip()))).collect(),
    }
}

/// Whether node ports are served on loopback addresses of IPv4: in mode iptables as far as these are among
/// `nodePortAddresses`.
pub(crate) fn serves_localhost(config: &Config) -> bool {
    match config.mode {
        Mode::IpTables => config.iptables_localhost_node_ports && includes_loopback(&node_ports(config)),
        Mode::NfTables | Mode::Ipvs | Mode::Ebpf | Mode::Userspace | Mode::Kernelspace => {
            config.nftables_localhost_node_ports
        }
    }
}

/// Without a range of IPv4, all its addresses are meant.
fn includes_loopback(node_ports: &NodePorts) -> bool {
    let loopback = IpNet::from(Ipv4Net::new_assert([127, 0, 0, 0].into(), 8));
    match node_ports {
        NodePorts::Primary => false,
        NodePorts::Within(ranges) => {
            let mut own = ranges.iter().filter(|range| range.addr().is_ipv4()).peekable();
            own.peek().is_none() || own.any(|range| range.contains(&loopback) || loopback.contains(range))
        }
    }
}

fn node_ports(config: &Config) -> NodePorts {
    match &config.node_port_addresses {
        NodePortAddresses::All => NodePorts::Within(Vec::new()),
        NodePortAddresses::Primary => NodePorts::Primary,
        NodePortAddresses::Within(ranges) => NodePorts::Within(ranges.clone()),
    }
}

/// Where there are no workers nobody asks for them.
fn proxying(config: &Config) -> ProxyingRules {
    let is_for_all = config.mode == Mode::Userspace;
    let unsaid = || ProxyingRules { ignores_annotations: !is_for_all, ..ProxyingRules::default() };
    let said = config.service_proxying.clone().unwrap_or_else(unsaid);
    ProxyingRules { otherwise: is_for_all.then_some(config.userspace_policy), ..said }
}

fn pods(config: &Config) -> Pods {
    match config.detect_local.clone() {
        DetectLocal::ClusterCidr(ranges) => Pods::ClusterCidr(ranges),
        DetectLocal::NodeCidr => Pods::NodeCidr,
        DetectLocal::BridgeInterface(name) => Pods::BridgeInterface(name),
        DetectLocal::InterfaceNamePrefix(prefix) => Pods::InterfaceNamePrefix(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ranges: &[&str], expected: bool) {
        let ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(includes_loopback(&NodePorts::Within(ranges)), expected);
    }

    #[test]
    fn loopback_is_served_where_the_ranges_have_it() {
        check(&[], true);
        check(&["0.0.0.0/0"], true);
        check(&["127.0.0.1/32"], true);
        check(&["192.168.0.0/16", "127.0.0.0/8"], true);
        check(&["192.168.0.0/16"], false);
        check(&["fd00::/8"], true);
        assert!(!includes_loopback(&NodePorts::Primary));
    }
}
