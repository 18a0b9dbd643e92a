//! Endpoints that get nothing for now.

use std::net::SocketAddr;
use std::time::Duration;

use model::ServicePortName;

/// An endpoint gets nothing for now, although Kubernetes says that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointOutage {
    /// Of which Service port.
    pub service: ServicePortName,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// What decided so.
    pub cause: OutageCause,
    /// Why, in a few words.
    pub why: String,
    /// For how long still; `None`: until its health check succeeds.
    pub lasting: Option<Duration>,
}

/// What decides that an endpoint gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutageCause {
    /// What it was given failed.
    Ejected,
    /// Its health check fails.
    CheckFails,
}
