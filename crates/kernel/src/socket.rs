//! A netlink socket with a safe face.
#![expect(unsafe_code, reason = "system calls on a socket; std has none for netlink")]

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// `AF_NETLINK` as a field of addresses.
const AF_NETLINK: libc::sa_family_t = 16;

/// What this crate asks of a netlink socket of the netfilter family: [`Socket`], or one that a test makes fail.
pub trait Channel: fmt::Debug + Send + Sized {
    /// A socket in the network namespace of the calling thread.
    fn open() -> io::Result<Self>;

    /// Sets an option.
    fn set(&self, option: SocketOption, value: i32) -> io::Result<()>;

    /// Value of an option.
    fn get(&self, option: SocketOption) -> io::Result<i32>;

    /// The port that the kernel knows this socket by. The socket gets one with its first message, or here.
    fn port(&self) -> io::Result<u32>;

    /// Sends one datagram to the kernel, whole or not at all.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;

    /// Receives one datagram from the kernel; those of other senders are dropped.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing and waiting is not wanted; `ENOBUFS` when the kernel had to drop answers;
    /// `InvalidData` when the buffer was too short.
    fn receive<'b>(&self, buffer: &'b mut [u8], wait: Wait) -> io::Result<&'b [u8]>;
}

/// Blocking netlink socket, closed on drop.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// Options that are plain integers.
#[derive(Clone, Copy, Debug)]
pub enum SocketOption {
    /// Send buffer, limited by `net.core.wmem_max`; the kernel doubles what is set.
    SendBuffer,
    /// Send buffer without limit; needs `CAP_NET_ADMIN` in the initial user namespace.
    ForceSendBuffer,
    /// Receive buffer, limited by `net.core.rmem_max`; the kernel doubles what is set.
    ReceiveBuffer,
    /// Receive buffer without limit; needs `CAP_NET_ADMIN` in the initial user namespace.
    ForceReceiveBuffer,
    /// Errors come with explanations.
    ExtendedAck,
    /// Errors don't repeat the request.
    CapAck,
    /// Joins a group of notifications.
    Membership,
}

impl SocketOption {
    const fn level_and_name(self) -> (libc::c_int, libc::c_int) {
        match self {
            Self::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
            Self::ForceSendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
            Self::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Self::ForceReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
            Self::ExtendedAck => (libc::SOL_NETLINK, libc::NETLINK_EXT_ACK),
            Self::CapAck => (libc::SOL_NETLINK, libc::NETLINK_CAP_ACK),
            Self::Membership => (libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP),
        }
    }
}

/// Whether to wait for something to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until something comes.
    Block,
    /// For this long: `WouldBlock` when nothing has come by then.
    For(Duration),
    /// Not at all: `WouldBlock` when there is nothing.
    Never,
}

/// Has errors explained in words, and not repeat the request.
pub(crate) fn explained<C: Channel>(socket: C) -> io::Result<C> {
    socket.set(SocketOption::ExtendedAck, 1)?;
    socket.set(SocketOption::CapAck, 1)?;
    Ok(socket)
}

/// One of a socket's two buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer {
    Send,
    Receive,
}

impl Buffer {
    /// The option within the system's limit, and the one that needs a privilege.
    const fn options(self) -> (SocketOption, SocketOption) {
        match self {
            Self::Send => (SocketOption::SendBuffer, SocketOption::ForceSendBuffer),
            Self::Receive => (SocketOption::ReceiveBuffer, SocketOption::ForceReceiveBuffer),
        }
    }

    /// How many bytes it holds; 0 if the system won't tell.
    pub(crate) fn size(self, socket: &impl Channel) -> usize {
        socket.get(self.options().0).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
    }

    /// Makes it hold this many bytes: twice as many, as the kernel counts, or what the system's limit allows.
    pub(crate) fn set_size(self, socket: &impl Channel, bytes: libc::c_int) -> io::Result<()> {
        let (limited, forced) = self.options();
        socket.set(forced, bytes).or_else(|_denied| socket.set(limited, bytes))
    }

    /// Makes it hold at least this many bytes if the kernel lets us; gives how many it holds.
    pub(crate) fn make_room(self, socket: &impl Channel, bytes: usize) -> usize {
        let held = self.size(socket);
        if held >= bytes {
            return held;
        }
        match self.set_size(socket, libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX)) {
            // What can't be set shows in the room that is left.
            Ok(()) | Err(_) => self.size(socket),
        }
    }
}

impl Socket {
    /// A socket of a netlink family (`NETLINK_*`) in the network namespace of the calling thread.
    pub(crate) fn open_protocol(protocol: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
        // SAFETY: the kernel has just given us this descriptor, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }
}

impl Channel for Socket {
    fn open() -> io::Result<Self> {
        Self::open_protocol(libc::NETLINK_NETFILTER)
    }

    fn set(&self, option: SocketOption, value: libc::c_int) -> io::Result<()> {
        let (level, name) = option.level_and_name();
        let len = socklen::<libc::c_int>();
        // SAFETY: the pointer is to a live integer of the length that is passed with it.
        check(unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), len)
        })?;
        Ok(())
    }

    fn get(&self, option: SocketOption) -> io::Result<libc::c_int> {
        let (level, name) = option.level_and_name();
        let mut value: libc::c_int = 0;
        let mut len = socklen::<libc::c_int>();
        let target = ptr::from_mut(&mut value).cast();
        // SAFETY: the pointers are to live integers, and `len` is the size of the one that is written to.
        check(unsafe { libc::getsockopt(self.fd.as_raw_fd(), level, name, target, &raw mut len) })?;
        Ok(value)
    }

    fn port(&self) -> io::Result<u32> {
        // SAFETY: all fields of the address are integers, for which zero is valid.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = AF_NETLINK;
        let mut len = socklen::<libc::sockaddr_nl>();
        let target = ptr::from_mut(&mut address).cast::<libc::sockaddr>();
        // SAFETY: the pointer is to a live address of the length that is passed with it.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), target, len) })?;
        // SAFETY: the pointers are to live memory, and `len` is the size of the address that is written to.
        check(unsafe { libc::getsockname(self.fd.as_raw_fd(), target, &raw mut len) })?;
        Ok(address.nl_pid)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        // Without an address netlink sends to port 0, the kernel. It takes a datagram whole or not at all, so an
        // interrupted call is repeated.
        // SAFETY: pointer and length are those of a live slice.
        uninterrupted(|| unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) })?;
        Ok(())
    }

    fn receive<'b>(&self, buffer: &'b mut [u8], wait: Wait) -> io::Result<&'b [u8]> {
        loop {
            let (len, port) = self.receive_from(buffer, wait)?;
            if len > buffer.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "datagram longer than the buffer"));
            }
            if port == 0 {
                return Ok(&buffer[..len]);
            }
        }
    }
}

impl Socket {
    /// From now on drops datagrams whose first message names one of these ports as its sender (`nlmsg_pid`), without waking
    /// anybody.
    pub(crate) fn ignore_senders(&self, ports: &[u32]) -> io::Result<()> {
        let mut filter = drop_senders(ports);
        let len = filter.len().try_into().map_err(|_too_many| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
        let (fd, program) = (self.fd.as_raw_fd(), ptr::from_ref(&program).cast());
        let size = socklen::<libc::sock_fprog>();
        // SAFETY: the pointers are to a live program of the length that it tells; the kernel copies it.
        check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program, size) })?;
        Ok(())
    }
}

/// A program for the kernel's packet filter (`linux/filter.h`): 0 bytes of a datagram whose first message has one of these ports
/// are kept, all of others.
fn drop_senders(ports: &[u32]) -> Vec<libc::sock_filter> {
    /// Bytes of a message before the sender's port.
    const PORT_AT: u32 = 12;
    // A jump reaches 255 instructions.
    let ports = &ports[..ports.len().min(usize::from(u8::MAX))];
    let statement = |code: u32, jt: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf: 0,
        k,
    };
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, PORT_AT)];
    // To the last instruction, nearest first.
    let jumps = ports.iter().rev().zip(1..=u8::MAX).map(|(port, to_end)| {
        // Words are loaded as if they were in the network's order.
        let is_port = u32::from_be_bytes(port.to_ne_bytes());
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to_end, is_port)
    });
    let jumps: Vec<_> = jumps.collect();
    filter.extend(jumps.into_iter().rev());
    filter.extend([
        statement(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0),
    ]);
    filter
}

impl Socket {
    /// Length of the datagram (which may exceed the buffer) and the sender's port.
    fn receive_from(&self, buffer: &mut [u8], wait: Wait) -> io::Result<(usize, u32)> {
        let mut flags = libc::MSG_TRUNC;
        if wait != Wait::Block {
            flags |= libc::MSG_DONTWAIT;
        }
        if let Wait::For(limit) = wait {
            self.wait_readable(limit)?;
        }
        // SAFETY: all fields of the address are integers, for which zero is valid.
        let mut sender: libc::sockaddr_nl = unsafe { mem::zeroed() };
        let mut sender_len = socklen::<libc::sockaddr_nl>();
        let fd = self.fd.as_raw_fd();
        let (data, len) = (buffer.as_mut_ptr().cast(), buffer.len());
        let sender_data = ptr::from_mut(&mut sender).cast();
        // SAFETY: each pointer is to live memory of the length that is passed with it.
        let len = uninterrupted(|| unsafe {
            libc::recvfrom(fd, data, len, flags, sender_data, &raw mut sender_len)
        })?;
        Ok((len, sender.nl_pid))
    }
}

impl Socket {
    /// Waits until there is something to receive, an error included, or the time is over. A signal ends it early.
    fn wait_readable(&self, limit: Duration) -> io::Result<()> {
        let mut polled = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = limit.as_micros().div_ceil(1000).try_into().unwrap_or(libc::c_int::MAX);
        // SAFETY: the pointer is to one live `pollfd`, as the number says.
        match check(unsafe { libc::poll(&raw mut polled, 1, millis) }) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

const fn socklen<T>() -> libc::socklen_t {
    // Only called with types of a few bytes.
    #[expect(clippy::cast_possible_truncation, reason = "sizes of an integer and of an address")]
    let len = mem::size_of::<T>() as libc::socklen_t;
    len
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Repeats a call that a signal interrupted.
fn uninterrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(len) => return Ok(len),
            // A negative result: the error is in errno.
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
