//! HNS in memory, with failures on demand: JSON in, JSON out. It refuses what the real one refuses, as far as that is known
//! from its documents, from hcsshim and from what people report; where they leave it open, [`Knobs`] turn it either way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hcn::{
    Call, Code, Endpoint, Guid, Hcn, HcnError, Kind, LoadBalancer, LoadBalancerFlags, Network, PortMapping,
    Version, network_type,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// HNS in memory. Clones are connections to the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeHns {
    state: Arc<Mutex<State>>,
}

/// What the documents leave open, and what differs from version to version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a knob of its own; together they are no state")]
pub struct Knobs {
    /// Of HNS.
    pub version: Version,
    /// What becomes of changes in place.
    pub modify: Modify,
    /// What becomes of the deletion of an endpoint that a load balancer leads to.
    pub in_use: InUse,
    /// A second endpoint with an address that one has (Windows Server 2019).
    pub allows_twins: bool,
    /// Proposed ids are kept.
    pub keeps_ids: bool,
    /// GUIDs in documents are in upper case.
    pub upper_case: bool,
    /// A load balancer without a source VIP is given one.
    pub chooses_source_vip: bool,
}

/// What becomes of changes in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Modify {
    /// They are made, if the version has them.
    Works,
    /// They are taken, and nothing changes.
    Lies,
    /// They are refused, whatever the version says.
    Refused,
}

/// What becomes of the deletion of an endpoint that a load balancer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InUse {
    /// It is refused.
    Refused,
    /// It is done, and the load balancer goes on without.
    Emptied,
}

impl Default for Knobs {
    /// A recent Windows Server.
    fn default() -> Self {
        Self {
            version: Version::new(16, 2),
            modify: Modify::Works,
            in_use: InUse::Refused,
            allows_twins: true,
            keeps_ids: true,
            upper_case: false,
            chooses_source_vip: false,
        }
    }
}

/// What a call does instead of what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not done.
    Refused(Code),
    /// It is done, and fails all the same.
    AnswerLost(Code),
    /// It panics.
    Panic,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Objects {
    /// Networks.
    pub networks: BTreeMap<Guid, Network>,
    /// Endpoints.
    pub endpoints: BTreeMap<Guid, Endpoint>,
    /// Load balancers.
    pub balancers: BTreeMap<Guid, LoadBalancer>,
    /// Ids that were given out.
    pub last_id: u128,
}

#[derive(Debug, Default)]
struct State {
    knobs: Knobs,
    objects: Objects,
    calls: Vec<Call>,
    /// Bytes of documents, both ways.
    bytes: usize,
    faults: VecDeque<Option<Fault>>,
    is_away: bool,
    /// Ports of the host's own listeners, which block node ports on Windows Server 2019.
    listeners: BTreeSet<(u32, u16)>,
}

impl FakeHns {
    /// HNS without objects.
    pub fn new(knobs: Knobs) -> Self {
        let fake = Self::default();
        fake.state().knobs = knobs;
        fake
    }

    /// HNS with these objects.
    pub fn with(knobs: Knobs, objects: Objects) -> Self {
        let fake = Self::new(knobs);
        fake.state().objects = objects;
        fake
    }

    /// What there is.
    pub fn objects(&self) -> Objects {
        self.state().objects.clone()
    }

    /// Does something behind everybody's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Objects)) {
        change(&mut self.state().objects);
    }

    /// What HNS it is.
    pub fn knobs(&self) -> Knobs {
        self.state().knobs.clone()
    }

    /// Makes it another HNS.
    pub fn turn(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.state().knobs);
    }

    /// The calls so far, those that failed too.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// The calls so far that would change something.
    pub fn writes(&self) -> Vec<Call> {
        self.state().calls.iter().filter(|call| call.writes()).copied().collect()
    }

    /// Bytes of documents so far, both ways.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// The next calls fail so, in order; `None` lets one pass.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().faults.extend(faults);
    }

    /// No call fails any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.is_away = false;
    }

    /// The service ends or begins; its objects stay.
    pub fn set_away(&self, is_away: bool) {
        self.state().is_away = is_away;
    }

    /// The service was restarted without what programs made.
    pub fn lose_objects(&self) {
        let objects = &mut self.state().objects;
        objects.balancers.clear();
        objects.endpoints.retain(|_, endpoint| !endpoint.is_remote());
    }

    /// A network gets another id, as when a plug-in makes it anew: its endpoints go. Load balancers stay or go.
    pub fn replace_network(&self, name: &str, balancers_stay: bool) {
        let objects = &mut self.state().objects;
        let found = objects.networks.iter().find(|(_, network)| network.name == name);
        let Some((old, mut network)) = found.map(|(id, network)| (*id, network.clone())) else { return };
        let id = objects.next_id();
        network.id = Some(id);
        objects.networks.remove(&old);
        objects.networks.insert(id, network);
        let gone: BTreeSet<Guid> = objects.endpoints_of(old).collect();
        objects.endpoints.retain(|id, _| !gone.contains(id));
        if !balancers_stay {
            let leads_there =
                |found: &LoadBalancer| found.host_compute_endpoints.iter().any(|id| gone.contains(id));
            objects.balancers.retain(|_, found| !leads_there(found));
        }
    }

    /// Something on the host listens at a port.
    pub fn listen(&self, protocol: u32, port: u16) {
        self.state().listeners.insert((protocol, port));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects {
    /// A network of this type on this node.
    pub fn add_network(&mut self, name: &str, kind: &str, subnets: &[&str]) -> Guid {
        let id = self.next_id();
        let subnet = |prefix: &&str| hcn::Subnet { ip_address_prefix: (*prefix).to_owned() };
        let network = Network {
            id: Some(id),
            name: name.to_owned(),
            kind: kind.to_owned(),
            ipams: vec![hcn::Ipam { subnets: subnets.iter().map(subnet).collect() }],
            ..Network::default()
        };
        self.networks.insert(id, network);
        id
    }

    /// Another node's subnet, on an overlay.
    pub fn add_remote_subnet(&mut self, network: Guid, prefix: &str, provider: IpAddr) {
        let settings =
            json!({ "DestinationPrefix": prefix, "IsolationId": 4096, "ProviderAddress": provider });
        if let Some(network) = self.networks.get_mut(&network) {
            network.policies.push(hcn::Policy::new(hcn::policy_type::REMOTE_SUBNET_ROUTE, settings));
        }
    }

    /// An endpoint of this node, as network plug-ins make them.
    pub fn add_pod(&mut self, network: Guid, name: &str, addresses: &[IpAddr]) -> Guid {
        let id = self.next_id();
        let configuration = |address: &IpAddr| hcn::IpConfiguration {
            ip_address: address.to_string(),
            prefix_length: if address.is_ipv4() { 24 } else { 64 },
        };
        let endpoint = Endpoint {
            id: Some(id),
            name: name.to_owned(),
            host_compute_network: Some(network),
            ip_configurations: addresses.iter().map(configuration).collect(),
            ..Endpoint::default()
        };
        self.endpoints.insert(id, endpoint);
        id
    }

    /// A load balancer that somebody made.
    pub fn add_balancer(&mut self, document: LoadBalancer) -> Guid {
        let id = document.id.unwrap_or_else(|| self.next_id());
        self.balancers.insert(id, LoadBalancer { id: Some(id), ..document });
        id
    }

    fn next_id(&mut self) -> Guid {
        self.last_id += 1;
        Guid::from_u128(0x5a1e_0c1f_0000_4000_8000_0000_0000_0000 | self.last_id)
    }

    fn endpoints_of(&self, network: Guid) -> impl Iterator<Item = Guid> {
        let on_it =
            self.endpoints.iter().filter(move |(_, found)| found.host_compute_network == Some(network));
        on_it.map(|(id, _)| *id)
    }
}

type Done<T> = Result<T, Code>;

impl State {
    /// One call: recorded, failed if that was asked for, else done.
    fn call<T>(&mut self, call: Call, work: impl FnOnce(&mut Self) -> Done<T>) -> Result<T, HcnError> {
        self.calls.push(call);
        let refused = |code| HcnError { call, code, text: "in memory".to_owned() };
        if self.is_away {
            return Err(refused(Code::RPC_UNAVAILABLE));
        }
        match self.faults.pop_front().flatten() {
            None => work(self).map_err(refused),
            Some(Fault::Refused(code)) => Err(refused(code)),
            Some(Fault::AnswerLost(code)) => {
                drop(work(self));
                Err(refused(code))
            }
            Some(Fault::Panic) => panic_on_request(),
        }
    }

    fn query(&mut self, kind: Kind, id: Guid) -> Done<Value> {
        let objects = &self.objects;
        let found = match kind {
            Kind::Network => objects.networks.get(&id).map(serde_json::to_value),
            Kind::Endpoint => objects.endpoints.get(&id).map(serde_json::to_value),
            Kind::LoadBalancer => objects.balancers.get(&id).map(serde_json::to_value),
        };
        let document = found.ok_or(Code::NOT_FOUND)?.map_err(|_impossible| Code::FAIL)?;
        let document = self.dress(document);
        self.bytes += document.to_string().len();
        Ok(document)
    }

    /// What hosts add.
    fn dress(&self, mut document: Value) -> Value {
        document["Health"] = json!({ "LastErrorCode": 0, "LastUpdateTime": 133_000_000_000_000_000_u64 });
        document["State"] = json!(1);
        if self.knobs.upper_case { upper_case(document) } else { document }
    }

    fn new_id(&mut self, proposed: Option<Guid>) -> Guid {
        proposed.filter(|_| self.knobs.keeps_ids).unwrap_or_else(|| self.objects.next_id())
    }

    fn create(
        &mut self,
        kind: Kind,
        network: Option<Guid>,
        id: Option<Guid>,
        settings: &Value,
    ) -> Done<Guid> {
        self.bytes += settings.to_string().len();
        let id = self.new_id(id);
        match kind {
            Kind::Network => {
                let document: Network = parse(settings)?;
                self.objects.networks.insert(id, Network { id: Some(id), ..document });
            }
            Kind::Endpoint => {
                let document: Endpoint = parse(settings)?;
                let network = network.ok_or(Code::INVALID_ARGUMENT)?;
                self.check_endpoint(id, network, &document)?;
                let host_compute_network = Some(network);
                self.objects
                    .endpoints
                    .insert(id, Endpoint { id: Some(id), host_compute_network, ..document });
            }
            Kind::LoadBalancer => {
                let document: LoadBalancer = parse(settings)?;
                if self.objects.balancers.contains_key(&id) {
                    return Err(Code::ALREADY_EXISTS);
                }
                self.check_balancer(id, &document)?;
                let document = self.with_source_vip(document);
                self.objects.balancers.insert(id, LoadBalancer { id: Some(id), ..document });
            }
        }
        Ok(id)
    }

    fn with_source_vip(&self, document: LoadBalancer) -> LoadBalancer {
        if self.knobs.chooses_source_vip && document.source_vip.is_empty() {
            LoadBalancer { source_vip: "192.168.99.1".to_owned(), ..document }
        } else {
            document
        }
    }

    fn check_endpoint(&self, id: Guid, network: Guid, document: &Endpoint) -> Done<()> {
        let network_found = self.objects.networks.get(&network).ok_or(Code::NETWORK_NOT_FOUND)?;
        if self.objects.endpoints.contains_key(&id) {
            return Err(Code::ALREADY_EXISTS);
        }
        let is_overlay = network_found.is(network_type::OVERLAY);
        let has_provider = document.provider_address().is_some();
        if has_provider != (is_overlay && document.is_remote()) || document.mac_address.is_empty() {
            return Err(Code::INVALID_POLICY);
        }
        let addresses: Vec<IpAddr> = document.addresses().collect();
        if addresses.is_empty() || addresses.len() != document.ip_configurations.len() {
            return Err(Code::ADDRESS_INVALID);
        }
        let is_inside = |address: &IpAddr| prefixes(network_found).any(|prefix| prefix.contains(address));
        if !document.is_remote() && !addresses.iter().all(is_inside) {
            return Err(Code::ADDRESS_INVALID);
        }
        let has_twin = self.objects.endpoints_of(network).any(|other| {
            let other = &self.objects.endpoints[&other];
            other.addresses().any(|address| addresses.contains(&address))
        });
        if has_twin && !self.knobs.allows_twins { Err(Code::ALREADY_EXISTS) } else { Ok(()) }
    }

    fn check_balancer(&self, id: Guid, document: &LoadBalancer) -> Done<()> {
        let endpoints = &document.host_compute_endpoints;
        if endpoints.is_empty() || document.port_mappings.is_empty() {
            return Err(Code::INVALID_POLICY);
        }
        if endpoints.iter().any(|endpoint| !self.objects.endpoints.contains_key(endpoint)) {
            return Err(Code::ENDPOINT_NOT_FOUND);
        }
        self.check_flags(document)?;
        self.check_source_vip(document)?;
        let mut others = self.objects.balancers.iter().filter(|(other, _)| **other != id);
        let is_taken = others.any(|(_, other)| collide(document, other));
        let is_blocked = document.frontend_vips.is_empty()
            && document.port_mappings.iter().any(|mapping| self.listeners.contains(&listener(mapping)));
        if is_taken || is_blocked { Err(Code::PORT_EXISTS) } else { Ok(()) }
    }

    fn check_flags(&self, document: &LoadBalancer) -> Done<()> {
        let version = self.knobs.version;
        let (dsr, v6) = (LoadBalancerFlags::DSR, LoadBalancerFlags::IPV6);
        let lacks_dsr = document.flags.contains(dsr) && !version.has_dsr();
        let is_v6 = document.flags.contains(v6);
        let lacks_v6 = is_v6 && !version.has_dual_stack();
        let vips = document.frontend_vips.iter().map(|vip| vip.parse::<IpAddr>());
        let is_of_other_family = vips.into_iter().any(|vip| vip.map_or(true, |vip| vip.is_ipv6() != is_v6));
        let is_unknown =
            document.flags.0 > 3 || document.port_mappings.iter().any(|found| found.flags.0 > 31);
        if lacks_dsr || lacks_v6 || is_of_other_family || is_unknown {
            Err(Code::INVALID_POLICY)
        } else {
            Ok(())
        }
    }

    /// It can't be the first address of a subnet.
    fn check_source_vip(&self, document: &LoadBalancer) -> Done<()> {
        if document.source_vip.is_empty() {
            return Ok(());
        }
        let address: IpAddr = document.source_vip.parse().map_err(|_malformed| Code::ADDRESS_INVALID)?;
        let mut prefixes = self.objects.networks.values().flat_map(prefixes);
        if prefixes.any(|prefix| prefix.network() == address) { Err(Code::ADDRESS_INVALID) } else { Ok(()) }
    }

    fn modify(&mut self, kind: Kind, id: Guid, settings: &Value) -> Done<()> {
        self.bytes += settings.to_string().len();
        if kind != Kind::LoadBalancer || self.knobs.modify == Modify::Refused {
            return Err(Code::NOT_IMPLEMENTED);
        }
        let held = self.objects.balancers.get(&id).ok_or(Code::NOT_FOUND)?;
        if !self.knobs.version.has_modify() {
            return Err(Code::NOT_IMPLEMENTED);
        }
        let document: LoadBalancer = parse(settings)?;
        // What else may change is not documented.
        if document.flags != held.flags || document.port_mappings != held.port_mappings {
            return Err(Code::INVALID_POLICY);
        }
        self.check_balancer(id, &document)?;
        if self.knobs.modify == Modify::Works {
            let document = self.with_source_vip(document);
            self.objects.balancers.insert(id, LoadBalancer { id: Some(id), ..document });
        }
        Ok(())
    }

    fn delete(&mut self, kind: Kind, id: Guid) -> Done<()> {
        let objects = &mut self.objects;
        match kind {
            Kind::Network => objects.networks.remove(&id).map(drop).ok_or(Code::NOT_FOUND),
            Kind::LoadBalancer => objects.balancers.remove(&id).map(drop).ok_or(Code::NOT_FOUND),
            Kind::Endpoint => {
                if !objects.endpoints.contains_key(&id) {
                    return Err(Code::NOT_FOUND);
                }
                let mut leading = objects.balancers.values().flat_map(|found| &found.host_compute_endpoints);
                if leading.any(|endpoint| *endpoint == id) && self.knobs.in_use == InUse::Refused {
                    return Err(Code::INVALID_POLICY);
                }
                for balancer in objects.balancers.values_mut() {
                    balancer.host_compute_endpoints.retain(|endpoint| *endpoint != id);
                }
                objects.endpoints.remove(&id);
                Ok(())
            }
        }
    }
}

impl Hcn for FakeHns {
    fn version(&mut self) -> Result<Version, HcnError> {
        self.state().call(Call::Version, |state| Ok(state.knobs.version))
    }

    fn ids(&mut self, kind: Kind) -> Result<Vec<Guid>, HcnError> {
        self.state().call(Call::Ids(kind), |state| {
            let objects = &state.objects;
            Ok(match kind {
                Kind::Network => objects.networks.keys().copied().collect(),
                Kind::Endpoint => objects.endpoints.keys().copied().collect(),
                Kind::LoadBalancer => objects.balancers.keys().copied().collect(),
            })
        })
    }

    fn query(&mut self, kind: Kind, id: Guid) -> Result<Value, HcnError> {
        self.state().call(Call::Query(kind, id), |state| state.query(kind, id))
    }

    fn create(
        &mut self,
        kind: Kind,
        network: Option<Guid>,
        id: Option<Guid>,
        settings: &Value,
    ) -> Result<(Guid, Value), HcnError> {
        self.state().call(Call::Create(kind), |state| {
            let id = state.create(kind, network, id, settings)?;
            Ok((id, state.query(kind, id)?))
        })
    }

    fn modify(&mut self, kind: Kind, id: Guid, settings: &Value) -> Result<(), HcnError> {
        self.state().call(Call::Modify(kind, id), |state| state.modify(kind, id, settings))
    }

    fn delete(&mut self, kind: Kind, id: Guid) -> Result<(), HcnError> {
        self.state().call(Call::Delete(kind, id), |state| state.delete(kind, id))
    }
}

/// What VFP would do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No load balancer has its destination: it goes on as if nobody had looked.
    Passes,
    /// It goes to one of these.
    To {
        /// The endpoints' addresses.
        endpoints: BTreeSet<IpAddr>,
        /// The port there.
        port: u16,
        /// The endpoint sees the client's address, not a source VIP.
        keeps_client: bool,
    },
}

/// What VFP would do with a packet on the node of this address: a load balancer has its destination, or, for a node port, its
/// port at the node's own address; one of its endpoints is chosen by a hash, and without direct server return the source is
/// rewritten, whoever the client is.
pub fn judge(objects: &Objects, destination: std::net::SocketAddr, protocol: u32, node: IpAddr) -> Verdict {
    let is_v6 = destination.is_ipv6();
    let is_it = |document: &&LoadBalancer| {
        let mut vips = document.frontend_vips.iter().filter_map(|vip| vip.parse::<IpAddr>().ok());
        let has_address = if document.frontend_vips.is_empty() {
            destination.ip() == node && document.flags.contains(LoadBalancerFlags::IPV6) == is_v6
        } else {
            vips.any(|vip| vip == destination.ip())
        };
        let mut mappings = document.port_mappings.iter();
        has_address && mappings.any(|found| listener(found) == (protocol, destination.port()))
    };
    let Some(document) = objects.balancers.values().find(is_it) else { return Verdict::Passes };
    let endpoints = document.host_compute_endpoints.iter().filter_map(|id| objects.endpoints.get(id));
    let endpoints = endpoints.flat_map(Endpoint::addresses).filter(|address| address.is_ipv6() == is_v6);
    Verdict::To {
        endpoints: endpoints.collect(),
        port: document.port_mappings.first().map_or(0, |mapping| mapping.internal_port),
        keeps_client: document.flags.contains(LoadBalancerFlags::DSR),
    }
}

fn parse<T: serde::de::DeserializeOwned>(settings: &Value) -> Done<T> {
    serde_json::from_value(settings.clone()).map_err(|_malformed| Code::INVALID_ARGUMENT)
}

fn prefixes(network: &Network) -> impl Iterator<Item = IpNet> {
    network.prefixes().filter_map(|prefix| prefix.parse().ok())
}

/// Whether two load balancers have a frontend in common: an address or none, family, protocol, port can exist once.
fn collide(one: &LoadBalancer, other: &LoadBalancer) -> bool {
    let (vips, others) = (&one.frontend_vips, &other.frontend_vips);
    let has_vip = vips.is_empty() && others.is_empty() || vips.iter().any(|vip| others.contains(vip));
    let mut mappings = one.port_mappings.iter();
    let has_port =
        |mapping: &PortMapping| other.port_mappings.iter().any(|found| listener(found) == listener(mapping));
    has_vip
        && one.flags.contains(LoadBalancerFlags::IPV6) == other.flags.contains(LoadBalancerFlags::IPV6)
        && mappings.any(has_port)
}

fn listener(mapping: &PortMapping) -> (u32, u16) {
    (mapping.protocol, mapping.external_port)
}

/// All GUIDs in upper case.
fn upper_case(value: Value) -> Value {
    match value {
        Value::String(text) if text.parse::<Guid>().is_ok() => Value::String(text.to_uppercase()),
        Value::Array(items) => items.into_iter().map(upper_case).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, item)| (key, upper_case(item))).collect(),
        other => other,
    }
}

#[expect(clippy::panic, reason = "to see that its callers survive one")]
fn panic_on_request() -> ! {
    panic!("staged")
}
