//! The event loop: takes changes from a source into the store, keeps the load-balancing tables, and carries what
//! changed to where packets are directed, in any mode.
//!
//! One task owns all state ([`run()`]). Each IP family is served by a controller of its own, with a thread that does nothing but
//! work its mode's target, so that neither family waits for the other. A change is carried over at once; while steps are
//! made, further changes gather and go with the next ones. What is refused is repaired: read back, compared, and the
//! difference applied, with growing pauses.
#![forbid(unsafe_code)]

mod backoff;
mod controller;
mod counting;
mod family;
mod flows;
mod history;
mod inbox;
mod log;
mod node;
mod notice;
mod outage;
mod pipeline;
mod retries;
mod run;
mod settings;
pub mod snapshot;
mod telemetry;
mod traffic;
mod worker;

pub use counting::Published;
pub use family::{FamilyMode, OldRulesGone, ServedFamily, TakeOver};
pub use flows::OpenConntrack;
pub use log::with_causes;
pub use mode::Counters;
pub use node::NodeError;
pub use notice::{Conflict, Notice, Notices, SYNCS_FAIL_EVERY, Taken};
pub use run::{Input, StartError, run};
pub use settings::{NodePorts, Pods, Settings};
pub use telemetry::Telemetry;
pub use traffic::{Flow, PortTraffic, Rates, Traffic};
