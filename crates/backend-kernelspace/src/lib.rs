//! The kernelspace backend: from the load-balancing table of one family to load balancers and endpoints of Windows' network
//! service (HNS), which programs the switch (VFP).
//!
//! HNS takes no transactions: each object is made, changed and deleted by a call of its own, which takes milliseconds to seconds
//! and fails alone. So a step is a call, what is refused is tried again by itself, and nothing is listed for a change.
//!
//! - A frontend with endpoints is one load balancer, and so is the health check of a load balancer's address; a frontend without
//!   endpoints is none, since HNS can't refuse.
//! - An endpoint of this node is the one that the network plug-in made; it is only looked for. One of another node is a remote
//!   endpoint of ours, counted by the frontends whose Services still know it.
//! - Ours are load balancers all of whose endpoints are on our network, those with an id that we gave, and remote endpoints of the
//!   network. Nothing else is touched, but for load balancers that lead nowhere, where they are in the way.
//! - What HNS holds is read at the start and compared: a start on what is right writes nothing.
//!
//! Pure, except that its target passes on what is to be done to the border [`hcn::Hcn`]. What this platform can't do is
//! [`DIFFERENCES`].
#![forbid(unsafe_code)]

mod differences;
mod draft;
mod facts;
mod form;
mod found;
mod options;
mod plan;
mod settle;
mod state;
mod step;
mod target;
mod watch;

pub use differences::{DIFFERENCES, Difference};
pub use facts::{Facts, NetworkKind};
pub use form::{Form, Member};
pub use options::{Adapters, Options};
pub use plan::{KernelspacePlanner, Pending};
pub use step::{Member as StepMember, Receipt, Step};
pub use target::{Found, HnsTarget, TargetError, clean_up};
pub use watch::{Activity, Doing, Watcher};
