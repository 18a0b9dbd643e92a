//! What the kernel holds for one frontend, and its form as map elements.

use std::collections::HashMap;

use model::{
    Destination, Family, Frontend, FrontendAddress, FrontendKey, Masquerade, Pool, ServicePortName, Verdict,
    assign_slots,
};
use nft::{Data, Element};

use crate::chains::{ChainId, reject_chain};
use crate::layout::{Map, Socket, destination_bytes, frontend_bytes, slot_bytes};

/// What the kernel holds, or is to hold, for one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programmed<F: Family> {
    /// The Service port, which is also the comment on the dispatch element.
    pub(crate) service: ServicePortName,
    pub(crate) action: Action<F>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action<F: Family> {
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
    pub(crate) fn new(frontend: &Frontend<F>, previous: &[Socket<F>]) -> Self {
        let action = match &frontend.pool {
            Pool::Empty(verdict) => Action::Refuse(*verdict),
            Pool::Endpoints(endpoints) => {
                Action::Balance { masquerade: frontend.masquerade, slots: number(previous, endpoints) }
            }
        };
        Self { service: frontend.service.clone(), action }
    }

    pub(crate) fn slots(&self) -> &[Destination<F>] {
        match &self.action {
            Action::Balance { slots, .. } => slots,
            Action::Refuse(_) => &[],
        }
    }

    /// The slots' endpoints, as [`Programmed::new`] wants to see them again.
    pub(crate) fn sockets(&self) -> Vec<Socket<F>> {
        self.slots().iter().map(socket).collect()
    }

    /// The chain that balances this frontend.
    pub(crate) fn chain(&self, key: &FrontendKey<F>) -> Option<ChainId> {
        match &self.action {
            Action::Balance { masquerade, slots } => {
                Some(ChainId::new(key.address, *masquerade, count(slots.len())))
            }
            Action::Refuse(_) => None,
        }
    }

    /// The element that sends the frontend's packets on their way.
    pub(crate) fn dispatch(&self, key: &FrontendKey<F>) -> MapElement {
        let verdict = match (&self.action, self.chain(key)) {
            (_, Some(chain)) => nft::Verdict::Goto(chain.name()),
            (Action::Refuse(Verdict::Drop), None) => nft::Verdict::Drop,
            (_, None) => nft::Verdict::Goto(reject_chain()),
        };
        let element = Element {
            key: frontend_bytes(key),
            data: Data::Verdict(verdict),
            comment: Some(comment(&self.service)),
        };
        MapElement { map: self.dispatch_map(key), element }
    }

    fn dispatch_map(&self, key: &FrontendKey<F>) -> Map {
        match (&self.action, key.address) {
            (Action::Balance { .. }, FrontendAddress::Ip(_)) => Map::ServiceIps,
            (Action::Balance { .. }, FrontendAddress::Node) => Map::ServiceNodePorts,
            (Action::Refuse(_), FrontendAddress::Ip(_)) => Map::NoEndpointServices,
            (Action::Refuse(_), FrontendAddress::Node) => Map::NoEndpointNodePorts,
        }
    }

    /// The slots as elements of [`slot_map`], in order of their numbers.
    pub(crate) fn slot_elements(&self, key: &FrontendKey<F>) -> impl Iterator<Item = Element> {
        let slots = self.slots().iter().enumerate();
        slots.map(|(idx, destination)| Element {
            key: slot_bytes(key, count(idx)),
            data: Data::Value(destination_bytes(destination)),
            comment: None,
        })
    }

    /// All elements of the frontend.
    pub(crate) fn elements(&self, key: &FrontendKey<F>) -> impl Iterator<Item = MapElement> {
        let slots = self.slot_elements(key).map(|element| MapElement { map: slot_map(key), element });
        std::iter::once(self.dispatch(key)).chain(slots)
    }

    /// Addresses of the endpoints on this node: only they can send a packet through this node to themselves.
    pub(crate) fn local_addresses(&self) -> impl Iterator<Item = F::Addr> {
        self.slots().iter().filter(|slot| slot.local).map(|slot| slot.address)
    }
}

/// The map that holds the slots of a frontend.
pub(crate) fn slot_map<F: Family>(key: &FrontendKey<F>) -> Map {
    match key.address {
        FrontendAddress::Ip(_) => Map::Endpoints,
        FrontendAddress::Node => Map::NodePortEndpoints,
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
