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
use crate::layout::{Map, parse_pool, parse_slot, parse_socket};
use crate::plan::Backend;
use crate::pools::{Pool, PoolKey};
use crate::priority::parse_endpoint;

/// Pools by number.
type ByNumber<'a, F> = HashMap<u32, (&'a PoolKey, &'a Pool<F>), FxBuildHasher>;

impl<F: Family> Backend<F> {
    /// The counters that are somebody's.
    pub(crate) fn whose(&self, counts: &Counts) -> Vec<Meter> {
        let of = |map: Map| counts.get(&map.name()).into_iter().flatten();
        let pools: ByNumber<'_, F> = if counts.is_empty() {
            HashMap::default()
        } else {
            self.pools().map(|(key, pool)| (pool.number, (key, pool))).collect()
        };
        let in_slots = of(Map::Endpoints).filter_map(|count| in_slot(&pools, count));
        let by_number = of(Map::AffinityEndpoints).filter_map(|count| by_endpoint_number(&pools, count));
        let turned_away = [false, true].into_iter().flat_map(|by_node_port| {
            let refused = of(Map::Rejected(by_node_port)).filter_map(move |count| {
                let counters = Counters { refused: count.packets, ..Counters::default() };
                self.turned_away(by_node_port, count, counters)
            });
            let dropped = of(Map::Dropped(by_node_port)).filter_map(move |count| {
                let counters = Counters { dropped: count.packets, ..Counters::default() };
                self.turned_away(by_node_port, count, counters)
            });
            refused.chain(dropped)
        });
        let by_source = of(Map::SourceDropped).filter_map(|count| {
            let counters = Counters { dropped: count.packets, ..Counters::default() };
            let meter = self.turned_away(false, count, counters)?;
            // The same address may have been without local endpoints, with a counter of its own.
            Some(Meter { id: meter.id ^ 1, ..meter })
        });
        in_slots.chain(by_number).chain(turned_away).chain(by_source).collect()
    }

    fn turned_away(&self, by_node_port: bool, count: &Count, counters: Counters) -> Option<Meter> {
        let key = parse_frontend::<F>(&count.element.key, by_node_port)?;
        let service = self.held_service(&key)?.clone();
        Some(Meter { service, endpoint: None, id: id(&count.element.key), counters })
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
