//! `nf_tables` objects as typed values: one table's sets, maps, chains, rules and elements, their text form for
//! humans, and their netlink encoding and decoding.
//!
//! Pure: no sockets, no clock. [`Kernel`] is the border that the `kernel` crate (real netlink) and the test kit
//! (fake) implement. The values describe what a ruleset *says* ([`Statement`]); [`Statement::compile`] lowers them to
//! the kernel's register expressions ([`Expr`]), which is also what a dump is decoded to, so that a rule read back is
//! compared with a rule wanted in the kernel's own terms.
//!
//! Deliberately absent: anonymous sets, intervals other than networks, counters in rules, and objects. Nothing here needs
//! them, and what is not written need not be recognised: it reads back as foreign, or only by its name.
#![forbid(unsafe_code)]

mod border;
mod bytes;
mod chain;
mod compile;
mod decode;
pub mod dump;
mod encode;
mod expr;
mod hooked;
mod name;
mod object;
mod rule_text;
mod ruleset;
mod set;
mod statement;
mod text;
pub mod trace;
mod transaction;
mod udata;
mod wire;

pub use border::{Applied, Counts, Kernel, Reading};
pub use bytes::{Bytes, Reader};
pub use chain::{BaseChain, Chain, ChainType, Hook, Rule};
pub use encode::{Batch, Cursor, Encoded, Encoder, encode};
pub use expr::{CmpOp, CtKey, DynsetOp, Expr, LookupResult, MetaKey, PayloadBase, Register};
pub use hooked::{AnyChain, Attached, any_chain};
pub use name::{Name, NameError};
pub use netlink::Family;
pub use object::ObjectType;
pub use rule_text::rule_text;
pub use ruleset::{ChainState, Ruleset, SetState};
pub use set::{DEFAULT_LEARNT_SIZE, Data, Element, Field, Set, SetData, SetKind, Verdict};
pub use statement::{AddrField, Statement};
pub use transaction::{Op, Transaction};
