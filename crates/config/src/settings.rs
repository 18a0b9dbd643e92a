//! The configuration in force, as typed values.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use balance::{Policy, Timeouts};
use ipnet::IpNet;
use model::ProxyingRules;
use serde_json::Value;

use crate::decode::Field as _;
use crate::gates::Gates;
use crate::mode::Mode;
use crate::quantity::Quantity;
use crate::v1alpha1::{KubeProxyConfiguration, VmoduleItem};

/// A configuration that was completed and checked. Every text of the file that means a value is that value here.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own; together they are no state")]
pub struct Config {
    /// How packets are directed.
    pub mode: Mode,
    /// How to reach the API server.
    pub client_connection: ClientConnection,
    /// Serve the manifests in this folder instead (`--manifests`).
    pub manifests: Option<PathBuf>,
    /// Name of this node, in lower case; otherwise the host's name.
    pub hostname_override: Option<String>,
    /// Primary IP of the node; if unspecified, that of its Node object, in this family first.
    pub bind_address: IpAddr,
    /// Where the health server listens; none if it is switched off.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where the metrics server listens; none if it is switched off.
    pub metrics_bind_address: Option<SocketAddr>,
    /// A socket of the file system that answers as the metrics server does.
    pub inspect_socket: Option<PathBuf>,
    /// Whether to end if a listener can't be opened, instead of trying again.
    pub bind_address_hard_fail: bool,
    /// Whether the metrics server answers `/debug/pprof` and `/debug/flags`.
    pub enable_profiling: bool,
    /// Whether metrics that are hidden in this version are shown.
    pub show_hidden_metrics: bool,
    /// Of which Services `/metrics` has series of their own.
    pub service_metrics: ServiceMetrics,
    /// Score for the kernel's out-of-memory killer, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Resync interval of upstream's caches.
    pub config_sync_period: Duration,
    /// Longest time between full syncs. A sync may take twice this before the health server reports it.
    pub sync_period: Duration,
    /// Shortest time between syncs; zero unless it was said.
    pub min_sync_period: Duration,
    /// How pods' traffic is recognised.
    pub detect_local: DetectLocal,
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// The ranges that external IPs of Services are served in; empty means all addresses. Feature gate `AllowServiceExternalIPs` counts
    /// besides.
    pub allowed_external_ips: Vec<IpNet>,
    /// Whether all traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// Number of the packet mark's bit for masquerading, 0 to 31.
    pub masquerade_bit: u8,
    /// Whether node ports are served on localhost in mode iptables.
    pub iptables_localhost_node_ports: bool,
    /// Whether node ports are served on localhost in mode nftables (our feature gate `NFTablesLocalhostNodePorts`).
    pub nftables_localhost_node_ports: bool,
    /// What only mode ipvs needs.
    pub ipvs: Ipvs,
    /// Which Services' flows workers carry, beside a mode of rules that can hand them over; in mode userspace, who says how. `None`: nothing is said.
    pub service_proxying: Option<ProxyingRules>,
    /// For how long workers wait for what, where a Service does not say; `None`: as long as they do without.
    pub worker_timeouts: Timeouts,
    /// Of a million requests and connections that workers carry, how many have a line in the access log.
    pub access_log_per_million: u32,
    /// Where traces go, if there are to be any.
    pub tracing: Option<Tracing>,
    /// Whether Services may ask for connections to endpoints that are gone to be reset.
    pub connection_reset: bool,
    /// The key of a taint of the node that is taken away once Services are served.
    pub startup_taint: Option<String>,
    /// A Service by which the proxy proves that packets find their way.
    pub canary: Option<Canary>,
    /// How workers of mode userspace choose endpoints (`--userspace-policy`).
    pub userspace_policy: Policy,
    /// What mode ebpf needs besides, and what a cleanup looks for.
    pub ebpf: Ebpf,
    /// What only Windows has.
    pub windows: Windows,
    /// Sysctls of connection tracking.
    pub conntrack: Conntrack,
    /// How and how much to log.
    pub logging: Logging,
    /// Feature gates.
    pub gates: Gates,
    /// The file's form of all this.
    pub(crate) file: KubeProxyConfiguration,
}

impl Config {
    /// How long a sync may be due before the health server reports it: twice the sync period, as upstream.
    pub fn health_timeout(&self) -> Duration {
        self.sync_period.saturating_mul(2)
    }

    /// The configuration as a file, keys sorted. Reading it again gives the same configuration.
    pub fn to_yaml(&self) -> String {
        match self.file.write() {
            Value::Object(fields) => crate::yaml::to_string(&fields),
            other => other.to_string(),
        }
    }

    /// The same as JSON, for `/configz`.
    pub fn to_json(&self) -> Value {
        self.file.write()
    }
}

/// `winkernel`, and flags of Windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// The pods' HNS network; otherwise the environment says it.
    pub network_name: Option<String>,
    /// Source address of packets to endpoints.
    pub source_vip: Option<IpAddr>,
    /// Whether answers to cluster IPs may go straight back.
    pub enable_dsr: bool,
    /// Name of the HNS endpoint of the host.
    pub root_hns_endpoint_name: String,
    /// Whether health checks at addresses of load balancers are answered.
    pub forward_health_check_vip: bool,
    /// Whether to run as a service of Windows.
    pub run_as_service: bool,
    /// Priority of the process, by the name of a constant of Windows; otherwise it stays as it is.
    pub priority_class: Option<String>,
}

/// `tracing`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Where spans go, by OTLP over gRPC.
    pub collector: Collector,
    /// Of a million traces that begin here, how many are recorded; those of others go on as these want.
    pub per_million: u32,
}

/// Where a collector of spans listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collector {
    /// `host:port`
    Tcp(String),
    /// A socket of the file system.
    Unix(PathBuf),
}

/// `canary`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The Service.
    pub service: model::ServiceName,
    /// The time between two probes; at least a second.
    pub period: Duration,
}

/// `serviceMetrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceMetrics {
    /// How many Service ports have series.
    pub series: ServiceSeries,
    /// Only those of these namespaces; none means all.
    pub namespaces: Vec<String>,
}

/// How many Service ports have series of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceSeries {
    /// None: there are sums alone.
    #[default]
    Off,
    /// So many, those with the most new flows.
    Top(u32),
    /// Each through which anything went.
    All,
}

/// `clientConnection` and `--master`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConnection {
    /// Path of a kubeconfig. Without it and `server`, the pod's service account is used.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the server, instead of the kubeconfig's (`--master`).
    pub server: Option<String>,
    /// The format to ask for.
    pub content_type: ContentType,
    /// Requests a second; unlimited if negative.
    pub qps: f32,
    /// Requests that may come at once.
    pub burst: u32,
}

/// A format of API objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Protobuf where the server has it, else JSON.
    Protobuf,
    /// JSON only.
    Json,
}

/// `detectLocalMode` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address in the range of the family; not at all if there is none.
    ClusterCidr(Vec<IpNet>),
    /// By source address in the Node object's pod CIDR of the family.
    NodeCidr,
    /// By the interface that packets arrive on.
    BridgeInterface(String),
    /// By the beginning of that interface's name.
    InterfaceNamePrefix(String),
}

/// `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On all addresses of the node.
    All,
    /// On the Node object's first address of each family.
    Primary,
    /// On the node's addresses in these ranges; never empty.
    Within(Vec<IpNet>),
}

/// `ipvs`, without the values that all modes share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipvs {
    /// How endpoints are chosen; never empty.
    pub scheduler: String,
    /// Virtual servers in these ranges are left alone.
    pub exclude_cidrs: Vec<IpNet>,
    /// Whether to set `arp_ignore` and `arp_announce`.
    pub strict_arp: bool,
    /// Time-out of idle TCP flows; none leaves the kernel's.
    pub tcp_timeout: Option<Duration>,
    /// Time-out of TCP flows after a FIN; none leaves the kernel's.
    pub tcp_fin_timeout: Option<Duration>,
    /// Time-out of UDP flows; none leaves the kernel's.
    pub udp_timeout: Option<Duration>,
}

/// `ebpf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ebpf {
    /// A cgroup of version 2: sockets of the processes below are served.
    pub cgroup_root: PathBuf,
    /// A file system of type `bpf`, for what outlives the process.
    pub bpffs: PathBuf,
    /// UDP is served, too.
    pub udp: bool,
    /// Where network namespaces of pods have names: connected sockets whose endpoint is gone are ended there.
    pub netns_dir: PathBuf,
}

/// `conntrack`. Time-outs are whole seconds, rounded up, as the kernel's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Tracked flows for each core; 0 leaves the kernel's limit alone.
    pub max_per_core: u32,
    /// Tracked flows at least, unless `max_per_core` is 0.
    pub min: u32,
    /// Time-out of established TCP flows; none leaves the kernel's.
    pub tcp_established_timeout: Option<Duration>,
    /// Time-out of TCP flows that one side has closed; none leaves the kernel's.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Whether TCP packets outside the window are let through.
    pub tcp_be_liberal: bool,
    /// Time-out of UDP flows without an answer; none leaves the kernel's.
    pub udp_timeout: Option<Duration>,
    /// Time-out of UDP flows with answers; none leaves the kernel's.
    pub udp_stream_timeout: Option<Duration>,
}

/// `logging`.
#[derive(Clone, Debug, PartialEq)]
pub struct Logging {
    /// Form of the lines.
    pub format: LogFormat,
    /// klog's level.
    pub verbosity: u32,
    /// Levels of single source files.
    pub vmodule: Vec<VmoduleItem>,
    /// Longest time between flushes.
    pub flush_frequency: Duration,
    /// Whether only errors go to standard error, and the rest to standard output.
    pub split_stream: bool,
    /// Buffer for what is no error.
    pub info_buffer_size: Quantity,
    /// Log to this file instead of the streams (`--log-file`).
    pub to_file: Option<PathBuf>,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// klog's.
    #[default]
    Text,
    /// An object each.
    Json,
}

/// Before a configuration is known.
impl Default for Logging {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            verbosity: 0,
            vmodule: Vec::new(),
            flush_frequency: Duration::from_secs(5),
            split_stream: false,
            info_buffer_size: Quantity::default(),
            to_file: None,
        }
    }
}
