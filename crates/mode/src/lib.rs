//! The border between the event loop and the modes, which are ways to direct packets.
//!
//! A mode is two things for each IP family. A [`Planner`] decides and does no I/O: it knows what its target holds, and turns a
//! [`Cause`] of work into a [`Plan`]. A [`Target`] has the I/O, lives on a thread of its own, and does what it is told, step by
//! step. In between is the event loop, which knows neither:
//!
//! ```text
//! Table ─▶ Planner::plan(cause) ─▶ steps ─▶ Target::apply ─▶ a result for each step ─▶ Planner::settle ─▶ Settled
//! ```
//!
//! Only a few things are asked of every mode. It may be atomic (one step) or not (a step for each object); steps may fail alone;
//! a step that was made may give a receipt that the planner needs later (a link, an id). All else is optional: being read back
//! ([`Target::read`]), waking by itself ([`Planner::wake_at`]), counters ([`Target::traffic`]), being watched ([`Touches`]).
#![forbid(unsafe_code)]

mod observer;
mod outage;
mod planner;
mod target;
mod touches;
mod traffic;

pub use observer::{Attempt, Observer, Unobserved};
pub use outage::{EndpointOutage, OutageCause};
pub use planner::{
    Cause, NeedsReading, Plan, PlanOf, Planner, Rule, RuleCount, Settled, StepResults, everything,
};
pub use target::{Applied, OpenTarget, Reading, Target};
pub use touches::{Touch, Touches, Watch};
pub use traffic::{Counters, Meter};
