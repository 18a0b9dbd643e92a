//! What rules do to the first packet of a flow, worked out without a kernel, with each rule that matched on the way.
//!
//! Two machines, one for the expressions of `nf_tables` ([`nft`]) and one for iptables' rules as text ([`iptables`]). Both walk
//! one packet through the hooks in the kernel's order, and both refuse to guess: a rule that they can't follow is an error.
//!
//! Pure: where the rules come from, a kernel or a test, is the caller's affair.
#![forbid(unsafe_code)]

pub mod iptables;
pub mod nft;
mod packet;

pub use packet::{Origin, Outcome, Packet, Path, Paths, Step};
