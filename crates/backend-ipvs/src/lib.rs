//! The ipvs backend: from the load-balancing table of one family to virtual and real servers of the kernel's load balancer.
//!
//! IPVS only balances. What else packets need (source ranges, refusal, masquerading, the short cut of
//! `externalTrafficPolicy: Local`) are rules, which another planner makes ([`Rules`]); this one has both done in the right
//! order. A virtual server is local to the host: its address is on a device of its own (`kube-ipvs0`), or, with node ports, one
//! of the node's.
//!
//! - A frontend with endpoints is a virtual server at its address, or at each of the node's that serves node ports. Without
//!   any, there is none: rules refuse or drop its packets.
//! - An endpoint that goes has its weight set to 0, and goes when no connection is left, which is looked up at growing intervals
//!   ([`Planner::wake_at`](mode::Planner::wake_at)); UDP, which has no connections, goes at once. One that comes back has its
//!   weight back.
//! - Virtual servers of ours carry a flag ([`ipvs::Flags::OWN`]); those of others are never touched, except at an address of our
//!   device, and there not if it is excluded.
//!
//! Pure, except that its target passes on what is to be done to the borders [`ipvs::Ipvs`] and [`ipvs::Devices`].
#![forbid(unsafe_code)]

mod change;
mod found;
mod nftables;
mod options;
mod plan;
mod rules;
mod settle;
mod state;
mod target;
mod traffic;
mod walked;
mod watch;

pub use change::Change;
pub use options::Options;
pub use plan::{IpvsPlanner, PLACE, Pending};
pub use rules::Rules;
pub use target::{Found, FoundServer, IpvsTarget, Receipt, Step, TargetError};
pub use traffic::Counted;
pub use walked::{VirtualServers, pieces, read_pieces};
pub use watch::{Activity, Watcher};

/// The device that holds virtual servers' addresses. The name is upstream's, which other software leaves alone.
pub const DEVICE: &str = "kube-ipvs0";
