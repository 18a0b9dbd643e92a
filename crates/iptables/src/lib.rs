//! iptables rules as values. Pure: a [`Rule`] and a [`Restore`] have the text that `iptables-save` prints and
//! `iptables-restore` reads, [`Saved`] is what was read back, and [`Iptables`] is the border to the tools that do it.
//!
//! A rule's text is canonical: byte for byte what both flavours of `iptables-save` (legacy and nft, seen with 1.8.9) print for it,
//! so that a rule is compared by its text and never parsed.
#![forbid(unsafe_code)]

mod border;
mod counts;
mod name;
mod restore;
mod rule;
mod save;
mod text;

pub use border::{Iptables, IptablesError};
pub use counts::{CountedRule, read_counts};
pub use name::{ChainName, NameError, TableName};
pub use restore::{Edit, Restore, Section};
pub use rule::{AddrField, Comment, Interface, Match, Negatable, Recent, Rule, Target};
pub use save::{SaveError, Saved, SavedTable};
