//! Virtual servers for who follows a packet, and for who compares them with what they should be.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use ipvs::{Ipvs, RealServer, ServerId, VirtualServer};
use netlink::NetlinkError;
use rustc_hash::FxBuildHasher;
use walk::nft::{Balanced, Balancer};

/// The virtual servers of one moment, whosesoever they are; real servers are asked for when they are needed.
pub struct VirtualServers {
    servers: HashMap<ServerId, VirtualServer, FxBuildHasher>,
    ipvs: Mutex<Box<dyn Ipvs>>,
}

impl VirtualServers {
    /// Reads them.
    ///
    /// # Errors
    /// They can't be read.
    pub fn read(mut ipvs: Box<dyn Ipvs>) -> Result<Self, NetlinkError> {
        let listed = ipvs.virtual_servers()?;
        let servers = listed.into_iter().map(|server| (server.id, server)).collect();
        Ok(Self { servers, ipvs: Mutex::new(ipvs) })
    }
}

impl Balancer for VirtualServers {
    /// Real servers without weight get no new flows.
    fn find(&self, protocol: u8, to: SocketAddr) -> Result<Option<Balanced>, String> {
        let id = |port| ServerId { address: to.ip(), protocol, port };
        // Port 0 is for all ports that have no virtual server of their own.
        let found = self.servers.get(&id(to.port())).or_else(|| self.servers.get(&id(0)));
        let Some(server) = found else { return Ok(None) };
        let mut ipvs = self.ipvs.lock().unwrap_or_else(PoisonError::into_inner);
        let reals = ipvs.real_servers(&server.id).map_err(|error| error.to_string())?;
        let available = reals.iter().filter(|(real, _)| real.weight > 0);
        let endpoints = available.map(|(real, _)| (real.id.into(), real.to_string())).collect();
        Ok(Some(Balanced { server: server.to_string(), endpoints }))
    }
}

/// What a rule in [`crate::PLACE`] says, one by one: the virtual server, and each of its real servers that takes new flows. Those
/// that drain may have gone.
pub fn pieces(rule: &str) -> impl Iterator<Item = String> {
    let (server, reals) = rule.split_once(" -> ").unwrap_or((rule, ""));
    let reals = reals.split(", ").filter(|real| !real.is_empty() && !real.ends_with(" weight 0"));
    std::iter::once(server.to_owned()).chain(reals.map(|real| real_piece(real, server)))
}

fn real_piece(real: &str, server: &str) -> String {
    format!("{real} of {server}")
}

/// The same of what is there, whosesoever it is.
///
/// # Errors
/// It can't be read.
pub fn read_pieces(ipvs: &mut dyn Ipvs) -> Result<BTreeSet<String>, NetlinkError> {
    let mut pieces = BTreeSet::new();
    for server in ipvs.virtual_servers()? {
        let text = server.to_string();
        let piece = |(real, _): (RealServer, _)| real_piece(&real.to_string(), &text);
        pieces.extend(ipvs.real_servers(&server.id)?.into_iter().map(piece));
        pieces.insert(text);
    }
    Ok(pieces)
}
