//! Programs that translate the addresses of Services when a socket connects, and what is in their maps.
//!
//! The programs are written in C (`bpf/` at the root) and are here as a listing of instructions, which `make bpf` writes and a
//! test holds to the source; [`programs`] gives them. Each family has programs and maps of its own: nothing is shared.
//!
//! Pure: no system calls. Whoever can load and write implements [`FastPath`]. What is read may be anything: nothing here panics.
#![forbid(unsafe_code)]

mod border;
mod contents;
mod instruction;
#[rustfmt::skip]
#[expect(clippy::unreadable_literal, reason = "made by a machine; the disassembly is beside it")]
mod listing;
mod maps;
mod program;
mod schema;
mod sockets;

pub use border::{Explained, FastPath, FastPathError, FastPathRemoval, Renumbered, VerifierLog};
pub use contents::{Contents, Write};
pub use instruction::{Instruction, Line};
pub use listing::{LICENSE, SOURCE};
pub use maps::{Capacity, MapKind, MapName, MapSpec, SCHEMA};
pub use program::{Hook, Program, programs, told_program};
pub use schema::{
    Endpoint, FrontendValue, META_WORDS, Meta, Slot, decode_address, decode_key, encode_address, encode_key,
    endpoint_words,
};
pub use sockets::{Told, TranslatedSocket, list_request, original, read_told, socket_family};
