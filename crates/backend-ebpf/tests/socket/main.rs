//! Real programs, real sockets: in a cgroup and a network namespace of the test's own. Needs root, a cgroup of version 2 and a file
//! system of type `bpf`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod counting;
mod datagrams;
mod differential;
mod endings;
mod faults;
mod parity;
mod programs;
mod site;
mod translation;
mod verifier;
