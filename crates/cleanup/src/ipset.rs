//! Messages about ipsets (`linux/netfilter/ipset/ip_set.h`).

use netlink::{Writer, flag};

/// `NFNL_SUBSYS_IPSET` with `IPSET_CMD_DESTROY`.
const DESTROY: u16 = 6 << 8 | 3;
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
/// The oldest version of the protocol that all kernels since 2.6.39 know (`IPSET_PROTOCOL_MIN`).
const PROTOCOL: u8 = 6;

/// `NLM_F_EXCL`, by which ipset is told that a set that is not there is an error (`ENOENT`).
const EXCL: u16 = 0x200;

/// `IPSET_ERR_BUSY`: the set is in use. (Numbers from 4096 on are ipset's own.)
pub const BUSY: i32 = 4100;

/// Destroys a set.
pub fn destroy(name: &str, seq: u32) -> Vec<u8> {
    /// `NFPROTO_IPV4`, as the tool sends with every command that concerns no family.
    const FAMILY: u8 = 2;
    let mut out = Writer::default();
    let start = out.begin_message(DESTROY, flag::REQUEST | flag::ACK | EXCL, seq, FAMILY, 0);
    out.u8(ATTR_PROTOCOL, PROTOCOL);
    out.text(ATTR_SETNAME, name);
    out.end_message(start);
    out.out
}
