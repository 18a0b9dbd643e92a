//! The embedded API server as its clients see it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking, like the tests")]

mod client;
mod faults;
mod requests;
mod watching;
mod wire;
