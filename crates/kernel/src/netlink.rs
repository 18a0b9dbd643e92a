//! Netlink for messages that others make and read: requests with their answers, and batches.

use std::io;

use netlink::{Message, Writer, flag, messages};

use crate::socket::{Channel as _, Socket, SocketOption, Wait};

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
}

/// Why a request or a batch failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("open a netlink socket")]
    Open {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A message did not get to the kernel.
    #[error("send {bytes} bytes over netlink")]
    Send {
        /// Size of the message.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No answer.
    #[error("receive over netlink")]
    Receive {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a message. Of a batch, nothing is applied.
    #[error("the kernel refused: {}{}", io::Error::from_raw_os_error(*.errno), .message.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// Sequence number of the message.
        seq: u32,
        /// Number of the error.
        errno: i32,
        /// The kernel's own explanation, if it gave one.
        message: Option<String>,
    },
    /// What was read changed meanwhile, so that parts may be missing.
    #[error("what was read changed meanwhile")]
    Interrupted,
    /// A batch was sent but not answered.
    #[error("the batch was not answered")]
    OutcomeUnknown,
}

/// Why the kernel refused one of many messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the error.
    pub errno: i32,
    /// The kernel's own explanation, if it gave one.
    pub message: Option<String>,
}

impl NetlinkError {
    /// The number of the error, if the kernel refused something.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
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
        };
        let open = || {
            let socket = Socket::open_protocol(protocol)?;
            socket.set(SocketOption::ExtendedAck, 1)?;
            socket.set(SocketOption::CapAck, 1)?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetlinkError::Open { source })?;
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
                        return Err(NetlinkError::Refused {
                            seq: self.seq,
                            errno: ack.errno,
                            message: ack.message,
                        });
                    }
                    None if !message.is_done() => take(&message),
                    _ if interrupted => return Err(NetlinkError::Interrupted),
                    _ => return Ok(()),
                }
            }
        }
    }

    /// Sends a batch whose last message, with the number `last_seq`, asks for an acknowledgement. The kernel works on it
    /// inside the call, so that all answers are there afterwards.
    ///
    /// # Errors
    /// The first refusal; nothing is applied then.
    pub fn commit(&mut self, batch: &[u8], last_seq: u32) -> Result<(), NetlinkError> {
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
                            refused =
                                Some(NetlinkError::Refused { seq, errno: ack.errno, message: ack.message });
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
            None => Err(NetlinkError::OutcomeUnknown),
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
        self.make_room_for_answers(count * REFUSAL_BYTES);
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
                    return Err(NetlinkError::OutcomeUnknown);
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

    /// Makes the receive buffer hold this many bytes, as far as the kernel lets us: losing an answer tells.
    fn make_room_for_answers(&self, bytes: usize) {
        let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        let held = self.socket.get(SocketOption::ReceiveBuffer).unwrap_or_default();
        if held < wanted {
            let forced = self.socket.set(SocketOption::ForceReceiveBuffer, wanted);
            let set = forced.or_else(|_denied| self.socket.set(SocketOption::ReceiveBuffer, wanted));
            drop(set);
        }
    }

    /// Makes the send buffer hold this many bytes, as far as the kernel lets us: sending tells.
    fn make_room(&self, bytes: usize) {
        let wanted = libc::c_int::try_from(bytes + SEND_OVERHEAD_BYTES).unwrap_or(libc::c_int::MAX);
        let held = self.socket.get(SocketOption::SendBuffer).unwrap_or_default();
        if held < wanted {
            let forced = self.socket.set(SocketOption::ForceSendBuffer, wanted);
            let set = forced.or_else(|_denied| self.socket.set(SocketOption::SendBuffer, wanted));
            drop(set);
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.socket.send(bytes).map_err(|source| NetlinkError::Send { bytes: bytes.len(), source })
    }
}
