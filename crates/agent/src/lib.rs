//! The event loop: takes changes from a source into the store, keeps the load-balancing tables, and carries what
//! changed into the kernel.
//!
//! One task owns all state ([`run()`]). Each IP family has a pipeline of its own, with a thread that does
//! nothing but talk to the kernel, so that neither family waits for the other. A change is carried over at once; while
//! a transaction is in flight, further changes gather and go with the next one. What the kernel refuses is repaired: read
//! back, compared, and the difference applied, with growing pauses.
#![forbid(unsafe_code)]

mod backoff;
mod flows;
mod log;
mod node;
mod notice;
mod outage;
mod pipeline;
mod run;
mod settings;
mod side;
pub mod snapshot;
mod telemetry;
mod worker;

pub use flows::OpenConntrack;
pub use log::with_causes;
pub use node::NodeError;
pub use notice::{Conflict, Notice, Notices, SYNCS_FAIL_EVERY};
pub use run::{ForeignChange, Input, KernelAccess, OldRulesGone, StartError, run};
pub use settings::{NodePorts, Pods, Settings};
pub use telemetry::Telemetry;
pub use worker::OpenKernel;
