//! Checks every field and turns its text into a value. All that is wrong is reported at once, with upstream's reasons
//! (`pkg/proxy/apis/config/validation`) and the file's paths.

mod logging;
mod tracing;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use balance::{Policy, Timeouts};
use ipnet::IpNet;
use model::{ProxyingRule, ProxyingRules};

use crate::decode::child;
use crate::duration::GoDuration;
use crate::field::{FieldError, FieldErrors};
use crate::flag::OwnFlags;
use crate::gates::{Gates, NFTABLES_LOCALHOST_NODE_PORTS};
use crate::listener::{self, ListenerError};
use crate::mode::Mode;
use crate::platform::Platform;
use crate::settings::{
    Canary, ClientConnection, Config, Conntrack, ContentType, DetectLocal, Ebpf, Ipvs, Logging,
    NodePortAddresses, ServiceMetrics, ServiceSeries, Windows,
};
use crate::v1alpha1::{self, KubeProxyConfiguration, WorkerTimeouts};

pub(crate) use logging::logging;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const POSITIVE: &str = "must be greater than 0";
/// Upstream's sync loop runs at least this often, and crashes if it may not.
const LONGEST_MIN_SYNC: GoDuration = GoDuration::from_secs(60 * 60);
/// `serviceMetrics.top`, if it is not said.
const DEFAULT_TOP: i32 = 50;
/// The kernel's limit for names of interfaces (`IFNAMSIZ`, with the terminating zero).
const INTERFACE_NAME_BYTES: usize = 15;

/// The configuration of a file that was completed for a mode.
pub(crate) fn config(
    mut file: KubeProxyConfiguration,
    own: &OwnFlags,
    mode: Mode,
    gates: Gates,
    logging: Logging,
    mut errors: Vec<FieldError>,
) -> Result<Config, FieldErrors> {
    let check = &mut Check { errors: &mut errors };
    let masquerade_bit = masquerade_bit(&file, mode, check);
    let ipvs = ipvs(&file, mode, check);
    let service_proxying = service_proxying(&file, mode, check);
    let userspace_policy = userspace_policy(own, mode, check);
    let conntrack = conntrack(&file, check);
    let oom_score_adj = oom_score_adj(&file, check);
    let client_connection = client_connection(&file, own, check);
    let config_sync_period = check.positive("configSyncPeriod", file.config_sync_period);
    let (sync_period, min_sync_period) = sync_periods(&file, mode, check);
    let min_sync_period = if own.says_min_sync_period { min_sync_period } else { Duration::ZERO };
    if !own.says_min_sync_period {
        // Written as what it is, so that it is not taken for a wish when it is read again.
        *file.mode_section_mut().min_sync_period = GoDuration::ZERO;
    }
    let bind_address = bind_address(&file, check);
    let config = Config {
        mode,
        client_connection,
        manifests: path(&own.manifests),
        hostname_override: hostname(&file.hostname_override, check),
        bind_address,
        healthz_bind_address: check.listener("healthzBindAddress", &file.healthz_bind_address),
        metrics_bind_address: check.listener("metricsBindAddress", &file.metrics_bind_address),
        // Others have none that can be served.
        inspect_socket: path(&file.inspect_socket).filter(|_| Platform::HERE == Platform::Linux),
        bind_address_hard_fail: file.bind_address_hard_fail,
        enable_profiling: file.enable_profiling,
        node_port_addresses: node_port_addresses(&file, check),
        allowed_external_ips: allowed_external_ips(&file, check),
        show_hidden_metrics: show_hidden_metrics(&file.show_hidden_metrics_for_version, check),
        detect_local: detect_local(&file, check),
        service_metrics: service_metrics(&file, check),
        oom_score_adj,
        config_sync_period,
        sync_period,
        min_sync_period,
        masquerade_all: file.nftables.masquerade_all || file.iptables.masquerade_all,
        masquerade_bit,
        iptables_localhost_node_ports: file.iptables.localhost_node_ports.unwrap_or(true),
        nftables_localhost_node_ports: gates.enabled(NFTABLES_LOCALHOST_NODE_PORTS),
        ipvs,
        service_proxying,
        worker_timeouts: worker_timeouts(&file, mode, check),
        access_log_per_million: access_log(&file, check),
        tracing: tracing::tracing(&file, check),
        connection_reset: connection_reset(&file, mode, check),
        startup_taint: startup_taint(&file, check),
        canary: canary(&file, check),
        userspace_policy,
        ebpf: ebpf(&file, check),
        windows: windows(&file, own, mode, check),
        conntrack,
        logging,
        gates,
        file,
    };
    FieldErrors::or(errors, config)
}

/// In mode userspace all are proxied, and annotations always count.
fn service_proxying(
    file: &KubeProxyConfiguration,
    mode: Mode,
    check: &mut Check<'_>,
) -> Option<ProxyingRules> {
    const RULES: &str = "serviceProxying.rules";
    let said = &file.service_proxying;
    let rules = said.rules.as_deref().unwrap_or_default();
    if mode == Mode::Kernelspace {
        let reason = format!("can't be in mode {mode}, only in those of Linux");
        if said.annotated {
            check.failed(FieldError::invalid("serviceProxying.annotated", &true, &reason));
        }
        if !rules.is_empty() {
            check.failed(FieldError::forbidden(RULES, &reason));
        }
    }
    let rule = |(at, rule)| proxying_rule(&format!("{RULES}[{at}]"), rule, check);
    let rules: Vec<_> = rules.iter().enumerate().map(rule).collect();
    let ignores_annotations = !said.annotated && mode != Mode::Userspace;
    (said.annotated || !rules.is_empty()).then_some(ProxyingRules {
        ignores_annotations,
        rules,
        otherwise: None,
    })
}

/// Up to a day. Whether something may wait for ever, which is said by 0.
fn worker_timeouts(file: &KubeProxyConfiguration, mode: Mode, check: &mut Check<'_>) -> Timeouts {
    const PATH: &str = "serviceProxying.timeouts";
    let said = &file.service_proxying;
    let WorkerTimeouts { connect, idle, request, drain } = &said.timeouts;
    let has_workers = mode == Mode::Userspace || said.annotated || said.rules.is_some();
    if said.timeouts != WorkerTimeouts::default() && !has_workers {
        check.failed(FieldError::forbidden(PATH, "there are no workers without annotated or rules"));
    }
    let mut timeout = |name, said: Option<GoDuration>, may_be_never: bool| {
        let said = said?;
        let found = said.to_std().filter(|found| {
            *found <= LONGEST_TIMEOUT && (*found >= SHORTEST_TIMEOUT || may_be_never && found.is_zero())
        });
        if found.is_none() {
            let reason = if may_be_never { "must be 0, or 1ms to 24h" } else { "must be 1ms to 24h" };
            check.failed(FieldError::invalid(child(PATH, name), &said, reason));
        }
        found
    };
    Timeouts {
        connect: timeout("connect", *connect, false),
        idle: timeout("idle", *idle, true),
        request: timeout("request", *request, true),
        drain: timeout("drain", *drain, false),
    }
}

const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);

fn access_log(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> u32 {
    let percent = file.service_proxying.access_log.sample_percent.unwrap_or_default();
    if !(0.0..=100.0).contains(&percent) {
        let reason = format!("Invalid value: {percent}: must be within the range [0, 100]");
        let path = "serviceProxying.accessLog.samplePercent".to_owned();
        check.failed(FieldError { path, problem: reason });
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is up to a million")]
    let per_million = (percent * 10_000.0).round() as u32;
    per_million
}

fn proxying_rule(path: &str, said: &v1alpha1::ProxyingRule, check: &mut Check<'_>) -> ProxyingRule {
    let policy = policy(&child(path, "policy"), &said.policy, check);
    let namespaces = said.namespaces.clone().unwrap_or_default();
    for (at, namespace) in namespaces.iter().enumerate().filter(|(_, name)| name.is_empty()) {
        check.failed(FieldError::invalid(
            format!("{path}.namespaces[{at}]"),
            namespace.as_str(),
            "must not be empty",
        ));
    }
    let labels = &said.selector.match_labels;
    for (key, value) in labels {
        let path = format!("{path}.selector.matchLabels");
        if !is_label_key(key) {
            check.failed(FieldError::invalid(path.as_str(), key.as_str(), "is no label's key"));
        }
        if !(value.is_empty() || is_label_name(value)) {
            check.failed(FieldError::invalid(child(&path, key), value.as_str(), "is no label's value"));
        }
    }
    ProxyingRule { match_labels: labels.clone().into_iter().collect(), namespaces, policy }
}

/// A name, with a DNS subdomain before it where there is one (apimachinery's `IsQualifiedName`).
fn is_label_key(key: &str) -> bool {
    let is_word = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    match key.split_once('/') {
        Some((domain, name)) => domain.len() <= 253 && domain.split('.').all(is_word) && is_label_name(name),
        None => is_label_name(key),
    }
}

/// Up to 63 letters, digits, dashes, underscores and dots, with a letter or digit at both ends (apimachinery's
/// `IsValidLabelValue`).
fn is_label_name(name: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let is_within = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    bytes.len() <= 63 && bytes.iter().all(is_within) && is_end(bytes.first()) && is_end(bytes.last())
}

/// A policy by its name; none means the default.
fn policy(path: &str, name: &str, check: &mut Check<'_>) -> Policy {
    let policy = if name.is_empty() { Some(Policy::default()) } else { Policy::named(name) };
    policy.unwrap_or_else(|| {
        let all = Policy::ALL.map(Policy::as_str).join(", ");
        check.failed(FieldError::invalid(path, name, &format!("must be one of {all}")));
        Policy::default()
    })
}

/// IPVS has a table of its own, in which nothing is forgotten.
fn connection_reset(file: &KubeProxyConfiguration, mode: Mode, check: &mut Check<'_>) -> bool {
    let wanted = file.connection_reset.annotated;
    if wanted && mode == Mode::Ipvs {
        let reason = "can't be in mode ipvs; set the sysctl net.ipv4.vs.expire_nodest_conn";
        check.failed(FieldError::invalid("connectionReset.annotated", &true, reason));
    }
    wanted
}

/// A taint's key is a label's (`validateNodeTaints` in `pkg/apis/core/validation`); it is checked as far as a mistake would not show.
fn startup_taint(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> Option<String> {
    let key = file.startup_taint.as_str();
    let is_key = |char: char| char.is_ascii_alphanumeric() || "-_./".contains(char);
    if !key.chars().all(is_key) || key.len() > LABEL_KEY_BYTES {
        let reason =
            "must be the key of a taint, without value and effect (e.g. example.com/kube-proxy-not-ready)";
        check.failed(FieldError::invalid("startupTaint", key, reason));
    }
    (!key.is_empty()).then(|| key.to_owned())
}

fn canary(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> Option<Canary> {
    let said = &file.canary;
    let period = said.period.unwrap_or(DEFAULT_CANARY_PERIOD);
    let enough = period.to_std().filter(|period| *period >= SHORTEST_CANARY_PERIOD);
    if enough.is_none() {
        check.failed(FieldError::invalid("canary.period", &period, "must be at least 1s"));
    }
    if said.service.is_empty() {
        return None;
    }
    let parts = said.service.split_once('/');
    let parts =
        parts.filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'));
    let Some((namespace, name)) = parts else {
        check.failed(FieldError::invalid("canary.service", said.service.as_str(), "must be namespace/name"));
        return None;
    };
    Some(Canary { service: model::ObjectName::new(namespace, name), period: enough? })
}

/// A prefix of 253, a slash, and a name of 63.
const LABEL_KEY_BYTES: usize = 253 + 1 + 63;
const DEFAULT_CANARY_PERIOD: GoDuration = GoDuration::from_secs(10);
const SHORTEST_CANARY_PERIOD: Duration = Duration::from_secs(1);

fn userspace_policy(own: &OwnFlags, mode: Mode, check: &mut Check<'_>) -> Policy {
    const FLAG: &str = "--userspace-policy";
    let name = own.userspace_policy.as_str();
    if !name.is_empty() && mode != Mode::Userspace {
        check.failed(FieldError::invalid(FLAG, name, "is for mode userspace only"));
    }
    policy(FLAG, name, check)
}

/// Series of Services, if there are to be any.
fn service_metrics(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> ServiceMetrics {
    let said = &file.service_metrics;
    let top = said.top.unwrap_or(DEFAULT_TOP);
    let count = u32::try_from(top).ok().filter(|count| *count > 0).unwrap_or_else(|| {
        check.failed(FieldError::invalid("serviceMetrics.top", &top, POSITIVE));
        1
    });
    let series = match said.mode.0.as_str() {
        "" | "off" => ServiceSeries::Off,
        "top" => ServiceSeries::Top(count),
        "all" => ServiceSeries::All,
        other => {
            let error = FieldError::unsupported("serviceMetrics.mode", other, &["off", "top", "all"]);
            check.failed(error);
            ServiceSeries::Off
        }
    };
    let namespaces = said.namespaces.clone().unwrap_or_default();
    for (index, namespace) in namespaces.iter().enumerate().filter(|(_, name)| name.is_empty()) {
        let path = format!("serviceMetrics.namespaces[{index}]");
        check.failed(FieldError::invalid(path, namespace.as_str(), "must be the name of a namespace"));
    }
    ServiceMetrics { series, namespaces }
}

fn oom_score_adj(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> i32 {
    let value = file.oom_score_adj.unwrap_or_default();
    if !(-1000..=1000).contains(&value) {
        let reason = "must be within the range [-1000, 1000]";
        check.failed(FieldError::invalid("oomScoreAdj", &value, reason));
    }
    value
}

fn bind_address(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> IpAddr {
    model::parse_addr(&file.bind_address).unwrap_or_else(|_no_ip| {
        let reason = "not a valid textual representation of an IP address";
        check.failed(FieldError::invalid("bindAddress", file.bind_address.as_str(), reason));
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    })
}

/// Collects what is wrong. The value that goes on in its place is never used.
struct Check<'a> {
    errors: &'a mut Vec<FieldError>,
}

impl Check<'_> {
    fn failed(&mut self, error: FieldError) {
        self.errors.push(error);
    }

    fn not_negative(&mut self, path: &str, value: i32) -> u32 {
        u32::try_from(value).unwrap_or_else(|_negative| {
            self.failed(FieldError::invalid(path, &value, NOT_NEGATIVE));
            0
        })
    }

    fn positive(&mut self, path: &str, period: GoDuration) -> Duration {
        period.to_std().filter(|period| !period.is_zero()).unwrap_or_else(|| {
            self.failed(FieldError::invalid(path, &period, POSITIVE));
            Duration::ZERO
        })
    }

    /// Whole seconds, rounded up; 0 is none. Less than a second would become 0 in the kernel, which is no time-out at all.
    fn timeout(&mut self, path: &str, timeout: GoDuration) -> Option<Duration> {
        let Some(timeout) = timeout.to_std() else {
            self.failed(FieldError::invalid(path, &timeout, NOT_NEGATIVE));
            return None;
        };
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// Port 0 switches the listener off; upstream has no way to say this.
    fn listener(&mut self, path: &str, text: &str) -> Option<SocketAddr> {
        match listener::parse(text) {
            Ok(address) => return (address.port() != 0).then_some(address),
            Err(ListenerError::NoPort) => self.failed(FieldError::invalid(path, text, "must be IP:port")),
            Err(ListenerError::Host(host)) => {
                self.failed(FieldError::invalid(path, host, "must be a valid IP"));
            }
            Err(ListenerError::Port(port)) => {
                self.failed(FieldError::invalid(path, port, "must be a valid port"));
            }
        }
        None
    }

    fn cidrs(&mut self, path: &str, texts: &[String], reason: &str) -> Vec<IpNet> {
        let mut ranges = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match model::parse_cidr(text) {
                Ok(range) => ranges.push(range),
                Err(_) => self.failed(FieldError::invalid(format!("{path}[{index}]"), text.as_str(), reason)),
            }
        }
        ranges
    }
}

fn masquerade_bit(file: &KubeProxyConfiguration, mode: Mode, check: &mut Check<'_>) -> u8 {
    let mut bit = |path: &str, bit: Option<i32>| {
        let bit = bit.unwrap_or_default();
        u8::try_from(bit).ok().filter(|bit| *bit <= 31).unwrap_or_else(|| {
            check.failed(FieldError::invalid(path, &bit, "must be within the range [0, 31]"));
            0
        })
    };
    // Upstream checks this one in every mode.
    let iptables = bit("iptables.masqueradeBit", file.iptables.masquerade_bit);
    if mode.section() == Mode::NfTables {
        bit("nftables.masqueradeBit", file.nftables.masquerade_bit)
    } else {
        iptables
    }
}

/// Checked only in mode ipvs, like upstream.
fn ipvs(file: &KubeProxyConfiguration, mode: Mode, check: &mut Check<'_>) -> Ipvs {
    let mut ignored = Vec::new();
    let check =
        &mut if mode == Mode::Ipvs { Check { errors: check.errors } } else { Check { errors: &mut ignored } };
    let ipvs = &file.ipvs;
    let scheduler = if ipvs.scheduler.is_empty() { "rr" } else { &ipvs.scheduler };
    let excluded = ipvs.exclude_cidrs.as_deref().unwrap_or_default();
    Ipvs {
        scheduler: scheduler.to_owned(),
        tcp_timeout: check.timeout("ipvs.tcpTimeout", ipvs.tcp_timeout),
        tcp_fin_timeout: check.timeout("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout),
        udp_timeout: check.timeout("ipvs.udpTimeout", ipvs.udp_timeout),
        exclude_cidrs: check.cidrs("ipvs.excludeCIDRs", excluded, CIDR),
        strict_arp: ipvs.strict_arp,
    }
}

fn ebpf(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> Ebpf {
    let mut directory = |field: &str, text: Option<&String>, default: &str| {
        let text = text.map_or("", String::as_str);
        let path = PathBuf::from(if text.is_empty() { default } else { text });
        // On Windows, where nobody looks at it, the default has no drive.
        if !path.has_root() {
            check.failed(FieldError::invalid(field, text, "must be an absolute path"));
        }
        path
    };
    Ebpf {
        cgroup_root: directory("ebpf.cgroupRoot", file.ebpf.cgroup_root.as_ref(), "/sys/fs/cgroup"),
        bpffs: directory("ebpf.bpffs", file.ebpf.bpffs.as_ref(), "/sys/fs/bpf"),
        udp: file.ebpf.udp,
        netns_dir: directory("ebpf.netnsDir", file.ebpf.netns_dir.as_ref(), "/run/netns"),
    }
}

/// What only Windows has, which is looked at only there.
fn windows(file: &KubeProxyConfiguration, own: &OwnFlags, mode: Mode, check: &mut Check<'_>) -> Windows {
    let said = &file.winkernel;
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let source_vip = given(&said.source_vip).and_then(|text| {
        let parsed = model::parse_addr(&text);
        if parsed.is_err() && mode == Mode::Kernelspace {
            check.failed(FieldError::invalid(
                "winkernel.sourceVip",
                text.as_str(),
                "must be a valid IP address",
            ));
        }
        parsed.ok()
    });
    let priority_class = given(&own.windows_priority_class);
    if let Some(class) = priority_class.as_deref().filter(|class| !PRIORITY_CLASSES.contains(class)) {
        check.failed(FieldError::unsupported("--windows-priorityclass", class, &PRIORITY_CLASSES));
    }
    Windows {
        network_name: given(&said.network_name),
        source_vip,
        enable_dsr: said.enable_dsr,
        root_hns_endpoint_name: if said.root_hns_endpoint_name.is_empty() {
            ROOT_HNS_ENDPOINT.to_owned()
        } else {
            said.root_hns_endpoint_name.clone()
        },
        forward_health_check_vip: said.forward_health_check_vip,
        run_as_service: file.windows_run_as_service,
        priority_class,
    }
}

/// Upstream's default on Windows.
const ROOT_HNS_ENDPOINT: &str = "cbr0";
/// Names of constants of Windows (`SetPriorityClass`).
const PRIORITY_CLASSES: [&str; 6] = [
    "IDLE_PRIORITY_CLASS",
    "BELOW_NORMAL_PRIORITY_CLASS",
    "NORMAL_PRIORITY_CLASS",
    "ABOVE_NORMAL_PRIORITY_CLASS",
    "HIGH_PRIORITY_CLASS",
    "REALTIME_PRIORITY_CLASS",
];

const CIDR: &str = "must be a valid CIDR, (e.g. 10.9.8.0/24 or fd12:3456:789a:1::/64)";
const CIDR_BLOCK: &str = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
const CIDR_PAIR: &str = "must be a either a single CIDR block (e.g. 10.100.0.0/16) or a dual-stack pair (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)";

fn conntrack(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> Conntrack {
    let conntrack = &file.conntrack;
    let established = conntrack.tcp_established_timeout.unwrap_or_default();
    let close_wait = conntrack.tcp_close_wait_timeout.unwrap_or_default();
    Conntrack {
        max_per_core: check.not_negative("conntrack.maxPerCore", conntrack.max_per_core.unwrap_or_default()),
        min: check.not_negative("conntrack.min", conntrack.min.unwrap_or_default()),
        tcp_established_timeout: check.timeout("conntrack.tcpEstablishedTimeout", established),
        tcp_close_wait_timeout: check.timeout("conntrack.tcpCloseWaitTimeout", close_wait),
        tcp_be_liberal: conntrack.tcp_be_liberal,
        udp_timeout: check.timeout("conntrack.udpTimeout", conntrack.udp_timeout),
        udp_stream_timeout: check.timeout("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
    }
}

/// `acceptContentTypes` says what answers may be; as nothing but lists and watches is asked, it counts more than
/// `contentType`.
fn client_connection(
    file: &KubeProxyConfiguration,
    own: &OwnFlags,
    check: &mut Check<'_>,
) -> ClientConnection {
    let client = &file.client_connection;
    let (key, formats) = match client.accept_content_types.as_str() {
        "" => ("contentType", client.content_type.as_str()),
        accepted => ("acceptContentTypes", accepted),
    };
    let content_type = content_type(formats).unwrap_or_else(|| {
        check.failed(FieldError::unsupported(format!("clientConnection.{key}"), formats, &[PROTOBUF, JSON]));
        ContentType::Json
    });
    ClientConnection {
        kubeconfig: path(&client.kubeconfig),
        server: Some(own.master.clone()).filter(|url| !url.is_empty()),
        content_type,
        qps: client.qps,
        burst: check.not_negative("clientConnection.burst", client.burst),
    }
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON: &str = "application/json";

/// The best of the formats that an `Accept` header names, which may have parameters.
fn content_type(accepted: &str) -> Option<ContentType> {
    let has = |format: &str| {
        accepted.split(',').any(|one| one.split(';').next().is_some_and(|name| name.trim() == format))
    };
    if has(PROTOBUF) { Some(ContentType::Protobuf) } else { has(JSON).then_some(ContentType::Json) }
}

fn sync_periods(file: &KubeProxyConfiguration, mode: Mode, check: &mut Check<'_>) -> (Duration, Duration) {
    let (section, sync, min) = match mode.section() {
        Mode::Ipvs => ("ipvs", file.ipvs.sync_period, file.ipvs.min_sync_period),
        Mode::NfTables => ("nftables", file.nftables.sync_period, file.nftables.min_sync_period),
        _ => ("iptables", file.iptables.sync_period, file.iptables.min_sync_period),
    };
    let (sync_path, min_path) = (format!("{section}.syncPeriod"), format!("{section}.minSyncPeriod"));
    let period = check.positive(&sync_path, sync);
    if min.is_negative() {
        check.failed(FieldError::invalid(min_path.as_str(), &min, NOT_NEGATIVE));
    }
    if min > sync {
        let reason = format!("must be greater than or equal to {min_path}");
        check.failed(FieldError::invalid(sync_path, &min, &reason));
    }
    if min > LONGEST_MIN_SYNC {
        let reason = format!("must be less than or equal to {LONGEST_MIN_SYNC}");
        check.failed(FieldError::invalid(min_path, &min, &reason));
    }
    (period, min.to_std().unwrap_or_default())
}

/// A name as the API spells it: trimmed and in lower case.
pub fn node_name(text: &str) -> Option<String> {
    let name = text.trim().to_lowercase();
    (!name.is_empty()).then_some(name)
}

fn hostname(text: &str, check: &mut Check<'_>) -> Option<String> {
    let name = node_name(text);
    if name.is_none() && !text.is_empty() {
        check.failed(FieldError::invalid("hostnameOverride", text, "must not be blank"));
    }
    name
}

fn show_hidden_metrics(version: &str, check: &mut Check<'_>) -> bool {
    let previous = crate::version::previous_minor();
    if !version.is_empty() && version != previous {
        let reason = format!(
            "--show-hidden-metrics-for-version must be omitted or have the value {previous:?}, the version before"
        );
        check.failed(FieldError::invalid("showHiddenMetricsForVersion", version, &reason));
    }
    !version.is_empty()
}

fn node_port_addresses(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> NodePortAddresses {
    const PRIMARY: &str = "primary";
    let texts = file.node_port_addresses.as_deref().unwrap_or_default();
    match texts {
        [] => return NodePortAddresses::All,
        [only] if only == PRIMARY => return NodePortAddresses::Primary,
        _ => {}
    }
    let mut ranges = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let path = format!("nodePortAddresses[{index}]");
        match model::parse_cidr(text) {
            Ok(range) => ranges.push(range),
            Err(_) if text == PRIMARY => {
                check.failed(FieldError::invalid(path, PRIMARY, "can't use both 'primary' and CIDRs"));
            }
            Err(_) => check.failed(FieldError::invalid(path, text.as_str(), "must be a valid CIDR")),
        }
    }
    NodePortAddresses::Within(ranges)
}

fn allowed_external_ips(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> Vec<IpNet> {
    check.cidrs("allowedExternalIPs", file.allowed_external_ips.as_deref().unwrap_or_default(), CIDR)
}

fn detect_local(file: &KubeProxyConfiguration, check: &mut Check<'_>) -> DetectLocal {
    let detect = &file.detect_local;
    match file.detect_local_mode.as_str() {
        "ClusterCIDR" => DetectLocal::ClusterCidr(cluster_cidrs(&file.cluster_cidr, check)),
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            DetectLocal::BridgeInterface(interface("bridgeInterface", &detect.bridge_interface, check))
        }
        "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(interface(
            "interfaceNamePrefix",
            &detect.interface_name_prefix,
            check,
        )),
        other => {
            let modes = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
            check.failed(FieldError::unsupported("detectLocalMode", other, &modes));
            DetectLocal::NodeCidr
        }
    }
}

fn cluster_cidrs(text: &str, check: &mut Check<'_>) -> Vec<IpNet> {
    if text.is_empty() {
        return Vec::new();
    }
    let texts: Vec<String> = text.split(',').map(str::to_owned).collect();
    let path = |index: usize| {
        if texts.len() == 1 { "clusterCIDR".to_owned() } else { format!("clusterCIDR[{index}]") }
    };
    let mut ranges: Vec<IpNet> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match model::parse_cidr(text) {
            Ok(range) => ranges.push(range),
            Err(_) => check.failed(FieldError::invalid(path(index), text.as_str(), CIDR_BLOCK)),
        }
    }
    let is_v6 = |range: &IpNet| range.addr().is_ipv6();
    let same_family = ranges.len() == 2 && is_v6(&ranges[0]) == is_v6(&ranges[1]);
    if texts.len() > 2 || same_family {
        check.failed(FieldError::invalid("clusterCIDR", text, CIDR_PAIR));
    }
    ranges
}

fn interface(key: &str, name: &str, check: &mut Check<'_>) -> String {
    let path = format!("detectLocal.{key}");
    if name.is_empty() {
        check.failed(FieldError::invalid(path, name, "must not be empty"));
    } else if name.len() > INTERFACE_NAME_BYTES {
        let reason = format!("must be no more than {INTERFACE_NAME_BYTES} bytes, as names of interfaces are");
        check.failed(FieldError::invalid(path, name, &reason));
    }
    name.to_owned()
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}
