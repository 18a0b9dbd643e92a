//! The configuration files of `deploy/`, and kubeadm's, as they are: nothing about them is refused or warned of.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use config::{CommandLine, Loaded, Mode, ModeSupport, Note, Parsed, load};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What the program makes of a file, started as the manifests do.
fn loaded(text: &str) -> Loaded {
    let arguments = ["--config=config.conf", "--hostname-override=node-1"].map(str::to_owned);
    let Ok(Parsed::Run(command_line)) = CommandLine::parse(arguments) else {
        panic!("the command is kubeadm's")
    };
    let modes: Vec<_> = Mode::BUILT_IN.iter().copied().map(ModeSupport::usable).collect();
    load(&command_line, Some(Ok(text.to_owned())), &modes)
}

/// The mode that a file is for.
#[track_caller]
fn mode_of(text: &str, name: &str) -> Mode {
    let loaded = loaded(text);
    assert_eq!(loaded.notes, [], "{name}");
    loaded.config.unwrap_or_else(|error| panic!("{name}: {error}")).mode
}

/// Files below a folder that are configurations of this program.
fn configurations(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            configurations(&path, found);
        } else if std::fs::read_to_string(&path).unwrap().contains("\nkind: KubeProxyConfiguration") {
            found.insert(path);
        }
    }
}

#[test]
fn every_file_is_taken_without_a_word() {
    let deploy = repository().join("deploy");
    let mut found = BTreeSet::new();
    configurations(&deploy, &mut found);
    let modes: Vec<_> = found
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&deploy).unwrap().display().to_string();
            let mode = mode_of(&std::fs::read_to_string(path).unwrap(), &name);
            (name, mode)
        })
        .collect();
    let modes: Vec<_> = modes.iter().map(|(name, mode)| (name.as_str(), *mode)).collect();
    let expected = [
        ("kustomize/base/config.conf", Mode::NfTables),
        ("kustomize/overlays/ebpf/config.conf", Mode::Ebpf),
        ("kustomize/overlays/ebpf-udp/config.conf", Mode::Ebpf),
        ("kustomize/overlays/example/config.conf", Mode::NfTables),
        ("kustomize/overlays/iptables/config.conf", Mode::IpTables),
        ("kustomize/overlays/pod-monitor/config.conf", Mode::NfTables),
        ("systemd/config.yaml", Mode::NfTables),
    ];
    assert_eq!(modes, expected);
}

/// The chart's default, which it writes below the kind.
#[test]
fn the_charts_default_is_taken_without_a_word() {
    let path = repository().join("deploy/helm/kube-proxy/values.yaml");
    let values: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut config = values["config"].clone();
    config["apiVersion"] = "kubeproxy.config.k8s.io/v1alpha1".into();
    config["kind"] = "KubeProxyConfiguration".into();
    assert_eq!(mode_of(&config.to_string(), "values.yaml"), Mode::NfTables);
}

/// kubeadm names no mode; which one that is, is all there is to say.
#[test]
fn kubeadms_file_is_taken_without_a_warning() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/kubeadm.txt");
    let case = std::fs::read_to_string(path).unwrap();
    let (_, file) = case.split_once("--- config.yaml\n").unwrap();
    let loaded = loaded(file.split_once("--- result\n").unwrap().0);
    assert_eq!(loaded.notes, [Note::ModeChosen(Mode::NfTables)]);
    assert_eq!(loaded.config.unwrap().mode, Mode::NfTables);
}
