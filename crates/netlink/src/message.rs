//! Messages, read.

use crate::{Attrs, HEADER_BYTES, NLMSG_HEADER_BYTES, control, flag};

/// `NLMSGERR_ATTR_MSG`: an explanation in words.
const ERROR_MESSAGE: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`: where the fault is.
const ERROR_OFFSET: u16 = 2;

/// One message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Type of the message: the protocol in the upper byte, or one of [`control`].
    pub kind: u16,
    flags: u16,
    /// Sequence number of the request or batch message that this answers.
    pub seq: u32,
    /// Netlink port of the socket that asked for this, or, in notifications, that caused it.
    pub port: u32,
    payload: &'a [u8],
}

/// What the kernel says to a message that it refuses or acknowledges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Number of the error; 0 acknowledges.
    pub errno: i32,
    /// Where in the message the fault is, in bytes from its start.
    pub offset: Option<usize>,
    /// Explanation in words.
    pub message: Option<String>,
}

/// Splits what was received into messages; ends where the rest is no message.
pub fn messages(received: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let header: &[u8; NLMSG_HEADER_BYTES] = rest.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = rest.get(NLMSG_HEADER_BYTES..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
            payload,
        })
    })
}

impl<'a> Message<'a> {
    /// The end of a dump.
    pub const fn is_done(&self) -> bool {
        self.kind == control::DONE
    }

    /// The dump was disturbed by a change and may be inconsistent.
    pub const fn is_interrupted(&self) -> bool {
        self.flags & flag::DUMP_INTR != 0
    }

    /// A refusal or acknowledgement, or the error that ended a dump.
    pub fn ack(&self) -> Option<Ack> {
        let error = i32::from_ne_bytes(*self.payload.first_chunk()?);
        match self.kind {
            control::ERROR => Some(self.explained(error.checked_neg()?)),
            control::DONE if error < 0 => {
                Some(Ack { errno: error.checked_neg()?, offset: None, message: None })
            }
            _ => None,
        }
    }

    /// The number of the address family in `struct nfgenmsg`.
    pub fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// Everything behind the message's header.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The attributes behind `struct nfgenmsg`, or behind `struct genlmsghdr`, which is as long.
    pub fn attrs(&self) -> Option<Attrs<'a>> {
        self.payload.get(HEADER_BYTES - NLMSG_HEADER_BYTES..).map(Attrs::new)
    }

    /// Behind the error number comes the header of the request, then (unless capped) its payload, then explanations.
    fn explained(&self, errno: i32) -> Ack {
        let request = self.payload.get(4..).unwrap_or_default();
        let request_len = match request.first_chunk() {
            Some(len) if self.flags & flag::CAPPED == 0 => u32::from_ne_bytes(*len) as usize,
            _ => NLMSG_HEADER_BYTES,
        };
        let has_explanation = self.flags & flag::ACK_TLVS != 0;
        let tail =
            request.get(request_len.next_multiple_of(4)..).filter(|_| has_explanation).unwrap_or_default();
        let attrs = Attrs::new(tail);
        // Unlike netfilter's own integers this one is in host byte order.
        let offset = attrs.find(ERROR_OFFSET).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        Ack {
            errno,
            offset: offset.and_then(|offset| usize::try_from(offset).ok()),
            message: attrs.text(ERROR_MESSAGE).map(str::to_owned),
        }
    }
}
