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

use crate::lab::Namespace;

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
        let limit = i64::try_from(limit.as_micros().max(1)).map_err(io::Error::other)?;
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(limit))?;
        loop {
            let len = {
                let mut buffers = [IoSliceMut::new(&mut self.buffer)];
                match recvmsg::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffers, None, MsgFlags::empty()) {
                    Ok(message) => message.bytes,
                    Err(nix::Error::EAGAIN) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            };
            if let Some(number) = generation(&self.buffer[..len]) {
                return Ok(Some(number));
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

/// The number in the first message about a generation.
fn generation(mut bytes: &[u8]) -> Option<u32> {
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let len = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).ok()?;
        let message = bytes.get(..len)?;
        if u16::from_ne_bytes([header[4], header[5]]) == NEW_GENERATION {
            return attribute(message.get(HEADER_BYTES + 4..)?);
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
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
