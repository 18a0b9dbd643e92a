//! The iptables backend: from the load-balancing table of one family to changes of the tables `nat`, `filter` and `mangle`.
//!
//! Pure. Names, comments and marks are upstream's (`pkg/proxy/iptables/proxier.go`), since other software knows them, but there
//! are fewer chains: `KUBE-SVC-` translates the destination by itself, and only an endpoint on this node has a chain
//! `KUBE-SEP-`, because only it can be sent a packet of its own that has to be masqueraded.
//!
//! - `KUBE-SERVICES` and `KUBE-NODEPORTS` (nat) send a packet to its Service port's chain, a rule for each frontend;
//! - `KUBE-EXT-` and `KUBE-FW-` stand before it for external traffic and source ranges;
//! - `KUBE-SERVICES`, `KUBE-EXTERNAL-SERVICES` and `KUBE-PROXY-FIREWALL` (filter) refuse what nobody serves.
//!
//! [`Backend::plan`] turns changed frontends into the input of `iptables-restore`: the chains of these Services and single rules
//! of the dispatching chains. [`Backend::repair`] turns whatever was read back into the difference to what should be there.
//! Neither changes the backend's idea of what the kernel holds: [`Backend::committed`] does, after the changes were made.
#![forbid(unsafe_code)]

mod changes;
mod config;
mod fixed;
mod meters;
mod mode;
mod names;
mod objects;
mod plan;
mod programmed;
mod render;
mod repair;

pub use crate::mode::{IptablesPlanner, IptablesTarget, Outcome};
pub use config::Config;
pub use fixed::presence;
pub use model::{Extent, NodePortAddresses, PodSource};
pub use names::{CANARY, PREFIX};
pub use objects::rules_of;
pub use plan::{Backend, Plan};
