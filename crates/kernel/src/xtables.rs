//! The tables of iptables-legacy, by the socket options through which its tools read and replace them.
//!
//! The options work on any socket of the internet families (`ip_setsockopt` of `net/ipv4/ip_sockglue.c` passes on what it
//! does not know); so a datagram socket will do, and `CAP_NET_RAW`, which a raw one needs, is not needed. The options
//! themselves ask for `CAP_NET_ADMIN`.
#![expect(unsafe_code, reason = "socket options that take and give blocks of bytes; std has none")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nft::Family;

// The structures hold a pointer, so their layouts are those of 64-bit systems.
const _: () = assert!(size_of::<usize>() == 8);

/// `IPT_SO_*` and `IP6T_SO_*`, which have the same numbers.
mod option {
    pub(super) const GET_INFO: libc::c_int = 64;
    pub(super) const GET_ENTRIES: libc::c_int = 65;
    pub(super) const SET_REPLACE: libc::c_int = 64;
    pub(super) const SET_ADD_COUNTERS: libc::c_int = 65;
}

/// Bytes of a table's name (`XT_TABLE_MAXNAMELEN`).
const NAME_BYTES: usize = 32;
/// Bytes of `struct ipt_getinfo`.
const INFO_BYTES: usize = 84;
/// Offset of the entries in `struct ipt_get_entries`.
const ENTRIES_AT: usize = 40;
/// Offset of the number of old entries in `struct ipt_replace`, and of the pointer to where their counters go.
const OLD_COUNT_AT: usize = 84;
const OLD_COUNTERS_AT: usize = 88;
const REPLACE_HEADER_BYTES: usize = 96;

/// Packets and bytes that a rule has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Access to the tables of one family in the network namespace of the thread that opened it.
///
/// To ask for a table is to create it (and to load its module): ask only for those that are in use.
#[derive(Debug)]
pub struct Xtables {
    fd: OwnedFd,
    level: libc::c_int,
}

impl Xtables {
    /// Opens a socket.
    ///
    /// # Errors
    /// The system does not have the family.
    pub fn open(family: Family) -> io::Result<Self> {
        let (domain, level) = match family {
            Family::Ip => (libc::AF_INET, libc::IPPROTO_IP),
            Family::Ip6 => (libc::AF_INET6, libc::IPPROTO_IPV6),
        };
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, level })
    }

    /// `struct ipt_getinfo` of a table.
    ///
    /// # Errors
    /// `EPERM` without the capability, `ENOENT` for no such table.
    pub fn info(&self, table: &str) -> io::Result<[u8; INFO_BYTES]> {
        let mut info = [0; INFO_BYTES];
        put_name(&mut info, table)?;
        self.get(option::GET_INFO, &mut info)?;
        Ok(info)
    }

    /// The entries of a table, which take `size` bytes.
    ///
    /// # Errors
    /// `EAGAIN` when they take another size by now.
    pub fn entries(&self, table: &str, size: u32) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; ENTRIES_AT + usize::try_from(size).unwrap_or(usize::MAX)];
        put_name(&mut buffer, table)?;
        buffer[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&size.to_ne_bytes());
        self.get(option::GET_ENTRIES, &mut buffer)?;
        buffer.drain(..ENTRIES_AT);
        Ok(buffer)
    }

    /// Replaces a table at once by `struct ipt_replace` with its entries, and returns the counters of the old entries. Those
    /// of the new ones begin with zero.
    ///
    /// # Errors
    /// `EAGAIN` when the table does not have `old_entries` entries (any more).
    pub fn replace(&self, mut replacement: Vec<u8>, old_entries: u32) -> io::Result<Vec<Counters>> {
        if replacement.len() < REPLACE_HEADER_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut counters = vec![Counters::default(); usize::try_from(old_entries).unwrap_or(usize::MAX)];
        let address = counters.as_mut_ptr().expose_provenance();
        replacement[OLD_COUNT_AT..OLD_COUNTERS_AT].copy_from_slice(&old_entries.to_ne_bytes());
        replacement[OLD_COUNTERS_AT..REPLACE_HEADER_BYTES].copy_from_slice(&address.to_ne_bytes());
        // The kernel writes as many counters as the message says, which is what the vector holds.
        self.set(option::SET_REPLACE, &replacement)?;
        Ok(counters)
    }

    /// Adds to the counters of all entries of a table.
    ///
    /// # Errors
    /// `EINVAL` when the table has another number of entries by now.
    pub fn add_counters(&self, table: &str, counters: &[Counters]) -> io::Result<()> {
        let mut message = vec![0; NAME_BYTES + 8];
        put_name(&mut message, table)?;
        let count = u32::try_from(counters.len()).map_err(io::Error::other)?;
        message[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&count.to_ne_bytes());
        for counter in counters {
            message.extend(counter.packets.to_ne_bytes());
            message.extend(counter.bytes.to_ne_bytes());
        }
        self.set(option::SET_ADD_COUNTERS, &message)
    }

    fn get(&self, name: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        let mut len = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        let data = buffer.as_mut_ptr().cast();
        // SAFETY: the pointers are to live memory, and `len` is the size of what is written to.
        let result = unsafe { libc::getsockopt(self.fd.as_raw_fd(), self.level, name, data, &raw mut len) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn set(&self, name: libc::c_int, message: &[u8]) -> io::Result<()> {
        let len = libc::socklen_t::try_from(message.len()).map_err(io::Error::other)?;
        let data = message.as_ptr().cast();
        // SAFETY: pointer and length are those of a live slice. What the pointer inside of a replacement leads to is live
        // too, and as long as the message says: `replace` sees to it.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), self.level, name, data, len) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn put_name(buffer: &mut [u8], table: &str) -> io::Result<()> {
    let name = table.as_bytes();
    if name.len() >= NAME_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    buffer[..name.len()].copy_from_slice(name);
    Ok(())
}
