//! What can fail.

use std::io;
use std::path::PathBuf;

use cleanup::legacy::ParseError;
use cleanup::upstream::Table;
use netlink::NetlinkError;
use nft::{Family, Name};

/// Something that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// It is not known which tables iptables-legacy has.
    #[error("read {}, which tells iptables-legacy's tables", .path.display())]
    TableNames {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else is at work on iptables.
    #[error("somebody else holds the lock of iptables, {name}")]
    Locked {
        /// The lock.
        name: String,
    },
    /// A table of iptables-legacy could not be read or replaced.
    #[error("{action} table {family} {table} of iptables-legacy")]
    Legacy {
        /// What was tried.
        action: &'static str,
        /// The family.
        family: Family,
        /// The table.
        table: Table,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A table of iptables-legacy is not as its tools write it.
    #[error("understand table {family} {table} of iptables-legacy")]
    Unreadable {
        /// The family.
        family: Family,
        /// The table.
        table: Table,
        /// What is odd.
        #[source]
        source: ParseError,
    },
    /// Rules of iptables-nft.
    #[error("{action} of iptables-nft ({family})")]
    Compat {
        /// What was tried, or what was refused.
        action: String,
        /// The family.
        family: Family,
        /// Why it failed.
        #[source]
        source: NetlinkError,
    },
    /// What mode ipvs left: virtual servers, their device, sets.
    #[error("{action}")]
    Ipvs {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: NetlinkError,
    },
    /// Virtual servers.
    #[error("remove virtual servers of mode ipvs")]
    VirtualServers(
        /// Why it failed.
        #[source]
        NetlinkError,
    ),
    /// Our own table.
    #[error("delete table {family} {table}")]
    OwnTable {
        /// The family.
        family: Family,
        /// The table.
        table: Name,
        /// Why it failed.
        #[source]
        source: NetlinkError,
    },
}
