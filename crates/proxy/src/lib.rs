//! A worker: a process that carries TCP connections and UDP datagrams of Services to endpoints.
//!
//! It decides nothing about Services. Rules of the kernel lead flows to its listeners; the agent, which made these rules and the
//! listeners, tells it over a socket pair ([`frame`]) where flows to each frontend go. The worker has no privileges; what it
//! can't find out itself (where a datagram was sent to before it was translated), it asks the agent.
//!
//! When the agent is gone, a worker goes on with what it knows until its listeners are of no use, and then until its last connection
//! ends.
#![forbid(unsafe_code)]

mod access_log;
mod control;
pub mod frame;
mod handover;
mod health;
mod http;
mod pool;
mod proxy_header;
mod relay;
mod table;
mod tally;
mod tcp;
mod trace;
mod udp;
mod worker;

pub use handover::{Listeners, Pair, hand_over};
pub use worker::{Process, WorkerError, run};
