//! What a service manager hears of the program (`sd_notify(3)`): that it serves, that it is alive, that it ends. Without one
//! (`NOTIFY_SOCKET`), nothing happens.

use std::time::Duration;

use agent::Telemetry;
use sd_notify::NotifyState;
use tokio::time::Instant;
use tracing::warn;

use crate::first_sync;

/// The environment's word for where the service manager listens.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Follows the program's state, for ever.
pub(crate) async fn follow(telemetry: &Telemetry) {
    if std::env::var_os(SOCKET).is_none() {
        return std::future::pending().await;
    }
    tell(&[NotifyState::Status("waiting for the API server and the first rules")]).await;
    first_sync::wait(telemetry).await;
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]).await;
    keep_alive(telemetry, sd_notify::watchdog_enabled()).await;
}

/// The program is ending.
pub(crate) async fn tell_end() {
    tell(&[NotifyState::Stopping]).await;
}

/// Waits for a manager that is slow to read, but not on the event loop's thread.
async fn tell(states: &'static [NotifyState<'static>]) {
    let sent = tokio::task::spawn_blocking(|| sd_notify::notify(states)).await;
    if let Ok(Err(error)) = sent {
        warn!(%error, "can't tell the service manager");
    }
}

/// Says again and again that the program is alive, twice in the time that the manager waits (`WatchdogSec=` of the unit), as
/// `/livez` means it: no turn of the event loop and no change waits for too long.
async fn keep_alive(telemetry: &Telemetry, period: Option<Duration>) {
    let Some(period) = period.filter(|period| !period.is_zero()) else {
        return std::future::pending().await;
    };
    loop {
        if telemetry.health.lock().report(Instant::now()).healthy {
            tell(&[NotifyState::Watchdog]).await;
        }
        tokio::time::sleep(period / 2).await;
    }
}
