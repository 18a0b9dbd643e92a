//! The kernel's own tracing of packets.

use std::io;
use std::time::Duration;

use netlink::NetlinkError;
use nft::trace::{Event, Traced, Traces, begin, event, messages};
use nft::{Family, Name};

use crate::socket::{Buffer, Channel as _, Socket, SocketOption, Wait};
use crate::watch::RECEIVE_BYTES;

/// Traces packets while it lives. What makes the kernel trace belongs to its socket, so it is gone with this, and with the
/// process, even one that is killed.
#[derive(Debug)]
pub struct Tracing {
    socket: Socket,
    received: Vec<u8>,
    /// What happened to packets while this began: one family is traced before the other is.
    early: Vec<Event>,
}

/// `NFNLGRP_NFTRACE` (`linux/netfilter/nfnetlink.h`).
const GROUP: libc::c_int = 9;
/// Room for what is not looked at yet: some thousands of packets.
const BUFFER_BYTES: i32 = 4 * 1024 * 1024;

impl Tracing {
    /// Begins to trace packets to these, in the network namespace of the calling thread: so many of each a second.
    ///
    /// # Errors
    /// There is no permission, or the kernel is too old (Linux 5.12 is needed).
    pub fn begin(table: &Name, traced: &[Traced], per_second: u32) -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let socket = <Socket as crate::Channel>::open()?;
            Buffer::Receive.set_size(&socket, BUFFER_BYTES)?;
            socket.port()?;
            socket.set(SocketOption::Membership, GROUP)?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetlinkError::Open { source })?;
        let mut tracing = Self { socket, received: vec![0; RECEIVE_BYTES], early: Vec::new() };
        for family in [Family::Ip, Family::Ip6] {
            tracing.apply(family, table, &begin(family, table, traced, per_second))?;
        }
        Ok(tracing)
    }

    /// The kernel carries a batch out while it is sent, so its answers are here when that is done.
    fn apply(&mut self, family: Family, table: &Name, batch: &[u8]) -> Result<(), NetlinkError> {
        let bytes = batch.len();
        self.socket.send(batch).map_err(|source| NetlinkError::Send { bytes, source })?;
        loop {
            let received = match self.socket.receive(&mut self.received, Wait::Never) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(source) => return Err(NetlinkError::Receive { source }),
            };
            for message in messages(received) {
                if let Some(ack) = message.ack().filter(|ack| ack.errno != 0) {
                    let object = format!("table {family} {table}, which traces");
                    return Err(NetlinkError::refused(object, ack.errno, ack.message));
                }
                self.early.extend(event(&message));
            }
        }
    }

    /// Waits for so long for something to happen to a traced packet.
    ///
    /// # Errors
    /// The socket failed.
    pub fn wait(&mut self, limit: Duration) -> Result<Traces, NetlinkError> {
        if !self.early.is_empty() {
            return Ok(Traces::Events(std::mem::take(&mut self.early)));
        }
        match self.socket.receive(&mut self.received, Wait::For(limit)) {
            Ok(received) => {
                Ok(Traces::Events(messages(received).filter_map(|message| event(&message)).collect()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Traces::Nothing),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Traces::Lost),
            Err(source) => Err(NetlinkError::Receive { source }),
        }
    }
}
