//! What people should hear of, as values: the agent knows it, others make events and metrics of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mode::OutageCause;
use model::{IpFamily, Node, Protocol, ServiceName, ServicePortName, Uid};
use tokio::sync::mpsc::UnboundedSender;

/// Something that people should hear of. Each is told once; what lasts is not told again, except where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A Service's claim to an address and port is not in force, because another Service has it. Told again when it is
    /// lost to yet another one.
    ConflictBegan(Conflict),
    /// That is over.
    ConflictEnded(Conflict),
    /// A Service asks for something that the mode can't do. Told when it begins to, and when it asks for something else of the kind.
    NotOnThisPlatform {
        /// Who asks.
        service: ServiceName,
        /// Its `metadata.uid`, if it is known.
        uid: Option<Uid>,
        /// What comes of it, each in a sentence without its end; sorted.
        what: Vec<&'static str>,
    },
    /// Something that is no Service's has a Service's address and port on this node, so that the Service is not served there. It is
    /// tried again until that has gone.
    FrontendTaken {
        /// Whose claim is not in force.
        service: ServiceName,
        /// Its `metadata.uid`, if it is known.
        uid: Option<Uid>,
        /// What has it.
        taken: Taken,
    },
    /// An endpoint gets nothing for now, although Kubernetes says that it serves.
    EndpointOut {
        /// Of which Service port.
        service: ServicePortName,
        /// The endpoint.
        endpoint: SocketAddr,
        /// What decided so.
        cause: OutageCause,
    },
    /// The rules could not be brought into the kernel for longer than twice [`sync_period`](crate::Settings::sync_period).
    /// Told again every [`SYNCS_FAIL_EVERY`] while it lasts.
    SyncsFail {
        /// Whose rules.
        family: IpFamily,
        /// Since when.
        lasting: Duration,
        /// What the kernel said last.
        error: String,
    },
    /// That is over.
    SyncsWork {
        /// Whose rules.
        family: IpFamily,
        /// For how long it was so.
        lasted: Duration,
    },
    /// This node's Node object as it is known now: told after the first listing, and when it changes. `None`: there was
    /// none yet. One that is deleted is not forgotten.
    Node(Option<Node>),
}

/// How often [`Notice::SyncsFail`] is told again: before Kubernetes' event clients close a series, which is after 6 minutes.
pub const SYNCS_FAIL_EVERY: Duration = Duration::from_mins(5);

/// Two Services claim the same address, protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// In which family.
    pub family: IpFamily,
    /// The address; `None`: the node's own, that is, a node port.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// Whose claim is not in force.
    pub loser: ServicePortName,
    /// The losing Service's `metadata.uid`, if it is known.
    pub uid: Option<Uid>,
    /// Whose claim is, or was when the conflict ended.
    pub winner: ServicePortName,
}

/// An address and port that somebody has who is no Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taken {
    /// In which family.
    pub family: IpFamily,
    /// The address; `None`: the node's own, that is, a node port.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// What has it, in words.
    pub by: String,
}

/// Where notices go. The default is nowhere.
#[derive(Clone, Debug, Default)]
pub struct Notices(Option<UnboundedSender<Notice>>);

impl Notices {
    /// To a channel. It may be closed at any time.
    pub fn to(channel: UnboundedSender<Notice>) -> Self {
        Self(Some(channel))
    }

    pub(crate) fn tell(&self, notice: Notice) {
        if let Some(channel) = &self.0 {
            // Nobody listens any more.
            drop(channel.send(notice));
        }
    }
}
