//! What others do to our tables, as the kernel tells it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use netlink::NetlinkError;
use netlink::{Message, messages};
use nft::{Family, Name};

use crate::socket::{Buffer, Channel, Socket, SocketOption, Wait};

/// Netlink ports of this process's sockets that change tables. Notifications carry the port of who caused them.
static OWN_PORTS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// A port that counts as our own while this lives.
#[derive(Debug)]
pub(crate) struct OwnPort(u32);

impl OwnPort {
    pub(crate) fn register(port: u32) -> Self {
        OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        Self(port)
    }
}

impl Drop for OwnPort {
    fn drop(&mut self) {
        OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

fn is_own(port: u32) -> bool {
    OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner).contains(&port)
}

/// A change of one of our tables that this process did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChange {
    /// The table's family; `None` when the kernel had to drop notifications, so that it can be either.
    pub family: Option<Family>,
    /// What happened first, such as `a rule was deleted`.
    pub what: &'static str,
}

/// Listens to changes of a table in `ip` and `ip6`. While it does, the kernel describes every change of any table of the
/// namespace, which costs a little at each.
#[derive(Debug)]
pub struct TableWatch {
    socket: Socket,
    table: Name,
    received: Vec<u8>,
    /// Size of the socket's buffer.
    room_bytes: i32,
}

/// `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const GROUP: libc::c_int = 7;
/// Notifications come in datagrams of at most a page or two, but nothing says so.
pub(crate) const RECEIVE_BYTES: usize = 64 * 1024;
/// Room for the description of a large change; what does not fit is dropped, which is noticed.
pub(crate) const BUFFER_BYTES: i32 = 8 * 1024 * 1024;

impl TableWatch {
    /// Begins to listen in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no netfilter sockets for us.
    pub fn open(table: Name) -> Result<Self, NetlinkError> {
        Self::with_room(table, BUFFER_BYTES)
    }

    /// As [`TableWatch::open`], with this much room for what has not been looked at yet.
    ///
    /// # Errors
    /// As [`TableWatch::open`].
    pub fn with_room(table: Name, bytes: i32) -> Result<Self, NetlinkError> {
        let socket = listen_to_others(bytes).map_err(|source| NetlinkError::Open { source })?;
        Ok(Self { socket, table, received: vec![0; RECEIVE_BYTES], room_bytes: bytes })
    }

    /// Waits for a change that is not ours.
    ///
    /// # Errors
    /// The socket failed.
    pub fn wait(&mut self) -> Result<ForeignChange, NetlinkError> {
        loop {
            let received = match self.socket.receive(&mut self.received, Wait::Block) {
                Ok(received) => received,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    // Until its queue has been empty once, the kernel does not tell of further losses (`netlink_overrun` of
                    // `net/netlink/af_netlink.c`). A new socket has lost nothing.
                    self.socket =
                        listen_to_others(self.room_bytes).map_err(|source| NetlinkError::Open { source })?;
                    return Ok(ForeignChange { family: None, what: "notifications were lost" });
                }
                Err(source) => return Err(NetlinkError::Receive { source }),
            };
            if let Some(change) = messages(received).find_map(|message| foreign(&message, &self.table)) {
                return Ok(change);
            }
        }
    }
}

/// The same without what is told of this process's own sockets, as far as there are any by now: their commits would wake the
/// thread for nothing. (All notifications of a datagram are of one commit: `nft_commit_notify`.)
fn listen_to_others(buffer_bytes: i32) -> std::io::Result<Socket> {
    let socket: Socket = listen(buffer_bytes)?;
    let own: Vec<u32> = OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    socket.ignore_senders(&own)?;
    Ok(socket)
}

/// A socket that is told of each change in the network namespace of the calling thread.
pub(crate) fn listen<C: Channel>(buffer_bytes: i32) -> std::io::Result<C> {
    let socket = C::open()?;
    Buffer::Receive.set_size(&socket, buffer_bytes)?;
    // A socket without a port would be left out, as if it were the sender (`do_one_broadcast`, af_netlink.c).
    socket.port()?;
    socket.set(SocketOption::Membership, GROUP)?;
    Ok(socket)
}

/// What a notification says, if it is about our table and somebody else's doing.
fn foreign(message: &Message<'_>, table: &Name) -> Option<ForeignChange> {
    let (family, what) = change_of(message, table)?;
    (!is_own(message.port)).then_some(ForeignChange { family: Some(family), what })
}

/// What a notification says, if it is about a table of this name, and that table's family.
pub(crate) fn change_of(message: &Message<'_>, table: &Name) -> Option<(Family, &'static str)> {
    let what = meaning(message.kind)?;
    let family = match message.family()? {
        2 => Family::Ip,
        10 => Family::Ip6,
        _ => return None,
    };
    // The attribute with the table's name has this number in messages about every kind of object.
    (message.attrs()?.text(1)? == table.as_str()).then_some((family, what))
}

/// `NFT_MSG_*` (`linux/netfilter/nf_tables.h`) with `NFNL_SUBSYS_NFTABLES` in the upper byte.
fn meaning(kind: u16) -> Option<&'static str> {
    Some(match kind.checked_sub(10 << 8)? {
        0 => "the table was changed",
        2 => "the table was deleted",
        3 => "a chain was added or changed",
        5 => "a chain was deleted",
        6 => "a rule was added",
        8 => "a rule was deleted",
        9 => "a set was added",
        11 => "a set was deleted",
        12 => "an element was added",
        14 => "an element was deleted",
        18 => "an object was added",
        20 => "an object was deleted",
        22 => "a flowtable was added",
        24 => "a flowtable was deleted",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use netlink::Writer;

    use super::*;

    /// A notification about an object of a table, caused by the socket with this port.
    fn notification(kind: u16, family: u8, table: &str, port: u32) -> Vec<u8> {
        let mut writer = Writer::default();
        let start = writer.begin_message(10 << 8 | kind, 0, 0, family, 0);
        writer.text(1, table);
        writer.end_message(start);
        let mut bytes = writer.out;
        bytes[12..16].copy_from_slice(&port.to_ne_bytes());
        bytes
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<(Family, &'static str)>) {
        let found = messages(bytes).find_map(|message| foreign(&message, &Name::from_static("kube-proxy")));
        let expected = expected.map(|(family, what)| ForeignChange { family: Some(family), what });
        assert_eq!(found, expected);
    }

    #[test]
    fn only_what_others_do_to_our_tables_counts() {
        let rule_deleted = |family| Some((family, "a rule was deleted"));
        check(&notification(8, 2, "kube-proxy", 77), rule_deleted(Family::Ip));
        check(&notification(8, 10, "kube-proxy", 77), rule_deleted(Family::Ip6));
        check(&notification(8, 2, "filter", 77), None);
        check(&notification(8, 1, "kube-proxy", 77), None);
        // The end of a transaction, which names no table.
        check(&notification(15, 0, "kube-proxy", 77), None);
        let own = OwnPort::register(4242);
        check(&notification(8, 2, "kube-proxy", 4242), None);
        drop(own);
        check(&notification(8, 2, "kube-proxy", 4242), rule_deleted(Family::Ip));
        let both = [notification(8, 2, "filter", 77), notification(14, 2, "kube-proxy", 77)].concat();
        check(&both, Some((Family::Ip, "an element was deleted")));
    }
}
