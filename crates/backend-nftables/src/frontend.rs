//! What the kernel holds for one frontend, and its form as map elements.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::{
    AddressKind, Balancer, Family, Frontend, FrontendAddress, FrontendKey, Masquerade, ServicePortName,
    TrafficPolicy, Verdict,
};
use nft::{Bytes, Data, Element};

use crate::layout::{IpvsMasquerade, Map, MapElement, Traffic, cut_comment, frontend_bytes, source_bytes};
use crate::lease::can_be_proxied;
use crate::pools::Pool;
use crate::priority::{MasqueradeWhen, PROXIED, PROXIED_INTERNAL, choice};

/// What the kernel holds, or is to hold, for one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programmed {
    /// The Service port, which is also the comment on the frontend's elements.
    pub(crate) service: ServicePortName,
    pub(crate) kind: AddressKind,
    /// Networks that alone may use it.
    allowed_sources: Option<Arc<[IpNet]>>,
    /// For flows from anywhere.
    any: Action,
    /// For internal flows, where that differs.
    internal: Option<Action>,
    /// Addresses of those endpoints on this node that IPVS chooses from.
    local_addresses: Box<[IpAddr]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// An endpoint of the Service port's pool of this policy is chosen as the packet's priority says.
    Choose {
        policy: TrafficPolicy,
        priority: u32,
    },
    /// IPVS chooses an endpoint, unless a proxy takes the flow before.
    LeaveToIpvs {
        masquerade: Masquerade,
        is_proxied: bool,
    },
    Refuse(Verdict),
    /// Rules of others decide, unless a proxy takes the flow before. The number that has it offered; 0: it is not.
    LeaveToOthers {
        offer: u32,
    },
}

impl Programmed {
    /// The form of a frontend whose Service port has these pools.
    pub(crate) fn new<'a, F: Family>(
        frontend: &Frontend<F>,
        balancer: &Balancer,
        pool: impl Fn(TrafficPolicy) -> Option<&'a Pool<F>>,
    ) -> Self {
        let is_proxied = balancer.leaves_to_proxies(frontend) && can_be_proxied(frontend.key.protocol);
        let is_others = matches!(balancer, Balancer::OtherRules(_));
        let action = |policy, wanted: &model::Pool<F>, masquerade, proxied| {
            let offer = if is_proxied { proxied } else { 0 };
            match (wanted, pool(policy)) {
                (model::Pool::Endpoints(_), _) if is_others => Action::LeaveToOthers { offer },
                (model::Pool::Empty(_), _) if is_others => Action::LeaveToOthers { offer: 0 },
                (model::Pool::Empty(verdict), _) => Action::Refuse(*verdict),
                (model::Pool::Endpoints(_), Some(pool)) => {
                    let priority = offer | choice(masquerade, pool.chain(), pool.number);
                    Action::Choose { policy, priority }
                }
                // There are more pools than numbers.
                (model::Pool::Endpoints(_), None) => Action::Refuse(Verdict::Reject),
            }
        };
        let internal = frontend.internal_pool.as_ref().filter(|pool| !pool.endpoints().is_empty());
        let any = match (&frontend.pool, balancer) {
            (model::Pool::Endpoints(_), Balancer::Ipvs { .. }) => {
                Action::LeaveToIpvs { masquerade: frontend.masquerade, is_proxied }
            }
            (wanted, _) => {
                action(frontend.policy, wanted, MasqueradeWhen::Frontend(frontend.masquerade), PROXIED)
            }
        };
        Self {
            service: frontend.service.clone(),
            kind: frontend.kind,
            allowed_sources: frontend.allowed_sources.clone().filter(|_| is_proxied || !is_others),
            any,
            // The node's own flows are masqueraded, those of pods are not.
            internal: internal
                .map(|pool| action(TrafficPolicy::Cluster, pool, MasqueradeWhen::FromNode, PROXIED_INTERNAL)),
            local_addresses: local_addresses(frontend, balancer),
        }
    }

    fn action(&self, traffic: Traffic) -> Option<Action> {
        match traffic {
            Traffic::Any => Some(self.any),
            Traffic::Internal => self.internal,
        }
    }

    /// The policies of the pools that it leads to; one of them twice if both of its ways lead there.
    pub(crate) fn pools(&self) -> impl Iterator<Item = TrafficPolicy> {
        [Some(self.any), self.internal].into_iter().flatten().filter_map(|action| match action {
            Action::Choose { policy, .. } => Some(policy),
            Action::LeaveToIpvs { .. } | Action::Refuse(_) | Action::LeaveToOthers { .. } => None,
        })
    }

    /// Addresses of those endpoints on this node that IPVS chooses from: they can send packets to themselves.
    pub(crate) fn local_addresses<F: Family>(&self) -> impl Iterator<Item = F::Addr> {
        self.local_addresses.iter().filter_map(|address| F::narrow(*address))
    }

    /// The element that sends the frontend's packets on their way.
    fn element<F: Family>(&self, traffic: Traffic, key: &FrontendKey<F>) -> Option<MapElement> {
        let by_node_port = key.address == FrontendAddress::Node;
        let (map, data) = match self.action(traffic)? {
            Action::LeaveToOthers { offer: 0 } => return None,
            Action::Choose { priority, .. } | Action::LeaveToOthers { offer: priority } => {
                (Map::Frontends(traffic, by_node_port), Data::Value(Bytes::new().index(priority)))
            }
            Action::LeaveToIpvs { masquerade, .. } => {
                (Map::Ipvs(IpvsMasquerade(masquerade), by_node_port), Data::None)
            }
            Action::Refuse(Verdict::Drop) => (Map::Dropped(by_node_port), Data::None),
            Action::Refuse(Verdict::Reject) => (Map::Rejected(by_node_port), Data::None),
        };
        let comment = Some(cut_comment(self.service.to_string(), ""));
        Some(MapElement::new(map, Element { key: frontend_bytes(key), data, comment }))
    }

    /// The element by which a proxy is offered what IPVS has otherwise.
    fn offer<F: Family>(&self, key: &FrontendKey<F>) -> Option<MapElement> {
        let is_offered = matches!(self.any, Action::LeaveToIpvs { is_proxied: true, .. });
        let map = Map::Frontends(Traffic::Any, key.address == FrontendAddress::Node);
        let comment = Some(cut_comment(self.service.to_string(), ""));
        let data = Data::Value(Bytes::new().index(PROXIED));
        is_offered.then(|| MapElement::new(map, Element { key: frontend_bytes(key), data, comment }))
    }

    /// The elements that keep other senders away.
    fn source_elements<F: Family>(&self, key: &FrontendKey<F>) -> impl Iterator<Item = MapElement> {
        let ranges = self.allowed_sources.as_deref();
        let allowed = ranges.unwrap_or_default().iter().map(|range| source_bytes(key, range));
        let allowed = allowed.map(|key| MapElement::member(Map::AllowedSources, key));
        let key = frontend_bytes(key);
        let is_ours =
            |map: &Map| *map == Map::Restricted || !matches!(self.any, Action::LeaveToOthers { .. });
        let restricted = ranges.map(|_| [Map::SourceDropped, Map::Restricted]).into_iter().flatten();
        restricted.filter(is_ours).map(move |map| MapElement::member(map, key)).chain(allowed)
    }

    /// All elements of the frontend.
    pub(crate) fn elements<F: Family>(&self, key: &FrontendKey<F>) -> impl Iterator<Item = MapElement> {
        let by_traffic = Traffic::ALL.into_iter().filter_map(|traffic| self.element(traffic, key));
        by_traffic.chain(self.offer(key)).chain(self.source_elements(key))
    }
}

/// None but beside IPVS: where the rules themselves choose they are the pools'.
fn local_addresses<F: Family>(frontend: &Frontend<F>, balancer: &Balancer) -> Box<[IpAddr]> {
    if !matches!(balancer, Balancer::Ipvs { .. }) {
        return Box::default();
    }
    let local = frontend.pool.endpoints().iter().filter(|endpoint| endpoint.node.may_be_this());
    let addresses: BTreeSet<IpAddr> = local.map(|endpoint| endpoint.address.into()).collect();
    addresses.into_iter().collect()
}
