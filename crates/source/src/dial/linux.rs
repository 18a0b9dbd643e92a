//! What Linux can do with connections.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

/// Has connections end on which nothing was acknowledged for so long.
pub(super) fn give_up_after(connector: &mut HttpConnector, silence: Duration) {
    connector.set_tcp_user_timeout(Some(silence));
}
