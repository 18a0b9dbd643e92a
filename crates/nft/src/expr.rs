//! The kernel's register machine: what a rule is lowered to and what a dump is decoded to.

use crate::{Bytes, Name, Verdict};

/// A register, counted in 32-bit words from the first data register.
///
/// The kernel names registers in two ways (four of 16 bytes, or sixteen of 4 bytes over the same storage); this is
/// the one number that both mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u8);

/// Where a payload offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadBase {
    /// The IP header.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// What `meta` reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaKey {
    /// Packet priority, `u32` in host byte order.
    Priority,
    /// Packet mark, `u32` in host byte order.
    Mark,
    /// Name of the input interface, 16 bytes.
    InputIfname,
    /// Transport protocol number, one byte.
    L4Proto,
}

/// What `ct` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtKey {
    /// State bits of the packet's connection, `u32` in host byte order.
    State,
    /// `IPS_*` status bits of the connection, `u32` in host byte order.
    Status,
}

/// How `cmp` compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
}

/// One expression of the kernel. Those that no [`Statement`](crate::Statement) compiles to are [`Expr::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// Where the offset counts from.
        base: PayloadBase,
        /// In bytes.
        offset: u32,
        /// In bytes.
        len: u32,
        /// Where they go.
        dreg: Register,
    },
    /// Loads what the kernel knows about the packet.
    Meta {
        /// What is loaded.
        key: MetaKey,
        /// Where it goes.
        dreg: Register,
    },
    /// Changes what the kernel knows about the packet.
    MetaSet {
        /// What is changed.
        key: MetaKey,
        /// Where the new value is.
        sreg: Register,
    },
    /// Breaks off unless the key is in the set; yields the data of a map.
    Lookup {
        /// The set or map.
        set: Name,
        /// First register of the key.
        sreg: Register,
        /// Where the data goes.
        dreg: LookupResult,
        /// Breaks off if the key *is* in the set.
        invert: bool,
    },
    /// Adds, refreshes or deletes an element of a set that rules write. Breaks off if a new one does not fit in.
    Dynset {
        /// The set or map.
        set: Name,
        /// What is done.
        op: DynsetOp,
        /// First register of the key.
        key: Register,
        /// First register of a map's data.
        data: Option<Register>,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Loads a constant.
    Immediate {
        /// Where it goes.
        dreg: Register,
        /// The constant, not padded.
        data: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`
    Bitwise {
        /// Where the value is.
        sreg: Register,
        /// Where the result goes.
        dreg: Register,
        /// As long as the value.
        mask: Bytes,
        /// As long as the value.
        xor: Bytes,
    },
    /// Breaks off unless the comparison holds.
    Cmp {
        /// Where the value is.
        sreg: Register,
        /// How to compare.
        op: CmpOp,
        /// The value's first bytes are compared with these; not padded.
        data: Vec<u8>,
    },
    /// Loads what conntrack knows about the packet's connection.
    Ct {
        /// What is loaded.
        key: CtKey,
        /// Where it goes.
        dreg: Register,
    },
    /// Loads the type of the destination address (`fib daddr type`), `u32` in host byte order.
    FibDestType {
        /// Where it goes.
        dreg: Register,
    },
    /// Loads the type of the source address (`fib saddr type`), `u32` in host byte order.
    FibSourceType {
        /// Where it goes.
        dreg: Register,
    },
    /// Loads a random number below the modulus.
    NumgenRandom {
        /// Numbers are 0 to this less one.
        modulus: u32,
        /// Where it goes.
        dreg: Register,
    },
    /// Translates the destination of the packet's connection.
    Dnat {
        /// `NFPROTO_*` of the address.
        family: u8,
        /// Where the address is.
        addr: Register,
        /// Where the port is; `None` to keep it.
        port: Option<Register>,
    },
    /// Translates the source of the packet's connection to the address of the outgoing interface.
    Masquerade {
        /// `NF_NAT_RANGE_*`; 0x10 is fully random.
        flags: u32,
    },
    /// Ends the rule with an ICMP error.
    Reject {
        /// `NFT_REJECT_*`; 0 is an ICMP error.
        kind: u32,
        /// ICMP code.
        code: u8,
    },
    /// Something that this crate does not write.
    Unknown {
        /// The kernel's name for the expression.
        name: String,
        /// The attributes of the expression as they came.
        bytes: Vec<u8>,
    },
}

/// What a rule does to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DynsetOp {
    /// Adds it unless it exists; else sets its timeout anew and leaves its data.
    Update {
        /// Milliseconds until it is forgotten; 0 for the default of the set.
        timeout_ms: u64,
    },
    /// Deletes it if it exists.
    Delete,
}

/// Where a lookup puts what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LookupResult {
    /// A set: there is nothing to put.
    None,
    /// A verdict map: the verdict ends the rule.
    Verdict,
    /// A map: the data goes to this register and those after it.
    Data(Register),
}
