//! What the supervisor needs of this host.

use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

use agent::with_causes;
use backend_nftables::lease::{self, Listeners as Lease, Ports};
use backend_userspace::{Outages, Site};
use conntrack::{Conntrack as _, Filter};
use model::Family;
use netlink::NetlinkError;
use nft::{Kernel as _, Name, Transaction};
use nix::net::if_::InterfaceFlags;
use proxy::frame::Settings;
use proxy::{Listeners, Pair};
use tracing::{debug, warn};

use super::process::Process;
use super::told::Told;
use crate::platform;

/// This host, in one family.
pub(super) struct KernelSite<F> {
    /// Where the lease is.
    table: Name,
    settings: Settings,
    verbosity: u32,
    /// What workers tell.
    told: Told<Outages>,
    /// Opened on the thread that first uses it.
    kernel: Option<kernel::Nftables>,
    family: PhantomData<fn() -> F>,
}

/// Listeners, and how rules find them.
pub(super) struct Place {
    sockets: Listeners,
    lease: Lease,
}

impl<F: Family> KernelSite<F> {
    pub(super) fn new(table: Name, (settings, verbosity): (Settings, u32), told: Told<Outages>) -> Self {
        Self { table, settings, verbosity, told, kernel: None, family: PhantomData }
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<(), NetlinkError> {
        if self.kernel.is_none() {
            self.kernel = Some(kernel::Nftables::open()?);
        }
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        let applied = kernel.apply(transaction).map(drop);
        if applied.as_ref().is_err_and(|error| error.refusal().is_none()) {
            // It may not be usable any more.
            self.kernel = None;
        }
        applied
    }
}

impl<F: Family> Site for KernelSite<F> {
    type Listeners = Place;
    type Worker = Process;

    fn address(&mut self, in_use: Option<IpAddr>) -> Option<IpAddr> {
        // If they can't be read, nothing is known to be wrong with the one in use.
        let Ok(addresses) = addresses::<F>() else { return in_use };
        in_use.filter(|in_use| addresses.contains(in_use)).or_else(|| addresses.first().copied())
    }

    fn listen(&mut self, address: IpAddr) -> io::Result<Place> {
        let sockets = Listeners::at(address)?;
        let ports = |pair: &Pair| -> io::Result<Ports> {
            Ok(Ports { tcp: pair.tcp.local_addr()?.port(), udp: pair.udp.local_addr()?.port() })
        };
        let lease = Lease { address, any: ports(&sockets.any)?, internal: ports(&sockets.internal)? };
        debug!(%address, any = ?lease.any, internal = ?lease.internal, "workers listen");
        Ok(Place { sockets, lease })
    }

    fn start(&mut self, listeners: &Place) -> io::Result<Process> {
        Process::start(&listeners.sockets, &self.settings, self.verbosity, self.told.new_worker())
    }

    fn renew(&mut self, listeners: &Place) -> Result<(), String> {
        const ENOENT: i32 = 2;
        let table = self.table.clone();
        let renewed = match self.apply(&lease::renew::<F>(table.clone(), &listeners.lease)) {
            Err(error) if error.refusal() == Some(ENOENT) => {
                self.apply(&lease::begin::<F>(table, &listeners.lease))
            }
            other => other,
        };
        renewed.map_err(|error| format!("the lease is refused: {}", with_causes(&error)))
    }

    fn end(&mut self) {
        if let Err(error) = self.apply(&lease::end::<F>(self.table.clone())) {
            // It is over already, or will be soon.
            debug!(err = with_causes(&error), "the lease is not ended");
        }
    }

    fn udp(&self, listeners: &Place) -> Vec<SocketAddr> {
        let Lease { address, any, internal } = listeners.lease;
        [any, internal].map(|ports| SocketAddr::new(address, ports.udp)).into()
    }

    fn forget(&mut self, listeners: &[SocketAddr]) {
        let forgotten = kernel::Flows::open().and_then(|mut flows| {
            listeners.iter().try_for_each(|listener| {
                let filter =
                    Filter::new(F::FAMILY.into(), model::Protocol::Udp.number()).answered_by(*listener);
                flows.delete(&filter, &mut |_| true).map(drop)
            })
        });
        if let Err(error) = forgotten {
            warn!(err = with_causes(&error), "clients of UDP may stay with a worker that is gone");
        }
    }
}

/// Addresses of this node to which packets can be sent from anywhere, in the order of its devices.
fn addresses<F: Family>() -> nix::Result<Vec<IpAddr>> {
    let wanted = InterfaceFlags::IFF_UP;
    let is_usable =
        |flags: InterfaceFlags| flags.contains(wanted) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let usable = platform::addresses()?.filter(|(flags, _)| is_usable(*flags));
    let addresses = usable.map(|(_, address)| address);
    Ok(addresses.filter(|address| F::narrow(*address).is_some() && is_global(*address)).collect())
}

/// Not one that means something on one link only.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
    }
}
