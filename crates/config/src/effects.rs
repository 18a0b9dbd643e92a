//! Fields that are accepted without effect, with the reason. Whatever is not named here is honoured.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::decode::{Field as _, child};
use crate::mode::Mode;
use crate::note::Note;
use crate::platform::Platform;
use crate::v1alpha1::KubeProxyConfiguration;

const FEW_REQUESTS: &str = "there are few requests: one list and one watch for each kind";
const WINDOWS: &str = "it concerns Windows";
const LINUX: &str = "it concerns Linux";

/// Fields, and what all fields of an object have in common, with the reason why they do nothing in any mode.
const WITHOUT_EFFECT: [(&str, &str); 5] = [
    ("clientConnection.burst", FEW_REQUESTS),
    ("clientConnection.qps", FEW_REQUESTS),
    ("configSyncPeriod", "changes are watched, and the kernel's state is audited by itself"),
    ("portRange", "it is obsolete"),
    ("showHiddenMetricsForVersion", "no metric is hidden"),
];

/// What only one system has: fields, and what all fields of an object have in common.
const OF_WINDOWS: [&str; 2] = ["winkernel", "windowsRunAsService"];
const OF_LINUX: [&str; 6] =
    ["conntrack", "oomScoreAdj", "inspectSocket", "ebpf", "connectionReset", "tracing"];

/// Why a field does nothing on a system, in whatever mode; for the documentation.
pub(crate) fn on(path: &str, platform: Platform) -> Option<&'static str> {
    // Section iptables is also what counts with an empty mode.
    if let Some(key) = path.strip_prefix("iptables.").filter(|key| is_shared(key)) {
        return in_any_mode(&child(Mode::NfTables.as_str(), key), platform);
    }
    match owner(path) {
        Some(mode) if !Mode::built_in(platform).contains(&mode) => Some(match mode {
            Mode::Ipvs => "mode ipvs is not built in",
            Mode::Ebpf => "mode ebpf is not built in",
            Mode::NfTables => "mode nftables is not built in",
            _ => "mode iptables is not built in",
        }),
        _ => in_any_mode(path, platform),
    }
}

fn in_any_mode(path: &str, platform: Platform) -> Option<&'static str> {
    of_other_system(path, platform).or_else(|| {
        let why = WITHOUT_EFFECT.iter().find(|(known, _)| is_within(path, known));
        why.map(|(_, why)| *why)
    })
}

/// Why a field does nothing on a system because it is for another one.
fn of_other_system(path: &str, platform: Platform) -> Option<&'static str> {
    let (foreign, why): (&[&str], _) = match platform {
        Platform::Linux => (&OF_WINDOWS, WINDOWS),
        Platform::Windows => (&OF_LINUX, LINUX),
    };
    foreign.iter().any(|known| is_within(path, known)).then_some(why)
}

/// Whether a field is that of a path, or within it.
fn is_within(path: &str, known: &str) -> bool {
    path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The mode that a field's section is named after.
fn owner(path: &str) -> Option<Mode> {
    let section = path.split_once('.')?.0;
    [Mode::IpTables, Mode::Ipvs, Mode::NfTables, Mode::Ebpf].into_iter().find(|mode| mode.as_str() == section)
}

/// What is said to no effect in a file with defaults, given the mode that was chosen. One note for each reason.
pub(crate) fn notes(file: &KubeProxyConfiguration, mode: Mode) -> Vec<Note> {
    let defaults = KubeProxyConfiguration::defaults_at(&file.bind_address);
    let (said, defaults) = (leaves(&file.write()), leaves(&defaults.write()));
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, value) in said {
        let says_nothing = match path.as_str() {
            // Without an address it still says the family of the listeners' defaults.
            "bindAddress" => ["0.0.0.0", "::"].contains(&file.bind_address.as_str()),
            _ => defaults.get(&path) == Some(&value),
        };
        if says_nothing {
            continue;
        }
        if let Some(why) = why(&path, &file.mode, mode) {
            by_reason.entry(why).or_default().push(path);
        }
    }
    by_reason.into_iter().map(|(why, fields)| Note::NoEffect { fields, why }).collect()
}

/// Whether a running proxy has one value for what each mode's section has; see [`KubeProxyConfiguration::mode_section_mut`].
fn is_shared(key: &str) -> bool {
    ["syncPeriod", "minSyncPeriod", "masqueradeAll", "masqueradeBit"].contains(&key)
}

/// Why a field does nothing in a mode that was chosen for what the file calls `said_mode`.
fn why(path: &str, said_mode: &str, mode: Mode) -> Option<String> {
    // Other modes take away there what mode ebpf has left.
    let owner = owner(path).filter(|_| path != "ebpf.bpffs");
    let in_any_mode = |path: &str| in_any_mode(path, Platform::HERE).map(str::to_owned);
    let Some(owner) = owner else { return in_any_mode(path) };
    let key = path.rsplit('.').next().unwrap_or_default();
    let is_shared = is_shared(key);
    if is_shared && owner == shared_owner(said_mode, key) {
        return in_any_mode(&child(mode.section().as_str(), key));
    }
    if is_shared && said_mode.is_empty() && owner == mode {
        return Some("with an empty mode, section iptables counts, as upstream".to_owned());
    }
    if owner == mode || owner == mode.section() {
        in_any_mode(path)
    } else {
        Some(format!("it is not read in mode {mode}"))
    }
}

/// The section that a shared value is read from; see [`KubeProxyConfiguration::mode_section_mut`].
fn shared_owner(said_mode: &str, key: &str) -> Mode {
    match Mode::named(said_mode).map(Mode::section) {
        Some(Mode::NfTables) => Mode::NfTables,
        Some(Mode::Ipvs) if !key.starts_with("masquerade") => Mode::Ipvs,
        _ => Mode::IpTables,
    }
}

/// Each value with the path of its field. Lists, and maps whose keys are no fields, are values.
pub(crate) fn leaves(document: &Value) -> BTreeMap<String, Value> {
    fn collect(path: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) if path != "featureGates" => {
                for (key, value) in fields {
                    collect(&child(path, key), value, into);
                }
            }
            _ => {
                into.insert(path.to_owned(), value.clone());
            }
        }
    }
    let mut leaves = BTreeMap::new();
    collect("", document, &mut leaves);
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_names_something_of_the_file() {
        let paths = leaves(&KubeProxyConfiguration::defaults().write());
        // Left out of a document when they are empty.
        let omitted =
            ["logging.vmodule", "logging.options.json.splitStream", "logging.options.text.splitStream"];
        for (known, _) in WITHOUT_EFFECT {
            let exists = paths.keys().any(|path| path == known || path.starts_with(&format!("{known}.")));
            assert!(exists || omitted.contains(&known), "{known}");
        }
    }

    #[test]
    fn each_system_has_fields_of_its_own() {
        for (path, of) in [
            ("winkernel.enableDSR", Some(Platform::Windows)),
            ("windowsRunAsService", Some(Platform::Windows)),
            ("conntrack.min", Some(Platform::Linux)),
            ("oomScoreAdj", Some(Platform::Linux)),
            ("ebpf.bpffs", Some(Platform::Linux)),
            ("mode", None),
        ] {
            for here in [Platform::Linux, Platform::Windows] {
                let is_foreign = of.is_some_and(|of| of != here);
                assert_eq!(of_other_system(path, here).is_some(), is_foreign, "{path} on {here:?}");
            }
        }
    }

    #[test]
    fn shared_values_count_where_upstream_reads_them() {
        assert_eq!(why("iptables.masqueradeAll", "", Mode::NfTables), None);
        assert_eq!(why("iptables.minSyncPeriod", "", Mode::NfTables), None);
        assert!(why("nftables.masqueradeAll", "", Mode::NfTables).is_some());
        assert!(why("iptables.masqueradeAll", "nftables", Mode::NfTables).is_some());
        assert_eq!(why("nftables.masqueradeAll", "nftables", Mode::NfTables), None);
        assert_eq!(why("iptables.masqueradeAll", "ipvs", Mode::Ipvs), None);
        assert_eq!(why("ipvs.scheduler", "ipvs", Mode::Ipvs), None);
        assert!(why("ipvs.scheduler", "nftables", Mode::NfTables).is_some());
        assert!(why("winkernel.sourceVip", "", Mode::NfTables).is_some());
    }
}
