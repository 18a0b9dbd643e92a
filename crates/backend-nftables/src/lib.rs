//! The nftables backend: from the load-balancing table of one family to transactions on the table `kube-proxy`.
//!
//! Pure. The ruleset is flat: a Service or an endpoint is never a chain or a map of its own, only elements in a handful
//! of maps, because the kernel's cost for a change grows with the number of chains and maps.
//!
//! - `service-ips` and `service-nodeports` send a packet to a chain for "balance over N endpoints";
//! - `endpoints` and `nodeport-endpoints` hold N numbered slots for each of those, and the chain picks one at random;
//! - `no-endpoint-services` and `no-endpoint-nodeports` refuse what nobody serves.
//!
//! There is one chain per distinct N (and way of masquerading), shared by all frontends ([`ChainId`]). Replacing an
//! endpoint is therefore one element, and a change of N is that plus one verdict.
//!
//! [`Backend::plan`] turns changed frontends into a transaction, work proportional to the change; [`Backend::repair`]
//! turns whatever was read back from the kernel into the difference to what should be there. Neither changes the
//! backend's idea of what the kernel holds: [`Backend::committed`] does, after the kernel took the transaction.
#![forbid(unsafe_code)]

mod chains;
mod config;
mod elements;
mod layout;
mod likely;
mod mode;
mod plan;
mod programmed;
mod repair;
mod shared;

pub use crate::mode::{NftablesTarget, Outcome};
pub use chains::ChainId;
pub use config::Config;
pub use layout::{choosing_chains, nft_family, table_name};
pub use likely::likely_keys;
pub use model::{Extent, NodePortAddresses, PodSource};
pub use plan::{Backend, Plan};
