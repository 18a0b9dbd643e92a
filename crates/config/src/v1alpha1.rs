//! The file's format: `kubeproxy.config.k8s.io/v1alpha1`, every field as it is written there, with its defaults.
//!
//! Text stays text here; `validate` makes values of it. Reading is in `file`, the rules of reading in `decode`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::decode::{FlushFrequency, Switch, object};
use crate::duration::GoDuration;
use crate::quantity::Quantity;

/// The only version there is.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The only kind there is.
pub const KIND: &str = "KubeProxyConfiguration";

/// `healthzBindAddress` without a port gets this one.
pub(crate) const HEALTHZ_PORT: u16 = 10256;
/// `metricsBindAddress` without a port gets this one.
pub(crate) const METRICS_PORT: u16 = 10249;
/// `tracing.endpoint`, if it is not said.
const OTLP_ENDPOINT: &str = "localhost:4317";

object! {
    /// A configuration file. The fields' meanings are upstream's (`kube-proxy/config/v1alpha1/types.go`).
    KubeProxyConfiguration {
        /// Must be [`API_VERSION`].
        api_version: String = "apiVersion",
        /// Must be [`KIND`].
        kind: String = "kind",
        /// Overrides of feature gates.
        feature_gates: BTreeMap<String, bool> = "featureGates" omitempty,
        /// How to reach the API server.
        client_connection: ClientConnection = "clientConnection",
        /// How and how much to log.
        logging: Logging = "logging",
        /// Name of this node; empty means the host's name.
        hostname_override: String = "hostnameOverride",
        /// Primary IP of the node; unspecified means that of its Node object. Nothing is bound to it.
        bind_address: String = "bindAddress",
        /// Where the health server listens.
        healthz_bind_address: String = "healthzBindAddress",
        /// Where the metrics server listens.
        metrics_bind_address: String = "metricsBindAddress",
        /// A socket that answers as the metrics server does; empty means none. Ours.
        inspect_socket: String = "inspectSocket" omitempty,
        /// Whether to end if a listener can't be opened.
        bind_address_hard_fail: bool = "bindAddressHardFail",
        /// Whether the metrics server answers `/debug/pprof`.
        enable_profiling: bool = "enableProfiling",
        /// Show metrics that were hidden in this version.
        show_hidden_metrics_for_version: String = "showHiddenMetricsForVersion",
        /// Of which Services `/metrics` has series of their own. Ours: upstream's program leaves it out with a warning.
        service_metrics: ServiceMetrics = "serviceMetrics" omitempty,
        /// Of which Services workers carry flows. Ours.
        service_proxying: ServiceProxying = "serviceProxying" omitempty,
        /// Where traces of requests that workers carry go; absent means nowhere. Ours, and as in kubelet's configuration.
        tracing: Option<Tracing> = "tracing" omitempty,
        /// Of which Services connections to endpoints that are gone are reset. Ours.
        connection_reset: ConnectionReset = "connectionReset" omitempty,
        /// The key of a taint of the node that is taken away once Services are served; empty means none. Ours.
        startup_taint: String = "startupTaint" omitempty,
        /// A Service by which the proxy proves that packets find their way. Ours.
        canary: Canary = "canary" omitempty,
        /// How packets are directed; empty means the best there is.
        mode: String = "mode",
        /// Settings of mode iptables; the masquerade fields are also read by mode ipvs.
        iptables: IpTables = "iptables",
        /// Settings of mode ipvs.
        ipvs: Ipvs = "ipvs",
        /// Settings of mode nftables.
        nftables: NfTables = "nftables",
        /// Settings of mode ebpf, which upstream does not have; its rules are set by `nftables`.
        ebpf: Ebpf = "ebpf" omitempty,
        /// Settings of Windows.
        winkernel: Winkernel = "winkernel",
        /// How pods' traffic is recognised.
        detect_local_mode: String = "detectLocalMode",
        /// Values that belong to `detectLocalMode`.
        detect_local: DetectLocal = "detectLocal",
        /// The pods' addresses: one CIDR, or two of different families separated by a comma.
        cluster_cidr: String = "clusterCIDR",
        /// Node addresses that serve node ports: CIDRs, or `primary`.
        node_port_addresses: Option<Vec<String>> = "nodePortAddresses",
        /// External IPs of Services that may be served: CIDRs; none means all. Ours.
        allowed_external_ips: Option<Vec<String>> = "allowedExternalIPs" omitempty,
        /// Score for the kernel's out-of-memory killer.
        oom_score_adj: Option<i32> = "oomScoreAdj",
        /// Settings of connection tracking.
        conntrack: Conntrack = "conntrack",
        /// Resync interval of upstream's caches.
        config_sync_period: GoDuration = "configSyncPeriod",
        /// Obsolete.
        port_range: String = "portRange",
        /// Windows.
        windows_run_as_service: bool = "windowsRunAsService" omitempty,
    }
}

object! {
    /// `clientConnection`.
    ClientConnection {
        /// Path of a kubeconfig; empty means the pod's service account.
        kubeconfig: String = "kubeconfig",
        /// Formats to accept, instead of `contentType`.
        accept_content_types: String = "acceptContentTypes",
        /// Format of requests and answers.
        content_type: String = "contentType",
        /// Requests a second.
        qps: f32 = "qps",
        /// Requests that may come at once.
        burst: i32 = "burst",
    }
}

object! {
    /// `logging` (component-base's `LoggingConfiguration`).
    Logging {
        /// `text` or `json`.
        format: String = "format",
        /// Longest time between flushes.
        flush_frequency: FlushFrequency = "flushFrequency",
        /// Level; more is said with a higher one.
        verbosity: u32 = "verbosity",
        /// Levels of single source files.
        vmodule: Vec<VmoduleItem> = "vmodule" omitempty,
        /// Options of the formats.
        options: FormatOptions = "options",
    }
}

object! {
    /// An entry of `logging.vmodule`.
    VmoduleItem {
        /// Name of a source file, with wildcards.
        file_pattern: String = "filePattern",
        /// Its level.
        verbosity: u32 = "verbosity",
    }
}

object! {
    /// `logging.options`.
    FormatOptions {
        /// Of format text.
        text: OutputRouting = "text",
        /// Of format json.
        json: OutputRouting = "json",
    }
}

object! {
    /// `logging.options.text` and `.json`.
    OutputRouting {
        /// Errors to standard error, the rest to standard output.
        split_stream: bool = "splitStream" omitempty,
        /// Size of the buffer of what is no error.
        info_buffer_size: Quantity = "infoBufferSize",
    }
}

object! {
    /// `iptables`.
    IpTables {
        /// Bit of the packet mark for masquerading.
        masquerade_bit: Option<i32> = "masqueradeBit",
        /// Whether to masquerade all traffic to cluster IPs.
        masquerade_all: bool = "masqueradeAll",
        /// Whether node ports are served on localhost.
        localhost_node_ports: Option<bool> = "localhostNodePorts",
        /// Longest time between full syncs.
        sync_period: GoDuration = "syncPeriod",
        /// Shortest time between syncs.
        min_sync_period: GoDuration = "minSyncPeriod",
    }
}

object! {
    /// `ipvs`.
    Ipvs {
        /// Longest time between full syncs.
        sync_period: GoDuration = "syncPeriod",
        /// Shortest time between syncs.
        min_sync_period: GoDuration = "minSyncPeriod",
        /// How endpoints are chosen; empty means `rr`.
        scheduler: String = "scheduler",
        /// Virtual servers that are not ours.
        exclude_cidrs: Option<Vec<String>> = "excludeCIDRs",
        /// `arp_ignore` and `arp_announce`.
        strict_arp: bool = "strictARP",
        /// Time-out of idle TCP flows.
        tcp_timeout: GoDuration = "tcpTimeout",
        /// Time-out of TCP flows after a FIN.
        tcp_fin_timeout: GoDuration = "tcpFinTimeout",
        /// Time-out of UDP flows.
        udp_timeout: GoDuration = "udpTimeout",
    }
}

object! {
    /// `nftables`.
    NfTables {
        /// Bit of the packet mark for masquerading.
        masquerade_bit: Option<i32> = "masqueradeBit",
        /// Whether to masquerade all traffic to cluster IPs.
        masquerade_all: bool = "masqueradeAll",
        /// Longest time between full syncs.
        sync_period: GoDuration = "syncPeriod",
        /// Shortest time between syncs.
        min_sync_period: GoDuration = "minSyncPeriod",
    }
}

object! {
    /// `ebpf`.
    Ebpf {
        /// A cgroup of version 2 whose processes are served; empty means `/sys/fs/cgroup`.
        cgroup_root: Option<String> = "cgroupRoot" omitempty,
        /// A file system of type `bpf`; empty means `/sys/fs/bpf`.
        bpffs: Option<String> = "bpffs" omitempty,
        /// UDP is served, too.
        udp: bool = "udp" omitempty,
        /// Where network namespaces of pods have names; empty means `/run/netns`.
        netns_dir: Option<String> = "netnsDir" omitempty,
    }
}

object! {
    /// `winkernel`.
    Winkernel {
        /// HNS network.
        network_name: String = "networkName",
        /// Source address of direct server return.
        source_vip: String = "sourceVip",
        /// Direct server return.
        enable_dsr: bool = "enableDSR",
        /// HNS endpoint of the host.
        root_hns_endpoint_name: String = "rootHnsEndpointName",
        /// Forward health checks of load-balancer addresses.
        forward_health_check_vip: bool = "forwardHealthCheckVip",
    }
}

object! {
    /// `serviceProxying`.
    ServiceProxying {
        /// Whether Services with annotation `kube-proxy/proxying` go through workers.
        annotated: bool = "annotated" omitempty,
        /// Services that go through workers whatever they say: the first rule that selects a Service counts, after its annotation.
        rules: Option<Vec<ProxyingRule>> = "rules" omitempty,
        /// What workers write of requests and connections.
        access_log: AccessLog = "accessLog" omitempty,
        /// For how long workers wait for what, where a Service does not say.
        timeouts: WorkerTimeouts = "timeouts" omitempty,
    }
}

object! {
    /// `serviceProxying.timeouts`.
    WorkerTimeouts {
        /// For how long a connection to an endpoint is tried; absent means `4s`.
        connect: Option<GoDuration> = "connect" omitempty,
        /// For how long a connection lasts while nothing is carried; absent means for ever, of HTTP an hour.
        idle: Option<GoDuration> = "idle" omitempty,
        /// For how long a request waits for its answer to begin; absent or 0 means for ever.
        request: Option<GoDuration> = "request" omitempty,
        /// For how long connections go on at an endpoint that is gone; absent means `1h`.
        drain: Option<GoDuration> = "drain" omitempty,
    }
}

object! {
    /// `tracing` (component-base's `TracingConfiguration`).
    Tracing {
        /// Where a collector listens, by OTLP over gRPC without TLS; absent means `localhost:4317`.
        endpoint: Option<String> = "endpoint",
        /// How many of a million traces that begin here are recorded; absent or 0 means none. Those of others are recorded if these want it.
        sampling_rate_per_million: Option<i32> = "samplingRatePerMillion" omitempty,
    }
}

object! {
    /// `serviceProxying.accessLog`.
    AccessLog {
        /// How many of a hundred have a line; absent or 0 means none.
        sample_percent: Option<f32> = "samplePercent" omitempty,
    }
}

object! {
    /// An entry of `serviceProxying.rules`.
    ProxyingRule {
        /// By labels; absent means whatever they are.
        selector: LabelSelector = "selector" omitempty,
        /// Only of these namespaces; none means all.
        namespaces: Option<Vec<String>> = "namespaces" omitempty,
        /// How endpoints are chosen; empty means `round-robin`.
        policy: String = "policy" omitempty,
    }
}

object! {
    /// `serviceProxying.rules[].selector`, as elsewhere in Kubernetes, without `matchExpressions`.
    LabelSelector {
        /// Labels that an object has to have, all of them.
        match_labels: BTreeMap<String, String> = "matchLabels" omitempty,
    }
}

object! {
    /// `connectionReset`.
    ConnectionReset {
        /// Whether connections of Services with annotation `kube-proxy/reset-connections: "true"` are.
        annotated: bool = "annotated" omitempty,
    }
}

object! {
    /// `canary`.
    Canary {
        /// `namespace/name` of the Service; empty means none.
        service: String = "service" omitempty,
        /// The time between two probes; absent means 10 s.
        period: Option<GoDuration> = "period" omitempty,
    }
}

object! {
    /// `serviceMetrics`.
    ServiceMetrics {
        /// `off`, `top` or `all`; empty means `off`.
        mode: Switch = "mode" omitempty,
        /// How many Service ports in mode `top`; absent means 50.
        top: Option<i32> = "top" omitempty,
        /// Only of these namespaces; none means all.
        namespaces: Option<Vec<String>> = "namespaces" omitempty,
    }
}

object! {
    /// `detectLocal`.
    DetectLocal {
        /// Bridge of the pods.
        bridge_interface: String = "bridgeInterface",
        /// Beginning of the names of the pods' interfaces.
        interface_name_prefix: String = "interfaceNamePrefix",
    }
}

object! {
    /// `conntrack`.
    Conntrack {
        /// Tracked flows per core; 0 leaves the kernel's limit alone.
        max_per_core: Option<i32> = "maxPerCore",
        /// Tracked flows at least.
        min: Option<i32> = "min",
        /// Time-out of established TCP flows; 0 leaves the kernel's.
        tcp_established_timeout: Option<GoDuration> = "tcpEstablishedTimeout",
        /// Time-out of TCP flows that one side has closed; 0 leaves the kernel's.
        tcp_close_wait_timeout: Option<GoDuration> = "tcpCloseWaitTimeout",
        /// Whether TCP packets outside the window are let through.
        tcp_be_liberal: bool = "tcpBeLiberal",
        /// Time-out of UDP flows without an answer; 0 leaves the kernel's.
        udp_timeout: GoDuration = "udpTimeout",
        /// Time-out of UDP flows with answers; 0 leaves the kernel's.
        udp_stream_timeout: GoDuration = "udpStreamTimeout",
    }
}

impl KubeProxyConfiguration {
    /// The configuration of an empty file.
    pub fn defaults() -> Self {
        Self::defaults_at("")
    }

    /// The same, where only the address is said, whose family the listeners follow.
    pub(crate) fn defaults_at(bind_address: &str) -> Self {
        let mut file = Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            bind_address: bind_address.to_owned(),
            ..Self::default()
        };
        file.set_defaults();
        file
    }

    /// Fills in what is absent, or zero where zero says the same (`SetDefaults_KubeProxyConfiguration`). Upstream leaves
    /// `ipvs.minSyncPeriod` at zero; here it has the default of the other modes, and of the flag.
    pub(crate) fn set_defaults(&mut self) {
        set_if_empty(&mut self.bind_address, "0.0.0.0");
        let is_v6 = model::parse_addr(&self.bind_address).is_ok_and(|addr| addr.is_ipv6());
        let (any, localhost) = if is_v6 { ("::", "::1") } else { ("0.0.0.0", "127.0.0.1") };
        set_if_empty(&mut self.healthz_bind_address, any);
        set_if_empty(&mut self.metrics_bind_address, localhost);
        append_port_if_needed(&mut self.healthz_bind_address, HEALTHZ_PORT);
        append_port_if_needed(&mut self.metrics_bind_address, METRICS_PORT);
        if let Some(tracing) = &mut self.tracing {
            // Upstream's exporter has this default; that it is said here keeps the section from being empty.
            tracing.endpoint.get_or_insert_with(|| OTLP_ENDPOINT.to_owned());
        }
        set_if_zero(&mut self.config_sync_period, GoDuration::from_secs(15 * 60));
        self.oom_score_adj.get_or_insert(-999);
        self.set_mode_defaults();
        self.set_conntrack_defaults();
        set_if_empty(&mut self.client_connection.content_type, "application/vnd.kubernetes.protobuf");
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = 5.0;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = 10;
        }
        set_if_empty(&mut self.logging.format, "text");
        set_if_zero(&mut self.logging.flush_frequency.0, GoDuration::from_secs(5));
    }

    fn set_mode_defaults(&mut self) {
        let Self { iptables, ipvs, nftables, .. } = self;
        for (sync, min) in [
            (&mut iptables.sync_period, &mut iptables.min_sync_period),
            (&mut ipvs.sync_period, &mut ipvs.min_sync_period),
            (&mut nftables.sync_period, &mut nftables.min_sync_period),
        ] {
            set_if_zero(sync, GoDuration::from_secs(30));
            set_if_zero(min, GoDuration::from_secs(1));
        }
        iptables.masquerade_bit.get_or_insert(14);
        iptables.localhost_node_ports.get_or_insert(true);
        nftables.masquerade_bit.get_or_insert(14);
    }

    fn set_conntrack_defaults(&mut self) {
        let conntrack = &mut self.conntrack;
        conntrack.max_per_core.get_or_insert(32 * 1024);
        conntrack.min.get_or_insert(128 * 1024);
        conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 60 * 60));
        conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(60 * 60));
    }
}

fn set_if_empty(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn set_if_zero(field: &mut GoDuration, default: GoDuration) {
    if *field == GoDuration::ZERO {
        *field = default;
    }
}

/// Completes a bare IP address; leaves everything else to validation.
pub(crate) fn append_port_if_needed(address: &mut String, port: u16) {
    if let Ok(ip) = model::parse_addr(address) {
        *address = join_host_port(address, ip, port);
    }
}

fn join_host_port(text: &str, ip: IpAddr, port: u16) -> String {
    // What has a colon needs brackets, also `::ffff:10.0.0.1`, which is read as IPv4.
    if ip.is_ipv6() || text.contains(':') { format!("[{text}]:{port}") } else { format!("{text}:{port}") }
}
