//! What the program tells about itself: metrics, health and the servers for them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agent::Telemetry;
use anyhow::Context as _;
use clap::ArgMatches;
use metrics::health::SharedHealth;
use metrics::{BuildInfo, Metrics, Options};
use serde_json::json;
use status::{Limits, Sources, Status};

use crate::flags::Flags;
use crate::logs::SetVerbosity;

/// How long a change may wait for the kernel before the proxy counts as unhealthy: upstream's `2 * syncPeriod`.
const HEALTH_TIMEOUT: Duration = Duration::from_mins(1);
const MODE: &str = "nftables";
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// What is served and where: upstream's defaults.
pub(crate) fn config(matches: &ArgMatches, flags: &Flags, set_verbosity: SetVerbosity) -> status::Config {
    let metrics_address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10249));
    let health_address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10256));
    let (bind_hard_fail, profiling) = (false, false);
    let configz = json!({ "kubeproxy.config.k8s.io": {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddressHardFail": bind_hard_fail,
        "enableProfiling": profiling,
        "healthzBindAddress": health_address,
        "hostnameOverride": flags.hostname_override.as_deref().unwrap_or_default(),
        "metricsBindAddress": metrics_address,
        "mode": MODE,
    }});
    status::Config {
        metrics_address: Some(metrics_address),
        health_address: Some(health_address),
        bind_hard_fail,
        profiling,
        mode: MODE.into(),
        configz: configz.to_string(),
        flags: shown(matches),
        version: VERSION.into(),
        set_verbosity,
        limits: Limits::default(),
    }
}

/// Metrics at zero, a proxy that is healthy so far, and the servers, before anything else can take long.
pub(crate) fn start(config: status::Config) -> anyhow::Result<(Telemetry, Status)> {
    let options = Options { build: build_info(), features: Vec::new() };
    let metrics = Arc::new(Metrics::new(&options));
    let telemetry = Telemetry::new(metrics, SharedHealth::new(HEALTH_TIMEOUT));
    let sources = Sources {
        metrics: telemetry.metrics.clone(),
        health: telemetry.health.clone(),
        health_checks: telemetry.health_checks.subscribe(),
    };
    // The log has it; there are no events yet that could tell it too.
    let status = Status::start(config, sources, Arc::new(|_failed| {})).context("start the servers")?;
    Ok((telemetry, status))
}

/// All flags with their values as given or by default, for `/flagz`.
fn shown(matches: &ArgMatches) -> Vec<(String, String)> {
    let value = |name: &str| {
        let values = matches.get_raw(name).into_iter().flatten();
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        values.join(",")
    };
    let command = crate::flags::command();
    let names = command.get_arguments().map(|argument| argument.get_id().to_string());
    names.map(|name| (name.clone(), value(&name))).collect()
}

fn build_info() -> BuildInfo {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    BuildInfo {
        git_version: VERSION.into(),
        compiler: "rustc".into(),
        platform: format!("{}/{arch}", std::env::consts::OS),
        ..BuildInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_shown_with_their_values() {
        let line = ["kube-proxy", "--cluster-cidr", "10.244.0.0/16,fd00::/56", "-v", "4", "--masquerade-all"];
        let matches = crate::flags::command().try_get_matches_from(line).unwrap();
        let shown = shown(&matches);
        let value = |name: &str| {
            let found = shown.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(value("cluster-cidr"), Some("10.244.0.0/16,fd00::/56"));
        assert_eq!(value("v"), Some("4"));
        assert_eq!(value("masquerade-all"), Some("true"));
        assert_eq!(value("proxy-mode"), Some("nftables"), "a default");
        assert_eq!(value("kubeconfig"), Some(""));
        assert_eq!(value("help"), None);
    }
}
