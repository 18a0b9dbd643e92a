//! The ebpf backend: from the load-balancing table of one family to the maps of programs that translate at the socket
//! ([`ebpf`]), beside rules that another planner makes.
//!
//! The rules serve everything, and are complete at any time. The programs are a shorter way for what is simple ([`Served`]); what they
//! do not know, or are not sure of, they leave to the rules. So nothing here fails a sync: where maps or programs can't be had,
//! they are switched off, which is one store to memory, and tried again after a pause.
//!
//! - [`State`] is what the maps hold, and turns changes into single writes. Each of them leaves every connection that is made
//!   meanwhile with an endpoint that is wanted before or after the change.
//! - [`SocketPath`] has the state, the maps and the programs ([`ebpf::FastPath`]), and outlives targets. It is asked on the
//!   target's thread.
//! - [`EbpfPlanner`] and [`EbpfTarget`] wrap those of the rules.
//!
//! Pure, except that the target passes on what is to be done to the border [`ebpf::FastPath`].
#![forbid(unsafe_code)]

mod adopt;
mod extents;
mod path;
mod plan;
mod served;
mod state;
mod target;
#[cfg(test)]
mod tests;

pub use path::{Condition, OpenPath, ReadAddresses, SocketPath, Statistics, Tell, share};
/// Where [`mode::Rule`]s of the maps are.
pub const PLACE: &str = "maps of programs at the socket";

pub use plan::{EbpfPlanner, Explain};
pub use served::{Change, Options, Served, Wanted};
pub use state::{Outgrown, State};
pub use target::{Counted, EbpfTarget, Found, Receipt, Step};
