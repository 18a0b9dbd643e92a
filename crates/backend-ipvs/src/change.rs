//! Changes of virtual servers and their addresses, one by one.

use std::fmt;

use ipvs::device::AddressChange;
use ipvs::{Command, RealServer, Timeouts};
use model::Family;

use crate::options::Options;
use crate::state::{Id, Seconds, Socket};

/// One change, which is done or fails by itself. Small, since there is one for each endpoint at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<F: Family> {
    /// Adds an address to the device.
    AddAddress(F::Addr),
    /// Makes a virtual server.
    NewVirtual(Id<F>, Seconds),
    /// Gives a virtual server its scheduler, flags and persistence.
    SetVirtual(Id<F>, Seconds),
    /// Adds an endpoint.
    NewReal(Id<F>, Socket<F>),
    /// Gives an endpoint that is there its full weight (back).
    RestoreReal(Id<F>, Socket<F>),
    /// Keeps new connections from an endpoint.
    DrainReal(Id<F>, Socket<F>),
    /// Deletes an endpoint that has been drained, if it has no connections any more.
    ReleaseReal(Id<F>, Socket<F>),
    /// Deletes an endpoint.
    DeleteReal(Id<F>, Socket<F>),
    /// Deletes a virtual server with its endpoints.
    DeleteVirtual(Id<F>),
    /// Takes an address from the device.
    DeleteAddress(F::Addr),
    /// Sets IPVS's time-outs.
    SetTimeouts(Timeouts),
}

/// What carries a change out.
pub(crate) enum Means<F: Family> {
    Address(AddressChange),
    Command(Command),
    Release(Id<F>, Socket<F>),
}

/// All endpoints are alike: weighted schedulers behave like those without.
const WEIGHT: u32 = 1;
const NO_WEIGHT: u32 = 0;

impl<F: Family> Change<F> {
    /// The virtual server that it is about.
    pub(crate) fn id(&self) -> Option<Id<F>> {
        match self {
            Self::NewVirtual(id, _)
            | Self::SetVirtual(id, _)
            | Self::NewReal(id, _)
            | Self::RestoreReal(id, _)
            | Self::DrainReal(id, _)
            | Self::ReleaseReal(id, _)
            | Self::DeleteReal(id, _)
            | Self::DeleteVirtual(id) => Some(*id),
            Self::AddAddress(_) | Self::DeleteAddress(_) | Self::SetTimeouts(_) => None,
        }
    }

    pub(crate) fn means(&self, options: &Options) -> Means<F> {
        let real = |socket: &Socket<F>, weight| RealServer::new(socket.real_id(), weight);
        Means::Command(match self {
            Self::AddAddress(address) => return Means::Address(AddressChange::Add((*address).into())),
            Self::DeleteAddress(address) => return Means::Address(AddressChange::Delete((*address).into())),
            Self::ReleaseReal(id, socket) => return Means::Release(*id, *socket),
            Self::NewVirtual(id, persistence) => {
                Command::NewVirtual(options.virtual_server(id, *persistence))
            }
            Self::SetVirtual(id, persistence) => {
                Command::SetVirtual(options.virtual_server(id, *persistence))
            }
            Self::NewReal(id, socket) => Command::NewReal(id.server_id(), real(socket, WEIGHT)),
            Self::RestoreReal(id, socket) => Command::SetReal(id.server_id(), real(socket, WEIGHT)),
            Self::DrainReal(id, socket) => Command::SetReal(id.server_id(), real(socket, NO_WEIGHT)),
            Self::DeleteReal(id, socket) => Command::DeleteReal(id.server_id(), socket.real_id()),
            Self::DeleteVirtual(id) => Command::DeleteVirtual(id.server_id()),
            Self::SetTimeouts(timeouts) => Command::SetTimeouts(*timeouts),
        })
    }
}

impl<F: Family> fmt::Display for Change<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::NewVirtual(id, _) => write!(f, "add virtual server {id}"),
            Self::SetVirtual(id, _) => write!(f, "set virtual server {id}"),
            Self::NewReal(id, real) => write!(f, "add real server {real} to {id}"),
            Self::RestoreReal(id, real) => write!(f, "give real server {real} of {id} its weight"),
            Self::DrainReal(id, real) => write!(f, "drain real server {real} of {id}"),
            Self::ReleaseReal(id, real) => write!(f, "delete real server {real} of {id} if it is idle"),
            Self::DeleteReal(id, real) => write!(f, "delete real server {real} of {id}"),
            Self::DeleteVirtual(id) => write!(f, "delete virtual server {id}"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
            Self::SetTimeouts(_) => f.write_str("set time-outs"),
        }
    }
}
