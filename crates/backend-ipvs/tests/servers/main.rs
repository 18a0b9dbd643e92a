//! Virtual servers in memory: what plans lead to, whatever was there and whatever fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod contract;
mod convergence;
mod cost;
mod draining;
mod faults;
mod node;
mod traffic;
mod watching;
mod world;
