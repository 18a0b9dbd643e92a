//! The border to a kernel, real or fake.

use std::io;

use crate::{Filter, Flow};

/// A table of tracked flows. One instance is used by one thread.
pub trait Conntrack: Send {
    /// Calls `visit` for each flow that the filter selects, in no order. A flow may come twice.
    ///
    /// # Errors
    /// After [`ConntrackError::Interrupted`] what was visited is right, but flows may be missing.
    fn each(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), ConntrackError>;

    /// Deletes the flows that the filter selects and for which `stale` says true; returns how many. `stale` may be
    /// asked more than once about a flow.
    ///
    /// Each is deleted by its exact tuples and id, so that a flow that took its place is not hit; one that is gone
    /// already is no error and does not count. A flow that the kernel refuses to delete keeps none of the others.
    ///
    /// A disturbed reading of the table is repeated a few times. What all of them missed is left, and the call ends
    /// with [`ConntrackError::Interrupted`]: a table that never stands still must not keep the caller for good. Calling
    /// again later does no harm.
    ///
    /// # Errors
    /// If flows were deleted before or besides the failure, [`ConntrackError::Partial`] says how many.
    fn delete(
        &mut self,
        filter: &Filter,
        stale: &mut dyn FnMut(&Flow) -> bool,
    ) -> Result<u64, ConntrackError>;
}

/// Why flows could not be read or deleted, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No socket.
    #[error("open netfilter socket")]
    Open {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A message did not get to the kernel.
    #[error("send {bytes} bytes to conntrack")]
    Send {
        /// Size of the message.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No answer to a request.
    #[error("receive from conntrack")]
    Receive {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a request; of several, this was the first.
    #[error("kernel refused {object}: {}{}", io::Error::from_raw_os_error(*.errno), in_brackets(.message.as_deref()))]
    Refused {
        /// What was refused, such as `reading of ip udp flows to port 53`.
        object: String,
        /// Number of the error.
        errno: i32,
        /// The kernel's own explanation, if it gave one.
        message: Option<String>,
    },
    /// Deletions were sent, but the kernel's answers were lost. They were most likely done, and are not counted.
    #[error("outcome of deletions is unknown: {why}")]
    OutcomeUnknown {
        /// What was lost.
        why: &'static str,
    },
    /// The table was changed in a way that may have hidden flows while it was read, each time.
    #[error("flows may be missing: the table was disturbed while it was read")]
    Interrupted,
    /// Flows were deleted, but not all that should have been.
    #[error("deleting failed besides {deleted} deleted flows")]
    Partial {
        /// Number of flows that were deleted.
        deleted: u64,
        /// The first failure.
        #[source]
        source: Box<ConntrackError>,
    },
}

impl ConntrackError {
    /// The error, together with how many flows were deleted all the same.
    #[must_use]
    pub fn after(self, deleted: u64) -> Self {
        if deleted == 0 { self } else { Self::Partial { deleted, source: Box::new(self) } }
    }

    /// Number of flows that were deleted all the same.
    pub const fn deleted(&self) -> u64 {
        match self {
            Self::Partial { deleted, .. } => *deleted,
            _ => 0,
        }
    }

    /// Number of the system's error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { source } | Self::Send { source, .. } | Self::Receive { source } => {
                source.raw_os_error()
            }
            Self::Refused { errno, .. } => Some(*errno),
            Self::Partial { source, .. } => source.errno(),
            Self::OutcomeUnknown { .. } | Self::Interrupted => None,
        }
    }

    /// Whether doing the same again later has a chance. Not so for a lack of permission or a kernel that lacks the
    /// feature.
    pub fn is_retryable(&self) -> bool {
        !self.errno().is_some_and(is_permanent)
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

    fn refused(errno: i32) -> ConntrackError {
        ConntrackError::Refused { object: "deletion of x".to_owned(), errno, message: None }
    }

    #[test]
    fn what_was_deleted_all_the_same_is_told() {
        assert!(matches!(refused(16).after(0), ConntrackError::Refused { .. }));
        let error = refused(16).after(3);
        assert_eq!((error.deleted(), error.errno(), error.is_retryable()), (3, Some(16), true));
        assert_eq!(error.to_string(), "deleting failed besides 3 deleted flows");
        assert!(!refused(1).after(3).is_retryable());
        assert!(ConntrackError::Interrupted.is_retryable());
    }

    #[test]
    fn a_refusal_names_object_and_explanation() {
        let message = Some("busy indeed".to_owned());
        let error = ConntrackError::Refused { object: "deletion of x".to_owned(), errno: 16, message };
        let text = error.to_string();
        assert!(
            text.starts_with("kernel refused deletion of x: ") && text.ends_with(" (busy indeed)"),
            "{text}"
        );
    }
}
