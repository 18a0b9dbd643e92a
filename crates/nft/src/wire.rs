//! Netlink framing and numbers of the `nf_tables` protocol.
//!
//! Numbers are from `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`. Message
//! headers are in host byte order, integers inside `nf_tables` attributes in network byte order.

/// Header of a netlink message plus `struct nfgenmsg`.
pub(crate) const HEADER_BYTES: usize = 20;
/// Header of an attribute.
pub(crate) const ATTR_BYTES: usize = 4;
/// Longest attribute, header included: the length field has 16 bits.
pub(crate) const MAX_ATTR_BYTES: usize = 65_535;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Flags of a message header.
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    /// In answers: the dump was disturbed by a change.
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// In errors: the request's payload is not repeated.
    pub(crate) const CAPPED: u16 = 0x100;
    /// In errors: attributes with an explanation follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

/// Message types.
pub(crate) mod kind {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
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
}

/// Attribute numbers, grouped as in `linux/netfilter/nf_tables.h`.
pub(crate) mod attr {
    pub(crate) const TABLE_NAME: u16 = 1;
    pub(crate) const TABLE_FLAGS: u16 = 2;

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
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const SET_USERDATA: u16 = 13;
    pub(crate) const SET_COUNT: u16 = 20;

    pub(crate) const ELEM_LIST_TABLE: u16 = 1;
    pub(crate) const ELEM_LIST_SET: u16 = 2;
    pub(crate) const ELEM_LIST_ELEMENTS: u16 = 3;
    pub(crate) const ELEM_KEY: u16 = 1;
    pub(crate) const ELEM_DATA: u16 = 2;
    pub(crate) const ELEM_FLAGS: u16 = 3;
    pub(crate) const ELEM_USERDATA: u16 = 6;

    pub(crate) const GENERATION_ID: u16 = 1;

    pub(crate) const ERROR_MESSAGE: u16 = 1;
    pub(crate) const ERROR_OFFSET: u16 = 2;
}

/// `NFT_SET_*` flags.
pub(crate) mod set_flag {
    pub(crate) const ANONYMOUS: u32 = 0x1;
    pub(crate) const MAP: u32 = 0x8;
}

/// `NFT_DATA_VERDICT`: the data type of verdict maps.
pub(crate) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

/// Appends messages and attributes to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) out: Vec<u8>,
}

impl Writer {
    /// Starts an nfnetlink message; [`Writer::end_message`] takes what this returns.
    pub(crate) fn begin_message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        res_id: u16,
    ) -> usize {
        let start = self.out.len();
        self.out.extend([0; 4]);
        self.out.extend(kind.to_ne_bytes());
        self.out.extend(flags.to_ne_bytes());
        self.out.extend(seq.to_ne_bytes());
        self.out.extend([0; 4]);
        self.out.extend([family, 0]);
        self.out.extend(res_id.to_be_bytes());
        start
    }

    /// Writes the length of the message that began at `start`. All attributes are padded, so the message is.
    pub(crate) fn end_message(&mut self, start: usize) {
        let len = u32::try_from(self.out.len() - start).unwrap_or(u32::MAX);
        self.out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Sets flags of the message that began at `start`.
    pub(crate) fn add_flags(&mut self, start: usize, flags: u16) {
        if let Some([low, high]) = self.out.get_mut(start + 6..start + 8) {
            [*low, *high] = (u16::from_ne_bytes([*low, *high]) | flags).to_ne_bytes();
        }
    }

    /// A batch message: it names the subsystem that the batch is for.
    pub(crate) fn batch_message(&mut self, kind: u16, seq: u32) {
        let start = self.begin_message(kind, flag::REQUEST, seq, 0, NFNL_SUBSYS_NFTABLES);
        self.end_message(start);
    }

    /// An attribute of bytes. What exceeds the longest attribute is cut; nothing that the kernel would accept does.
    pub(crate) fn bytes(&mut self, kind: u16, bytes: &[u8]) {
        let fits = bytes.len().min(MAX_ATTR_BYTES - ATTR_BYTES);
        self.header(kind, fits);
        self.out.extend_from_slice(&bytes[..fits]);
        self.pad();
    }

    /// An attribute of bytes that `write` appends.
    pub(crate) fn built(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.header(kind, 0);
        write(&mut self.out);
        let len = u16::try_from(self.out.len() - start).unwrap_or(u16::MAX);
        self.out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    /// An attribute of text with a final zero.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        let fits = text.len().min(MAX_ATTR_BYTES - ATTR_BYTES - 1);
        self.header(kind, fits + 1);
        self.out.extend_from_slice(&text.as_bytes()[..fits]);
        self.out.push(0);
        self.pad();
    }

    /// An attribute of an integer in network byte order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.header(kind, 4);
        self.out.extend(value.to_be_bytes());
    }

    /// An attribute of one byte.
    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// An attribute of attributes.
    pub(crate) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.out.len();
        self.header(kind | NLA_F_NESTED, 0);
        write(self);
        let len = u16::try_from(self.out.len() - start).unwrap_or(u16::MAX);
        self.out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn header(&mut self, kind: u16, payload: usize) {
        let len = u16::try_from(payload + ATTR_BYTES).unwrap_or(u16::MAX);
        self.out.extend(len.to_ne_bytes());
        self.out.extend(kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        let padded = self.out.len().next_multiple_of(4);
        self.out.resize(padded, 0);
    }
}

/// Iterates over attributes; ends at the first that is malformed.
#[derive(Clone, Debug)]
pub(crate) struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The payload of the first attribute of the kind.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(k, payload)| (k == kind).then_some(payload))
    }

    /// The attribute as an integer in network byte order.
    pub(crate) fn u32(&self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(be_u32)
    }

    /// The attribute as text.
    pub(crate) fn text(&self, kind: u16) -> Option<&'a str> {
        self.find(kind).and_then(text)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; ATTR_BYTES] = self.rest.first_chunk()?;
        let [l0, l1, k0, k1] = *header;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let payload = self.rest.get(ATTR_BYTES..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, payload))
    }
}

/// A payload of exactly four bytes in network byte order.
pub(crate) fn be_u32(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

/// A payload of text up to its first zero.
pub(crate) fn text(payload: &[u8]) -> Option<&str> {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    std::str::from_utf8(&payload[..end]).ok()
}
