//! Messages about ipsets (`linux/netfilter/ipset/ip_set.h`).

use netlink::{Attrs, Message, Writer, flag};

/// `NFNL_SUBSYS_IPSET` with `IPSET_CMD_DESTROY` and `IPSET_CMD_LIST`.
const DESTROY: u16 = 6 << 8 | 3;
const LIST: u16 = 6 << 8 | 7;
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
/// The members, and inside of one its port (`IPSET_ATTR_ADT`, `IPSET_ATTR_PORT`).
const ATTR_MEMBERS: u16 = 8;
const MEMBER_PORT: u16 = 4;
/// The oldest version of the protocol that all kernels since 2.6.39 know (`IPSET_PROTOCOL_MIN`).
const PROTOCOL: u8 = 6;

/// `NLM_F_EXCL`, by which ipset is told that a set that is not there is an error (`ENOENT`).
const EXCL: u16 = 0x200;

/// `IPSET_ERR_BUSY`: the set is in use. (Numbers from 4096 on are ipset's own.)
pub const BUSY: i32 = 4100;

/// Destroys a set.
pub fn destroy(name: &str, seq: u32) -> Vec<u8> {
    about(name, DESTROY, flag::REQUEST | flag::ACK | EXCL, seq)
}

/// Asks for a set with its members.
pub fn request(name: &str, seq: u32) -> Vec<u8> {
    about(name, LIST, flag::REQUEST | flag::DUMP, seq)
}

fn about(name: &str, command: u16, flags: u16, seq: u32) -> Vec<u8> {
    /// `NFPROTO_IPV4`, as the tool sends with every command that concerns no family.
    const FAMILY: u8 = 2;
    let mut out = Writer::default();
    let start = out.begin_message(command, flags, seq, FAMILY, 0);
    out.u8(ATTR_PROTOCOL, PROTOCOL);
    out.text(ATTR_SETNAME, name);
    out.end_message(start);
    out.out
}

/// The ports of the members that the message tells of.
pub fn ports<'a>(message: &Message<'a>) -> impl Iterator<Item = u16> + use<'a> {
    let members = message.attrs().and_then(|attrs| attrs.nest(ATTR_MEMBERS));
    members.into_iter().flatten().filter_map(|(_, member)| Attrs::new(member).u16(MEMBER_PORT))
}
