//! What can go wrong while a laboratory is built or used.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// A failure of the laboratory itself, never of the traffic in it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process may not make network namespaces.
    #[error(
        "missing {missing}: network namespaces need root, `unshare -Urn` around the command, or \
         enter_user_namespace() before the first thread"
    )]
    MissingPrivilege {
        /// The capabilities that are not in the effective set, as in capabilities(7).
        missing: String,
    },
    /// A user namespace could not be entered; the text says what to look at.
    #[error("cannot enter a user namespace: {hint}")]
    UserNamespace {
        /// The likely cause.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be made.
    #[error("cannot {action} for a network namespace")]
    Namespace {
        /// The step that failed.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A thread or a file needed to make a namespace was refused.
    #[error("cannot {action} for a network namespace")]
    Resource {
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot set {}", path.display())]
    Sysctl {
        /// The file below `/proc/sys`.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A program could not be started or spoken to.
    #[error("cannot run {command}")]
    Spawn {
        /// The command line.
        command: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("{command} failed in namespace {namespace} ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// The namespace's name.
        namespace: String,
        /// Exit status or signal.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// `nft -j list ruleset` printed something that is not JSON.
    #[error("nft's JSON listing does not parse")]
    Listing(#[source] serde_json::Error),
    /// More pods than a node's /24 has addresses.
    #[error("{0} pods do not fit on one node, at most {max} do", max = super::topology::MAX_PODS)]
    TooManyPods(usize),
    /// Links did not come up in time.
    #[error("links of {0} did not come up")]
    LinkDown(String),
    /// The machine's connection tracking table is too small for load tests.
    #[error("nf_conntrack_max is {0}, and namespaces cannot raise it: set at least 65536 on the machine")]
    ConntrackTooSmall(u64),
}
