//! The store: every object as last accepted, gathered by Service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::SystemTime;

use ipnet::IpNet;
use rustc_hash::FxBuildHasher;

use crate::capacity::shrink_if_sparse;
use crate::{
    Change, EndpointSlice, IpFamily, Kind, Name, Node, Object, ObjectName, Service, ServiceCidr, ServiceName,
    SliceEndpoints,
};

/// A Service and its slices. Either may exist without the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The Service, when it exists and is ours. Boxed, since the nodes of a tree are up to half empty.
    pub service: Option<Box<Service>>,
    /// Its slices of both families, sorted by name.
    pub slices: Vec<EndpointSlice>,
}

impl ServiceEntry {
    /// Whether the Service has an address, of whatever kind, or an endpoint of it.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let is_own = |service: &Service| {
            let lists = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
            lists.into_iter().any(|list| list.contains(&address))
        };
        let is_endpoint = |slice: &EndpointSlice| match &slice.endpoints {
            SliceEndpoints::V4(own) => own.iter().any(|endpoint| address == endpoint.address),
            SliceEndpoints::V6(own) => own.iter().any(|endpoint| address == endpoint.address),
        };
        self.service.as_deref().is_some_and(is_own) || self.slices.iter().any(is_endpoint)
    }

    /// Whether the Service has a node port.
    pub fn has_node_port(&self, port: u16) -> bool {
        let mut ports = self.service.iter().flat_map(|service| &service.ports);
        ports.any(|own| own.node_port == Some(port))
    }
}

/// What a change touched, for the node view to look at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose own object or whose slices differ from before.
    pub services: BTreeSet<ServiceName>,
    /// The Node differs: every Service has to be looked at.
    pub node: bool,
    /// The `ServiceCIDR`s differ.
    pub service_cidrs: bool,
    /// The trigger times of slices that differ from before, in the order of the changes.
    pub trigger_times: Vec<(IpFamily, SystemTime)>,
}

/// All accepted objects.
///
/// Invariant: a slice is in exactly one entry, that of its present owner, also after its owner label changed; an entry
/// without Service and slices does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    entries: BTreeMap<ServiceName, ServiceEntry>,
    slice_owners: HashMap<ObjectName, ServiceName, FxBuildHasher>,
    nodes: BTreeMap<Name, Node>,
    service_cidrs: BTreeMap<Name, ServiceCidr>,
}

impl Store {
    /// Takes a change in and adds to `touched` what differs from before. A change that says what is known already
    /// touches nothing.
    pub fn apply(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Apply(object) => self.put(object, touched),
            Change::Delete(kind, name) => self.delete(kind, &name, touched),
            Change::Replace { kind, objects, keep } => self.replace(kind, objects, &keep, touched),
        }
    }

    /// The Service and slices under this name.
    pub fn entry(&self, name: &ServiceName) -> Option<&ServiceEntry> {
        self.entries.get(name)
    }

    /// All Services and owners of slices, by name.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&ServiceName, &ServiceEntry)> {
        self.entries.iter()
    }

    /// Services, and owners of slices, behind this one, or all; by name.
    pub fn entries_after(
        &self,
        after: Option<&ServiceName>,
    ) -> impl Iterator<Item = (&ServiceName, &ServiceEntry)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range((from, Bound::Unbounded))
    }

    /// The Node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The union of all `ServiceCIDR` ranges, sorted. The same range named by two objects is there once, and stays while
    /// one of them does.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flat_map(|object| object.cidrs.iter().copied()).collect()
    }

    fn put(&mut self, object: Object, touched: &mut Touched) {
        match object {
            Object::Service(service) => self.put_service(service, touched),
            Object::EndpointSlice(slice) => self.put_slice(slice, touched),
            Object::Node(node) => {
                touched.node |= self.nodes.get(&node.name.name) != Some(&node);
                self.nodes.insert(node.name.name.clone(), node);
            }
            Object::ServiceCidr(cidr) => {
                touched.service_cidrs |= self.service_cidrs.get(&cidr.name.name) != Some(&cidr);
                self.service_cidrs.insert(cidr.name.name.clone(), cidr);
            }
        }
    }

    fn put_service(&mut self, service: Service, touched: &mut Touched) {
        let name = service.name.clone();
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.service.as_deref() != Some(&service) {
            entry.service = Some(Box::new(service));
            touched.services.insert(name);
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice, touched: &mut Touched) {
        if self.slice_owners.get(&slice.name).is_some_and(|owner| *owner != slice.service) {
            self.delete_slice(&slice.name, touched);
        }
        let owner = slice.service.clone();
        let trigger = slice.trigger_time.map(|time| (slice.family(), time));
        let slices = &mut self.entries.entry(owner.clone()).or_default().slices;
        match slices.binary_search_by(|known| known.name.cmp(&slice.name)) {
            Ok(idx) if slices[idx] == slice => return,
            Ok(idx) => slices[idx] = slice,
            Err(idx) => {
                self.slice_owners.insert(slice.name.clone(), owner.clone());
                // Nearly all Services have one, and slices are large.
                slices.reserve_exact(1);
                slices.insert(idx, slice);
            }
        }
        touched.trigger_times.extend(trigger);
        touched.services.insert(owner);
    }

    fn delete(&mut self, kind: Kind, name: &ObjectName, touched: &mut Touched) {
        match kind {
            Kind::Service => self.delete_service(name, touched),
            Kind::EndpointSlice => self.delete_slice(name, touched),
            Kind::Node => touched.node |= self.nodes.remove(&name.name).is_some(),
            Kind::ServiceCidr => touched.service_cidrs |= self.service_cidrs.remove(&name.name).is_some(),
        }
    }

    fn delete_service(&mut self, name: &ServiceName, touched: &mut Touched) {
        if self.entries.get_mut(name).is_some_and(|entry| entry.service.take().is_some()) {
            touched.services.insert(name.clone());
            self.drop_if_empty(name);
        }
    }

    fn delete_slice(&mut self, name: &ObjectName, touched: &mut Touched) {
        let Some(owner) = self.slice_owners.remove(name) else { return };
        shrink_if_sparse(&mut self.slice_owners);
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.slices.retain(|slice| slice.name != *name);
        }
        self.drop_if_empty(&owner);
        touched.services.insert(owner);
    }

    fn drop_if_empty(&mut self, name: &ServiceName) {
        if self.entries.get(name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.entries.remove(name);
        }
    }

    fn replace(&mut self, kind: Kind, objects: Vec<Object>, keep: &[ObjectName], touched: &mut Touched) {
        let listed: BTreeSet<ObjectName> = objects.iter().map(Object::name).chain(keep).cloned().collect();
        for name in self.names(kind) {
            if !listed.contains(&name) {
                self.delete(kind, &name, touched);
            }
        }
        for object in objects {
            debug_assert_eq!(object.kind(), kind, "a listing holds one kind");
            self.put(object, touched);
        }
    }

    /// The names of all known objects of a kind.
    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::Service => {
                let known = self.entries.iter().filter(|(_, entry)| entry.service.is_some());
                known.map(|(name, _)| name.clone()).collect()
            }
            Kind::EndpointSlice => {
                let slices = self.entries.values().flat_map(|entry| &entry.slices);
                slices.map(|slice| slice.name.clone()).collect()
            }
            Kind::Node => self.nodes.values().map(|node| node.name.clone()).collect(),
            Kind::ServiceCidr => self.service_cidrs.values().map(|cidr| cidr.name.clone()).collect(),
        }
    }
}
