//! Which endpoint a connection through a proxy of this node goes to: policies, what clients with affinity were given, and which
//! endpoints get nothing because they fail.
//!
//! Pure: time, randomness and what endpoints have to do come as arguments. Whoever asks shares [`Choice`] between threads; it
//! never changes, except that its turn counts.
#![forbid(unsafe_code)]

mod affinity;
mod choice;
mod hash;
mod health;
mod maglev;
mod outlier;
mod resilience;
mod ring;

pub use affinity::{Affinity, MAX_CLIENTS};
pub use choice::{Choice, Draw, Policy};
pub use health::Health;
pub use outlier::{Crowd, Ejected, Outliers, Reason};
pub use resilience::{Ejection, HealthCheck, InvalidText, Limits, Probe, Resilience};
