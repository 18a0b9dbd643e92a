//! Traces of requests that go through a worker.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use fakes::objects::{self, Port};
use lab::Host;
use lab::proxy::{Proxy, wait_until};
use serde_json::json;
use testkit::cluster::{CLUSTER_CIDR, Cluster, NODE};
use testkit::collector::{Collector, Message};

use super::{HTTP_PORT, cluster, own_ip, read_head, wait_for_capture};
use crate::status::wait_for_answer;
use crate::support::{PATIENCE, apply_web, ip, program};

const PORT: Port = Port { name: "web", protocol: "TCP", port: 80, target: HTTP_PORT, node_port: None };
const SERVICE: &str = "10.96.0.52";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A pod that takes note of the heads of requests.
fn serve(pod: &Host) -> Arc<Mutex<Vec<String>>> {
    let listener = pod.run(|| TcpListener::bind(("::", HTTP_PORT))).unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let noted = heads.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, noted) = (stream.unwrap(), noted.clone());
            std::thread::spawn(move || {
                while let Some(head) = read_head(&stream) {
                    noted.lock().unwrap().push(head);
                    (&stream).write_all(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    heads
}

/// With traces that go to a socket.
fn start(cluster: &Cluster, dir: &Path, socket: &Path) -> Proxy {
    let arguments = cluster.arguments();
    let at = arguments.iter().position(|argument| argument == "--kubeconfig").unwrap() + 1;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "userspace",
        "clusterCIDR": CLUSTER_CIDR,
        "hostnameOverride": NODE,
        "clientConnection": { "kubeconfig": arguments[at] },
        "logging": { "verbosity": 2 },
        "tracing": { "endpoint": format!("unix://{}", socket.display()) },
    });
    let file = dir.join("config.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    Proxy::start(cluster.lab.node(), program(), &["--config", &file.to_string_lossy()]).unwrap()
}

fn ask(cluster: &Cluster, flags: &str) {
    let to: SocketAddr = (ip(SERVICE), 80).into();
    let ask = || {
        let stream = cluster.lab.outside().run(|| TcpStream::connect(to)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET /cart?user=7 HTTP/1.1\r\nhost: web\r\ntraceparent: 00-{TRACE}-{PARENT}-{flags}\r\n\r\n"
        );
        (&stream).write_all(request.as_bytes()).ok()?;
        read_head(&stream)
    };
    let mut answer = None;
    wait_until(PATIENCE, || {
        answer = ask();
        answer.is_some()
    });
    assert!(answer.is_some_and(|head| head.starts_with("HTTP/1.1 404 ")));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Whether these are the spans of a request, and of its way to the pod that heard of the second.
fn check(cluster: &Cluster, [request, sent]: [&Message; 2], head: &str) {
    assert_eq!((hex(&request.bytes(1)), hex(&request.bytes(4))), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!((hex(&sent.bytes(1)), sent.bytes(4)), (TRACE.to_owned(), request.bytes(2)));
    let heard = format!("traceparent: 00-{TRACE}-{}-01\r\n", hex(&sent.bytes(2)));
    assert!(head.contains(&heard), "{heard} {head}");
    let pod = own_ip(cluster.lab.pod(0), false);
    let common = [
        "http.request.method=GET",
        "k8s.namespace.name=default",
        "k8s.service.name=traced",
        "kube_proxy.service_port=web",
    ];
    let own = ["url.path=/cart", "server.address=web", "http.response.status_code=404"];
    let address = format!("server.address={pod}");
    for (span, wanted) in
        [(request, [&common[..], &own].concat()), (sent, [&common[..], &[&*address]].concat())]
    {
        let shown: BTreeSet<String> = span.attributes(9).into_iter().collect();
        assert!(wanted.iter().all(|wanted| shown.contains(*wanted)), "{wanted:?} {shown:?}");
    }
}

#[test]
fn traces_go_on_through_a_worker_and_to_a_collector() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (dir, collector) = (tempfile::tempdir().unwrap(), Collector::answering(&["0"]));
    let socket = dir.path().join("collector");
    runtime.block_on(async { collector.listen_at(&socket) });
    let cluster = cluster(2, 0);
    let heads = serve(cluster.lab.pod(0));
    let mut service = objects::service("traced", &[ip(SERVICE)], &[PORT]);
    service["spec"]["ports"][0]["appProtocol"] = "http".into();
    cluster.apply(service).unwrap();
    cluster.apply(objects::slice("traced", "v4", &[PORT], &cluster.endpoints(false)[..1])).unwrap();
    apply_web(&cluster);
    let proxy = start(&cluster, dir.path(), &socket);
    Cluster::wait_for_workers(&proxy).unwrap();
    wait_for_capture(&cluster, true);
    // A trace that is not sampled stays as it is, and then one is that is.
    ask(&cluster, "00");
    let as_sent = format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n");
    assert!(heads.lock().unwrap()[0].contains(&as_sent));
    ask(&cluster, "01");
    assert!(wait_until(PATIENCE, || collector.spans().len() >= 2), "{:?}", proxy.log());
    let spans = collector.spans();
    let [request, sent] = &*spans else { panic!("{spans:?}") };
    let last = heads.lock().unwrap().last().cloned().unwrap();
    check(&cluster, [request, sent], &last);
    let of = collector.requests()[0].messages(1)[0].messages(1)[0].attributes(1);
    assert!(
        of.contains(&"service.name=kube-proxy".to_owned()) && of.contains(&format!("k8s.node.name={NODE}")),
        "{of:?}"
    );
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10249));
    let is_counted = || {
        let page = wait_for_answer(cluster.lab.node(), metrics, "/metrics", 200, PATIENCE).body;
        page.contains("kubeproxy_trace_spans_total{outcome=\"exported\"} 2")
    };
    assert!(wait_until(PATIENCE, is_counted));
}
