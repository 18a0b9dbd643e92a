//! The program as its users meet it: a process beside a real API server (HTTP), a real kernel, real packets.
//!
//! Each test builds its own cluster of network namespaces and needs the right to do so (root); without it, it fails.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test fails by panicking and says on the way what it tries"
)]

mod affinity;
mod bad_input;
mod commands;
mod config_file;
mod ebpf;
mod ebpf_udp;
mod edges;
mod events;
mod explain;
mod folder;
mod iptables;
mod ipvs;
mod lifecycle;
mod localhost;
mod matrix;
mod mode_switch;
mod neighbours;
mod odd;
mod operation;
mod packets;
mod permissions;
mod sctp;
mod status;
mod support;
mod takeover;
mod traffic;
mod upgrade;
mod userspace;
mod watch;
