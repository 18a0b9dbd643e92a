//! The table of flags. Names, types and defaults are upstream's v1.36, except `--manifests`, `--service-metrics...` and
//! `--ebpf-...`, which are ours.

use crate::flag::{Flag, Given, Group, Target, field, own};
use crate::platform::Platform;
use crate::v1alpha1::{OutputRouting, VmoduleItem};

/// All flags, in the order of `--help`.
pub(crate) static GROUPS: [Group; 9] = [
    everywhere("General", GENERAL),
    everywhere("Source", SOURCE),
    everywhere("Node and listeners", NODE),
    everywhere("Traffic", TRAFFIC),
    everywhere("Modes iptables, ipvs, ebpf and userspace", OTHER_MODES),
    everywhere("Connection tracking", CONNTRACK),
    everywhere("Logging", LOGGING),
    everywhere("Inherited by upstream from a library", INHERITED),
    Group { title: "Windows", flags: WINDOWS, only_on: Some(Platform::Windows) },
];

const fn everywhere(title: &'static str, flags: &'static [Flag]) -> Group {
    Group { title, flags, only_on: None }
}

/// The groups of this build.
pub(crate) fn groups() -> impl Iterator<Item = &'static Group> {
    GROUPS.iter().filter(|group| group.only_on.is_none_or(|platform| platform == Platform::HERE))
}

/// The flags of this build.
pub(crate) fn all() -> impl Iterator<Item = &'static Flag> {
    groups().flat_map(|group| group.flags)
}

/// The flag of a name.
pub(crate) fn named(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

const GENERAL: &[Flag] = &[
    own(
        "config",
        "",
        Target::Text(|given, path| given.own.config = path),
        "Configuration file, YAML or JSON. Most other flags are ignored with it",
    )
    .placeholder("FILE"),
    own(
        "write-config-to",
        "",
        Target::Text(|given, path| given.own.write_config_to = path),
        "Write the configuration that results from file and flags to this file, and exit",
    )
    .placeholder("FILE"),
    own(
        "cleanup",
        "false",
        Target::Bool(|given, on| given.own.cleanup = on),
        "Remove the rules of all modes, and exit",
    ),
    own(
        "hand-over",
        "0s",
        Target::Duration(|given, lease| given.own.hand_over = lease),
        "Have what the tables of mode nftables do be done by copies for so long, from a second to an hour, that whoever comes next does not delete; and exit",
    ),
    own(
        "init-only",
        "false",
        Target::Bool(|given, on| given.own.init_only = on),
        "Do only what needs full privilege, and exit",
    ),
    own(
        "version",
        "false",
        Target::Version(|given, version| given.own.version = version),
        "Print the version, with =raw all of it, and exit; with =vX.Y.Z... report that version instead",
    ),
    field(
        "feature-gates",
        "featureGates",
        Target::Gates(|given, gates| given.file.feature_gates = gates),
        "Switch features on or off",
    ),
];

const SOURCE: &[Flag] = &[
    field(
        "kubeconfig",
        "clientConnection.kubeconfig",
        Target::Text(|given, path| given.file.client_connection.kubeconfig = path),
        "Kubeconfig with the API server and credentials; without it and --master the pod's service account is used",
    )
    .placeholder("FILE"),
    own(
        "master",
        "",
        Target::Text(|given, url| given.own.master = url),
        "URL of the API server, instead of the kubeconfig's",
    )
    .placeholder("URL"),
    own(
        "manifests",
        "",
        Target::Text(|given, path| given.own.manifests = path),
        "Serve the Services, EndpointSlices and Nodes of the YAML and JSON files in this folder, without an API server",
    )
    .placeholder("DIR"),
    field(
        "kube-api-content-type",
        "clientConnection.contentType",
        Target::Text(|given, kind| given.file.client_connection.content_type = kind),
        "Format asked of the API server; what it refuses falls back to JSON",
    )
    .placeholder("TYPE"),
    field(
        "kube-api-qps",
        "clientConnection.qps",
        Target::Float(|given, qps| given.file.client_connection.qps = qps),
        "Requests a second to the API server",
    ),
    field(
        "kube-api-burst",
        "clientConnection.burst",
        Target::Int(|given, burst| given.file.client_connection.burst = burst),
        "Requests to the API server that may come at once",
    ),
    field(
        "config-sync-period",
        "configSyncPeriod",
        Target::Duration(|given, period| given.file.config_sync_period = period),
        "How often the API server's state is taken in anew",
    ),
];

const NODE: &[Flag] = &[
    field(
        "hostname-override",
        "hostnameOverride",
        Target::Text(|given, name| {
            // Empty says nothing, also above a file.
            if !name.is_empty() {
                given.file.hostname_override = name;
            }
        }),
        "Name of this node's Node object; without it the host's name",
    )
    .placeholder("NAME")
    .wins(),
    field(
        "bind-address",
        "bindAddress",
        Target::Ip(|given, ip| given.file.bind_address = ip),
        "Primary IP of this node, unless unspecified; its family is that of the listeners' defaults. Nothing is bound to it",
    ),
    field(
        "healthz-bind-address",
        "healthzBindAddress",
        Target::Listener(|given, address| given.file.healthz_bind_address = address),
        "Where the health server listens; port 0 switches it off",
    ),
    own(
        "healthz-port",
        "10256",
        Target::Int(|given, port| given.own.healthz_port = port),
        "Port of the health server if its address has none; 0 switches it off",
    )
    .deprecated("use --healthz-bind-address"),
    field(
        "metrics-bind-address",
        "metricsBindAddress",
        Target::Listener(|given, address| given.file.metrics_bind_address = address),
        "Where the metrics server listens; port 0 switches it off",
    ),
    own(
        "metrics-port",
        "10249",
        Target::Int(|given, port| given.own.metrics_port = port),
        "Port of the metrics server if its address has none; 0 switches it off",
    )
    .deprecated("use --metrics-bind-address"),
    field(
        "inspect-socket",
        "inspectSocket",
        Target::Text(|given, path| given.file.inspect_socket = path),
        "Socket of the file system that answers as the metrics server does, for its owner alone; kube-proxy status --server=unix:FILE asks it",
    )
    .placeholder("FILE"),
    field(
        "bind-address-hard-fail",
        "bindAddressHardFail",
        Target::Bool(|given, on| given.file.bind_address_hard_fail = on),
        "Exit if a listener can't be opened, instead of trying again",
    ),
    field(
        "profiling",
        "enableProfiling",
        Target::Bool(|given, on| given.file.enable_profiling = on),
        "Serve /debug/pprof and /debug/flags on the metrics server",
    ),
    field(
        "service-metrics",
        "serviceMetrics.mode",
        Target::Text(|given, mode| given.file.service_metrics.mode.0 = mode),
        "Of which Services /metrics has series of their own: off (the default), top (those with the most new flows) or all",
    )
    .placeholder("MODE"),
    field(
        "service-metrics-top",
        "serviceMetrics.top",
        Target::Int(|given, count| given.file.service_metrics.top = Some(count)),
        "How many Service ports have series with --service-metrics=top; without it 50",
    ),
    field(
        "canary-service",
        "canary.service",
        Target::Text(|given, service| given.file.canary.service = service),
        "A Service to whose cluster IP the proxy connects again and again, to prove that packets find their way",
    )
    .placeholder("NAMESPACE/NAME"),
    field(
        "canary-period",
        "canary.period",
        Target::Duration(|given, period| given.file.canary.period = Some(period)),
        "Time between two connections of --canary-service; without it 10s",
    ),
    field(
        "startup-taint",
        "startupTaint",
        Target::Text(|given, key| given.file.startup_taint = key),
        "Take the taint with this key away from the Node once Services are served",
    )
    .placeholder("KEY"),
    field(
        "service-metrics-namespaces",
        "serviceMetrics.namespaces",
        Target::List(|given, names| given.file.service_metrics.namespaces = Some(names)),
        "Only Services of these namespaces have series",
    )
    .placeholder("NAMESPACE,..."),
    field(
        "show-hidden-metrics-for-version",
        "showHiddenMetricsForVersion",
        Target::Text(|given, version| given.file.show_hidden_metrics_for_version = version),
        "Show the metrics that were hidden since this version, which must be the one before",
    )
    .placeholder("VERSION"),
    field(
        "oom-score-adj",
        "oomScoreAdj",
        Target::Int(|given, score| given.file.oom_score_adj = Some(score)),
        "Score for the kernel's out-of-memory killer, from -1000 (never) to 1000 (first)",
    ),
];

const TRAFFIC: &[Flag] = &[
    field(
        "proxy-mode",
        "mode",
        Target::Text(|given, mode| given.file.mode = mode),
        "How packets are directed; without it the best mode that the kernel supports",
    )
    .placeholder("MODE"),
    field(
        "masquerade-all",
        "nftables.masqueradeAll",
        Target::Bool(|given, on| *given.file.mode_section_mut().masquerade_all = on),
        "Masquerade all traffic to cluster IPs",
    ),
    field(
        "detect-local-mode",
        "detectLocalMode",
        Target::Text(|given, mode| given.file.detect_local_mode = mode),
        "How packets from pods are recognised: ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix",
    )
    .placeholder("MODE"),
    field(
        "cluster-cidr",
        "clusterCIDR",
        Target::Text(|given, cidrs| given.file.cluster_cidr = cidrs),
        "Addresses of the cluster's pods, one range a family; with it, traffic to cluster IPs from elsewhere is masqueraded",
    )
    .placeholder("CIDR[,CIDR]"),
    field(
        "pod-bridge-interface",
        "detectLocal.bridgeInterface",
        Target::Text(|given, name| given.file.detect_local.bridge_interface = name),
        "Bridge of the pods, for BridgeInterface",
    )
    .placeholder("NAME"),
    field(
        "pod-interface-name-prefix",
        "detectLocal.interfaceNamePrefix",
        Target::Text(|given, prefix| given.file.detect_local.interface_name_prefix = prefix),
        "Beginning of the names of the pods' interfaces, for InterfaceNamePrefix",
    )
    .placeholder("PREFIX"),
    field(
        "nodeport-addresses",
        "nodePortAddresses",
        Target::List(|given, ranges| given.file.node_port_addresses = Some(ranges)),
        "Addresses of the node that serve node ports, or \"primary\": the Node object's first of each family. In mode \
         nftables the default is primary",
    )
    .placeholder("CIDR,..."),
    field(
        "allowed-external-ips",
        "allowedExternalIPs",
        Target::List(|given, ranges| given.file.allowed_external_ips = Some(ranges)),
        "External IPs of Services that are served; others are left out, with an Event. Without it all are",
    )
    .placeholder("CIDR,..."),
    field(
        "iptables-sync-period",
        "nftables.syncPeriod",
        Target::Duration(|given, period| *given.file.flagged_sync_periods().0 = period),
        "Time between full syncs of any mode but ipvs; the health server allows twice this for a sync",
    ),
    field(
        "iptables-min-sync-period",
        "nftables.minSyncPeriod",
        Target::Duration(|given, period| *given.file.flagged_sync_periods().1 = period),
        "Shortest time between syncs of any mode but ipvs",
    ),
];

const OTHER_MODES: &[Flag] = &[
    field(
        "iptables-masquerade-bit",
        "iptables.masqueradeBit",
        Target::Int(|given, bit| given.file.iptables.masquerade_bit = Some(bit)),
        "Bit of the packet mark for masquerading, 0 to 31; also of mode ipvs, and of the mode chosen without --proxy-mode",
    ),
    field(
        "iptables-localhost-nodeports",
        "iptables.localhostNodePorts",
        Target::Bool(|given, on| given.file.iptables.localhost_node_ports = Some(on)),
        "Serve node ports on localhost, in mode iptables",
    ),
    field(
        "ipvs-sync-period",
        "ipvs.syncPeriod",
        Target::Duration(|given, period| given.file.ipvs.sync_period = period),
        "Time between full syncs",
    ),
    field(
        "ipvs-min-sync-period",
        "ipvs.minSyncPeriod",
        Target::Duration(|given, period| given.file.ipvs.min_sync_period = period),
        "Shortest time between syncs",
    ),
    field(
        "ipvs-scheduler",
        "ipvs.scheduler",
        Target::Text(|given, scheduler| given.file.ipvs.scheduler = scheduler),
        "How endpoints are chosen; without it rr",
    )
    .placeholder("NAME"),
    field(
        "ipvs-exclude-cidrs",
        "ipvs.excludeCIDRs",
        Target::List(|given, ranges| given.file.ipvs.exclude_cidrs = Some(ranges)),
        "Virtual servers in these ranges are left alone",
    )
    .placeholder("CIDR,..."),
    field(
        "ipvs-strict-arp",
        "ipvs.strictARP",
        Target::Bool(|given, on| given.file.ipvs.strict_arp = on),
        "Set arp_ignore to 1 and arp_announce to 2",
    ),
    field(
        "ipvs-tcp-timeout",
        "ipvs.tcpTimeout",
        Target::Duration(|given, timeout| given.file.ipvs.tcp_timeout = timeout),
        "Time-out of idle TCP flows; 0 leaves the kernel's",
    ),
    field(
        "ipvs-tcpfin-timeout",
        "ipvs.tcpFinTimeout",
        Target::Duration(|given, timeout| given.file.ipvs.tcp_fin_timeout = timeout),
        "Time-out of TCP flows after a FIN; 0 leaves the kernel's",
    ),
    field(
        "ipvs-udp-timeout",
        "ipvs.udpTimeout",
        Target::Duration(|given, timeout| given.file.ipvs.udp_timeout = timeout),
        "Time-out of UDP flows; 0 leaves the kernel's",
    ),
    field(
        "ebpf-cgroup-root",
        "ebpf.cgroupRoot",
        Target::Text(|given, path| given.file.ebpf.cgroup_root = Some(path)),
        "A cgroup of version 2: mode ebpf serves the processes below. Without it /sys/fs/cgroup",
    )
    .placeholder("DIR"),
    field(
        "ebpf-bpffs",
        "ebpf.bpffs",
        Target::Text(|given, path| given.file.ebpf.bpffs = Some(path)),
        "A directory of a file system of type bpf, for the programs of mode ebpf; also where --cleanup looks for them. Without it /sys/fs/bpf",
    )
    .placeholder("DIR"),
    field(
        "ebpf-udp",
        "ebpf.udp",
        Target::Bool(|given, on| given.file.ebpf.udp = on),
        "Mode ebpf serves UDP at the socket, too; a socket that is connected to an endpoint that goes is ended",
    ),
    field(
        "ebpf-netns-dir",
        "ebpf.netnsDir",
        Target::Text(|given, path| given.file.ebpf.netns_dir = Some(path)),
        "With --ebpf-udp: a directory with the network namespaces of pods by name. Without it /run/netns",
    )
    .placeholder("DIR"),
    field(
        "service-proxying-annotated",
        "serviceProxying.annotated",
        Target::Bool(|given, on| given.file.service_proxying.annotated = on),
        "Services with annotation kube-proxy/proxying go through workers; in all modes of Linux, where mode userspace needs no asking",
    ),
    field(
        "connection-reset-annotated",
        "connectionReset.annotated",
        Target::Bool(|given, on| given.file.connection_reset.annotated = on),
        "Connections of Services with annotation kube-proxy/reset-connections to endpoints that are gone are reset",
    ),
    own(
        "userspace-policy",
        "",
        Target::Text(|given, policy| given.own.userspace_policy = policy),
        "How workers choose endpoints: round-robin, random, least-request, ring-hash, maglev or weighted; without it round-robin",
    )
    .placeholder("NAME"),
];

const CONNTRACK: &[Flag] = &[
    field(
        "conntrack-max-per-core",
        "conntrack.maxPerCore",
        Target::Int(|given, flows| given.file.conntrack.max_per_core = Some(flows)),
        "Tracked flows for each core; 0 leaves the kernel's limit alone",
    ),
    field(
        "conntrack-min",
        "conntrack.min",
        Target::Int(|given, flows| given.file.conntrack.min = Some(flows)),
        "Tracked flows at least, however few cores there are",
    ),
    field(
        "conntrack-tcp-timeout-established",
        "conntrack.tcpEstablishedTimeout",
        Target::Duration(|given, timeout| given.file.conntrack.tcp_established_timeout = Some(timeout)),
        "Time-out of idle TCP flows; 0 leaves the kernel's",
    ),
    field(
        "conntrack-tcp-timeout-close-wait",
        "conntrack.tcpCloseWaitTimeout",
        Target::Duration(|given, timeout| given.file.conntrack.tcp_close_wait_timeout = Some(timeout)),
        "Time-out of TCP flows that one side has closed; 0 leaves the kernel's",
    ),
    field(
        "conntrack-tcp-be-liberal",
        "conntrack.tcpBeLiberal",
        Target::Bool(|given, on| given.file.conntrack.tcp_be_liberal = on),
        "Let TCP packets outside the window through",
    ),
    field(
        "conntrack-udp-timeout",
        "conntrack.udpTimeout",
        Target::Duration(|given, timeout| given.file.conntrack.udp_timeout = timeout),
        "Time-out of UDP flows without an answer; 0 leaves the kernel's",
    ),
    field(
        "conntrack-udp-timeout-stream",
        "conntrack.udpStreamTimeout",
        Target::Duration(|given, timeout| given.file.conntrack.udp_stream_timeout = timeout),
        "Time-out of UDP flows with answers; 0 leaves the kernel's",
    ),
];

const LOGGING: &[Flag] = &[
    field(
        "v",
        "logging.verbosity",
        Target::Level(|given, level| given.file.logging.verbosity = level),
        "How much to log: 2 adds each change of the rules, 4 each API event, 6 is everything",
    )
    .short('v')
    .wins(),
    field("vmodule", "logging.vmodule", Target::Vmodule(prepend_vmodule), "Levels of single source files").wins(),
    field(
        "logging-format",
        "logging.format",
        Target::Text(|given, format| given.file.logging.format = format),
        "Form of the log lines: text or json",
    )
    .placeholder("FORMAT")
    .wins(),
    field(
        "log-flush-frequency",
        "logging.flushFrequency",
        Target::Duration(|given, period| given.file.logging.flush_frequency.0 = period),
        "Longest time between flushes of the log",
    )
    .wins(),
    field(
        "log-text-split-stream",
        "logging.options.text.splitStream",
        Target::Bool(|given, on| text(given).split_stream = on),
        "In format text, errors to standard error and the rest to standard output; needs gate LoggingAlphaOptions",
    )
    .wins(),
    field(
        "log-text-info-buffer-size",
        "logging.options.text.infoBufferSize",
        Target::Quantity(|given, size| text(given).info_buffer_size = size),
        "In format text, buffer for what is no error; needs gate LoggingAlphaOptions",
    )
    .wins(),
    field(
        "log-json-split-stream",
        "logging.options.json.splitStream",
        Target::Bool(|given, on| json(given).split_stream = on),
        "In format json, errors to standard error and the rest to standard output; needs gate LoggingAlphaOptions",
    )
    .wins(),
    field(
        "log-json-info-buffer-size",
        "logging.options.json.infoBufferSize",
        Target::Quantity(|given, size| json(given).info_buffer_size = size),
        "In format json, buffer for what is no error; needs gate LoggingAlphaOptions",
    )
    .wins(),
];

const INHERITED: &[Flag] = &[
    own(
        "boot-id-file",
        "/proc/sys/kernel/random/boot_id",
        Target::Text(|_, _| {}),
        "Files with the boot's identifier",
    )
    .placeholder("FILE,...")
    .no_effect("nothing reads the file, as upstream"),
    own(
        "machine-id-file",
        "/etc/machine-id,/var/lib/dbus/machine-id",
        Target::Text(|_, _| {}),
        "Files with the machine's identifier",
    )
    .placeholder("FILE,...")
    .no_effect("nothing reads the file, as upstream"),
];

const WINDOWS: &[Flag] = &[
    field(
        "network-name",
        "winkernel.networkName",
        Target::Text(|given, name| given.file.winkernel.network_name = name),
        "Name of the pods' HNS network; without it the environment's KUBE_NETWORK",
    )
    .placeholder("NAME"),
    field(
        "source-vip",
        "winkernel.sourceVip",
        Target::Text(|given, ip| given.file.winkernel.source_vip = ip),
        "Source address of packets to endpoints; without it that of an HNS endpoint with a name agreed on",
    )
    .placeholder("IP"),
    field(
        "enable-dsr",
        "winkernel.enableDSR",
        Target::Bool(|given, on| given.file.winkernel.enable_dsr = on),
        "Let answers to cluster IPs go straight back, if HNS can do that",
    ),
    field(
        "root-hnsendpoint-name",
        "winkernel.rootHnsEndpointName",
        Target::Text(|given, name| given.file.winkernel.root_hns_endpoint_name = name),
        "Name of the HNS endpoint of the host, for health checks of load balancers",
    )
    .placeholder("NAME"),
    field(
        "forward-healthcheck-vip",
        "winkernel.forwardHealthCheckVip",
        Target::Bool(|given, on| given.file.winkernel.forward_health_check_vip = on),
        "Answer health checks at the addresses of load balancers",
    ),
    field(
        "windows-service",
        "windowsRunAsService",
        Target::Bool(|given, on| given.file.windows_run_as_service = on),
        "Run as a service: answer Windows' service control manager",
    )
    .wins(),
    own(
        "windows-priorityclass",
        "",
        Target::Text(|given, class| given.own.windows_priority_class = class),
        "Priority of the process, such as NORMAL_PRIORITY_CLASS or ABOVE_NORMAL_PRIORITY_CLASS; without it what it was started with",
    )
    .placeholder("CLASS"),
    own(
        "log-file",
        "",
        Target::Text(|given, path| given.own.log_file = path),
        "Log to this file instead of standard error; as a service, without it, to kube-proxy.log beside the program",
    )
    .placeholder("FILE"),
];

/// The flag's entries come before the file's.
fn prepend_vmodule(given: &mut Given, mut items: Vec<VmoduleItem>) {
    items.append(&mut given.file.logging.vmodule);
    given.file.logging.vmodule = items;
}

fn text(given: &mut Given) -> &mut OutputRouting {
    &mut given.file.logging.options.text
}

fn json(given: &mut Given) -> &mut OutputRouting {
    &mut given.file.logging.options.json
}
