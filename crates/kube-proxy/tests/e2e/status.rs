//! What the program tells about itself, over its own ports, as probes, load balancers and Prometheus ask.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use fakes::objects::{self, Endpoint};
use lab::Host;
use lab::proxy::{Proxy, wait_until};
use serde_json::{Value, json};
use testkit::cluster::{Cluster, Flavour, NODE, NODE2, ProxyMode};

use crate::support::{
    PATIENCE, REQUEST, WEB_PORTS, WEB_V4, WEB_V6, apply_endpoints, apply_web, cluster, cluster_in, ip,
    program, start,
};

const METRICS: u16 = 10249;
const HEALTH: u16 = 10256;
const CHECK: u16 = 32100;
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends a GET request; `None` if nobody answers.
pub(crate) fn get(from: &Host, to: SocketAddr, path: &str) -> Option<Reply> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, REQUEST)?;
        stream.set_read_timeout(Some(REQUEST))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = from.run(ask).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply { status, head: head.to_lowercase(), body: body.to_owned() })
}

fn local(cluster: &Cluster, port: u16, path: &str) -> Option<Reply> {
    get(cluster.lab.node(), (LOCALHOST, port).into(), path)
}

/// Waits until a path answers with this status.
#[track_caller]
fn wait_for_status(cluster: &Cluster, port: u16, path: &str, status: u16) -> Reply {
    wait_for_answer(cluster.lab.node(), (LOCALHOST, port).into(), path, status, PATIENCE)
}

/// The same, asked from anywhere.
#[track_caller]
pub(crate) fn wait_for_answer(
    from: &Host,
    to: SocketAddr,
    path: &str,
    status: u16,
    limit: Duration,
) -> Reply {
    let mut last = None;
    let reached = wait_until(limit, || {
        last = get(from, to, path);
        last.as_ref().is_some_and(|reply| reply.status == status)
    });
    assert!(reached, "wanted {status} from {to}{path}, last got {last:?}");
    last.unwrap()
}

/// The value of a series on the page `/metrics`.
fn metric(cluster: &Cluster, series: &str) -> Option<f64> {
    let page = local(cluster, METRICS, "/metrics")?.body;
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    value.parse().ok()
}

#[track_caller]
fn wait_for_metric(cluster: &Cluster, series: &str, holds: impl Fn(f64) -> bool) {
    let mut last = None;
    let reached = wait_until(PATIENCE, || {
        last = metric(cluster, series);
        last.is_some_and(&holds)
    });
    assert!(reached, "{series}: last {last:?}");
}

#[test]
fn every_path_answers() {
    let cluster = cluster(1, 1);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    let healthz = wait_for_status(&cluster, HEALTH, "/healthz", 200).json();
    assert_eq!((&healthz["healthy"], &healthz["nodeEligible"]), (&json!(true), &json!(true)));
    assert_eq!(healthz["status"]["IPv4"]["healthy"], true);
    assert_eq!(healthz["status"]["IPv6"]["healthy"], true);
    // The health server is for both families and everybody, the metrics server for the node itself.
    let node = cluster.lab.node();
    for to in [IpAddr::from(node.ip4()), node.ip6().into()] {
        let livez = get(cluster.lab.outside(), (to, HEALTH).into(), "/livez");
        assert_eq!(livez.map(|reply| reply.status), Some(200), "{to}");
        assert!(get(cluster.lab.outside(), (to, METRICS).into(), "/metrics").is_none(), "{to}");
    }
    let on_loopback = get(node, (Ipv6Addr::LOCALHOST, HEALTH).into(), "/livez");
    assert_eq!(on_loopback.map(|reply| reply.status), Some(200));

    assert_eq!(local(&cluster, METRICS, "/proxyMode").unwrap().body, "nftables");
    assert_eq!(local(&cluster, METRICS, "/healthz").unwrap().body, "ok");
    let configz = local(&cluster, METRICS, "/configz").unwrap().json();
    assert_eq!(configz["kubeproxy.config.k8s.io"]["mode"], "nftables");
    assert!(local(&cluster, METRICS, "/flagz").unwrap().body.contains("\nproxy-mode=nftables\n"));
    assert!(local(&cluster, METRICS, "/statusz").unwrap().body.contains("kube-proxy statusz"));
    assert!(local(&cluster, METRICS, "/metrics/slis").unwrap().body.contains("name=\"ping\""));
    assert_eq!(local(&cluster, METRICS, "/debug/flags/v").unwrap().status, 404, "profiling is off");
}

#[test]
fn metrics_follow_what_happens() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    let v4 = |name: &str| format!("{name}{{ip_family=\"IPv4\"}}");
    wait_for_metric(&cluster, &v4("kubeproxy_sync_full_proxy_rules_duration_seconds_count"), |n| n >= 1.0);
    let last = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"}";
    wait_for_metric(&cluster, last, |seconds| seconds > 1.7e9);
    let elements = metric(&cluster, &v4("kubeproxy_elements_written_total")).unwrap();
    assert!(elements > 0.0);
    // An endpoint goes; the controller says when its pod did.
    let (v4_pods, v6_pods) = (cluster.endpoints(false), cluster.endpoints(true));
    let mut slice = objects::slice("web", "v4", &WEB_PORTS, &v4_pods[1..]);
    let now =
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let now = cluster.lab.node().exec("date", &["-u", "-d", &format!("@{}", now + 1), "+%FT%TZ"]).unwrap();
    slice["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": now.trim()});
    cluster.apply(slice).unwrap();
    wait_for_metric(&cluster, &v4("kubeproxy_network_programming_duration_seconds_count"), |n| n >= 1.0);
    wait_for_metric(&cluster, &v4("kubeproxy_sync_partial_proxy_rules_duration_seconds_count"), |n| n >= 1.0);
    wait_for_metric(&cluster, &v4("kubeproxy_commit_latency_seconds_count"), |n| n >= 2.0);
    wait_for_metric(&cluster, &v4("kubeproxy_elements_written_total"), |n| n > elements);
    wait_for_metric(&cluster, "kubeproxy_watch_bytes_total{resource=\"endpointslices\"}", |n| n > 0.0);
    let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    wait_for_metric(&cluster, pending, |n| n < 1.0);
    // Somebody meddles.
    let drift = v4("kubeproxy_drift_repairs_total");
    let before = metric(&cluster, &drift).unwrap();
    cluster.lab.node().exec("nft", &["delete", "table", "ip", "kube-proxy"]).unwrap();
    wait_for_metric(&cluster, &drift, |n| n > before);
    // A Service that asks for local endpoints and has none here.
    let elsewhere = Endpoint { node: NODE2.into(), ..v4_pods[0].clone() };
    let mut service = objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS);
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    cluster.apply(service).unwrap();
    apply_endpoints(&cluster, &[elsewhere], &v6_pods);
    let no_local =
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"}";
    wait_for_metric(&cluster, no_local, |n| n > 1.0);
}

fn balanced_web() -> Value {
    let mut service = objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(CHECK);
    service
}

/// The load balancer asks each node, at the node's address, and by family.
#[test]
fn service_health_checks_follow_local_endpoints() {
    let cluster = cluster(2, 1);
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    cluster.apply(balanced_web()).unwrap();
    apply_endpoints(&cluster, &v4, &v6);
    let _proxy = start(&cluster);
    let (balancer, node) = (cluster.lab.outside(), cluster.lab.node());
    let (to_v4, to_v6) = ((IpAddr::from(node.ip4()), CHECK).into(), (IpAddr::from(node.ip6()), CHECK).into());
    let wait = |to, status| wait_for_answer(balancer, to, "/", status, PATIENCE);
    let reply = wait(to_v4, 200);
    assert!(reply.head.contains("x-load-balancing-endpoint-weight: 2"), "{reply:?}");
    assert_eq!(reply.json()["service"], json!({"namespace": "default", "name": "web"}));
    assert!(local(&cluster, CHECK, "/").is_none(), "only on addresses that serve node ports");
    wait(to_v6, 200);
    // All that is left in IPv4 is elsewhere.
    apply_endpoints(&cluster, &v4[2..], &v6);
    let reply = wait(to_v4, 503);
    assert_eq!(reply.json()["localEndpoints"], 0);
    assert_eq!(wait(to_v6, 200).json()["localEndpoints"], 2);
    apply_endpoints(&cluster, &v4[1..], &v6);
    wait(to_v4, 200);
    // The Service no longer asks for it.
    cluster.apply(objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS)).unwrap();
    assert!(wait_until(PATIENCE, || get(balancer, to_v4, "/").is_none()));
}

/// Node ports and health checks follow the node to another address.
#[test]
fn service_health_checks_follow_the_node() {
    let cluster = cluster(1, 0);
    cluster.apply(balanced_web()).unwrap();
    apply_endpoints(&cluster, &cluster.endpoints(false), &cluster.endpoints(true));
    let _proxy = start(&cluster);
    let node = cluster.lab.node();
    let first = (IpAddr::from(node.ip4()), CHECK).into();
    wait_for_answer(node, first, "/", 200, PATIENCE);
    // The Node object says so before the system has the address.
    let moved: SocketAddr = "203.0.113.77:32100".parse().unwrap();
    cluster.apply(objects::node(NODE, &[moved.ip(), node.ip6().into()])).unwrap();
    assert!(wait_until(PATIENCE, || get(node, first, "/").is_none()));
    node.exec("ip", &["address", "add", "203.0.113.77/32", "dev", "lo"]).unwrap();
    wait_for_answer(node, moved, "/", 200, PATIENCE);
}

#[test]
fn the_node_object_decides_about_eligibility() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_status(&cluster, HEALTH, "/healthz", 200);
    let node = cluster.lab.node();
    let mut object = objects::node(NODE, &[node.ip4().into(), node.ip6().into()]);
    object["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    cluster.apply(object.clone()).unwrap();
    let healthz = wait_for_status(&cluster, HEALTH, "/healthz", 503).json();
    assert_eq!((&healthz["healthy"], &healthz["nodeEligible"]), (&json!(true), &json!(false)));
    assert_eq!(local(&cluster, HEALTH, "/livez").unwrap().status, 200);
    object["spec"]["taints"] = json!([]);
    cluster.apply(object).unwrap();
    wait_for_status(&cluster, HEALTH, "/healthz", 200);
    cluster.api.delete(apiserver::Kind::Node, "", NODE);
    wait_for_status(&cluster, HEALTH, "/healthz", 503);
}

/// The servers are there before the API server is.
#[test]
fn a_start_is_live_but_not_ready() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    cluster.api.faults().refuse_connections(true);
    let _proxy = cluster.start_proxy(program()).unwrap();
    wait_for_status(&cluster, HEALTH, "/livez", 200);
    assert_eq!(local(&cluster, HEALTH, "/healthz").unwrap().status, 503);
    wait_for_status(&cluster, METRICS, "/metrics", 200);
    cluster.api.faults().refuse_connections(false);
    wait_for_status(&cluster, HEALTH, "/healthz", 200);
}

/// A port that somebody else has is no reason not to serve.
#[test]
fn a_taken_port_does_not_stop_the_proxy() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let node = cluster.lab.node();
    let taken = node.run(|| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, HEALTH)).unwrap());
    let mut proxy = start(&cluster);
    assert!(proxy.wait_for_log("the server can't serve", PATIENCE), "{:?}", proxy.log());
    drop(taken);
    wait_for_status(&cluster, HEALTH, "/healthz", 200);
}

/// In mode iptables the program says so everywhere, and its page has that mode's metrics: the rules are as many as listed.
#[test]
fn mode_iptables_has_its_own_page() {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        let cluster = cluster_in(ProxyMode::Iptables(flavour), 1, 0);
        apply_web(&cluster);
        let _proxy = start(&cluster);
        wait_for_status(&cluster, HEALTH, "/healthz", 200);
        assert_eq!(local(&cluster, METRICS, "/proxyMode").unwrap().body, "iptables");
        let configz = local(&cluster, METRICS, "/configz").unwrap().json();
        assert_eq!(configz["kubeproxy.config.k8s.io"]["mode"], "iptables");
        assert_eq!(local(&cluster, METRICS, "/statusz").unwrap().status, 200);

        let programs = ["iptables", "ip6tables"].map(|name| format!("{name}-{}-save", flavour.suffix()));
        let node = cluster.lab.node();
        let is_right = |family: &str, program: &str, table: &str| {
            let listing = node.exec(program, &["-t", table]).unwrap();
            let rules = listing.lines().filter(|line| line.starts_with("-A ")).count();
            let labels = format!("{{ip_family=\"{family}\",table=\"{table}\"}}");
            let total = format!("kubeproxy_sync_proxy_rules_iptables_total{labels}");
            let counted = metric(&cluster, &total).map(|counted| counted.to_string());
            rules > 0 && counted == Some(rules.to_string())
        };
        let are_right = || {
            let families = ["IPv4", "IPv6"].into_iter().zip(&programs);
            families
                .flat_map(|of| ["nat", "filter"].map(|table| (of, table)))
                .all(|((family, program), table)| is_right(family, program, table))
        };
        let page = || local(&cluster, METRICS, "/metrics").unwrap().body;
        assert!(wait_until(PATIENCE, are_right), "{}\n{}", page(), cluster.listing().unwrap());

        // A Service without endpoints is refused by a rule of `filter`.
        let filter = "{ip_family=\"IPv4\",table=\"filter\"}";
        let total = format!("kubeproxy_sync_proxy_rules_iptables_total{filter}");
        let before = metric(&cluster, &total).unwrap();
        cluster.apply(objects::service("lonely", &[ip("10.96.0.99")], &WEB_PORTS[..1])).unwrap();
        wait_for_metric(&cluster, &total, |n| n > before);
        wait_for_metric(&cluster, &format!("kubeproxy_sync_proxy_rules_iptables_last{filter}"), |n| {
            n < before
        });
        assert!(are_right(), "{}\n{}", page(), cluster.listing().unwrap());
        for failures in ["restore_failures_total", "partial_restore_failures_total"] {
            let series = format!("kubeproxy_sync_proxy_rules_iptables_{failures}{{ip_family=\"IPv4\"}}");
            assert_eq!(metric(&cluster, &series).map(|n| n.to_string()).as_deref(), Some("0"));
        }
        for kind in ["full", "partial"] {
            let name = format!("kubeproxy_sync_{kind}_proxy_rules_duration_seconds_count");
            wait_for_metric(&cluster, &format!("{name}{{ip_family=\"IPv4\"}}"), |n| n >= 1.0);
        }
        assert!(!page().contains("nftables_"), "{}", page());
    }
}

/// Without the right to change rules nothing can ever be programmed.
#[test]
fn without_permission_it_says_so_and_ends() {
    let cluster = cluster(1, 0);
    let program = program().to_string_lossy().into_owned();
    let arguments = cluster.arguments();
    let mut command = vec!["--bounding-set=-net_admin", "--inh-caps=-net_admin", program.as_str()];
    command.extend(arguments.iter().map(String::as_str));
    let mut proxy = Proxy::start(cluster.lab.node(), "setpriv".as_ref(), &command).unwrap();
    assert!(proxy.wait_for_log("without the capability CAP_NET_ADMIN", PATIENCE), "{:?}", proxy.log());
}
