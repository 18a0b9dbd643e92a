//! Whose what the elements have counted is.
//!
//! A reading is of no one moment, and what is held may have changed since. An element counts for a Service port only if that
//! is held to have put it there as it was read; what is left out is told by the next reading.

use std::collections::HashMap;
use std::net::SocketAddr;

use mode::{Counters, Meter};
use model::{Family, FrontendAddress, FrontendKey, Protocol, ServicePortName};
use nft::dump::Count;
use nft::{Bytes, Counts};
use rustc_hash::FxBuildHasher;

use crate::found::value;
use crate::layout::{Map, Traffic, parse_pool, parse_slot, parse_socket};
use crate::plan::Backend;
use crate::pools::{Pool, PoolKey};
use crate::priority::parse_endpoint;

/// Pools by number.
type ByNumber<'a, F> = HashMap<u32, (&'a PoolKey, &'a Pool<F>), FxBuildHasher>;

/// A set or map whose elements are frontends'.
struct OfFrontends {
    map: Map,
    by_node_port: bool,
    /// Tells apart the counters that one frontend may have in turns.
    way: u64,
    /// What a packet counts as.
    counters: fn(u64) -> Counters,
}

const OF_FRONTENDS: [OfFrontends; 9] = {
    const fn of(map: Map, by_node_port: bool, way: u64, counters: fn(u64) -> Counters) -> OfFrontends {
        OfFrontends { map, by_node_port, way, counters }
    }
    [
        of(Map::Rejected(false), false, 0, refused),
        of(Map::Rejected(true), true, 0, refused),
        of(Map::Dropped(false), false, 0, dropped),
        of(Map::Dropped(true), true, 0, dropped),
        of(Map::SourceDropped, false, 1, dropped),
        of(Map::Frontends(Traffic::Any, false), false, 2, Counters::connections),
        of(Map::Frontends(Traffic::Any, true), true, 2, Counters::connections),
        of(Map::Frontends(Traffic::Internal, false), false, 3, Counters::connections),
        of(Map::Frontends(Traffic::Internal, true), true, 3, Counters::connections),
    ]
};

fn refused(packets: u64) -> Counters {
    Counters { refused: packets, ..Counters::default() }
}

fn dropped(packets: u64) -> Counters {
    Counters { dropped: packets, ..Counters::default() }
}

impl<F: Family> Backend<F> {
    /// The counters that are somebody's.
    pub(crate) fn whose(&self, counts: &Counts) -> Vec<Meter> {
        let of = |map: Map| counts.get(&map.name()).map_or(&[][..], |counts| counts);
        let (by_slot, by_number) = (of(Map::Endpoints), of(Map::AffinityEndpoints));
        let pools: ByNumber<'_, F> = if by_slot.is_empty() && by_number.is_empty() {
            HashMap::default()
        } else {
            self.pools().map(|(key, pool)| (pool.number, (key, pool))).collect()
        };
        let by_slot = by_slot.iter().filter_map(|count| in_slot(&pools, count));
        let by_number = by_number.iter().filter_map(|count| by_endpoint_number(&pools, count));
        let by_frontend = OF_FRONTENDS.iter().flat_map(|kind| {
            let counts = of(kind.map).iter();
            counts.filter_map(|count| self.of_frontend(kind, count))
        });
        by_slot.chain(by_number).chain(by_frontend).collect()
    }

    fn of_frontend(&self, kind: &OfFrontends, count: &Count) -> Option<Meter> {
        let key = parse_frontend::<F>(&count.element.key, kind.by_node_port)?;
        let service = self.held_service(&key)?.clone();
        let id = id(&count.element.key) ^ kind.way;
        Some(Meter { service, endpoint: None, id, counters: (kind.counters)(count.packets) })
    }
}

/// An element of [`Map::Endpoints`].
fn in_slot<F: Family>(pools: &ByNumber<'_, F>, count: &Count) -> Option<Meter> {
    let ((_, number), slot) = parse_slot(&count.element.key)?;
    let (key, pool) = pools.get(&number)?;
    let socket = read_socket::<F>(count)?;
    let held = pool.socket(usize::try_from(slot).ok()?)?;
    (held == socket).then(|| connections::<F>(&key.service, socket, count))
}

/// An element of [`Map::AffinityEndpoints`].
fn by_endpoint_number<F: Family>(pools: &ByNumber<'_, F>, count: &Count) -> Option<Meter> {
    let (_, bits) = parse_pool(&count.element.key)?;
    let (key, pool) = pools.get(&parse_endpoint(bits).1)?;
    let socket = read_socket::<F>(count)?;
    pool.has_socket(socket).then(|| connections::<F>(&key.service, socket, count))
}

fn read_socket<F: Family>(count: &Count) -> Option<(F::Addr, u16)> {
    parse_socket::<F>(value(&count.element)?)
}

fn connections<F: Family>(
    service: &ServicePortName,
    (address, port): (F::Addr, u16),
    count: &Count,
) -> Meter {
    Meter {
        service: service.clone(),
        endpoint: Some(SocketAddr::new(address.into(), port)),
        id: id(&count.element.key),
        counters: Counters::connections(count.packets),
    }
}

/// The frontend whose element has this key.
fn parse_frontend<F: Family>(key: &Bytes, by_node_port: bool) -> Option<FrontendKey<F>> {
    let mut fields = key.reader();
    let address = if by_node_port {
        FrontendAddress::Node
    } else {
        FrontendAddress::Ip(F::narrow(fields.addr(F::FAMILY.into())?)?)
    };
    let protocol = Protocol::from_number(fields.proto()?)?;
    let port = fields.port()?;
    fields.is_empty().then_some(FrontendKey { address, protocol, port })
}

/// A number for an element's key. Within the few elements of a Service port and endpoint no two are alike in practice; if they
/// were, one would be taken for the other's new beginning.
fn id(key: &Bytes) -> u64 {
    use std::hash::BuildHasher;
    FxBuildHasher.hash_one(key.as_slice())
}
