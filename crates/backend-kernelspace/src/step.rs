//! Calls, one by one.

use std::fmt;

use hcn::{Endpoint, Guid, LoadBalancer};
use model::{Family, FrontendKey};
use tokio::time::Instant;

use crate::form::Form;

/// An endpoint of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member<F: Family> {
    /// One that is known.
    Known(Guid),
    /// One that an earlier step of the same plan makes or finds. If that fails, the load balancer goes without.
    Pending(F::Addr),
}

/// A call of HNS, or the few that one object takes; done or not as a whole.
#[derive(Clone, Debug)]
pub enum Step<F: Family> {
    /// Finds the endpoint of this node that has an address.
    Locate(F::Addr),
    /// Makes an endpoint on our network, with this id if HNS keeps it.
    MakeEndpoint(F::Addr, Guid, Box<Endpoint>),
    /// Makes the load balancer of a frontend, with this id if HNS keeps it.
    Make(FrontendKey<F>, Guid, Box<Form<F>>, Vec<Member<F>>),
    /// Gives a load balancer other endpoints in place.
    Modify(FrontendKey<F>, Box<Modification<F>>),
    /// Deletes the load balancer of a frontend.
    Delete(FrontendKey<F>, Guid),
    /// Deletes a load balancer that is no frontend's.
    DeleteStray(Guid),
    /// Deletes a remote endpoint, unless an earlier step of the same plan failed that was to have one of these frontends let go
    /// of it.
    DeleteEndpoint(F::Addr, Guid, Vec<FrontendKey<F>>),
    /// Reads a load balancer, to see whether it is as it should be.
    Check(FrontendKey<F>, Guid),
}

/// What [`Step::Modify`] does.
#[derive(Clone, Debug)]
pub struct Modification<F: Family> {
    /// Which.
    pub id: Guid,
    /// What it becomes.
    pub form: Form<F>,
    /// Its endpoints then.
    pub members: Vec<Member<F>>,
    /// Its endpoints before; sorted.
    pub held: Vec<Guid>,
    /// It is read afterwards: there is a version that takes the call and changes nothing.
    pub verify: bool,
}

/// What a step leaves in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// An endpoint was found or made.
    Endpoint(Guid),
    /// A load balancer is so now.
    Balancer(Guid, Box<LoadBalancer>),
    /// A load balancer was read at this time; `None`: it is gone.
    Checked(Instant, Option<Box<LoadBalancer>>),
    /// It is gone.
    Gone,
}

impl<F: Family> Step<F> {
    /// Whether it changes something.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self, Self::Locate(_) | Self::Check(..))
    }

    /// The frontend whose load balancer it is about.
    pub(crate) fn frontend(&self) -> Option<&FrontendKey<F>> {
        match self {
            Self::Make(key, ..) | Self::Modify(key, _) | Self::Delete(key, _) | Self::Check(key, _) => {
                Some(key)
            }
            Self::Locate(_) | Self::MakeEndpoint(..) | Self::DeleteStray(_) | Self::DeleteEndpoint(..) => {
                None
            }
        }
    }
}

struct Key<'a, F: Family>(&'a FrontendKey<F>);

impl<F: Family> fmt::Display for Key<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrontendKey { address, protocol, port } = self.0;
        write!(f, "{address} {protocol} {port}")
    }
}

impl<F: Family> fmt::Display for Step<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locate(address) => write!(f, "find endpoint {address}"),
            Self::MakeEndpoint(address, ..) => write!(f, "make endpoint {address}"),
            Self::Make(key, _, _, members) => {
                write!(f, "make load balancer {} of {} endpoints", Key(key), members.len())
            }
            Self::Modify(key, change) => {
                write!(f, "give load balancer {} {} endpoints", Key(key), change.members.len())
            }
            Self::Delete(key, _) => write!(f, "delete load balancer {}", Key(key)),
            Self::DeleteStray(id) => write!(f, "delete load balancer {id}"),
            Self::DeleteEndpoint(address, ..) => write!(f, "delete endpoint {address}"),
            Self::Check(key, _) => write!(f, "look at load balancer {}", Key(key)),
        }
    }
}
