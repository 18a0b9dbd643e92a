//! The real client: kubectl over HTTPS.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::apiserver::{ApiServer, Auth, Config, Kind};

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

const SLICE: &str = r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.5], conditions: {ready: true}, nodeName: node-1}]
ports: [{name: http, port: 8080}]
";

struct Kubectl {
    config: PathBuf,
    dir: tempfile::TempDir,
}

impl Kubectl {
    fn new(server: &ApiServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { config: server.kubeconfig(dir.path()).unwrap(), dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        let cache = self.dir.path().join("cache");
        command.arg("--kubeconfig").arg(&self.config).arg("--cache-dir").arg(cache);
        // Watches end then, too.
        command.arg("--request-timeout=60s").args(args);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("kubectl must be installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn manifest(&self, name: &str, text: &str) -> String {
        let path: &Path = &self.dir.path().join(name);
        std::fs::write(path, text).unwrap();
        path.display().to_string()
    }
}

fn round_trip(config: Config) {
    let server = ApiServer::start(config).unwrap();
    let kubectl = Kubectl::new(&server);
    let mut watch = kubectl.command(&["get", "endpointslices", "-A", "-w", "-o", "name"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("kubectl must be installed");
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();

    let (service, slice) = (kubectl.manifest("service.yaml", SERVICE), kubectl.manifest("slice.yaml", SLICE));
    assert_eq!(kubectl.run(&["create", "-f", &service]), "service/web created\n");
    kubectl.run(&["create", "--validate=false", "-f", &slice]);
    assert_eq!(lines.next().unwrap().unwrap(), "endpointslice.discovery.k8s.io/web-1");

    let stored = server.get(Kind::Service, "shop", "web").unwrap();
    assert_eq!(stored["spec"]["ports"][0]["nodePort"], 30_000);
    let path = "-o=jsonpath={.items[*].spec.clusterIP}";
    assert_eq!(kubectl.run(&["get", "svc", "-A", "-l", "app=web", path]), "10.96.1.0");
    assert!(kubectl.run(&["get", "services", "-n", "shop"]).contains("web"));
    kubectl.run(&["label", "-n", "shop", "service", "web", "extra=1"]);
    assert_eq!(server.get(Kind::Service, "shop", "web").unwrap()["metadata"]["labels"]["extra"], "1");
    kubectl.run(&["delete", "-n", "shop", "service", "web"]);
    kubectl.run(&["delete", "-n", "shop", "endpointslice", "web-1"]);
    assert_eq!((server.count(Kind::Service), server.count(Kind::EndpointSlice)), (0, 0));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn over_http() {
    round_trip(Config::default());
}

#[test]
fn over_https_with_a_token() {
    round_trip(Config { tls: true, auth: Auth::Token("secret".to_owned()), ..Config::default() });
}

#[test]
fn over_https_with_a_certificate() {
    round_trip(Config { auth: Auth::ClientCertificate, ..Config::default() });
}

/// Clients that know field validation have the server do it; older ones do not ask for it.
#[test]
fn mistakes_are_found() {
    let server = ApiServer::start(Config::default()).unwrap();
    let kubectl = Kubectl::new(&server);
    let mistaken = kubectl.manifest("service.yaml", &SERVICE.replace("selector:", "selektor:"));
    let output = kubectl.command(&["create", "-f", &mistaken]).output().expect("kubectl must be installed");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let asked = server.requests().iter().any(|r| r.path_and_query.contains("fieldValidation=Strict"));
    assert_eq!(output.status.success(), !asked, "{text}");
    assert_eq!(text.contains("unknown field \"spec.selektor\""), asked, "{text}");
}

const EVENT: &str = r"
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: web.1, namespace: shop}
eventTime: 2026-01-02T15:04:05.000006Z
reportingController: kube-proxy
reportingInstance: kube-proxy-host
action: Listen
reason: FailedToStartServiceHealthcheck
regarding: {apiVersion: v1, kind: Service, namespace: shop, name: web}
note: in use
type: Warning
";

#[test]
fn events_are_taken_patched_and_listed() {
    let server = ApiServer::start(Config::default()).unwrap();
    let kubectl = Kubectl::new(&server);
    let event = kubectl.manifest("event.yaml", EVENT);
    kubectl.run(&["create", "--validate=false", "-f", &event]);
    let series = r#"{"series":{"count":2,"lastObservedTime":"2026-01-02T15:05:05.000006Z"}}"#;
    let patch = ["patch", "events.events.k8s.io", "-n", "shop", "web.1", "--type=merge", "-p", series];
    kubectl.run(&patch);
    let about = "--field-selector=regarding.kind=Service,regarding.name=web";
    let path = "-o=jsonpath={.items[*].reason} {.items[*].series.count} {.items[*].eventTime}";
    let listed = kubectl.run(&["get", "events.events.k8s.io", "-A", about, path]);
    assert_eq!(listed, "FailedToStartServiceHealthcheck 2 2026-01-02T15:04:05.000006Z");
}

#[test]
fn strangers_are_turned_away() {
    let server = ApiServer::start(Config { auth: Auth::ClientCertificate, ..Config::default() }).unwrap();
    let kubectl = Kubectl::new(&server);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&kubectl.config).unwrap()).unwrap();
    config["users"][0]["user"] = serde_json::json!({"token": "unknown"});
    std::fs::write(&kubectl.config, config.to_string()).unwrap();
    let stranger = kubectl.command(&["get", "nodes"]).output().expect("kubectl must be installed");
    assert!(!stranger.status.success());
    // Discovery is open, the objects are not.
    let refused =
        server.requests().iter().any(|r| r.path_and_query.starts_with("/api/v1/nodes") && r.status == 403);
    assert!(refused, "{:?} {}", server.requests(), String::from_utf8_lossy(&stranger.stderr));
}
