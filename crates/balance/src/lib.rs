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
mod proxy_protocol;
mod resilience;
mod ring;
mod slow_start;
mod text;
mod timeouts;
mod weights;

pub use affinity::{Affinity, MAX_CLIENTS};
pub use choice::{Choice, Draw, Policy, WHOLE_SHARE};
pub use health::Health;
pub use outlier::{Crowd, Ejected, Outliers, Reason};
pub use proxy_protocol::ProxyProtocol;
pub use resilience::{Ejection, HealthCheck, Limits, Probe, Resilience};
pub use slow_start::SlowStart;
pub use text::InvalidText;
pub use timeouts::Timeouts;
pub use weights::{Called, Weights};
