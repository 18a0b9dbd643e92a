//! The nftables backend: from the load-balancing table of one family to transactions on the table `kube-proxy`.
//!
//! Pure. The ruleset is flat: a Service or an endpoint is never a chain or a map of its own, only elements in a handful
//! of maps, because the kernel's cost for a change grows with the number of chains and maps. Only session affinity makes an
//! exception (`affinity`).
//!
//! - `service-ips` and `service-nodeports` give a packet the number of its pool of endpoints, and say which chain chooses
//!   (`priority`);
//! - `endpoints` holds numbered slots for each pool, and the chain picks one at random;
//! - `no-endpoint-services` and `no-endpoint-nodeports` refuse what nobody serves.
//!
//! All addresses of a Service port lead to one pool (`pools`). Replacing an endpoint is therefore one element, whatever
//! the number of addresses.
//!
//! [`Backend::plan`] turns changed frontends into a transaction, work proportional to the change; [`Backend::repair`]
//! turns whatever was read back from the kernel into the difference to what should be there. Neither changes the
//! backend's idea of what the kernel holds: [`Backend::committed`] does, after the kernel took the transaction.
#![forbid(unsafe_code)]

mod affinity;
mod beside;
mod chains;
mod config;
mod counted;
mod elements;
mod found;
mod frontend;
pub mod hand_over;
mod ipvs;
mod layout;
pub mod lease;
mod meters;
mod mode;
mod plan;
mod pools;
mod priority;
mod repair;
mod slot_keys;
pub mod trial;

pub use crate::mode::{NftablesTarget, Outcome};
pub use config::Config;
pub use layout::{chooses_endpoints, choosing_chains, table_name, workers_table_name};
pub use model::{Extent, NodePortAddresses, PodSource};
pub use plan::{Backend, Plan};
pub use slot_keys::slot_keys;
