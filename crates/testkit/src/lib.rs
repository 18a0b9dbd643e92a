//! What the tests, the demo and the benchmark share: stand-ins for a cluster that behave like the real thing.
#![forbid(unsafe_code)]

pub mod apiserver;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod commits;
pub mod contract;
pub mod echo;
pub mod fake_conntrack;
pub mod fake_devices;
pub mod fake_ebpf;
pub mod fake_iptables;
pub mod fake_ipvs;
pub mod fake_kernel;
pub mod lab;
pub mod middlebox;
pub mod objects;
pub mod on_paper;
pub mod proxy;
pub mod upstream;
