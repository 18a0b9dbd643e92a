//! The kernel's own word on nftables transactions in a namespace, so that tests and measurements need not believe the
//! program that they look at.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, recvmsg, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::time::Instant;

use crate::Namespace;

/// `NFNLGRP_NFTABLES` as a bit of the groups in a netlink address.
const NFTABLES_GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the end of a transaction in notifications, the answer to a question.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = 10 << 8 | 16;
const HEADER_BYTES: usize = 16;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;

/// Asks for the number of the namespace's ruleset, which every nftables transaction that changes something increments.
#[derive(Debug)]
pub struct Generation {
    socket: OwnedFd,
}

impl Generation {
    /// A socket in the namespace.
    ///
    /// # Errors
    /// No netfilter socket can be had.
    pub fn open(namespace: &Namespace) -> io::Result<Self> {
        namespace.run(|| open(0)).map(|socket| Self { socket })
    }

    /// The present number.
    ///
    /// # Errors
    /// The kernel did not answer, or not as expected.
    pub fn read(&self) -> io::Result<u32> {
        let mut request = Vec::with_capacity(HEADER_BYTES + 4);
        request.extend_from_slice(&20u32.to_ne_bytes());
        request.extend_from_slice(&GET_GENERATION.to_ne_bytes());
        request.extend_from_slice(&1u16.to_ne_bytes()); // NLM_F_REQUEST
        request.extend_from_slice(&[0; 12]); // sequence, sender, nfgenmsg
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = [0; 512];
        let len = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let unexpected =
            || io::Error::new(io::ErrorKind::InvalidData, "no generation in the kernel's answer");
        generation(&answer[..len]).ok_or_else(unexpected)
    }
}

/// Tells when a transaction is committed.
#[derive(Debug)]
pub struct Commits {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Commits {
    /// Begins to listen to the namespace. While somebody listens, the kernel does more work for each transaction: it
    /// describes all that changed.
    ///
    /// # Errors
    /// No netfilter socket can be had.
    pub fn listen(namespace: &Namespace) -> io::Result<Self> {
        let socket = namespace.run(|| open(NFTABLES_GROUP))?;
        // Without privilege in the initial user namespace only up to a system-wide limit.
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))
            .or_else(|_denied| setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)))?;
        Ok(Self { socket, buffer: vec![0; 1 << 16] })
    }

    /// Waits for the end of the next transaction; its number, or `None` when the time is over.
    ///
    /// # Errors
    /// The socket failed, such as for notifications that were lost.
    pub fn next(&mut self, limit: Duration) -> io::Result<Option<u32>> {
        self.wait(limit, |_families| true)
    }

    /// As [`Commits::next`], for a transaction that changed something of one of these families (`NFPROTO_IPV4` and so on,
    /// see `linux/netfilter.h`). Others are passed over.
    ///
    /// # Errors
    /// As [`Commits::next`].
    pub fn next_of(&mut self, families: &[u8], limit: Duration) -> io::Result<Option<u32>> {
        self.wait(limit, |touched| families.iter().any(|family| touched & 1 << family != 0))
    }

    /// Waits for the end of a transaction that touched such families, given as bits.
    fn wait(&mut self, limit: Duration, wanted: impl Fn(u32) -> bool) -> io::Result<Option<u32>> {
        let deadline = Instant::now() + limit;
        let mut touched = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            let left = i64::try_from(left.as_micros()).map_err(io::Error::other)?;
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(left))?;
            let len = {
                let mut buffers = [IoSliceMut::new(&mut self.buffer)];
                match recvmsg::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffers, None, MsgFlags::empty()) {
                    Ok(message) => message.bytes,
                    Err(nix::Error::EAGAIN) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            };
            touched |= families(&self.buffer[..len]);
            if let Some(number) = generation(&self.buffer[..len]) {
                if wanted(touched) {
                    return Ok(Some(number));
                }
                touched = 0;
            }
        }
    }
}

fn open(groups: u32) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// The type and the payload of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let len = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).ok()?;
        let payload = bytes.get(HEADER_BYTES..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[4], header[5]]), payload))
    })
}

/// The number in the first message about a generation.
fn generation(bytes: &[u8]) -> Option<u32> {
    let (_, payload) = messages(bytes).find(|(kind, _)| *kind == NEW_GENERATION)?;
    attribute(payload.get(4..)?)
}

/// The families of all other messages, each as a bit. `nfgenmsg` begins with the family.
fn families(bytes: &[u8]) -> u32 {
    let others = messages(bytes).filter(|(kind, _)| *kind != NEW_GENERATION);
    others
        .filter_map(|(_, payload)| payload.first())
        .fold(0, |bits, family| bits | 1_u32.checked_shl((*family).into()).unwrap_or(0))
}

fn attribute(mut bytes: &[u8]) -> Option<u32> {
    loop {
        let len = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        if kind == GENERATION_ID {
            return Some(u32::from_be_bytes(*bytes.get(4..len)?.first_chunk()?));
        }
        bytes = bytes.get(len.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER_BYTES + payload.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_notification_tells_families_and_generation() {
        let new_element = message(NEW_GENERATION - 3, &[2, 0, 0, 0, 7]);
        assert_eq!((families(&new_element), generation(&new_element)), (1 << 2, None));
        let end = message(NEW_GENERATION, &[0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 42]);
        let both = [new_element, end].concat();
        assert_eq!((families(&both), generation(&both)), (1 << 2, Some(42)));
        assert_eq!((families(&both[..7]), generation(&both[..7])), (0, None));
    }
}
