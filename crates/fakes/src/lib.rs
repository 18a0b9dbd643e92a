//! Kernels in memory, and what tests of pure crates share beside them: objects, the packet contract, upstream's rules.
//!
//! A kernel in memory refuses what the real one refuses (`tests` hold it to that), and fails when it is told to.
#![forbid(unsafe_code)]

pub mod conntrack;
pub mod contract;
pub mod devices;
pub mod ebpf;
pub mod hns;
pub mod iptables;
pub mod ipvs;
pub mod kernel;
pub mod objects;
pub mod on_paper;
pub mod upstream;
