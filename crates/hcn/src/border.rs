//! The calls of HNS.

use std::fmt;

use serde_json::Value;

use crate::error::HcnError;
use crate::guid::Guid;
use crate::version::Version;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A switch with subnets.
    Network,
    /// An address on a network, of this node or of another one.
    Endpoint,
    /// A frontend and the endpoints behind it.
    LoadBalancer,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Network, Self::Endpoint, Self::LoadBalancer];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Endpoint => "endpoint",
            Self::LoadBalancer => "load balancer",
        })
    }
}

/// One of [`Hcn`]'s calls, for errors and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Hcn::version`]
    Version,
    /// [`Hcn::ids`]
    Ids(Kind),
    /// [`Hcn::query`]
    Query(Kind, Guid),
    /// [`Hcn::create`]
    Create(Kind),
    /// [`Hcn::modify`]
    Modify(Kind, Guid),
    /// [`Hcn::delete`]
    Delete(Kind, Guid),
}

impl Call {
    /// Whether it changes something, if it is done.
    pub const fn writes(&self) -> bool {
        match self {
            Self::Version | Self::Ids(_) | Self::Query(..) => false,
            Self::Create(_) | Self::Modify(..) | Self::Delete(..) => true,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version => f.write_str("ask for the version"),
            Self::Ids(kind) => write!(f, "list the ids of each {kind}"),
            Self::Query(kind, id) => write!(f, "read {kind} {id}"),
            Self::Create(kind) => write!(f, "create {kind}"),
            Self::Modify(kind, id) => write!(f, "modify {kind} {id}"),
            Self::Delete(kind, id) => write!(f, "delete {kind} {id}"),
        }
    }
}

/// A connection to HNS. Each call is one request or a few to the service, which works on one at a time; none decides anything.
///
/// Documents are JSON as HNS has it ([`Network`](crate::Network), [`Endpoint`](crate::Endpoint),
/// [`LoadBalancer`](crate::LoadBalancer)). A call that fails says so with HNS's code and text; one that failed halfway may have
/// left its object.
pub trait Hcn: Send {
    /// The version of HNS: `HNSCall("GET", "/globals/version")`.
    ///
    /// # Errors
    /// HNS is away, or answers something else.
    fn version(&mut self) -> Result<Version, HcnError>;

    /// The ids of all objects of a kind, whosesoever they are: `HcnEnumerate…`.
    ///
    /// # Errors
    /// HNS refuses it or is away.
    fn ids(&mut self, kind: Kind) -> Result<Vec<Guid>, HcnError>;

    /// One object: `HcnOpen…`, `HcnQuery…Properties`, `HcnClose…`.
    ///
    /// # Errors
    /// There is none ([`Failure::NotFound`](crate::Failure::NotFound)), or as above.
    fn query(&mut self, kind: Kind, id: Guid) -> Result<Value, HcnError>;

    /// Makes an object (`HcnCreate…`) and reads it back: its id and what HNS made of it. An endpoint is made on a `network`,
    /// which other kinds do not need. HNS may keep the proposed `id` or choose another one.
    ///
    /// # Errors
    /// HNS refuses it or is away.
    fn create(
        &mut self,
        kind: Kind,
        network: Option<Guid>,
        id: Option<Guid>,
        settings: &Value,
    ) -> Result<(Guid, Value), HcnError>;

    /// Replaces an object's settings in place: `HcnOpen…`, `HcnModify…`, `HcnClose…`.
    ///
    /// # Errors
    /// There is no such object, this HNS can't ([`Failure::NotImplemented`](crate::Failure::NotImplemented)), or as above.
    fn modify(&mut self, kind: Kind, id: Guid, settings: &Value) -> Result<(), HcnError>;

    /// Deletes an object: `HcnDelete…`.
    ///
    /// # Errors
    /// There is no such object, or as above.
    fn delete(&mut self, kind: Kind, id: Guid) -> Result<(), HcnError>;
}
