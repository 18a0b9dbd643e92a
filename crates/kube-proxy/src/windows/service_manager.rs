//! What the service control manager hears while the program serves: nothing. Where the program runs as a service, it hears of the
//! beginning and the end (`service`).

use agent::Telemetry;

/// Follows the program's state, for ever.
pub(crate) async fn follow(_telemetry: &Telemetry) {
    std::future::pending::<()>().await;
}

/// The program is ending.
#[expect(clippy::unused_async, reason = "other systems' managers may be slow to read")]
pub(crate) async fn tell_end() {}
