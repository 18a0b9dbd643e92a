//! The commands that ask a running proxy: `kube-proxy status`, `list`, `explain`, `check`, `dump`; and two about the program
//! itself, `version` and `completion`.
//!
//! Those that ask know nothing but the API (`/api/v1/`), so they work for any node that can be reached. Answers are printed as `kubectl`
//! prints them. Exit codes: 0 all is well; 1 something was found, or the question can't be answered; 2 the arguments can't be understood; 3
//! nobody answers.
#![forbid(unsafe_code)]

mod client;
pub mod command;
mod dump;
mod human;
mod itself;
pub mod kubectl;
mod run;
pub mod show;
#[cfg_attr(windows, path = "system/windows.rs")]
#[cfg_attr(not(windows), path = "system/unix.rs")]
mod system;
mod table;
mod top;
mod trace;

pub use client::{ClientError, Server, ServerError};
pub use command::{is_command, program};
pub use run::run;
pub use system::Endings;
pub use table::{Cell, Table, Tone};
pub use trace::{Local, Packets};
