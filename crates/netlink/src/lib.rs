//! Netlink framing, as all netfilter protocols share it: messages with `struct nfgenmsg` and attributes, written and
//! read.
//!
//! Pure: no sockets. Message headers are in host byte order,
//! integers inside netfilter's attributes are in network byte order. Numbers are from `linux/netlink.h` and
//! `linux/netfilter/nfnetlink.h`. What is read may be anything: nothing here panics, and what is malformed ends the
//! reading.
#![forbid(unsafe_code)]

mod attrs;
mod error;
mod family;
mod message;
pub mod sock_diag;
mod writer;

pub use attrs::{Attrs, be_u16, be_u32, text};
pub use error::NetlinkError;
pub use family::Family;
pub use message::{Ack, Message, messages};
pub use writer::{Writer, octets};

/// Header of a netlink message (`struct nlmsghdr`).
pub const NLMSG_HEADER_BYTES: usize = 16;
/// Header of a netlink message plus `struct nfgenmsg`.
pub const HEADER_BYTES: usize = 20;
/// Header of an attribute.
pub const ATTR_BYTES: usize = 4;
/// Longest attribute, header included: the length field has 16 bits.
pub const MAX_ATTR_BYTES: usize = 65_535;

/// Flags of a message header (`NLM_F_*`).
pub mod flag {
    /// Every message to the kernel has it.
    pub const REQUEST: u16 = 0x1;
    /// The message is to be answered also if it succeeds.
    pub const ACK: u16 = 0x4;
    /// In answers: the dump was disturbed by a change.
    pub const DUMP_INTR: u16 = 0x10;
    /// Everything is asked for, not one object.
    pub const DUMP: u16 = 0x300;
    /// What is not there is to be made.
    pub const CREATE: u16 = 0x400;
    /// What is new goes behind what is there.
    pub const APPEND: u16 = 0x800;
    /// In errors: the request's payload is not repeated.
    pub const CAPPED: u16 = 0x100;
    /// In errors: attributes with an explanation follow.
    pub const ACK_TLVS: u16 = 0x200;
}

/// Message types that all protocols have.
pub mod control {
    /// An error, or an acknowledgement if the error is 0.
    pub const ERROR: u16 = 2;
    /// The end of a dump.
    pub const DONE: u16 = 3;
}

/// The bit of an attribute's type that says that attributes are inside (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;
/// An attribute's type without such bits (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
