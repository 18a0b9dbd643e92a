//! Numbers of the `ctnetlink` protocol, from `linux/netfilter/nfnetlink_conntrack.h`.

/// Message types.
pub(crate) mod kind {
    const NFNL_SUBSYS_CTNETLINK: u16 = 1;

    const fn ct(message: u16) -> u16 {
        (NFNL_SUBSYS_CTNETLINK << 8) | message
    }
    pub(crate) const NEW: u16 = ct(0);
    pub(crate) const GET: u16 = ct(1);
    pub(crate) const DELETE: u16 = ct(2);
}

/// Attribute numbers.
pub(crate) mod attr {
    pub(crate) const TUPLE_ORIG: u16 = 1;
    pub(crate) const TUPLE_REPLY: u16 = 2;
    pub(crate) const STATUS: u16 = 3;
    pub(crate) const ID: u16 = 12;
    pub(crate) const ZONE: u16 = 18;
    pub(crate) const FILTER: u16 = 25;

    pub(crate) const TUPLE_IP: u16 = 1;
    pub(crate) const TUPLE_PROTO: u16 = 2;
    pub(crate) const TUPLE_ZONE: u16 = 3;

    pub(crate) const IP_V4_SRC: u16 = 1;
    pub(crate) const IP_V4_DST: u16 = 2;
    pub(crate) const IP_V6_SRC: u16 = 3;
    pub(crate) const IP_V6_DST: u16 = 4;

    pub(crate) const PROTO_NUM: u16 = 1;
    pub(crate) const PROTO_SRC_PORT: u16 = 2;
    pub(crate) const PROTO_DST_PORT: u16 = 3;

    pub(crate) const FILTER_ORIG_FLAGS: u16 = 1;
    pub(crate) const FILTER_REPLY_FLAGS: u16 = 2;
}

/// Which parts of a tuple a filter compares: bits numbered by `CTA_FILTER_FLAG` of
/// `net/netfilter/nf_conntrack_netlink.c`.
pub(crate) mod compare {
    pub(crate) const IP_SRC: u32 = 1 << 0;
    pub(crate) const IP_DST: u32 = 1 << 1;
    pub(crate) const PROTO_NUM: u32 = 1 << 3;
    pub(crate) const SRC_PORT: u32 = 1 << 4;
    pub(crate) const DST_PORT: u32 = 1 << 5;
}
