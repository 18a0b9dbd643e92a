//! The moment from which on Services are served.

use agent::Telemetry;
use tokio::time::Instant;

/// Waits until every family has had its rules in place.
pub(crate) async fn wait(telemetry: &Telemetry) {
    let mut news = telemetry.generation.subscribe();
    while !telemetry.health.lock().report(Instant::now()).started {
        if news.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
