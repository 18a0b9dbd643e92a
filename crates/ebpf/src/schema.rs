//! What is in the maps, byte by byte. The other side is `bpf/schema.h`.
//!
//! Addresses and ports are in network byte order, everything else in the host's.

use std::net::IpAddr;

use model::{Family, FrontendAddress, FrontendKey, IpFamily, Protocol};

/// Length of the map `meta`, in words of 64 bits.
pub const META_WORDS: usize = 8;

/// A word of the map `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// Not 0: connections are translated.
    On,
    /// The network namespace of the node itself, by its cookie.
    HostNetns,
    /// The cookie of the agent's own socket that proves the hook; 0: none.
    CanarySocket,
    /// Where that is sent to, in network byte order.
    CanaryPort,
    /// Written by the program: the namespace of that socket.
    CanaryNetns,
    /// Not 0: the maps of this generation were filled completely once. No program looks at it.
    Complete,
}

impl Meta {
    /// Which word it is.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Value of the map `frontends`: an extent of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendValue {
    /// The first slot.
    pub base: u32,
    /// How many there are.
    pub count: u32,
    /// Only sockets in the host's network namespace are translated.
    pub host_only: bool,
    /// All slots of the extent have it.
    pub epoch: u16,
    /// Of what it has endpoints, by number: as long as that is the same, a socket's datagrams go on to the endpoint that they went to
    /// before.
    pub pool: u32,
}

/// `CHECK_FACTOR`
const CHECK_FACTOR: u32 = 0x9e37_79b1;
const HOST_ONLY: u16 = 1;

impl FrontendValue {
    /// Its bytes in the element with this key.
    pub fn encode<F: Family>(&self, key: &FrontendKey<F>) -> [u8; 20] {
        let flags = if self.host_only { HOST_ONLY } else { 0 };
        let mut bytes = [0; 20];
        let numbers = [check::<F>(key), self.base, self.count];
        bytes[..12].copy_from_slice(numbers.map(u32::to_ne_bytes).as_flattened());
        bytes[12..16].copy_from_slice([flags, self.epoch].map(u16::to_ne_bytes).as_flattened());
        bytes[16..].copy_from_slice(&self.pool.to_ne_bytes());
        bytes
    }

    /// Reads what [`FrontendValue::encode`] wrote for this key; `None` if it is something else.
    pub fn decode<F: Family>(key: &FrontendKey<F>, bytes: &[u8]) -> Option<Self> {
        let number = |at| read::<4>(bytes, at).map(u32::from_ne_bytes);
        let half = |at| read::<2>(bytes, at).map(u16::from_ne_bytes);
        let host_only = half(12)? & HOST_ONLY != 0;
        let (base, count, epoch, pool) = (number(4)?, number(8)?, half(14)?, number(16)?);
        let value = Self { base, count, host_only, epoch, pool };
        (value.encode(key) == bytes).then_some(value)
    }
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// `check_of`: made of address and port as they are in memory.
fn check<F: Family>(key: &FrontendKey<F>) -> u32 {
    let address = address_of::<F>(key);
    let words = address.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
    let port = u32::from(key.port.to_be());
    words.fold(0, |check, word| check ^ word) ^ port.wrapping_mul(CHECK_FACTOR)
}

/// A value of the map `slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Slot {
    /// The endpoint's number.
    pub endpoint: u32,
    /// The epoch of the extent.
    pub extent_epoch: u16,
    /// The epoch of the endpoint.
    pub endpoint_epoch: u16,
}

impl Slot {
    /// As it is written and read at once.
    pub fn word(self) -> u64 {
        u64::from(self.endpoint) | u64::from(self.extent_epoch) << 32 | u64::from(self.endpoint_epoch) << 48
    }

    /// The slot of a word.
    pub fn of(word: u64) -> Self {
        let octets = word.to_le_bytes();
        let half = |n: usize| u16::from_le_bytes([octets[2 * n], octets[2 * n + 1]]);
        Self {
            endpoint: u32::from(half(0)) | u32::from(half(1)) << 16,
            extent_epoch: half(2),
            endpoint_epoch: half(3),
        }
    }
}

/// A value of the map `endpoints`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<F: Family> {
    /// Its address.
    pub address: F::Addr,
    /// Its port, in host byte order.
    pub port: u16,
    /// Which one has had the number; never 0.
    pub epoch: u16,
}

/// Length of an endpoint in words of 64 bits. The last one has the epoch, and is 0 while the others are written.
pub fn endpoint_words(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 1,
        IpFamily::V6 => 3,
    }
}

impl<F: Family> Endpoint<F> {
    /// Its words.
    pub fn encode(&self) -> Vec<u64> {
        let mut bytes = encode_address::<F>(self.address);
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(self.epoch.to_ne_bytes());
        bytes.resize(endpoint_words(F::FAMILY) * 8, 0);
        bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect()
    }

    /// Reads what [`Endpoint::encode`] made; `None` if there is none.
    pub fn decode(words: &[u64]) -> Option<Self> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let len = address_bytes(F::FAMILY);
        let address = decode_address::<F>(bytes.get(..len)?)?;
        let port = u16::from_be_bytes(read(&bytes, len)?);
        let epoch = u16::from_ne_bytes(read(&bytes, len + 2)?);
        (epoch != 0).then_some(Self { address, port, epoch })
    }
}

fn address_bytes(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 16,
    }
}

/// An address, also as the key of `node_addresses`.
pub fn encode_address<F: Family>(address: F::Addr) -> Vec<u8> {
    netlink::octets(address.into())
}

/// The address of these bytes.
pub fn decode_address<F: Family>(bytes: &[u8]) -> Option<F::Addr> {
    let address = match F::FAMILY {
        IpFamily::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        IpFamily::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    F::narrow(address?)
}

/// Address 0 stands for those of the node.
fn address_of<F: Family>(key: &FrontendKey<F>) -> Vec<u8> {
    match key.address {
        FrontendAddress::Ip(address) => encode_address::<F>(address),
        FrontendAddress::Node => vec![0; address_bytes(F::FAMILY)],
    }
}

/// A key of the map `frontends`.
pub fn encode_key<F: Family>(key: &FrontendKey<F>) -> Vec<u8> {
    let mut bytes = address_of::<F>(key);
    bytes.extend(key.port.to_be_bytes());
    bytes.extend([key.protocol.number(), 0]);
    bytes
}

/// Reads what [`encode_key`] made.
pub fn decode_key<F: Family>(bytes: &[u8]) -> Option<FrontendKey<F>> {
    let len = address_bytes(F::FAMILY);
    let (address, rest) = (bytes.get(..len)?, bytes.get(len..)?);
    let [high, low, protocol, 0] = *rest else { return None };
    let node = address.iter().all(|byte| *byte == 0);
    let address =
        if node { FrontendAddress::Node } else { FrontendAddress::Ip(decode_address::<F>(address)?) };
    let protocol = Protocol::from_number(protocol)?;
    Some(FrontendKey { address, protocol, port: u16::from_be_bytes([high, low]) })
}

#[cfg(test)]
mod tests {
    use model::{V4, V6};
    use proptest::prelude::*;

    use super::*;
    use crate::maps::{Capacity, MapName};

    fn check_family<F: Family>(octets: [u8; 16], port: u16, numbers: [u32; 2], halves: [u16; 2]) {
        let address = decode_address::<F>(&octets[..address_bytes(F::FAMILY)]).unwrap();
        let node = address == decode_address::<F>(&[0; 16][..address_bytes(F::FAMILY)]).unwrap();
        let address_or_node = if node { FrontendAddress::Node } else { FrontendAddress::Ip(address) };
        let key = FrontendKey::<F> { address: address_or_node, protocol: Protocol::Tcp, port };
        let capacity = Capacity { frontends: 1, slots: 1, endpoints: 1 };
        let spec = |name: MapName| name.spec(F::FAMILY, &capacity);
        let bytes = encode_key(&key);
        assert_eq!(bytes.len(), spec(MapName::Frontends).key_bytes as usize);
        assert_eq!(decode_key::<F>(&bytes), Some(key));
        let [base, count] = numbers;
        let [flag, epoch] = halves;
        let value = FrontendValue { base, count, host_only: flag % 2 == 1, epoch, pool: base ^ count };
        assert_eq!(FrontendValue::decode(&key, &value.encode(&key)), Some(value));
        let other = FrontendKey { port: port.wrapping_add(1), ..key };
        assert_eq!(FrontendValue::decode(&other, &value.encode(&key)), None);
        let slot = Slot { endpoint: base, extent_epoch: flag, endpoint_epoch: epoch };
        assert_eq!(Slot::of(slot.word()), slot);
        let endpoint = Endpoint::<F> { address, port, epoch: epoch.max(1) };
        let words = endpoint.encode();
        assert_eq!(words.len() * 8, spec(MapName::Endpoints).value_bytes as usize);
        assert_eq!(Endpoint::decode(&words), Some(endpoint));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_again(
            octets: [u8; 16], port: u16, numbers: [u32; 2], halves: [u16; 2],
        ) {
            check_family::<V4>(octets, port, numbers, halves);
            check_family::<V6>(octets, port, numbers, halves);
        }

        #[test]
        fn anything_is_read_without_harm(bytes: Vec<u8>, words: Vec<u64>) {
            let _ = decode_key::<V4>(&bytes);
            if let Some(key) = decode_key::<V6>(&bytes) {
                let _ = FrontendValue::decode(&key, &bytes);
            }
            let _ = (Endpoint::<V4>::decode(&words), Endpoint::<V6>::decode(&words));
        }
    }
}
