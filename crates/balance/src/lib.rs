//! Which endpoint a connection through a proxy of this node goes to: policies, and what clients with affinity were given.
//!
//! Pure: time, randomness and what endpoints have to do come as arguments. Whoever asks shares [`Choice`] between threads; it
//! never changes, except that its turn counts.
#![forbid(unsafe_code)]

mod affinity;
mod choice;
mod hash;
mod maglev;
mod ring;

pub use affinity::{Affinity, MAX_CLIENTS};
pub use choice::{Choice, Draw, Policy};
