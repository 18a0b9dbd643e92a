//! What other systems can do with connections.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

/// Nothing: probes alone, and the system's own limit for what is not acknowledged, find silent peers.
pub(super) fn give_up_after(_connector: &mut HttpConnector, _silence: Duration) {}
