//! The userspace backend: from the load-balancing table of one family to routes of a worker (crate `proxy`), which carries
//! connections and datagrams itself.
//!
//! All that packets need besides is the table of mode nftables with another balancer
//! ([`Balancer::Proxies`](model::Balancer::Proxies)): it restricts, refuses and drops as ever, and chooses endpoints itself
//! for what no worker can carry and whenever there is no lease ([`backend_nftables::lease`]). So a worker is never missed: without
//! one, this is mode nftables.
//!
//! - [`UserspacePlanner`] has a worker told of a frontend before rules hand its flows over, and that one is gone after they no
//!   longer do.
//! - [`Beside`] puts rules that only hand over beside those of a mode that can't.
//! - [`Supervisor`] has one worker at work, with listeners that outlive it, and renews the lease for as long as that is well.
//! - [`Outages`] knows which endpoints a worker gives nothing for now.
//! - [`spans()`] has what workers record of requests as OpenTelemetry has it.
//! - [`UncarriedFlows`] keeps flows of UDP that a worker carries from being taken for stale ones.
//!
//! Pure, except that both pass on what is to be done to borders: [`mode::Target`], [`Site`], [`Worker`].
#![forbid(unsafe_code)]

mod beside;
mod carried;
mod outages;
mod plan;
mod requests;
mod routes;
mod spans;
mod supervisor;
mod target;
mod traffic;

pub use beside::{Beside, BesideError, BesideReceipt, BesideStep, BesideTarget};
pub use carried::{UncarriedFlows, WithWorker};
pub use outages::{OutageCounts, Outages, Teller};
pub use plan::{Pending, UserspacePlanner};
pub use requests::{Requests, ServicePort, Sums};
pub use spans::spans;
pub use supervisor::{Condition, Site, Supervisor, Worker, WorkerGone};
pub use target::{Receipt, Step, UserspaceTarget};
pub use traffic::{Carried, Counted};
