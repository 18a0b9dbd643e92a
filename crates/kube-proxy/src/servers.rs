//! What the program tells about itself: metrics and health.

use std::sync::Arc;

use agent::Telemetry;
use config::Config;
use metrics::health::SharedHealth;
use metrics::{BuildInfo, Metrics, Options};

/// Metrics at zero, and a proxy that is healthy so far.
pub(crate) fn telemetry(config: &Config, version: &str) -> Telemetry {
    let options = Options { build: build_info(version), features: Vec::new() };
    Telemetry::new(Arc::new(Metrics::new(&options)), SharedHealth::new(config.health_timeout()))
}

fn build_info(version: &str) -> BuildInfo {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    BuildInfo {
        git_version: version.to_owned(),
        compiler: "rustc".into(),
        platform: format!("{}/{arch}", std::env::consts::OS),
        ..BuildInfo::default()
    }
}
