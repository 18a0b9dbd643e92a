//! Netlink for messages that others make and read: requests with their answers, and batches.

use std::io;

use netlink::{Message, NetlinkError, Writer, flag, messages};

use crate::socket::{Buffer, Channel as _, Socket, Wait, explained};

/// The kernel fills dumps into datagrams of at most 32 KiB (`netlink_dump` of `net/netlink/af_netlink.c`).
const RECEIVE_BYTES: usize = 128 * 1024;
/// What the kernel needs of a receive buffer for one refusal.
const REFUSAL_BYTES: usize = 2048;
/// What the kernel needs of a send buffer beside the message.
const SEND_OVERHEAD_BYTES: usize = 1024;

/// A netlink family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `NETLINK_NETFILTER`: `nf_tables`, ipset.
    Netfilter,
    /// `NETLINK_GENERIC`: IPVS.
    Generic,
    /// `NETLINK_ROUTE`: devices, addresses.
    Route,
    /// `NETLINK_SOCK_DIAG`: sockets.
    SocketDiag,
}

/// Why the kernel refused one of many messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the error.
    pub errno: i32,
    /// The kernel's own explanation, if it gave one.
    pub message: Option<String>,
}

impl Refusal {
    /// The refusal of this object.
    pub fn of(self, object: String) -> NetlinkError {
        NetlinkError::refused(object, self.errno, self.message)
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    received: Vec<u8>,
    seq: u32,
}

impl Netlink {
    /// Opens a socket. That the kernel lacks something, or permission is lacking, shows later.
    ///
    /// # Errors
    /// When the system has no such sockets.
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let protocol = match protocol {
            Protocol::Netfilter => libc::NETLINK_NETFILTER,
            Protocol::Generic => libc::NETLINK_GENERIC,
            Protocol::Route => libc::NETLINK_ROUTE,
            Protocol::SocketDiag => libc::NETLINK_SOCK_DIAG,
        };
        let socket = Socket::open_protocol(protocol).and_then(explained);
        let socket = socket.map_err(|source| NetlinkError::Open { source })?;
        Ok(Self { socket, received: vec![0; RECEIVE_BYTES], seq: 0 })
    }

    /// Sends the request that `build` makes with a sequence number, and passes on the answers. The request has to be a
    /// dump or ask for an acknowledgement: that is how the end is told.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`] comes only at the end: what could be read was passed on.
    pub fn ask(
        &mut self,
        build: impl FnOnce(u32) -> Vec<u8>,
        mut take: impl FnMut(&Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.seq = self.seq.wrapping_add(1);
        self.send(&build(self.seq))?;
        let mut interrupted = false;
        loop {
            let received = self.socket.receive(&mut self.received, Wait::Block);
            let received = received.map_err(|source| NetlinkError::Receive { source })?;
            for message in messages(received).filter(|message| message.seq == self.seq) {
                interrupted |= message.is_interrupted();
                match message.ack() {
                    Some(ack) if ack.errno != 0 => {
                        return Err(NetlinkError::refused("the request", ack.errno, ack.message));
                    }
                    None if !message.is_done() => take(&message),
                    _ if interrupted => return Err(NetlinkError::Interrupted),
                    _ => return Ok(()),
                }
            }
        }
    }

    /// Sends a batch whose last message, with the number `last_seq`, asks for an acknowledgement. The kernel works on it
    /// inside the call, so that all answers are there afterwards. `object` says what a message is about.
    ///
    /// # Errors
    /// The first refusal; nothing is applied then.
    pub fn commit(
        &mut self,
        batch: &[u8],
        last_seq: u32,
        object: impl Fn(u32) -> String,
    ) -> Result<(), NetlinkError> {
        self.make_room(batch.len());
        self.send(batch)?;
        let (mut refused, mut acknowledged) = (None, false);
        loop {
            match self.socket.receive(&mut self.received, Wait::Never) {
                Ok(received) => {
                    for (seq, ack) in
                        messages(received).filter_map(|message| Some((message.seq, message.ack()?)))
                    {
                        if ack.errno == 0 {
                            acknowledged |= seq == last_seq;
                        } else if refused.is_none() {
                            refused = Some(NetlinkError::refused(object(seq), ack.errno, ack.message));
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(source) => return Err(NetlinkError::Receive { source }),
            }
        }
        match refused {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NetlinkError::OutcomeUnknown { why: "the last message was not answered" }),
        }
    }

    /// Sends many messages in one go, each of which the kernel does or refuses by itself, in their order. `write` is given a
    /// message's position, its sequence number, and flags to be set. Gives the refusals by position.
    ///
    /// # Errors
    /// Nothing was done if the messages could not be sent; otherwise it is not known what was.
    pub fn send_each(
        &mut self,
        count: usize,
        mut write: impl FnMut(&mut Writer, usize, u32, u16),
    ) -> Result<Vec<(usize, Refusal)>, NetlinkError> {
        let Some(last) = count.checked_sub(1) else { return Ok(Vec::new()) };
        let first_seq = self.seq.wrapping_add(1);
        let mut out = Writer::default();
        for position in 0..count {
            self.seq = self.seq.wrapping_add(1);
            write(&mut out, position, self.seq, if position == last { flag::ACK } else { 0 });
        }
        self.make_room(out.out.len());
        // As far as the kernel lets us: losing an answer tells.
        Buffer::Receive.make_room(&self.socket, count * REFUSAL_BYTES);
        self.send(&out.out)?;
        self.refusals(first_seq, count)
    }

    /// What was refused of the messages with sequence numbers from the first one on. The kernel has worked on them inside the
    /// call that sent them, so that all answers are there.
    fn refusals(&mut self, first_seq: u32, count: usize) -> Result<Vec<(usize, Refusal)>, NetlinkError> {
        let mut refusals = Vec::new();
        loop {
            let received = match self.socket.receive(&mut self.received, Wait::Never) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(NetlinkError::OutcomeUnknown { why: "the last message was not answered" });
                }
                Err(source) => return Err(NetlinkError::Receive { source }),
            };
            for message in messages(received) {
                let position = usize::try_from(message.seq.wrapping_sub(first_seq)).unwrap_or(usize::MAX);
                let Some(ack) = message.ack().filter(|_| position < count) else { continue };
                if ack.errno != 0 {
                    refusals.push((position, Refusal { errno: ack.errno, message: ack.message }));
                }
                if position + 1 == count {
                    return Ok(refusals);
                }
            }
        }
    }

    /// Makes the send buffer hold a message of this length, as far as the kernel lets us: sending tells.
    fn make_room(&self, bytes: usize) {
        Buffer::Send.make_room(&self.socket, bytes + SEND_OVERHEAD_BYTES);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.socket.send(bytes).map_err(|source| NetlinkError::Send { bytes: bytes.len(), source })
    }
}
