//! Serving a folder of manifests, without any API server.

use std::fs;
use std::path::Path;

use fakes::objects;
use lab::client::{FailureClass, Transport};
use lab::proxy::Proxy;
use lab::{Config, Lab};
use testkit::cluster::NODE;

use crate::support::{PATIENCE, WEB_V4, program, wait_for};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ipFamilies: [IPv4]
  ports: [{ name: line, port: 80, protocol: TCP, targetPort: 8080 }]
---
apiVersion: v1
kind: Service
metadata: { name: broken, namespace: shop }
spec:
  clusterIP: 10.96.0.11
  clusterIPs: [10.96.0.11]
  ports: [{ name: line, port: 70000 }]
";

fn slice(pod: std::net::IpAddr) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-a
  namespace: shop
  labels: {{ kubernetes.io/service-name: web }}
addressType: IPv4
endpoints: [{{ addresses: ['{pod}'], nodeName: {NODE} }}]
ports: [{{ name: line, port: 8080, protocol: TCP }}]
"
    )
}

fn start(lab: &Lab, dir: &Path) -> Proxy {
    let dir = dir.to_string_lossy();
    let arguments = ["--manifests", &dir, "--hostname-override", NODE, "--proxy-mode", "nftables"];
    Proxy::start(lab.node(), program(), &arguments).unwrap()
}

#[test]
fn manifests_are_served_and_watched() {
    let lab = Lab::new(&Config { pods: 2, node2_pods: 0, ..Config::default() }).unwrap();
    let servers = [0, 1].map(|n| {
        let listens = [(8080, lab::echo::Mode::Line)];
        lab::echo::EchoServer::start(lab.pod(n), lab.pod(n).name(), &listens).unwrap()
    });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("service.yaml"), SERVICE).unwrap();
    fs::write(dir.path().join("slice.yaml"), slice(lab.pod(0).ip4().into())).unwrap();
    let node = objects::node(NODE, &[lab.node().ip4().into()]);
    fs::write(dir.path().join("node.json"), node.to_string()).unwrap();
    let mut proxy = start(&lab, dir.path());
    let (client, web) = (lab.outside(), (WEB_V4.parse::<std::net::IpAddr>().unwrap(), 80).into());
    wait_for(client, Transport::Tcp, web, &Ok(servers[0].name()));
    assert!(proxy.wait_for_log("Service shop/broken", PATIENCE), "{:?}", proxy.log());

    fs::write(dir.path().join("slice.yaml"), slice(lab.pod(1).ip4().into())).unwrap();
    wait_for(client, Transport::Tcp, web, &Ok(servers[1].name()));

    // An editor's half-written file takes nothing away.
    fs::write(dir.path().join("slice.yaml"), "apiVersion: [").unwrap();
    assert!(proxy.wait_for_log("slice.yaml", PATIENCE), "{:?}", proxy.log());
    wait_for(client, Transport::Tcp, web, &Ok(servers[1].name()));

    fs::remove_file(dir.path().join("slice.yaml")).unwrap();
    wait_for(client, Transport::Tcp, web, &Err(FailureClass::Refused));
    lab.check_listable().unwrap();
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let lab = Lab::new(&Config { pods: 0, node2_pods: 0, ..Config::default() }).unwrap();
    let mut proxy = start(&lab, Path::new("/nonexistent/manifests"));
    assert!(proxy.wait_for_log("/nonexistent/manifests", PATIENCE), "{:?}", proxy.log());
    assert!(lab::proxy::wait_until(PATIENCE, || !proxy.is_running()));
    assert_eq!(proxy.kill().unwrap().code(), Some(1));
}
