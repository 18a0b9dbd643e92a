//! One hash for clients and endpoints, the same on every node and in every release, so that a client that comes to another node
//! is led to the same endpoint.

use std::hash::Hasher as _;
use std::net::{IpAddr, SocketAddr};

use rustc_hash::FxHasher;

pub(crate) fn of_client(client: IpAddr) -> u64 {
    of(client, 0, 0)
}

/// `seed` makes it another hash.
pub(crate) fn of_endpoint(endpoint: SocketAddr, seed: u64) -> u64 {
    of(endpoint.ip(), endpoint.port(), seed)
}

fn of(address: IpAddr, port: u16, seed: u64) -> u64 {
    let address = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut hasher = FxHasher::default();
    hasher.write_u128(address);
    hasher.write_u16(port);
    hasher.write_u64(seed);
    mixed(hasher.finish())
}

/// Spreads what differs in few bits over all (the end of `SplitMix64`).
pub(crate) const fn mixed(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
