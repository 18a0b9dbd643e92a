//! The maps: names, kinds and sizes.

use model::IpFamily;

/// Counts up with every change of what is in the maps. Maps of another schema are not adopted, but replaced.
pub const SCHEMA: u32 = 3;

/// For how much a family's maps have room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Frontends.
    pub frontends: u32,
    /// Slots.
    pub slots: u32,
    /// Endpoints.
    pub endpoints: u32,
}

/// Room for the node's own addresses. A node with more has the others served by the rules.
const NODE_ADDRESSES: u32 = 256;

/// A map of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MapName {
    /// Address, protocol and port to an extent of slots.
    Frontends,
    /// Number to endpoint.
    Slots,
    /// Endpoints by their number.
    Endpoints,
    /// Addresses at which node ports are served.
    NodeAddresses,
    /// Where a socket wanted to go, in the socket. It outlives the other maps.
    Original,
    /// Where a socket sends the datagrams to some addresses, in the socket. It outlives the other maps, too.
    Datagrams,
    /// Translated connections by number of the endpoint.
    Counters,
    /// One entry: see [`crate::Meta`].
    Meta,
}

/// `enum bpf_map_type` of `linux/bpf.h`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`, which takes memory for elements as they come.
    Hash,
    /// `BPF_MAP_TYPE_ARRAY` that can be mapped into memory.
    MappedArray,
    /// `BPF_MAP_TYPE_SK_STORAGE`
    SocketStorage,
    /// The same; each value begins with a `struct bpf_spin_lock`.
    LockedSocketStorage,
}

impl MapKind {
    /// Its number and the flags that it is made with.
    pub fn numbers(self) -> (u32, u32) {
        const NO_PREALLOC: u32 = 1;
        const MMAPABLE: u32 = 1 << 10;
        match self {
            Self::Hash => (1, NO_PREALLOC),
            Self::MappedArray => (2, MMAPABLE),
            Self::SocketStorage | Self::LockedSocketStorage => (24, NO_PREALLOC),
        }
    }
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Its kind.
    pub kind: MapKind,
    /// Size of a key.
    pub key_bytes: u32,
    /// Size of a value.
    pub value_bytes: u32,
    /// Room; 0 where there is no limit.
    pub entries: u32,
}

impl MapName {
    /// All but those in sockets.
    pub const OF_GENERATION: [Self; 6] =
        [Self::Frontends, Self::Slots, Self::Endpoints, Self::NodeAddresses, Self::Counters, Self::Meta];

    /// As its pin is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frontends => "frontends",
            Self::Slots => "slots",
            Self::Endpoints => "endpoints",
            Self::NodeAddresses => "node_addresses",
            Self::Original => "original",
            Self::Datagrams => "datagrams",
            Self::Counters => "counters",
            Self::Meta => "meta",
        }
    }

    /// The map that the source calls so, such as `slots4`.
    pub fn in_source(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(['4', '6'])?;
        let all = Self::OF_GENERATION.into_iter().chain([Self::Original, Self::Datagrams]);
        all.into_iter().find(|map| map.as_str() == stem)
    }

    /// What it is made of in a family.
    pub fn spec(self, family: IpFamily, capacity: &Capacity) -> MapSpec {
        let (kind, [key, of_v4, of_v6], entries) = match self {
            Self::Frontends => {
                let key = if family == IpFamily::V4 { 8 } else { 20 };
                (MapKind::Hash, [key, 20, 20], capacity.frontends)
            }
            Self::Slots => (MapKind::MappedArray, [4, 8, 8], capacity.slots),
            Self::Endpoints => (MapKind::MappedArray, [4, 8, 24], capacity.endpoints),
            Self::NodeAddresses => {
                let key = if family == IpFamily::V4 { 4 } else { 16 };
                (MapKind::Hash, [key, 4, 4], NODE_ADDRESSES)
            }
            Self::Original => (MapKind::SocketStorage, [4, 16, 40], 0),
            Self::Datagrams => (MapKind::LockedSocketStorage, [4, 104, 200], 0),
            Self::Counters => (MapKind::MappedArray, [4, 8, 8], capacity.endpoints),
            Self::Meta => (MapKind::MappedArray, [4, 64, 64], 1),
        };
        let value_bytes = if family == IpFamily::V4 { of_v4 } else { of_v6 };
        MapSpec { kind, key_bytes: key, value_bytes, entries }
    }
}
