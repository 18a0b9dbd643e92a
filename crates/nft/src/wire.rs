//! Numbers of the `nf_tables` protocol, and the framing that it shares with others.
//!
//! Numbers are from `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`. Message
//! headers are in host byte order, integers inside `nf_tables` attributes in network byte order.

pub(crate) use netlink::{ATTR_BYTES, Attrs, HEADER_BYTES, MAX_ATTR_BYTES, Writer, be_u32, flag, text};

const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Message types.
pub(crate) mod kind {
    pub(crate) const BATCH_BEGIN: u16 = 16;
    pub(crate) const BATCH_END: u16 = 17;

    const fn nft(message: u16) -> u16 {
        (super::NFNL_SUBSYS_NFTABLES << 8) | message
    }
    pub(crate) const NEW_TABLE: u16 = nft(0);
    pub(crate) const GET_TABLE: u16 = nft(1);
    pub(crate) const DEL_TABLE: u16 = nft(2);
    pub(crate) const NEW_CHAIN: u16 = nft(3);
    pub(crate) const GET_CHAIN: u16 = nft(4);
    pub(crate) const DEL_CHAIN: u16 = nft(5);
    pub(crate) const NEW_RULE: u16 = nft(6);
    pub(crate) const GET_RULE: u16 = nft(7);
    pub(crate) const DEL_RULE: u16 = nft(8);
    pub(crate) const NEW_SET: u16 = nft(9);
    pub(crate) const GET_SET: u16 = nft(10);
    pub(crate) const DEL_SET: u16 = nft(11);
    pub(crate) const NEW_ELEMENT: u16 = nft(12);
    pub(crate) const GET_ELEMENT: u16 = nft(13);
    pub(crate) const DEL_ELEMENT: u16 = nft(14);
    pub(crate) const NEW_GENERATION: u16 = nft(15);
    pub(crate) const GET_GENERATION: u16 = nft(16);
    pub(crate) const TRACE: u16 = nft(17);
    pub(crate) const NEW_OBJECT: u16 = nft(18);
    pub(crate) const GET_OBJECT: u16 = nft(19);
    pub(crate) const DEL_OBJECT: u16 = nft(20);
    pub(crate) const NEW_FLOWTABLE: u16 = nft(22);
    pub(crate) const GET_FLOWTABLE: u16 = nft(23);
    pub(crate) const DEL_FLOWTABLE: u16 = nft(24);
}

/// Attribute numbers, grouped as in `linux/netfilter/nf_tables.h`.
pub(crate) mod attr {
    pub(crate) const TABLE_NAME: u16 = 1;
    pub(crate) const TABLE_FLAGS: u16 = 2;
    pub(crate) const TABLE_USE: u16 = 3;

    pub(crate) const CHAIN_TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;
    pub(crate) const CHAIN_TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;

    pub(crate) const RULE_TABLE: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;
    pub(crate) const RULE_USERDATA: u16 = 7;

    pub(crate) const LIST_ELEM: u16 = 1;
    pub(crate) const EXPR_NAME: u16 = 1;
    pub(crate) const EXPR_DATA: u16 = 2;
    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;

    pub(crate) const SET_TABLE: u16 = 1;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const SET_FLAGS: u16 = 3;
    pub(crate) const SET_KEY_TYPE: u16 = 4;
    pub(crate) const SET_KEY_LEN: u16 = 5;
    pub(crate) const SET_DATA_TYPE: u16 = 6;
    pub(crate) const SET_DATA_LEN: u16 = 7;
    pub(crate) const SET_DESC: u16 = 9;
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const SET_TIMEOUT: u16 = 11;
    pub(crate) const SET_USERDATA: u16 = 13;
    pub(crate) const SET_EXPR: u16 = 17;
    pub(crate) const SET_EXPRESSIONS: u16 = 18;
    pub(crate) const SET_COUNT: u16 = 20;

    pub(crate) const DESC_SIZE: u16 = 1;
    pub(crate) const DESC_CONCAT: u16 = 2;
    pub(crate) const FIELD_LEN: u16 = 1;

    pub(crate) const ELEM_LIST_TABLE: u16 = 1;
    pub(crate) const ELEM_LIST_SET: u16 = 2;
    pub(crate) const ELEM_LIST_ELEMENTS: u16 = 3;
    pub(crate) const ELEM_KEY: u16 = 1;
    pub(crate) const ELEM_DATA: u16 = 2;
    pub(crate) const ELEM_FLAGS: u16 = 3;
    pub(crate) const ELEM_USERDATA: u16 = 6;
    pub(crate) const ELEM_EXPR: u16 = 7;
    pub(crate) const ELEM_KEY_END: u16 = 10;

    pub(crate) const COUNTER_PACKETS: u16 = 2;

    pub(crate) const OBJECT_TABLE: u16 = 1;
    pub(crate) const OBJECT_NAME: u16 = 2;
    pub(crate) const OBJECT_TYPE: u16 = 3;

    pub(crate) const FLOWTABLE_TABLE: u16 = 1;
    pub(crate) const FLOWTABLE_NAME: u16 = 2;

    pub(crate) const GENERATION_ID: u16 = 1;
}

/// The kernel's name of the expression that counts.
pub(crate) const COUNTER: &str = "counter";

/// `NFT_SET_*` flags.
pub(crate) mod set_flag {
    pub(crate) const ANONYMOUS: u32 = 0x1;
    pub(crate) const INTERVAL: u32 = 0x4;
    pub(crate) const MAP: u32 = 0x8;
    pub(crate) const TIMEOUT: u32 = 0x10;
    /// nft's `dynamic`: rules write elements.
    pub(crate) const EVAL: u32 = 0x20;
    /// Intervals of a concatenation: each element has a key and an end of its own.
    pub(crate) const CONCAT: u32 = 0x80;
}

/// `NFT_DATA_VERDICT`: the data type of verdict maps.
pub(crate) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

/// A batch message: it names the subsystem that the batch is for.
pub(crate) fn put_batch_message(out: &mut Writer, kind: u16, seq: u32) {
    let start = out.begin_message(kind, flag::REQUEST, seq, 0, NFNL_SUBSYS_NFTABLES);
    out.end_message(start);
}
