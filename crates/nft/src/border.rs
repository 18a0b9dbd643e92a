//! The border to a kernel, real or fake.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::dump::Count;
use crate::{Family, Name, Ruleset, Transaction};

/// Somewhere that transactions can be applied to and tables read from. One instance is used by one thread.
pub trait Kernel: Send {
    /// Applies the transaction, all or nothing (if it had to be cut: each piece, and [`KernelError::Partial`] tells
    /// how many). An empty one does nothing.
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, KernelError>;

    /// Reads one table. What others do to other tables meanwhile makes no difference.
    ///
    /// # Errors
    /// The kernel can't be asked. [`KernelError::Unstable`] is no error here, but [`Reading::Unstable`].
    fn read(&mut self, family: Family, table: &Name) -> Result<Reading, KernelError>;

    /// Reads what elements of these sets have counted, by set: those that have counted something. Sets that are not there, or
    /// not counted, are left out. Not of one moment: what changes meanwhile may be told as it was before or as it is after.
    ///
    /// # Errors
    /// The kernel can't be asked.
    fn counts(&mut self, family: Family, table: &Name, sets: &[Name]) -> Result<Counts, KernelError>;
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
    /// [`KernelError::Unstable`].
    pub fn whole(self) -> Result<Option<Ruleset>, KernelError> {
        match self {
            Self::Whole(found) => Ok(found),
            Self::Unstable => Err(KernelError::Unstable),
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

/// Why a transaction or a reading failed. Nothing of the failed piece is applied, except that it is not known after
/// [`KernelError::OutcomeUnknown`].
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No socket.
    #[error("open netfilter socket")]
    Open {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A message did not get to the kernel.
    #[error("send {bytes} bytes to netfilter")]
    Send {
        /// Size of the message.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No answer to a request.
    #[error("receive from netfilter")]
    Receive {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an object; of several, this was the first.
    #[error("kernel refused {object}: {}{}", io::Error::from_raw_os_error(*.errno), in_brackets(.message.as_deref()))]
    Refused {
        /// What was refused, such as `element 10.0.0.1 . tcp . 80 of map service-ips`.
        object: String,
        /// Number of the error.
        errno: i32,
        /// The kernel's own explanation, if it gave one.
        message: Option<String>,
    },
    /// The transaction was sent but the kernel's answers were lost: read the table to learn what holds.
    #[error("outcome of the transaction is unknown: {why}")]
    OutcomeUnknown {
        /// What was lost.
        why: &'static str,
    },
    /// A transaction that was cut into pieces failed after some of them had been applied.
    #[error("transaction failed after {applied} applied batches")]
    Partial {
        /// Number of pieces that hold.
        applied: usize,
        /// Why the next one failed.
        #[source]
        source: Box<KernelError>,
    },
    /// The kernel sent something that can't be understood.
    #[error("decode answer from netfilter: {what}")]
    Decode {
        /// What was wrong with it.
        what: &'static str,
    },
    /// See [`Reading::Unstable`].
    #[error("the table kept changing while it was read")]
    Unstable,
}

impl KernelError {
    /// The kernel refused an object.
    pub fn refused(object: String, errno: i32, message: Option<String>) -> Self {
        Self::Refused { object, errno, message }
    }

    /// Number of the system's error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { source } | Self::Send { source, .. } | Self::Receive { source } => {
                source.raw_os_error()
            }
            Self::Refused { errno, .. } => Some(*errno),
            Self::Partial { source, .. } => source.errno(),
            Self::OutcomeUnknown { .. } | Self::Decode { .. } | Self::Unstable => None,
        }
    }

    /// Whether reading the table anew and applying the difference has a chance. Not so for a lack of permission, a
    /// kernel that lacks a feature, or a message that it can't parse.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unstable | Self::OutcomeUnknown { .. } => true,
            Self::Decode { .. } => false,
            Self::Partial { source, .. } => source.is_retryable(),
            Self::Open { .. } | Self::Send { .. } | Self::Receive { .. } | Self::Refused { .. } => {
                !self.errno().is_some_and(is_permanent)
            }
        }
    }
}

fn in_brackets(message: Option<&str>) -> String {
    message.map(|message| format!(" ({message})")).unwrap_or_default()
}

/// EPERM, EACCES, EINVAL, EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT: the same on all architectures that matter here.
fn is_permanent(errno: i32) -> bool {
    matches!(errno, 1 | 13 | 22 | 93 | 95 | 97)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_object_and_explanation() {
        let error = KernelError::refused("chain x".to_owned(), 16, Some("busy indeed".to_owned()));
        assert!(error.to_string().starts_with("kernel refused chain x: "), "{error}");
        assert!(error.to_string().ends_with(" (busy indeed)"), "{error}");
        assert_eq!(error.errno(), Some(16));
    }

    #[test]
    fn only_errors_that_may_pass_are_retryable() {
        assert!(KernelError::refused("chain x".to_owned(), 16, None).is_retryable());
        assert!(!KernelError::refused("chain x".to_owned(), 1, None).is_retryable());
        assert!(KernelError::Unstable.is_retryable());
        assert!(!KernelError::Decode { what: "short" }.is_retryable());
        let inner = KernelError::refused("chain x".to_owned(), 95, None);
        let partial = KernelError::Partial { applied: 1, source: Box::new(inner) };
        assert_eq!((partial.errno(), partial.is_retryable()), (Some(95), false));
    }
}
