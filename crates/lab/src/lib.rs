//! A laboratory of network namespaces: two nodes, their pods and a client outside, with real packets.
//!
//! Every packet between a pod and anything else crosses its node's IP stack (point-to-point veth pairs, no bridge), so
//! that whatever rules a test puts on the node see both directions of each connection. Nothing has a name on the host:
//! a namespace lives as long as its [`Namespace`] value (or a process or socket inside), and the host's interfaces,
//! rules and `/run/netns` stay as they were.
//!
//! ```text
//!   pod0 .. podN              node2-pod0 .. node2-podM            10.96.0.0/12 and friends: routed to `node` only
//!   10.244.0.2 ..             10.244.1.2 ..
//!   fd00:10:244::2 ..         fd00:10:244:1::2 ..
//!      | one veth each           |
//!     node 192.168.50.1, fd00:50::1      node2 192.168.50.2, fd00:50::2      outside 192.168.50.100, fd00:50::100
//!         +------------------- switch (bridge) ------+----------------------------+
//! ```
//!
//! - `outside` has no route to the pods, so a connection from there to a pod of `node2` through a Service on `node`
//!   works only if `node` masquerades it.
//! - Both nodes have their default route through `outside`, which does not forward. A packet to a Service address that
//!   no rule catches is therefore routable and silently lost: refusals and drops that a test sees come from the rules.
//! - Host interfaces of pods carry no address, so masquerading towards a pod shows the node's own address.
//! - Limits on ICMP errors are off, so that each rejected packet is answered, however many there are.
//!
//! Needs root or, as another user, [`enter_user_namespace`] before the first thread. Needs `ip` and `nft`.

#![forbid(unsafe_code)]

mod build;
pub mod cgroup;
pub mod client;
pub mod commits;
pub mod echo;
mod error;
mod namespace;
mod privilege;
pub mod proxy;
mod time_limit;
mod topology;

pub use build::{Host, Lab, Listing};
pub use error::LabError;
pub use model::IpFamily;
pub use namespace::Namespace;
pub use privilege::{enter_user_namespace, require_privilege};
pub use topology::Config;
