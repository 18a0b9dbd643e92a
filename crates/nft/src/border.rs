//! The border to a kernel, real or fake.

use std::collections::BTreeMap;
use std::time::Duration;

use netlink::NetlinkError;

use crate::dump::Count;
use crate::{Family, Name, Ruleset, Transaction};

/// Somewhere that transactions can be applied to and tables read from. One instance is used by one thread.
pub trait Kernel: Send {
    /// Applies the transaction, all or nothing (if it had to be cut: each piece, and [`NetlinkError::Partial`] tells
    /// how many). An empty one does nothing. Nothing of a piece that failed is applied, except that it is not known after
    /// [`NetlinkError::OutcomeUnknown`].
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, NetlinkError>;

    /// Reads one table. What others do to other tables meanwhile makes no difference.
    ///
    /// # Errors
    /// The kernel can't be asked. [`NetlinkError::Interrupted`] is no error here, but [`Reading::Unstable`].
    fn read(&mut self, family: Family, table: &Name) -> Result<Reading, NetlinkError>;

    /// Reads what elements of these sets have counted, by set: those that have counted something. Sets that are not there, or
    /// not counted, are left out. Not of one moment: what changes meanwhile may be told as it was before or as it is after.
    ///
    /// # Errors
    /// The kernel can't be asked.
    fn counts(&mut self, family: Family, table: &Name, sets: &[Name]) -> Result<Counts, NetlinkError>;
}

/// What elements have counted, by set.
pub type Counts = BTreeMap<Name, Vec<Count>>;

/// What came of reading a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The table as it was at one moment; `None`: there was none.
    Whole(Option<Ruleset>),
    /// Somebody kept changing the table itself while it was read, again and again: it says nothing about the table.
    Unstable,
}

impl Reading {
    /// The table, for those to whom an unstable reading is a failure like others.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`].
    pub fn whole(self) -> Result<Option<Ruleset>, NetlinkError> {
        match self {
            Self::Whole(found) => Ok(found),
            Self::Unstable => Err(NetlinkError::Interrupted),
        }
    }
}

/// What applying a transaction took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Pieces that the transaction was cut into; each was atomic.
    pub batches: usize,
    /// Netlink messages, without the batch framing.
    pub messages: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time inside `sendto`, where the kernel does the work.
    pub kernel_time: Duration,
}
