//! `docs/flags.md`, made from the definitions.

use std::fmt::Write as _;

use crate::command_line::default;
use crate::decode::Field as _;
use crate::effects::{self, leaves};
use crate::flag::{Flag, MapsTo, WithConfig};
use crate::flags;
use crate::gates::{GATES, Gate};
use crate::platform::Platform;
use crate::v1alpha1::KubeProxyConfiguration;

const HEAD: &str = "\
# Flags, configuration file and feature gates

Made by `make docs-files` from the definitions in `crates/config`; a test fails if it is out of date.

Names, defaults and meanings are those of Kubernetes v1.36, so an existing command line or `KubeProxyConfiguration` works as it
is. What is accepted without effect says why; it is also logged when it is set to something else than its default.
Differences are listed in [known-gaps.md](known-gaps.md).

## Flags

Underscores in names count as dashes. A boolean flag stands alone or has its value after `=`. The last of a repeated flag
counts; lists and maps collect. With `--config`, flags marked *ignored* do nothing, which one warning tells.
Only a program built for Windows has the flags of the last section; elsewhere they are unknown, as upstream.
";

const FILE_HEAD: &str = "
## Configuration file

`apiVersion: kubeproxy.config.k8s.io/v1alpha1`, `kind: KubeProxyConfiguration`, in YAML or JSON. Zero and empty values mean the
default, except where the type says that it may be absent (`oomScoreAdj`, `conntrack.maxPerCore`, `conntrack.min`,
`conntrack.tcpEstablishedTimeout`, `conntrack.tcpCloseWaitTimeout`, the two `masqueradeBit`, `iptables.localhostNodePorts`).
Unknown fields and duplicate keys are left out with a warning; values of a wrong type are errors. Port 0 switches a listener off.
An empty `mode` takes the best mode that the kernel supports and reads `syncPeriod`, `minSyncPeriod`, `masqueradeAll` and
`masqueradeBit` from section `iptables`, as upstream does.

| field | default | effect |
|---|---|---|
";

const GATES_HEAD: &str = "
## Feature gates

Set with `--feature-gates` or `featureGates`. Other names are accepted with a warning.

| gate | stage | default | effect |
|---|---|---|---|
";

/// The text of `docs/flags.md`.
pub fn flags_markdown() -> String {
    let mut text = HEAD.to_owned();
    for group in &flags::GROUPS {
        let platform = group.only_on.unwrap_or(Platform::Linux);
        // Writing to a string can't fail.
        let _ok = write!(
            text,
            "\n### {}\n\n| flag | default | with `--config` | field | meaning |\n|---|---|---|---|---|\n",
            group.title
        );
        text.extend(group.flags.iter().map(|flag| flag_row(flag, platform)));
    }
    text.push_str(FILE_HEAD);
    for (path, value) in leaves(&KubeProxyConfiguration::defaults().write()) {
        if !["apiVersion", "kind"].contains(&path.as_str()) {
            let _ok = writeln!(text, "| `{path}` | {} | {} |", code(&value.to_string()), effect(&path));
        }
    }
    text.push_str(GATES_HEAD);
    text.extend(GATES.iter().map(gate_row));
    text
}

fn flag_row(flag: &Flag, platform: Platform) -> String {
    let field = match flag.maps_to {
        MapsTo::Field(path) => code(path),
        MapsTo::Nothing { .. } => String::new(),
    };
    let with_config = match flag.with_config {
        WithConfig::Ignored => "ignored",
        WithConfig::Wins => "wins",
        WithConfig::Independent => "",
    };
    let short = flag.short.map(|letter| format!(", `-{letter}`")).unwrap_or_default();
    let mut meaning = flag.help.to_owned();
    if let Some(advice) = flag.deprecated {
        meaning = format!("{meaning}. Deprecated: {advice}");
    }
    if let Some(why) = flag.without_effect(platform) {
        meaning = format!("{meaning}. *No effect: {why}*");
    }
    let (name, kind) = (flag.name, flag.target.type_name());
    format!(
        "| `--{name}`{short} ({kind}) | {} | {with_config} | {field} | {meaning} |\n",
        code(&default(flag))
    )
}

fn gate_row(gate: &Gate) -> String {
    let locked = if gate.locked { ", locked" } else { "" };
    let effect = match gate.no_effect {
        Some(why) if gate.meaning.is_empty() => format!("*none: {why}*"),
        Some(why) => format!("{}. *None: {why}*", gate.meaning),
        None => gate.meaning.to_owned(),
    };
    format!("| `{}` | {:?} | {}{locked} | {effect} |\n", gate.name, gate.stage, gate.default)
}

fn effect(path: &str) -> String {
    match (effects::on(path, Platform::Linux), effects::on(path, Platform::Windows)) {
        (None, _) => "honoured".to_owned(),
        (Some(_), None) => "honoured on Windows".to_owned(),
        (Some(why), Some(_)) => format!("*none: {why}*"),
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_file_is_what_is_made() {
        let checked_in = include_str!("../../../docs/flags.md");
        assert!(checked_in == flags_markdown(), "docs/flags.md is out of date: run `make docs-files`");
    }
}
