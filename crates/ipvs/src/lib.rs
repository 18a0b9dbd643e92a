//! IPVS, the kernel's load balancer, as values: virtual servers, the real servers behind them, and generic netlink's messages
//! about both (`linux/ip_vs.h`, `linux/genetlink.h`); beside it the messages about the device that holds the virtual
//! servers' addresses.
//!
//! Pure: no sockets. Whoever has one implements [`Ipvs`]. What is read may be anything: nothing here panics.
#![forbid(unsafe_code)]

mod border;
mod command;
pub mod device;
mod message;
mod scheduler;
mod server;

pub use border::{Addresses, Devices, Ipvs};
pub use command::Command;
pub use message::{
    Reader, family, request_family, request_real_servers, request_timeouts, request_virtual_servers,
};
pub use scheduler::{Scheduler, SchedulerNameError};
pub use server::{
    Connections, Flags, Forwarding, RealServer, RealServerId, ServerId, Timeouts, VirtualServer,
};
