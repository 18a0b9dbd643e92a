//! The kernel's table of tracked flows (conntrack): which flows to look for and to delete, and the `ctnetlink`
//! messages that say so.
//!
//! The kernel decides once, at a flow's first packet, which endpoint the flow goes to. A TCP client notices when that
//! endpoint is gone and makes a new connection; a UDP or SCTP client may go on sending into the void for as long as it
//! likes, because each packet keeps the flow alive. So the service proxy deletes such flows, and the next packet is
//! decided anew.
//!
//! Pure: no sockets. [`Conntrack`] is the border that the `kernel` crate (real netlink) and the test kit (fake)
//! implement. [`Pass`] and [`Batch`] are what an implementation over netlink sends and understands. Tables have
//! millions of flows, so nothing here ever holds more than one datagram's.
//!
//! Deliberately absent: making and changing flows, events, expectations, and deletion by anything but one flow at a
//! time. (A deletion without a tuple empties the whole table; [`Batch`] can't write one.)
#![forbid(unsafe_code)]

mod batch;
mod border;
mod decode;
mod filter;
mod flow;
mod pass;
mod wire;

pub use batch::{Batch, Outcome};
pub use border::Conntrack;
pub use filter::Filter;
pub use flow::{Flow, Tuple, status};
pub use netlink::Family;
pub use pass::Pass;
