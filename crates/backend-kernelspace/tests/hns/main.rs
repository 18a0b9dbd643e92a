//! Load balancers in memory: what plans lead to, whatever was there and whatever fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod contract;
mod convergence;
mod cost;
mod faults;
mod forms;
mod gaps;
mod life;
mod world;
