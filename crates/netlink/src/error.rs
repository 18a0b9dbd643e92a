//! What can fail between us and the kernel, whatever is asked of it.

use std::io;

/// Why a request, a batch or a reading failed.
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
    /// No answer to a request.
    #[error("receive over netlink")]
    Receive {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an object or a request; of several, this was the first.
    #[error("kernel refused {object}: {}{}", io::Error::from_raw_os_error(*.errno), in_brackets(.message.as_deref()))]
    Refused {
        /// What was refused, such as `element 10.0.0.1 . tcp . 80 of map service-ips` or `reading of ip udp flows`.
        object: String,
        /// Number of the error.
        errno: i32,
        /// The kernel's own explanation, if it gave one.
        message: Option<String>,
    },
    /// What was to be changed was sent, but the kernel's answers were lost: only a reading tells what holds.
    #[error("outcome is unknown: {why}")]
    OutcomeUnknown {
        /// What was lost.
        why: &'static str,
    },
    /// Part of what was to be done is done, and the rest is not, or not known to be.
    #[error("failed besides {done} {what}")]
    Partial {
        /// How many.
        done: u64,
        /// Of what, such as `applied batches`.
        what: &'static str,
        /// The first failure.
        #[source]
        source: Box<NetlinkError>,
    },
    /// The kernel sent something that can't be understood.
    #[error("decode what came over netlink: {what}")]
    Decode {
        /// What was wrong with it.
        what: &'static str,
    },
    /// What was read kept changing meanwhile, so that it is not whole, or of no one state.
    #[error("what was read kept changing meanwhile")]
    Interrupted,
    /// The kernel lacks something for which it could load no module.
    #[error("{what}")]
    Missing {
        /// What it lacks, in a sentence.
        what: String,
    },
    /// Something is there that is somebody else's.
    #[error("{what}")]
    Foreign {
        /// What it is, in a sentence.
        what: String,
    },
    /// The same, with what it was about.
    #[error("{action}")]
    During {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<NetlinkError>,
    },
}

impl NetlinkError {
    /// The kernel refused an object.
    pub fn refused(object: impl Into<String>, errno: i32, message: Option<String>) -> Self {
        Self::Refused { object: object.into(), errno, message }
    }

    /// The error, together with how much was done all the same, beside what it says already.
    #[must_use]
    pub fn besides(self, more: u64, what: &'static str) -> Self {
        match self {
            Self::Partial { done, what: known, source } if known == what => {
                Self::Partial { done: done + more, what, source }
            }
            error if more == 0 => error,
            error => Self::Partial { done: more, what, source: Box::new(error) },
        }
    }

    /// The error, together with what was being done.
    #[must_use]
    pub fn during(self, action: &'static str) -> Self {
        Self::During { action, source: Box::new(self) }
    }

    /// How much was done all the same.
    pub const fn done(&self) -> u64 {
        match self {
            Self::Partial { done, .. } => *done,
            _ => 0,
        }
    }

    /// Number of the error, if the kernel refused something.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Partial { source, .. } | Self::During { source, .. } => source.refusal(),
            _ => None,
        }
    }

    /// Number of the system's error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open { source } | Self::Send { source, .. } | Self::Receive { source } => {
                source.raw_os_error()
            }
            Self::Partial { source, .. } | Self::During { source, .. } => source.errno(),
            _ => self.refusal(),
        }
    }

    /// Whether doing the same again, after a reading where that tells what holds, has a chance. Not so for a lack of
    /// permission, a kernel that lacks a feature, or a message that one of us can't parse.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Interrupted | Self::OutcomeUnknown { .. } | Self::Foreign { .. } => true,
            Self::Decode { .. } | Self::Missing { .. } => false,
            Self::Partial { source, .. } | Self::During { source, .. } => source.is_retryable(),
            Self::Open { .. } | Self::Send { .. } | Self::Receive { .. } | Self::Refused { .. } => {
                !self.errno().is_some_and(is_permanent)
            }
        }
    }

    /// Whether the kernel lacks something.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
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

    const EPERM: i32 = 1;
    const EBUSY: i32 = 16;
    const EOPNOTSUPP: i32 = 95;

    fn refused(errno: i32) -> NetlinkError {
        NetlinkError::refused("chain x", errno, None)
    }

    #[test]
    fn a_refusal_names_object_and_explanation() {
        let error = NetlinkError::refused("chain x", EBUSY, Some("busy indeed".to_owned()));
        let text = error.to_string();
        assert!(text.starts_with("kernel refused chain x: ") && text.ends_with(" (busy indeed)"), "{text}");
        assert_eq!((error.errno(), error.refusal()), (Some(EBUSY), Some(EBUSY)));
    }

    #[test]
    fn only_errors_that_may_pass_are_retryable() {
        assert!(refused(EBUSY).is_retryable() && !refused(EPERM).is_retryable());
        assert!(NetlinkError::Interrupted.is_retryable());
        assert!(!NetlinkError::Decode { what: "short" }.is_retryable());
        assert!(!NetlinkError::Missing { what: "no IPVS".to_owned() }.is_retryable());
        assert!(NetlinkError::Foreign { what: "a bridge".to_owned() }.is_retryable());
    }

    #[test]
    fn what_an_error_is_wrapped_in_hides_nothing() {
        let partial = refused(EOPNOTSUPP).besides(3, "deleted flows").during("delete stale flows");
        assert_eq!((partial.errno(), partial.refusal()), (Some(EOPNOTSUPP), Some(EOPNOTSUPP)));
        assert!(!partial.is_retryable());
        assert!(refused(EBUSY).besides(3, "deleted flows").is_retryable());
    }

    #[test]
    fn what_was_done_all_the_same_is_told() {
        assert!(matches!(refused(EBUSY).besides(0, "deleted flows"), NetlinkError::Refused { .. }));
        let error = refused(EBUSY).besides(3, "deleted flows");
        assert_eq!((error.done(), error.to_string()), (3, "failed besides 3 deleted flows".to_owned()));
        assert_eq!(error.besides(4, "deleted flows").done(), 7);
    }

    #[test]
    fn a_socket_that_fails_is_no_refusal() {
        let denied = NetlinkError::Open { source: io::Error::from_raw_os_error(EPERM) };
        assert_eq!((denied.refusal(), denied.errno(), denied.is_retryable()), (None, Some(EPERM), false));
    }
}
