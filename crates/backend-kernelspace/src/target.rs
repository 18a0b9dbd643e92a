//! Does the steps.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;

use hcn::{DocumentError, Endpoint, Failure, Guid, Hcn, HcnError, Kind, LoadBalancer, Mac, Network, Version};
use ipnet::IpNet;
use mode::{Applied, Reading, Target};
use model::{Family, FrontendKey, IpFamily};
use rustc_hash::FxBuildHasher;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::facts::NetworkKind;
use crate::form::{Form, key_of};
use crate::found::named_source_vip;
use crate::options::{Adapters, Options};
use crate::step::{Member, Modification, Receipt, Step};
use crate::watch::Activity;

/// One family's load balancers and endpoints, over a connection to HNS.
///
/// Documents that were read or written are kept, so that a reading asks only for those that are new: nobody changes an object in
/// place but us, and single contents are looked at now and then ([`Step::Check`]). After a failure all are read.
pub struct HnsTarget<F: Family> {
    hcn: Box<dyn Hcn>,
    options: Arc<Options>,
    adapters: Adapters,
    activity: Activity,
    endpoints: Cache<Endpoint>,
    balancers: Cache<LoadBalancer>,
    network: Option<Guid>,
    family: PhantomData<F>,
}

/// `None`: what was read has not the form of its kind.
type Cache<T> = HashMap<Guid, Option<T>, FxBuildHasher>;

/// What is read back.
#[derive(Clone, Debug)]
pub struct Found {
    /// When.
    pub at: Instant,
    /// Of HNS.
    pub version: Version,
    /// Our network.
    pub network: Guid,
    /// Its kind.
    pub kind: NetworkKind,
    /// Its own subnets.
    pub subnets: Vec<IpNet>,
    /// Subnets of other nodes, and these nodes' addresses.
    pub remote_subnets: Vec<(IpNet, IpAddr)>,
    /// The endpoints of the host, in the order of their ids.
    pub endpoints: Vec<(Guid, Endpoint)>,
    /// The load balancers of the host, in the order of their ids.
    pub balancers: Vec<(Guid, LoadBalancer)>,
    /// `sourceVip`
    pub source_vip: Option<IpAddr>,
    /// The endpoint that answers health checks, where they are forwarded.
    pub root_endpoint: Option<Guid>,
    /// The node's adapters.
    pub adapters: BTreeMap<IpAddr, Mac>,
}

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A call of HNS.
    #[error(transparent)]
    Hcn(HcnError),
    /// Somebody else has the frontend.
    #[error("load balancer {by}, which is not ours, has this address and port")]
    Taken {
        /// Whose it is not known; its id.
        by: Guid,
        /// What HNS says.
        #[source]
        error: HcnError,
    },
    /// An answer makes no sense.
    #[error(transparent)]
    Document(DocumentError),
    /// The network is not there (yet).
    #[error("there is no HNS network {name:?}")]
    NoNetwork {
        /// `networkName`
        name: String,
    },
    /// A network of a kind that this program can't serve.
    #[error("HNS network {name:?} is of type {kind:?}; only L2Bridge, L2Tunnel and Overlay can be served")]
    NetworkKind {
        /// `networkName`
        name: String,
        /// Its type.
        kind: String,
    },
    /// An overlay needs one.
    #[error(
        "HNS network {name:?} is an overlay, which needs winkernel.sourceVip, or an endpoint of this name"
    )]
    NoSourceVip {
        /// `networkName`
        name: String,
    },
    /// HNS is too old.
    #[error("HNS {version} is too old: 9.2 (Windows Server 2019) is the first that can be used")]
    TooOld {
        /// Of HNS.
        version: Version,
    },
    /// `enableDSR` is set.
    #[error("HNS {version} has no direct server return (winkernel.enableDSR)")]
    NoDsr {
        /// Of HNS.
        version: Version,
    },
    /// Only one family can be served.
    #[error("IPv6 needs HNS 11.10 and a network that is no overlay")]
    NoDualStack,
    /// No endpoint of this node has the address.
    #[error("no HNS endpoint of this node has address {address}")]
    NoEndpoint {
        /// The address.
        address: IpAddr,
    },
    /// None of a load balancer's endpoints could be had.
    #[error("none of its endpoints is there")]
    NoEndpoints,
    /// A load balancer could not be made to let go of an endpoint.
    #[error("the endpoint is still in use")]
    StillUsed,
    /// The call was taken and did nothing.
    #[error("HNS changes no load balancers in place although it says so; they are made anew from now on")]
    ModifyIgnored,
    /// Nothing came back.
    #[error("{why}")]
    OutcomeUnknown {
        /// Why not.
        why: &'static str,
    },
}

impl<F: Family> HnsTarget<F> {
    /// A target over this connection.
    pub fn new(hcn: Box<dyn Hcn>, options: Arc<Options>, adapters: Adapters) -> Self {
        Self {
            hcn,
            options,
            adapters,
            activity: Activity::default(),
            endpoints: Cache::default(),
            balancers: Cache::default(),
            network: None,
            family: PhantomData,
        }
    }

    /// The same, which counts what it does there.
    #[must_use]
    pub fn telling(self, activity: Activity) -> Self {
        Self { activity, ..self }
    }

    fn run(&mut self, step: &Step<F>, plan: &mut Progress<F>) -> Result<Receipt, TargetError> {
        match step {
            Step::Locate(address) => self.locate(*address),
            Step::MakeEndpoint(_, id, endpoint) => self.make_endpoint(*id, endpoint),
            Step::Make(_, id, form, members) => self.make(*id, form, members, plan),
            Step::Modify(_, change) => self.modify(change, plan),
            Step::Delete(_, id) | Step::DeleteStray(id) => self.delete(Kind::LoadBalancer, *id),
            Step::DeleteEndpoint(address, id, users) => {
                if plan.failed_addresses.contains(address)
                    || users.iter().any(|key| plan.failed.contains(key))
                {
                    return Err(TargetError::StillUsed);
                }
                self.delete(Kind::Endpoint, *id)
            }
            Step::Check(_, id) => self.check(*id),
        }
    }

    fn locate(&mut self, address: F::Addr) -> Result<Receipt, TargetError> {
        let address: IpAddr = address.into();
        refresh(&mut *self.hcn, Kind::Endpoint, &mut self.endpoints)?;
        let network = self.network;
        let is_it = |endpoint: &Endpoint| {
            !endpoint.is_remote()
                && endpoint.host_compute_network == network
                && endpoint.addresses().any(|found| found == address)
        };
        let found = self.endpoints.iter().filter(|(_, endpoint)| endpoint.as_ref().is_some_and(is_it));
        let id = found.map(|(id, _)| *id).min();
        id.map(Receipt::Endpoint).ok_or(TargetError::NoEndpoint { address })
    }

    fn make_endpoint(&mut self, id: Guid, endpoint: &Endpoint) -> Result<Receipt, TargetError> {
        let settings = json(endpoint);
        let network = endpoint.host_compute_network;
        let (id, _) =
            self.hcn.create(Kind::Endpoint, network, Some(id), &settings).map_err(TargetError::Hcn)?;
        self.endpoints.insert(id, Some(endpoint.clone()));
        Ok(Receipt::Endpoint(id))
    }

    fn make(
        &mut self,
        id: Guid,
        form: &Form<F>,
        members: &[Member<F>],
        plan: &Progress<F>,
    ) -> Result<Receipt, TargetError> {
        let document = form.document(plan.resolve(members)?);
        let made = self.hcn.create(Kind::LoadBalancer, None, Some(id), &json(&document));
        let (id, answer) = made.map_err(|error| self.taken(&document, error))?;
        // What HNS answers is only for comparing; if it makes no sense, what was asked for stands.
        let answer: LoadBalancer = serde_json::from_value(answer).unwrap_or(document);
        self.balancers.insert(id, Some(answer.clone()));
        Ok(Receipt::Balancer(id, Box::new(answer)))
    }

    /// Who has the frontend, as far as that has been read.
    fn taken(&self, document: &LoadBalancer, error: HcnError) -> TargetError {
        let wanted: Option<FrontendKey<F>> = key_of(document);
        let is_it = |found: &Option<LoadBalancer>| found.as_ref().and_then(key_of) == wanted;
        let holder = self.balancers.iter().find(|(_, found)| is_it(found)).map(|(id, _)| *id);
        match holder {
            Some(by) if error.failure() == Failure::Exists => TargetError::Taken { by, error },
            _ => TargetError::Hcn(error),
        }
    }

    fn modify(&mut self, change: &Modification<F>, plan: &Progress<F>) -> Result<Receipt, TargetError> {
        let mut endpoints = plan.resolve(&change.members)?;
        endpoints.sort_unstable();
        let is_same = endpoints == change.held;
        let document = LoadBalancer { id: Some(change.id), ..change.form.document(endpoints) };
        if is_same {
            return Ok(Receipt::Balancer(change.id, Box::new(document)));
        }
        self.hcn.modify(Kind::LoadBalancer, change.id, &json(&document)).map_err(TargetError::Hcn)?;
        if change.verify {
            let found: LoadBalancer = query(&mut *self.hcn, Kind::LoadBalancer, change.id)?
                .ok_or(TargetError::OutcomeUnknown { why: "a load balancer was changed, and is gone" })?;
            let mut found = found.host_compute_endpoints;
            found.sort_unstable();
            if found != document.host_compute_endpoints {
                return Err(TargetError::ModifyIgnored);
            }
        }
        self.balancers.insert(change.id, Some(document.clone()));
        Ok(Receipt::Balancer(change.id, Box::new(document)))
    }

    /// What is not there any more is deleted.
    fn delete(&mut self, kind: Kind, id: Guid) -> Result<Receipt, TargetError> {
        match self.hcn.delete(kind, id) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(TargetError::Hcn(error)),
        }
        match kind {
            Kind::Endpoint => drop(self.endpoints.remove(&id)),
            Kind::LoadBalancer => drop(self.balancers.remove(&id)),
            Kind::Network => {}
        }
        Ok(Receipt::Gone)
    }

    fn check(&mut self, id: Guid) -> Result<Receipt, TargetError> {
        let found: Option<LoadBalancer> = query(&mut *self.hcn, Kind::LoadBalancer, id)?;
        match &found {
            Some(document) => drop(self.balancers.insert(id, Some(document.clone()))),
            None => drop(self.balancers.remove(&id)),
        }
        Ok(Receipt::Checked(Instant::now(), found.map(Box::new)))
    }

    fn read_all(&mut self) -> Result<Found, TargetError> {
        let version = self.hcn.version().map_err(TargetError::Hcn)?;
        let (network, document) = self.our_network()?;
        let kind = self.check_network(version, &document)?;
        self.network = Some(network);
        refresh(&mut *self.hcn, Kind::Endpoint, &mut self.endpoints)?;
        refresh(&mut *self.hcn, Kind::LoadBalancer, &mut self.balancers)?;
        let found = Found {
            at: Instant::now(),
            version,
            network,
            kind,
            subnets: document.prefixes().filter_map(|prefix| prefix.parse().ok()).collect(),
            remote_subnets: remote_subnets(&document),
            endpoints: sorted(&self.endpoints),
            balancers: sorted(&self.balancers),
            source_vip: self.options.source_vip,
            root_endpoint: self.root_endpoint(),
            adapters: (self.adapters)(),
        };
        Ok(found)
    }

    /// What has been read, if it can be served.
    fn served(&self, found: Found) -> Result<Found, TargetError> {
        let has_source_vip = found.source_vip.is_some() || named_source_vip(&found).is_some();
        if found.kind == NetworkKind::Overlay && !has_source_vip {
            return Err(TargetError::NoSourceVip { name: self.options.network_name.clone() });
        }
        Ok(found)
    }

    /// The network of our name; of several the one with the smallest id.
    fn our_network(&mut self) -> Result<(Guid, Network), TargetError> {
        let name = &self.options.network_name;
        let mut ids = self.hcn.ids(Kind::Network).map_err(TargetError::Hcn)?;
        ids.sort_unstable();
        for id in ids {
            let network: Option<Network> = query_lenient(&mut *self.hcn, Kind::Network, id)?;
            if let Some(network) = network.filter(|network| network.name.eq_ignore_ascii_case(name)) {
                return Ok((id, network));
            }
        }
        Err(TargetError::NoNetwork { name: name.clone() })
    }

    fn check_network(&self, version: Version, network: &Network) -> Result<NetworkKind, TargetError> {
        if !version.is_supported() {
            return Err(TargetError::TooOld { version });
        }
        if self.options.dsr && !version.has_dsr() {
            return Err(TargetError::NoDsr { version });
        }
        let (name, kind) = (network.name.clone(), network.kind.clone());
        let kind = NetworkKind::of(network).ok_or(TargetError::NetworkKind { name, kind })?;
        let has_v6 = version.has_dual_stack() && kind != NetworkKind::Overlay;
        if F::FAMILY == IpFamily::V6 && !has_v6 {
            return Err(TargetError::NoDualStack);
        }
        Ok(kind)
    }

    fn root_endpoint(&self) -> Option<Guid> {
        let Options { forward_health_checks: true, root_endpoint: name, .. } = &*self.options else {
            return None;
        };
        let is_it = |endpoint: &Endpoint| endpoint.name.eq_ignore_ascii_case(name);
        let found = self.endpoints.iter().filter(|(_, endpoint)| endpoint.as_ref().is_some_and(is_it));
        let id = found.map(|(id, _)| *id).min();
        if id.is_none() {
            tracing::warn!(
                endpoint = name,
                "there is no such HNS endpoint: health checks of load balancers go unanswered"
            );
        }
        id
    }
}

/// What has come of a plan's steps so far.
struct Progress<F: Family> {
    endpoints: BTreeMap<F::Addr, Guid>,
    failed_addresses: BTreeSet<F::Addr>,
    failed: BTreeSet<FrontendKey<F>>,
}

impl<F: Family> Progress<F> {
    /// The ids of endpoints; those that could not be had are left out.
    fn resolve(&self, members: &[Member<F>]) -> Result<Vec<Guid>, TargetError> {
        let id = |member: &Member<F>| match member {
            Member::Known(id) => Some(*id),
            Member::Pending(address) => self.endpoints.get(address).copied(),
        };
        let ids: Vec<Guid> = members.iter().filter_map(id).collect();
        if ids.is_empty() { Err(TargetError::NoEndpoints) } else { Ok(ids) }
    }

    fn note(&mut self, step: &Step<F>, result: &Result<Receipt, TargetError>) {
        match (step, result) {
            (Step::Locate(address) | Step::MakeEndpoint(address, ..), Ok(Receipt::Endpoint(id))) => {
                self.endpoints.insert(*address, *id);
            }
            (Step::Locate(address) | Step::MakeEndpoint(address, ..), Err(_)) => {
                self.failed_addresses.insert(*address);
            }
            (step, Err(_)) => self.failed.extend(step.frontend()),
            _ => {}
        }
    }
}

/// Takes up what is new and forgets what is gone: one call, and another for each new object. What can't be found although it was
/// listed is listed again: either it has gone meanwhile, or nothing is known of it.
fn refresh<T: DeserializeOwned>(
    hcn: &mut dyn Hcn,
    kind: Kind,
    cache: &mut Cache<T>,
) -> Result<(), TargetError> {
    let ids = |hcn: &mut dyn Hcn| -> Result<BTreeSet<Guid>, TargetError> {
        Ok(hcn.ids(kind).map_err(TargetError::Hcn)?.into_iter().collect())
    };
    let listed = ids(hcn)?;
    cache.retain(|id, _| listed.contains(id));
    let mut missed = Vec::new();
    for id in listed {
        if cache.contains_key(&id) {
            continue;
        }
        match hcn.query(kind, id) {
            Ok(document) => drop(cache.insert(id, lenient(kind, id, document))),
            Err(error) if is_gone(&error) => missed.push(id),
            Err(error) => return Err(TargetError::Hcn(error)),
        }
    }
    let is_still_there = !missed.is_empty() && {
        let listed = ids(hcn)?;
        missed.iter().any(|id| listed.contains(id))
    };
    if is_still_there {
        return Err(TargetError::OutcomeUnknown { why: "an object of HNS is listed, and can't be read" });
    }
    Ok(())
}

/// An object of somebody else may be anything.
fn lenient<T: DeserializeOwned>(kind: Kind, id: Guid, document: Value) -> Option<T> {
    match hcn::read(kind, id, document) {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::debug!(%kind, %id, error = %error.source, "an object of HNS can't be understood");
            None
        }
    }
}

fn query_lenient<T: DeserializeOwned>(
    hcn: &mut dyn Hcn,
    kind: Kind,
    id: Guid,
) -> Result<Option<T>, TargetError> {
    match hcn.query(kind, id) {
        Ok(document) => Ok(lenient(kind, id, document)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(TargetError::Hcn(error)),
    }
}

fn query<T: DeserializeOwned>(hcn: &mut dyn Hcn, kind: Kind, id: Guid) -> Result<Option<T>, TargetError> {
    match hcn.query(kind, id) {
        Ok(document) => hcn::read(kind, id, document).map(Some).map_err(TargetError::Document),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(TargetError::Hcn(error)),
    }
}

/// Whether the object that a call is about is not there.
fn is_gone(error: &HcnError) -> bool {
    matches!(error.failure(), Failure::NotFound | Failure::Stale)
}

fn sorted<T: Clone>(cache: &Cache<T>) -> Vec<(Guid, T)> {
    let readable = cache.iter().filter_map(|(id, document)| Some((*id, document.clone()?)));
    let sorted: BTreeMap<Guid, T> = readable.collect();
    sorted.into_iter().collect()
}

fn remote_subnets(network: &Network) -> Vec<(IpNet, IpAddr)> {
    let subnets = network.remote_subnets().filter_map(|subnet| {
        Some((subnet.destination_prefix.parse().ok()?, subnet.provider_address.parse().ok()?))
    });
    subnets.collect()
}

/// Our own documents always have a form in JSON.
fn json<T: serde::Serialize>(document: &T) -> Value {
    serde_json::to_value(document).unwrap_or_default()
}

impl<F: Family> Target for HnsTarget<F> {
    type Step = Step<F>;
    type Receipt = Receipt;
    type Found = Found;
    type Counted = ();
    type Error = TargetError;

    /// What fails does not keep others from being tried, unless HNS is away. Nothing comes between deleting a load balancer and
    /// making it anew.
    fn apply(&mut self, steps: Vec<Step<F>>, yields: &dyn Fn() -> bool) -> Applied<Self> {
        let mut applied =
            Applied { results: Vec::with_capacity(steps.len()), kernel_time: None, is_usable: true };
        let mut plan = Progress {
            endpoints: BTreeMap::new(),
            failed_addresses: BTreeSet::new(),
            failed: BTreeSet::new(),
        };
        self.activity.note();
        for (n, step) in steps.iter().enumerate() {
            let result = self.run(step, &mut plan);
            plan.note(step, &result);
            let is_away = result.as_ref().is_err_and(TargetError::is_away);
            applied.is_usable &= !is_away;
            applied.results.push(result);
            let is_halfway = matches!((step, steps.get(n + 1)),
                (Step::Delete(gone, _), Some(Step::Make(made, ..))) if gone == made);
            if is_away || !is_halfway && yields() {
                break;
            }
        }
        self.activity.note();
        applied
    }

    fn read(&mut self) -> Reading<Found, TargetError> {
        match self.read_all().and_then(|found| self.served(found)) {
            Ok(found) => Reading::Whole(found),
            Err(error) => Reading::Failed(error),
        }
    }

    /// What is missing in HNS does not come by itself; networks and endpoints do.
    fn is_retryable(error: &TargetError) -> bool {
        match error {
            TargetError::TooOld { .. }
            | TargetError::NoDsr { .. }
            | TargetError::NoDualStack
            | TargetError::NetworkKind { .. } => false,
            TargetError::Hcn(error) => error.failure() != Failure::Denied,
            _ => true,
        }
    }

    fn outcome_unknown(why: &'static str) -> TargetError {
        TargetError::OutcomeUnknown { why }
    }
}

impl TargetError {
    fn is_away(&self) -> bool {
        matches!(self, Self::Hcn(error) if error.failure() == Failure::Away)
    }
}

/// Deletes what is ours on the network, of both families: load balancers first. What can't be deleted does not keep the rest.
/// Without the network there is nothing of ours.
///
/// # Errors
/// What could not be read or deleted.
pub fn clean_up(hcn: Box<dyn Hcn>, options: &Arc<Options>) -> Result<usize, Vec<TargetError>> {
    use model::{RuleSettings, V4, V6};

    use crate::found::state_of;

    let adapters: Adapters = Arc::new(BTreeMap::new);
    // What is there is removed, whatever the configuration wants to be there.
    let options = Arc::new(Options { dsr: false, ..(**options).clone() });
    let mut target: HnsTarget<V4> = HnsTarget::new(hcn, options, adapters);
    let found = match target.read_all() {
        Ok(found) => found,
        Err(TargetError::NoNetwork { .. }) => return Ok(0),
        Err(error) => return Err(vec![error]),
    };
    let (settings, none) = (RuleSettings::default(), HashMap::default());
    let v4 = state_of::<V4>(&found, &settings, &none, false);
    let none = HashMap::default();
    let v6 = state_of::<V6>(&found, &settings, &none, false);
    let balancers = v4.own_balancers().chain(v6.own_balancers()).map(|id| (Kind::LoadBalancer, id));
    let endpoints = v4.own_endpoints().chain(v6.own_endpoints()).map(|id| (Kind::Endpoint, id));
    let ours: Vec<(Kind, Guid)> = balancers.chain(endpoints).collect();
    let results = ours.iter().map(|(kind, id)| target.delete(*kind, *id));
    let failures: Vec<TargetError> = results.filter_map(Result::err).collect();
    if failures.is_empty() { Ok(ours.len()) } else { Err(failures) }
}
