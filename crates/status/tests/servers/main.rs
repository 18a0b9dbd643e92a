//! The servers over real connections, on ports of the loopback interface that the system chooses.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "a test fails by panicking")]

mod client;
mod clients;
mod health_server;
mod metrics_server;
mod service_checks;
mod support;
