//! A start with a configuration file, and its change while the program runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use lab::proxy::{Proxy, wait_until};
use lab::{Config, Lab};
use testkit::cluster::NODE;

use crate::support::{PATIENCE, program};

const FILE: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
logging: { verbosity: 2 }
";

fn start(lab: &Lab, dir: &Path) -> Proxy {
    let (manifests, config) = (dir.to_string_lossy(), dir.join("config.conf"));
    let config = config.to_string_lossy();
    let arguments = ["--config", &config, "--manifests", &manifests, "--hostname-override", NODE];
    Proxy::start(lab.node(), program(), &arguments).unwrap()
}

/// What kubelet does to a volume of a `ConfigMap`: a folder for each version, and a link that is swapped.
fn publish(dir: &Path, version: &str, text: &str) {
    fs::create_dir(dir.join(version)).unwrap();
    fs::write(dir.join(version).join("config.conf"), text).unwrap();
    symlink(version, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

#[test]
fn a_configmap_with_another_meaning_ends_the_program_without_alarm() {
    let lab = Lab::new(&Config { pods: 0, node2_pods: 0, ..Config::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), "..1", FILE);
    symlink("..data/config.conf", dir.path().join("config.conf")).unwrap();
    let mut proxy = start(&lab, dir.path());
    assert!(proxy.wait_for_log("the kernel's rules", PATIENCE), "{:?}", proxy.log());

    publish(dir.path(), "..2", &format!("{FILE}# a comment\n"));
    assert!(proxy.wait_for_log("but not what it means", PATIENCE), "{:?}", proxy.log());
    publish(dir.path(), "..3", &format!("{FILE}oomScoreAdj: 5000\n"));
    assert!(proxy.wait_for_log("the former configuration stays in force", PATIENCE), "{:?}", proxy.log());
    assert!(proxy.is_running());

    publish(dir.path(), "..4", &format!("{FILE}mode: nftables\nnftables: {{ masqueradeAll: true }}\n"));
    assert!(wait_until(PATIENCE, || !proxy.is_running()));
    assert_eq!(proxy.wait(PATIENCE).unwrap().code(), Some(0));
    let text = "content of the proxy server's configuration file was updated";
    assert!(proxy.log().iter().any(|line| line.starts_with('I') && line.contains(text)), "{:?}", proxy.log());
    let alarms: Vec<String> = proxy.log().into_iter().filter(|line| line.starts_with('E')).collect();
    assert_eq!(alarms.len(), 1, "only that the unusable one could not be used: {alarms:?}");
}
