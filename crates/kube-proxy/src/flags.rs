//! The command line: what was typed, checked without looking at anything else.

use std::path::PathBuf;

use clap::builder::{EnumValueParser, PossibleValue};
use clap::{Arg, ArgAction, ArgMatches, Command, ValueEnum, value_parser};
use ipnet::IpNet;

/// The flags of one start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Flags {
    /// `--proxy-mode`.
    pub(crate) mode: ProxyMode,
    /// `--iptables-localhost-nodeports`.
    pub(crate) localhost_node_ports: bool,
    /// `--kubeconfig`.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// `--master`: replaces the kubeconfig's server URL.
    pub(crate) master: Option<String>,
    /// `--manifests`: a folder instead of an API server.
    pub(crate) manifests: Option<PathBuf>,
    /// `--hostname-override`, lower case; never empty.
    pub(crate) hostname_override: Option<String>,
    /// `--kube-api-content-type json`: never ask for protobuf.
    pub(crate) json_only: bool,
    /// `--nodeport-addresses primary`.
    pub(crate) primary_node_port_addresses: bool,
    /// `--nodeport-addresses`; empty means the mode's default.
    pub(crate) nodeport_addresses: Vec<IpNet>,
    /// `--detect-local-mode` and the flag that belongs to it.
    pub(crate) pods: agent::Pods,
    /// `--masquerade-all`.
    pub(crate) masquerade_all: bool,
    /// `--v`: klog's verbosity.
    pub(crate) verbosity: u8,
    /// `--logging-format`.
    pub(crate) log_format: LogFormat,
}

/// How packets are directed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyMode {
    Nftables,
    Iptables,
}

impl ProxyMode {
    /// As the flag spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LocalMode {
    ClusterCidr,
    NodeCidr,
    BridgeInterface,
    InterfaceNamePrefix,
}

/// Combinations that the parser can't refuse by itself.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlagError {
    #[error("empty hostname-override is invalid")]
    EmptyHostname,
    #[error("--detect-local-mode={mode} needs --{flag}")]
    Needs { mode: &'static str, flag: &'static str },
    #[error("--nodeport-addresses: \"primary\" can't be combined with CIDRs")]
    PrimaryAndMore,
}

impl Flags {
    /// Reads parsed arguments.
    pub(crate) fn new(matches: &ArgMatches) -> Result<Self, FlagError> {
        let hostname_override = match matches.get_one::<String>("hostname-override") {
            None => None,
            Some(name) if name.is_empty() => None,
            Some(name) => Some(node_name(name).ok_or(FlagError::EmptyHostname)?),
        };
        Ok(Self {
            mode: matches.get_one("proxy-mode").copied().unwrap_or(ProxyMode::Nftables),
            localhost_node_ports: matches.get_one("iptables-localhost-nodeports").copied().unwrap_or(true),
            kubeconfig: text(matches, "kubeconfig").map(PathBuf::from),
            master: text(matches, "master"),
            manifests: text(matches, "manifests").map(PathBuf::from),
            hostname_override,
            json_only: text(matches, "kube-api-content-type").is_some_and(|kind| kind == JSON),
            primary_node_port_addresses: is_primary(matches),
            nodeport_addresses: nodeport_addresses(matches)?,
            pods: pods(matches)?,
            masquerade_all: matches.get_flag("masquerade-all"),
            verbosity: matches.get_one("v").copied().unwrap_or_default(),
            log_format: matches.get_one("logging-format").copied().unwrap_or(LogFormat::Text),
        })
    }
}

/// A node name as the API spells it: trimmed and in lower case; `None` if nothing is left.
pub(crate) fn node_name(text: &str) -> Option<String> {
    let name = text.trim().to_lowercase();
    (!name.is_empty()).then_some(name)
}

fn text(matches: &ArgMatches, id: &str) -> Option<String> {
    matches.get_one::<String>(id).filter(|text| !text.is_empty()).cloned()
}

fn is_primary(matches: &ArgMatches) -> bool {
    let mut given = matches.get_many::<Option<IpNet>>("nodeport-addresses").into_iter().flatten();
    given.any(Option::is_none)
}

fn nodeport_addresses(matches: &ArgMatches) -> Result<Vec<IpNet>, FlagError> {
    let given: Vec<_> =
        matches.get_many::<Option<IpNet>>("nodeport-addresses").into_iter().flatten().collect();
    if given.len() > 1 && given.iter().any(|range| range.is_none()) {
        return Err(FlagError::PrimaryAndMore);
    }
    Ok(given.into_iter().flatten().copied().collect())
}

fn pods(matches: &ArgMatches) -> Result<agent::Pods, FlagError> {
    let named = |mode, flag| text(matches, flag).ok_or(FlagError::Needs { mode, flag });
    let mode = matches.get_one("detect-local-mode").copied().unwrap_or(LocalMode::ClusterCidr);
    Ok(match mode {
        LocalMode::ClusterCidr => agent::Pods::ClusterCidr(
            matches.get_many("cluster-cidr").into_iter().flatten().copied().collect(),
        ),
        LocalMode::NodeCidr => agent::Pods::NodeCidr,
        LocalMode::BridgeInterface => {
            agent::Pods::BridgeInterface(named("BridgeInterface", "pod-bridge-interface")?)
        }
        LocalMode::InterfaceNamePrefix => {
            agent::Pods::InterfaceNamePrefix(named("InterfaceNamePrefix", "pod-interface-name-prefix")?)
        }
    })
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";

/// The parser. Names and meanings are upstream's, except `--manifests`.
pub(crate) fn command() -> Command {
    let value = |name: &'static str, kind: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(kind).help(help)
    };
    let source = [
        value("kubeconfig", "FILE", "Kubeconfig with the API server and credentials [default: in-cluster]"),
        value("master", "URL", "URL of the API server, instead of the kubeconfig's"),
        value("manifests", "DIR", "Serve the Services, EndpointSlices and Nodes of the YAML and JSON files in this folder, without an API server")
            .conflicts_with_all(["kubeconfig", "master"]),
        value("kube-api-content-type", "TYPE", "Format asked of the API server; what it refuses falls back to JSON")
            .value_parser([PROTOBUF, JSON])
            .default_value(PROTOBUF),
        value("hostname-override", "NAME", "Name of this node's Node object [default: the host's name]"),
    ];
    let traffic = [
        value("proxy-mode", "MODE", "How packets are directed")
            .value_parser(EnumValueParser::<ProxyMode>::new())
            .default_value("nftables"),
        value("iptables-localhost-nodeports", "BOOL", "In iptables mode, serve node ports on 127.0.0.0/8 too, for the node's own processes")
            .value_parser(value_parser!(bool))
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("true"),
        value("nodeport-addresses", "CIDR,...", "Addresses of the node that serve node ports, or \"primary\": the Node object's first of each family [default: primary; in iptables mode all]")
            .value_delimiter(',')
            .value_parser(range_or_primary)
            .action(ArgAction::Append),
        value("detect-local-mode", "MODE", "How packets from pods are recognised")
            .value_parser(EnumValueParser::<LocalMode>::new())
            .default_value("ClusterCIDR"),
        value("cluster-cidr", "CIDR[,CIDR]", "Addresses of the cluster's pods, one range a family")
            .value_delimiter(',')
            .value_parser(range),
        value("pod-bridge-interface", "NAME", "Bridge of the pods, for BridgeInterface"),
        value("pod-interface-name-prefix", "PREFIX", "Beginning of the names of the pods' interfaces, for InterfaceNamePrefix"),
        Arg::new("masquerade-all").long("masquerade-all").action(ArgAction::SetTrue).help("Masquerade all traffic to cluster IPs"),
    ];
    let logs = [
        value("v", "LEVEL", "Verbosity of the log: 2 adds each change of the rules, 6 is everything")
            .short('v')
            .value_parser(value_parser!(u8)),
        value("logging-format", "FORMAT", "Form of the log lines")
            .value_parser(EnumValueParser::<LogFormat>::new())
            .default_value("text"),
    ];
    Command::new("kube-proxy")
        .about("Directs packets for Kubernetes Services to their pods on this node")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args_override_self(true)
        .args(source.map(|arg| arg.help_heading("Source")))
        .args(traffic.map(|arg| arg.help_heading("Traffic")))
        .args(logs.map(|arg| arg.help_heading("Log")))
}

fn range(text: &str) -> Result<IpNet, model::CidrError> {
    model::parse_cidr(text)
}

fn range_or_primary(text: &str) -> Result<Option<IpNet>, model::CidrError> {
    if text == "primary" { Ok(None) } else { range(text).map(Some) }
}

impl ValueEnum for ProxyMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Nftables, Self::Iptables]
    }
    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.as_str()))
    }
}

impl ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }
    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Text => "text",
            Self::Json => "json",
        }))
    }
}

impl ValueEnum for LocalMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::ClusterCidr, Self::NodeCidr, Self::BridgeInterface, Self::InterfaceNamePrefix]
    }
    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::ClusterCidr => "ClusterCIDR",
            Self::NodeCidr => "NodeCIDR",
            Self::BridgeInterface => "BridgeInterface",
            Self::InterfaceNamePrefix => "InterfaceNamePrefix",
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        let words = std::iter::once("kube-proxy").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        Flags::new(&matches).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(line: &str, because: &str) {
        let error = parse(line).unwrap_err();
        assert!(error.contains(because), "{line}: {error}");
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn defaults_are_upstreams() {
        let flags = parse("").unwrap();
        assert_eq!(flags.pods, agent::Pods::ClusterCidr(Vec::new()));
        assert_eq!(flags.nodeport_addresses, []);
        assert!(!flags.primary_node_port_addresses && flags.localhost_node_ports);
        assert_eq!(flags.mode, ProxyMode::Nftables);
        assert!(!flags.json_only && !flags.masquerade_all);
        assert_eq!((flags.verbosity, flags.log_format), (0, LogFormat::Text));
    }

    #[test]
    fn values_are_read() {
        let flags = parse(
            "--kubeconfig=/k --hostname-override Node-1 --proxy-mode nftables --cluster-cidr 10.244.0.0/16,fd00::/56 \
             --nodeport-addresses 10.0.0.0/8 --nodeport-addresses=fd00::/64,192.168.0.0/16 -v 4 --logging-format json \
             --kube-api-content-type application/json --masquerade-all",
        )
        .unwrap();
        assert_eq!(flags.kubeconfig, Some("/k".into()));
        assert_eq!(flags.hostname_override.as_deref(), Some("node-1"));
        assert_eq!(flags.nodeport_addresses.len(), 3);
        assert!(matches!(flags.pods, agent::Pods::ClusterCidr(ranges) if ranges.len() == 2));
        assert!(flags.json_only && flags.masquerade_all);
        assert_eq!((flags.verbosity, flags.log_format), (4, LogFormat::Json));
        let primary =
            parse("--nodeport-addresses primary --proxy-mode iptables --iptables-localhost-nodeports=false")
                .unwrap();
        assert!(primary.primary_node_port_addresses && primary.nodeport_addresses.is_empty());
        assert_eq!((primary.mode, primary.localhost_node_ports), (ProxyMode::Iptables, false));
    }

    #[test]
    fn the_last_of_a_repeated_flag_counts() {
        assert_eq!(parse("--master http://a --master http://b").unwrap().master.as_deref(), Some("http://b"));
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        refused("--proxy-mode=ebbf", "nftables");
        refused("--cluster-cidr=10.0.0.0/33", "\"10.0.0.0/33\" is not a CIDR");
        refused("--nodeport-addresses=primary,10.0.0.0/8", "can't be combined");
        refused("--detect-local-mode=BridgeInterface", "needs --pod-bridge-interface");
        refused("--detect-local-mode=Guess", "ClusterCIDR");
        refused("--manifests /m --kubeconfig /k", "cannot be used with");
        refused("--unknown", "--unknown");
        refused("start", "start");
    }

    #[test]
    fn a_blank_hostname_is_refused() {
        let matches = command().try_get_matches_from(["kube-proxy", "--hostname-override", " "]).unwrap();
        assert_eq!(Flags::new(&matches), Err(FlagError::EmptyHostname));
    }
}
