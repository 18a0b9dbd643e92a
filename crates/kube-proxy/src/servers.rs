//! What the program tells about itself: metrics and health.

use std::sync::Arc;
use std::time::Duration;

use agent::Telemetry;
use metrics::health::SharedHealth;
use metrics::{BuildInfo, Metrics, Options};

/// How long a change may wait for the kernel before the proxy counts as unhealthy: upstream's `2 * syncPeriod`.
const HEALTH_TIMEOUT: Duration = Duration::from_mins(1);

/// Metrics at zero, and a proxy that is healthy so far.
pub(crate) fn telemetry() -> Telemetry {
    let options = Options { build: build_info(), features: Vec::new() };
    Telemetry::new(Arc::new(Metrics::new(&options)), SharedHealth::new(HEALTH_TIMEOUT))
}

fn build_info() -> BuildInfo {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    BuildInfo {
        git_version: format!("v{}", env!("CARGO_PKG_VERSION")),
        compiler: "rustc".into(),
        platform: format!("{}/{arch}", std::env::consts::OS),
        ..BuildInfo::default()
    }
}
