//! Windows' edge: HNS by its C interface (`computenetwork.dll`, `vmcompute.dll`, loaded when `Hns::load` wants them) behind the trait `hcn::Hcn`, its notifications
//! (`Subscription`), and what Windows tells of this process (`process`). With `kernel`, which is Linux' edge, the only
//! crate with unsafe code; on other systems it is empty.
//!
//! Does no deciding: documents go through as they are, and what is refused is reported with HNS' words.
#![cfg(windows)]

mod client;
mod events;
mod handle;
mod library;
pub mod process;
mod text;

pub use client::Hns;
pub use events::Subscription;
pub use library::MissingError;
