//! What upstream's kube-proxy leaves on a host in its modes `iptables` and `ipvs`: recognised in what the kernel tells, and
//! planned away.
//!
//! Pure: no sockets, no files; the crate `host` reads, calls this, and carries out what it says. [`upstream`] has the names,
//! [`graph`] decides which chains can go, [`legacy`] edits the tables of iptables-legacy, [`compat`] those that iptables-nft
//! keeps in `nf_tables`, and the others make and read the messages about virtual servers, sets and devices.
//!
//! What is not upstream's stays as it is, and so do chains of upstream's that others still refer to.
#![forbid(unsafe_code)]

pub mod compat;
pub mod graph;
pub mod ipset;
pub mod ipvs;
pub mod legacy;
pub mod upstream;
