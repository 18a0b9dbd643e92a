//! The kernel's edge: real netlink sockets behind the traits of the pure crates. The only crate with unsafe code,
//! and that only in small modules which say why.
//!
//! Does no deciding: what is sent was planned elsewhere, and what is refused is reported with the kernel's words.

mod clock;
mod conntrack;
mod device;
mod ebpf;
mod heap;
pub mod iptables;
mod ipvs;
mod lookup;
mod netlink;
mod nftables;
mod socket;
mod touches;
mod trace;
mod watch;
mod xtables;

pub use crate::conntrack::{FlowLookup, Flows, FlowsAndOwnSockets};
pub use crate::device::VirtualDevice;
pub use crate::ebpf::{
    Bpf, Endings, EndingsError, FastPathPlace, FlowsAndSockets, Gate, KernelFastPath, TellEnded,
    remove_fast_path,
};
pub use crate::ipvs::{KernelIpvs, SchedulerError, check_scheduler};
pub use crate::netlink::{Netlink, Protocol, Refusal};
pub use clock::is_clock_synchronized;
pub use heap::{release_memory, share_heap};
pub use lookup::TableReader;
pub use nftables::{LikelyKeys, Nftables};
pub use socket::{Channel, Socket, SocketOption, Wait};
pub use trace::Tracing;
pub use watch::{ForeignChange, TableWatch};
pub use xtables::{Counters, Xtables};
