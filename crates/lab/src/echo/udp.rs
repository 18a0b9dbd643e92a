//! UDP: each datagram is answered from the address to which it was sent, also where a host has several.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::libc::in6_pktinfo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, getsockname, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Identity;

/// A received datagram's addresses, IPv4 ones in their mapped form. The content does not matter.
struct Datagram {
    client: SockaddrIn6,
    /// The local address to which it was sent, in the form in which the answer's sender is chosen.
    local: in6_pktinfo,
}

/// Answers datagrams for ever.
pub(super) async fn serve(fd: OwnedFd, identity: Arc<Identity>) {
    let opened = getsockname::<SockaddrIn6>(fd.as_raw_fd())
        .map_err(io::Error::from)
        .and_then(|own| Ok((own.port(), UdpSocket::from_std(fd.into())?)));
    let (port, socket) = match opened {
        Ok(opened) => opened,
        Err(error) => return tracing::error!(name = %identity.name, %error, "cannot poll a socket"),
    };
    loop {
        let outcome = answer_one(&socket, port, &identity).await;
        if let Err(error) = outcome {
            // The loss of one answer is the client's to notice.
            tracing::debug!(name = %identity.name, %error, "datagram lost");
        }
    }
}

async fn answer_one(socket: &UdpSocket, port: u16, identity: &Identity) -> io::Result<()> {
    let datagram = socket.async_io(Interest::READABLE, || receive(socket.as_fd())).await?;
    let server = SocketAddr::new(Ipv6Addr::from(datagram.local.ipi6_addr.s6_addr).into(), port);
    let line = identity.line(SocketAddr::V6(SocketAddrV6::from(datagram.client)), server);
    socket.async_io(Interest::WRITABLE, || send(socket.as_fd(), &datagram, line.as_bytes())).await
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Datagram> {
    // A longer datagram is truncated, which is as good.
    let mut buffer = [0; 16];
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(in6_pktinfo);
    let message =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
        _ => None,
    });
    message
        .address
        .zip(local)
        .map(|(client, local)| Datagram { client, local })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "datagram without addresses"))
}

fn send(socket: BorrowedFd<'_>, to: &Datagram, answer: &[u8]) -> io::Result<()> {
    // The interface is left to routing: an answer to a translated packet may have to leave by another.
    let local = in6_pktinfo { ipi6_ifindex: 0, ..to.local };
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(answer)],
        &[ControlMessage::Ipv6PacketInfo(&local)],
        MsgFlags::MSG_DONTWAIT,
        Some(&to.client),
    )?;
    Ok(())
}
