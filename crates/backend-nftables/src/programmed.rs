//! What the kernel holds for one frontend, and its form as map elements.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use model::{
    AddressKind, Destination, Family, Frontend, FrontendAddress, FrontendKey, Masquerade, Pool,
    ServicePortName, Verdict, assign_slots,
};
use nft::{Bytes, Data, Element};

use crate::chains::{ChainId, max_endpoints};
use crate::layout::{Map, Scope, Socket, Way, destination_bytes, frontend_bytes, slot_bytes, source_bytes};

/// What the kernel holds, or is to hold, for one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programmed<F: Family> {
    /// The Service port, which is also the comment on the dispatch element.
    pub(crate) service: ServicePortName,
    pub(crate) kind: AddressKind,
    /// Networks that alone may use it.
    allowed_sources: Option<Arc<[IpNet]>>,
    /// For flows from anywhere.
    everywhere: Action<F>,
    /// For flows from pods and from the node itself, where that differs.
    inside: Option<Action<F>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action<F: Family> {
    /// Numbered endpoints, never none.
    Balance {
        masquerade: Masquerade,
        /// How long a client stays with its endpoint, in seconds.
        affinity: Option<u32>,
        slots: Box<[Destination<F>]>,
    },
    Refuse(Verdict),
}

/// One element of one map.
pub(crate) struct MapElement {
    pub(crate) map: Map,
    pub(crate) element: Element,
}

impl<F: Family> Programmed<F> {
    /// The form of a frontend that changes least from the slots that the kernel holds for it.
    pub(crate) fn new(frontend: &Frontend<F>, previous: &PreviousSlots<F>) -> Self {
        let affinity =
            frontend.affinity.map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1));
        let action = |pool: &Pool<F>, masquerade, previous: &[Socket<F>]| match pool {
            Pool::Empty(verdict) => Action::Refuse(*verdict),
            Pool::Endpoints(endpoints) => {
                let most = usize::try_from(max_endpoints(affinity.is_some())).unwrap_or(usize::MAX);
                let endpoints = &endpoints[..endpoints.len().min(most)];
                Action::Balance { masquerade, affinity, slots: number(previous, endpoints) }
            }
        };
        let inside = frontend.internal_pool.as_ref().filter(|pool| !pool.endpoints().is_empty());
        Self {
            service: frontend.service.clone(),
            kind: frontend.kind,
            allowed_sources: frontend.allowed_sources.clone(),
            everywhere: action(&frontend.pool, frontend.masquerade, &previous.everywhere),
            // The node's own flows are masqueraded, those of pods are not.
            inside: inside.map(|pool| action(pool, Masquerade::UnlessFromPod, &previous.inside)),
        }
    }

    /// The slots' endpoints, as [`Programmed::new`] wants to see them again.
    pub(crate) fn previous_slots(&self) -> PreviousSlots<F> {
        let sockets = |scope| self.slots(scope).iter().map(socket).collect();
        PreviousSlots { everywhere: sockets(Scope::Everywhere), inside: sockets(Scope::Inside) }
    }

    fn action(&self, scope: Scope) -> Option<&Action<F>> {
        match scope {
            Scope::Everywhere => Some(&self.everywhere),
            Scope::Inside => self.inside.as_ref(),
        }
    }

    fn slots(&self, scope: Scope) -> &[Destination<F>] {
        match self.action(scope) {
            Some(Action::Balance { slots, .. }) => slots,
            Some(Action::Refuse(_)) | None => &[],
        }
    }

    /// The chains that balance this frontend.
    pub(crate) fn chains(&self, key: &FrontendKey<F>) -> impl Iterator<Item = ChainId> {
        Scope::ALL.into_iter().filter_map(|scope| self.chain(scope, key))
    }

    fn chain(&self, scope: Scope, key: &FrontendKey<F>) -> Option<ChainId> {
        match self.action(scope)? {
            Action::Balance { masquerade, affinity, slots } => {
                let way = Way::new(scope, key.address);
                Some(ChainId::new(way, *masquerade, *affinity, count(slots.len())))
            }
            Action::Refuse(_) => None,
        }
    }

    /// The element that sends the frontend's packets on their way.
    fn dispatch(&self, scope: Scope, key: &FrontendKey<F>) -> Option<MapElement> {
        let node_port = key.address == FrontendAddress::Node;
        let (map, data) = match (self.action(scope)?, self.chain(scope, key)) {
            (_, Some(chain)) => {
                let number = Data::Value(Bytes::new().index(chain.number()));
                (Map::Dispatch(Way::new(scope, key.address)), number)
            }
            (Action::Refuse(Verdict::Drop), None) => (Map::Dropped(node_port), Data::None),
            (_, None) => (Map::Rejected(node_port), Data::None),
        };
        let element = Element { key: frontend_bytes(key), data, comment: Some(comment(&self.service)) };
        Some(MapElement { map, element })
    }

    /// The slots as elements. With affinity, a slot holds its endpoint's number, and the number leads to the endpoint: a
    /// client is remembered with a number, which means the same endpoint whatever slot that is in, and nothing once the
    /// endpoint is gone.
    fn slot_elements(&self, scope: Scope, key: &FrontendKey<F>) -> Vec<MapElement> {
        let way = Way::new(scope, key.address);
        let element = |map, number, data| {
            let element = Element { key: slot_bytes(key, number), data: Data::Value(data), comment: None };
            MapElement { map, element }
        };
        let slots = self.slots(scope).iter().enumerate().map(|(idx, destination)| (count(idx), destination));
        match self.action(scope) {
            Some(Action::Balance { affinity: Some(_), slots: endpoints, .. }) => {
                let numbers = numbers(endpoints);
                slots
                    .zip(numbers)
                    .flat_map(|((idx, destination), number)| {
                        [
                            element(Map::AffinitySlots(way), idx, Bytes::new().index(number)),
                            element(Map::AffinityEndpoints(way), number, destination_bytes(destination)),
                        ]
                    })
                    .collect()
            }
            Some(_) | None => slots
                .map(|(idx, destination)| element(Map::Slots(way), idx, destination_bytes(destination)))
                .collect(),
        }
    }

    /// The elements that keep other senders away.
    fn source_elements(&self, key: &FrontendKey<F>) -> Vec<MapElement> {
        let Some(ranges) = &self.allowed_sources else { return Vec::new() };
        let in_map = |map| move |key| MapElement { map, element: member(key) };
        let allowed = ranges.iter().map(|range| source_bytes(key, range)).map(in_map(Map::AllowedSources));
        std::iter::once(in_map(Map::Restricted)(frontend_bytes(key))).chain(allowed).collect()
    }

    /// All elements that are the frontend's alone.
    pub(crate) fn elements(&self, key: &FrontendKey<F>) -> impl Iterator<Item = MapElement> {
        let by_scope = Scope::ALL.into_iter().flat_map(move |scope| {
            self.dispatch(scope, key).into_iter().chain(self.slot_elements(scope, key))
        });
        by_scope.chain(self.source_elements(key))
    }

    /// Addresses of the endpoints on this node: only they can send a packet through this node to themselves.
    pub(crate) fn local_addresses(&self) -> impl Iterator<Item = F::Addr> {
        let slots = Scope::ALL.into_iter().flat_map(|scope| self.slots(scope));
        slots.filter(|slot| slot.local).map(|slot| slot.address)
    }
}

/// An element of a set.
pub(crate) fn member(key: Bytes) -> Element {
    Element { key, data: Data::None, comment: None }
}

/// The endpoints of a frontend's slots, in order of their numbers.
#[derive(Clone, Debug)]
pub(crate) struct PreviousSlots<F: Family> {
    pub(crate) everywhere: Vec<Socket<F>>,
    pub(crate) inside: Vec<Socket<F>>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for PreviousSlots<F> {
    fn default() -> Self {
        Self { everywhere: Vec::new(), inside: Vec::new() }
    }
}

impl<F: Family> PreviousSlots<F> {
    pub(crate) fn of(&mut self, scope: Scope) -> &mut Vec<Socket<F>> {
        match scope {
            Scope::Everywhere => &mut self.everywhere,
            Scope::Inside => &mut self.inside,
        }
    }
}

fn socket<F: Family>(destination: &Destination<F>) -> Socket<F> {
    (destination.address, destination.port)
}

fn number<F: Family>(previous: &[Socket<F>], endpoints: &[Destination<F>]) -> Box<[Destination<F>]> {
    if previous.is_empty() {
        return endpoints.into();
    }
    let sockets: Vec<Socket<F>> = endpoints.iter().map(socket).collect();
    let by_socket: HashMap<Socket<F>, &Destination<F>> = sockets.iter().copied().zip(endpoints).collect();
    assign_slots(previous, &sockets)
        .iter()
        .filter_map(|socket| by_socket.get(socket).copied().copied())
        .collect()
}

/// A number for each endpoint, none twice: a hash of its address and port, so that it is the same after a restart. Of two
/// endpoints with the same hash (one pair in four billion), the one that sorts later gets another number.
fn numbers<F: Family>(endpoints: &[Destination<F>]) -> Vec<u32> {
    let mut in_order: Vec<usize> = (0..endpoints.len()).collect();
    in_order.sort_unstable_by_key(|idx| endpoints[*idx]);
    let (mut taken, mut numbers) = (BTreeSet::new(), vec![0; endpoints.len()]);
    for idx in in_order {
        let mut number = hash(destination_bytes(&endpoints[idx]).as_slice());
        while number == 0 || !taken.insert(number) {
            number = number.wrapping_add(1);
        }
        numbers[idx] = number;
    }
    numbers
}

/// FNV-1a, 32 bits: written here because the numbers must be the same in every version of this program.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("fewer endpoints than IPv4 has addresses")
}

/// An element's comment holds at most 128 bytes (`NFTNL_UDATA` of `nft`), a name may be longer.
const MAX_COMMENT_BYTES: usize = 128;

fn comment(service: &ServicePortName) -> Box<str> {
    let mut text = service.to_string();
    while text.len() > MAX_COMMENT_BYTES {
        text.pop();
    }
    text.into()
}
