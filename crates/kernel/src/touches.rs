//! Whether a table was changed while it was read.

use std::io;
use std::time::Duration;

use netlink::NetlinkError;
use netlink::messages;
use nft::{Family, Name};
use tokio::time::Instant;

use crate::socket::{Channel, Wait};
use crate::watch::{BUFFER_BYTES, RECEIVE_BYTES, change_of, listen};

/// How long a commit may take from the moment that it raises the generation until it has told of itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many notifications in a row are taken in between two requests; if there are still more, somebody writes faster than
/// anybody could read.
const AT_ONCE: usize = 10_000;

/// Listens to the changes of one table, its own process's included.
///
/// A commit first raises the generation of its network namespace, then does its work, and tells of all that it changed at its
/// end; its last notification has the generation (`nf_tables_commit` of `net/netfilter/nf_tables_api.c`). So when that of a
/// generation has come, everything has that was changed up to it. What a commit does to one table can't be seen in another:
/// an object that is not part of a commit is active before and after it.
#[derive(Debug)]
pub(crate) struct Touches<'a, C: Channel> {
    socket: C,
    family: Family,
    table: &'a Name,
    received: Vec<u8>,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// A change of the table.
    touched: bool,
    /// Notifications were dropped.
    lost: bool,
    /// The generation of the last commit that has told of itself.
    generation: Option<u32>,
}

/// What is known of a table since some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    No,
    Yes,
    /// Notifications were lost, or are late.
    Unknown,
}

impl<'a, C: Channel> Touches<'a, C> {
    /// Begins to listen. One that has lost something is of no more use: until its queue has been empty once, the kernel does not
    /// tell of further losses (`netlink_overrun` of `net/netlink/af_netlink.c`).
    pub(crate) fn open(family: Family, table: &'a Name) -> Result<Self, NetlinkError> {
        let socket = listen(BUFFER_BYTES).map_err(|source| NetlinkError::Open { source })?;
        Ok(Self { socket, family, table, received: vec![0; RECEIVE_BYTES], seen: Seen::default() })
    }

    /// Takes in what has been told so far, so that there is room for more; whether the table was touched.
    pub(crate) fn take_in(&mut self) -> Result<bool, NetlinkError> {
        for _ in 0..AT_ONCE {
            if !self.receive(Wait::Never)? {
                return Ok(self.seen.touched);
            }
        }
        self.seen.lost = true;
        Ok(self.seen.touched)
    }

    /// Whether the table was touched by commits later than generation `before`, up to `after`.
    pub(crate) fn between(&mut self, before: u32, after: u32) -> Result<Touched, NetlinkError> {
        if before == after {
            return Ok(Touched::No);
        }
        let deadline = Instant::now() + PATIENCE;
        self.take_in()?;
        while !self.seen.touched && !self.seen.lost && !self.has_passed(after) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.seen.lost = true;
            } else {
                self.receive(Wait::For(left))?;
            }
        }
        Ok(match self.seen {
            Seen { touched: true, .. } => Touched::Yes,
            Seen { lost: true, .. } => Touched::Unknown,
            Seen { .. } => Touched::No,
        })
    }

    /// Generations wrap around.
    fn has_passed(&self, generation: u32) -> bool {
        self.seen.generation.is_some_and(|seen| seen.wrapping_sub(generation).cast_signed() >= 0)
    }

    /// Takes in one datagram; false if there was none.
    fn receive(&mut self, wait: Wait) -> Result<bool, NetlinkError> {
        let received = match self.socket.receive(&mut self.received, wait) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.seen.lost = true;
                return Ok(true);
            }
            Err(source) => return Err(NetlinkError::Receive { source }),
        };
        for message in messages(received) {
            self.seen.generation = nft::dump::generation(&message).or(self.seen.generation);
            self.seen.touched |=
                change_of(&message, self.table).is_some_and(|(family, _)| family == self.family);
        }
        Ok(true)
    }
}
