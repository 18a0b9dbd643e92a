//! What the kernel holds for one frontend, and its form as map elements.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use model::{
    AddressKind, Destination, Family, Frontend, FrontendKey, Masquerade, Pool, ServicePortName, Verdict,
    assign_slots,
};
use nft::{Bytes, Data, Element};

use crate::chains::{ChainId, reject_chain};
use crate::layout::{Map, Scope, Socket, destination_bytes, frontend_bytes, slot_bytes, source_bytes};

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
        let action = |pool: &Pool<F>, masquerade, previous: &[Socket<F>]| match pool {
            Pool::Empty(verdict) => Action::Refuse(*verdict),
            Pool::Endpoints(endpoints) => Action::Balance { masquerade, slots: number(previous, endpoints) },
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
            Action::Balance { masquerade, slots } => {
                Some(ChainId::new(scope, key.address, *masquerade, count(slots.len())))
            }
            Action::Refuse(_) => None,
        }
    }

    /// The element that sends the frontend's packets on their way.
    pub(crate) fn dispatch(&self, scope: Scope, key: &FrontendKey<F>) -> Option<MapElement> {
        let (map, verdict) = match (self.action(scope)?, self.chain(scope, key)) {
            (_, Some(chain)) => (Map::dispatch(scope, key.address), nft::Verdict::Goto(chain.name())),
            (Action::Refuse(Verdict::Drop), None) => (Map::refusal(key.address), nft::Verdict::Drop),
            (_, None) => (Map::refusal(key.address), nft::Verdict::Goto(reject_chain())),
        };
        let element = Element {
            key: frontend_bytes(key),
            data: Data::Verdict(verdict),
            comment: Some(comment(&self.service)),
        };
        Some(MapElement { map, element })
    }

    /// The slots as elements of [`Map::slots`], in order of their numbers.
    pub(crate) fn slot_elements(&self, scope: Scope, key: &FrontendKey<F>) -> impl Iterator<Item = Element> {
        let slots = self.slots(scope).iter().enumerate();
        slots.map(|(idx, destination)| Element {
            key: slot_bytes(key, count(idx)),
            data: Data::Value(destination_bytes(destination)),
            comment: None,
        })
    }

    /// The elements that keep other senders away, sorted by map and key.
    pub(crate) fn source_elements(&self, key: &FrontendKey<F>) -> Vec<MapElement> {
        let Some(ranges) = &self.allowed_sources else { return Vec::new() };
        let in_map = |map| move |key| MapElement { map, element: member(key) };
        let mut allowed: Vec<_> = ranges.iter().map(|range| source_bytes(key, range)).collect();
        allowed.sort_unstable();
        let restricted = in_map(Map::Restricted)(frontend_bytes(key));
        std::iter::once(restricted).chain(allowed.into_iter().map(in_map(Map::AllowedSources))).collect()
    }

    /// All elements that are the frontend's alone.
    pub(crate) fn elements(&self, key: &FrontendKey<F>) -> impl Iterator<Item = MapElement> {
        let by_scope = Scope::ALL.into_iter().flat_map(move |scope| {
            let map = Map::slots(scope, key.address);
            let slots = self.slot_elements(scope, key).map(move |element| MapElement { map, element });
            self.dispatch(scope, key).into_iter().chain(slots)
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
