//! What went through, by IPVS's own statistics: nothing is added to the way of packets.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use ipvs::{Ipvs, RealServerId, ServerId, Statistics};
use mode::{Counters, Meter};
use model::{Family, FrontendKey, Table};
use netlink::NetlinkError;
use rustc_hash::FxBuildHasher;

use crate::state::{Id, Kind};

/// What was counted.
#[derive(Debug)]
pub struct Counted<R> {
    /// By the rules.
    pub(crate) rules: Option<R>,
    /// By each real server of virtual servers through which anything went.
    pub(crate) servers: Vec<(ServerId, RealServerId, Statistics)>,
}

/// What was read so far.
#[derive(Debug, Default)]
pub(crate) struct Readings(HashMap<ServerId, Reading, FxBuildHasher>);

/// One virtual server's.
#[derive(Debug, Default)]
struct Reading {
    total: Statistics,
    reals: HashMap<RealServerId, Known, FxBuildHasher>,
}

/// One real server's.
#[derive(Debug, Default)]
struct Known {
    last: Statistics,
    /// What it said when it was made again.
    before: Statistics,
    is_there: bool,
}

/// Of so many former real servers of a virtual server is known what they said.
const MAX_FORMER: usize = 64;

impl Readings {
    /// Reads the virtual servers of a family. Their real servers are asked for only where something went through since the last
    /// time.
    pub(crate) fn read<F: Family>(
        &mut self,
        ipvs: &mut dyn Ipvs,
    ) -> Result<Vec<(ServerId, RealServerId, Statistics)>, NetlinkError> {
        let mut listed = ipvs.virtual_statistics()?;
        listed.retain(|(id, total)| F::narrow(id.address).is_some() && *total != Statistics::default());
        let mut read = HashMap::default();
        for (id, total) in listed {
            let mut reading = self.0.remove(&id).unwrap_or_default();
            if reading.total != total {
                reading.take(total, ipvs.real_statistics(&id)?);
            }
            read.insert(id, reading);
        }
        self.0 = read;
        let of_server = |(id, reading): (&ServerId, &Reading)| {
            let id = *id;
            let there = reading.reals.iter().filter(|(_, known)| known.is_there);
            there.map(move |(real, known)| (id, *real, known.counted())).collect::<Vec<_>>()
        };
        Ok(self.0.iter().flat_map(of_server).collect())
    }
}

impl Reading {
    /// The kernel keeps a real server that was deleted for two minutes or more. One that is made again meanwhile goes on with
    /// what it had counted, which is known already (`ip_vs_trash_get_dest` in Linux' `net/netfilter/ipvs/ip_vs_ctl.c`).
    fn take(&mut self, total: Statistics, found: Vec<(RealServerId, Statistics)>) {
        self.total = total;
        let mut former = std::mem::take(&mut self.reals);
        for (real, now) in found {
            let known = former.remove(&real).unwrap_or_default();
            let before = if !is_behind(&known.last, &now) {
                Statistics::default()
            } else if known.is_there {
                known.before
            } else {
                known.last
            };
            self.reals.insert(real, Known { last: now, before, is_there: true });
        }
        if former.len() <= MAX_FORMER {
            let gone = former.into_iter().map(|(real, known)| (real, Known { is_there: false, ..known }));
            self.reals.extend(gone);
        }
    }
}

impl Known {
    fn counted(&self) -> Statistics {
        let Statistics { connections, packets_in, packets_out, bytes_in, bytes_out } = self.before;
        Statistics {
            connections: self.last.connections.saturating_sub(connections),
            packets_in: self.last.packets_in.saturating_sub(packets_in),
            packets_out: self.last.packets_out.saturating_sub(packets_out),
            bytes_in: self.last.bytes_in.saturating_sub(bytes_in),
            bytes_out: self.last.bytes_out.saturating_sub(bytes_out),
        }
    }
}

/// Whether counters that said `earlier` can say `now` without having begun anew.
fn is_behind(earlier: &Statistics, now: &Statistics) -> bool {
    earlier.connections <= now.connections
        && earlier.packets_in <= now.packets_in
        && earlier.packets_out <= now.packets_out
        && earlier.bytes_in <= now.bytes_in
        && earlier.bytes_out <= now.bytes_out
}

/// The counters of a real server, for the Service port that has its virtual server's address.
pub(crate) fn meter<F: Family>(
    table: &Table<F>,
    kind: Option<Kind>,
    (server, real, statistics): &(ServerId, RealServerId, Statistics),
) -> Option<Meter> {
    let id = Id::<F>::of(server)?;
    let key: FrontendKey<F> = id.key(kind?);
    let service = table.get(&key)?.service.clone();
    let Statistics { connections, packets_in, packets_out, bytes_in, bytes_out } = *statistics;
    let counters = Counters {
        packets: Some(packets_in.saturating_add(packets_out)),
        bytes: Some(bytes_in.saturating_add(bytes_out)),
        ..Counters::connections(connections)
    };
    let endpoint = Some((*real).into());
    Some(Meter { service, endpoint, id: FxBuildHasher.hash_one(server), counters })
}
