//! Listeners go from the agent to a worker over the socket pair, before anything else is said.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Where a worker's flows arrive. They are the agent's, so that flows wait while a worker is started again.
#[derive(Debug)]
pub struct Listeners {
    /// For flows from anywhere.
    pub any: Pair,
    /// For internal flows that take the short cut.
    pub internal: Pair,
}

/// One for each protocol.
#[derive(Debug)]
pub struct Pair {
    /// TCP
    pub tcp: TcpListener,
    /// UDP
    pub udp: UdpSocket,
}

/// The listeners' number.
const N_LISTENERS: usize = 4;
/// What the message itself says: nothing, but a message without a byte carries nothing.
const HELLO: u8 = b'L';
/// New connections that may wait for a worker.
const BACKLOG: i32 = 4096;

impl Listeners {
    /// At an address of this node, on ports that the kernel chooses.
    ///
    /// # Errors
    /// It is no address of this node, or ports are used up.
    pub fn at(address: IpAddr) -> io::Result<Self> {
        Ok(Self { any: Pair::at(address)?, internal: Pair::at(address)? })
    }
}

impl Pair {
    fn at(address: IpAddr) -> io::Result<Self> {
        let address = SocketAddr::new(address, 0);
        let domain = socket2::Domain::for_address(address);
        let tcp = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        tcp.bind(&address.into())?;
        tcp.listen(BACKLOG)?;
        tcp.set_nonblocking(true)?;
        let udp = UdpSocket::bind(address)?;
        udp.set_nonblocking(true)?;
        Ok(Self { tcp: tcp.into(), udp })
    }
}

/// Gives a worker the listeners.
///
/// # Errors
/// The worker is gone.
pub fn hand_over(control: &UnixStream, listeners: &Listeners) -> io::Result<()> {
    let Listeners { any, internal } = listeners;
    let descriptors = [any.tcp.as_fd(), any.udp.as_fd(), internal.tcp.as_fd(), internal.udp.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(N_LISTENERS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for descriptors"));
    }
    sendmsg(control, &[IoSlice::new(&[HELLO])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What [`hand_over`] gave.
///
/// # Errors
/// The agent is gone, or does not keep to this.
pub(crate) fn receive(control: &UnixStream) -> io::Result<Listeners> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(N_LISTENERS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut hello = [0];
    recvmsg(control, &mut [IoSliceMut::new(&mut hello)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<OwnedFd>>(),
        _ => Vec::new(),
    });
    let mut next = || descriptors.next().ok_or_else(|| io::Error::other("no listeners were handed over"));
    let any = Pair { tcp: next()?.into(), udp: next()?.into() };
    let internal = Pair { tcp: next()?.into(), udp: next()?.into() };
    Ok(Listeners { any, internal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_arrive_in_their_places() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent = Listeners::at([127, 0, 0, 1].into()).unwrap();
        hand_over(&ours, &sent).unwrap();
        let received = receive(&theirs).unwrap();
        for (sent, received) in [(&sent.any, &received.any), (&sent.internal, &received.internal)] {
            assert_eq!(sent.tcp.local_addr().unwrap(), received.tcp.local_addr().unwrap());
            assert_eq!(sent.udp.local_addr().unwrap(), received.udp.local_addr().unwrap());
        }
    }

    #[test]
    fn an_agent_without_listeners_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut &ours, b"L").unwrap();
        assert_eq!(receive(&theirs).unwrap_err().to_string(), "no listeners were handed over");
    }
}
