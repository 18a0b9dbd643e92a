//! One family as the event loop sees it: a [`FamilyController`], whatever its mode and its addresses.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use mode::{Observer, OpenTarget, Planner, Watch};
use model::view::ThisNode;
use model::{Family, IpFamily, Node, ServiceEntry, ServiceName, Store, Touched};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::controller::Controller;
use crate::flows::OpenConntrack;
use crate::run::StartError;
use crate::settings::Settings;
use crate::snapshot::{self, FamilyState, ServiceFamily};
use crate::telemetry::{Events, Telemetry};

/// What serves one family in a mode.
pub struct FamilyMode<F: Family, P: Planner<F>> {
    /// What decides.
    pub planner: P,
    /// Opens what does the work.
    pub open: OpenTarget<P::Target>,
    /// Opens what counters are read over, in a mode that counts: a target that does nothing else.
    pub meter: Option<OpenTarget<P::Target>>,
    /// Tells when somebody else changes what is ours.
    pub watch: Option<Watch>,
    /// Opens a connection to the tracked flows, in a mode that leaves stale ones behind.
    pub flows: Option<OpenConntrack>,
    /// Removes what other modes left.
    pub take_over: Option<TakeOver>,
    /// Hears of each attempt, for the mode's own metrics.
    pub observer: Box<dyn Observer>,
    /// The family.
    pub family: std::marker::PhantomData<F>,
}

/// Called once, after the family's first complete sync: rules of the family that others left can go now. Must return at once.
pub type TakeOver = Box<dyn FnOnce(OldRulesGone) + Send>;

/// To be called when rules that others had left are gone. Until then they may have directed flows to endpoints of long ago.
/// False: nobody listens any more.
pub type OldRulesGone = Box<dyn Fn() -> bool + Send>;

/// A family that is to be served.
pub struct ServedFamily {
    family: IpFamily,
    start: Box<dyn FnOnce(Start<'_>) -> Started + Send>,
}

type Started = Result<Box<dyn FamilyController>, StartError>;

/// What a family begins with.
#[derive(Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) wake: &'a Arc<Notify>,
}

impl ServedFamily {
    /// Serves a family in a mode.
    pub fn new<F: Family, P: Planner<F>>(mode: FamilyMode<F, P>) -> Self {
        let start = |start: Start<'_>| -> Started { Ok(Box::new(Controller::start(mode, start)?)) };
        Self { family: F::FAMILY, start: Box::new(start) }
    }

    /// Which.
    pub fn family(&self) -> IpFamily {
        self.family
    }

    pub(crate) fn start(self, start: Start<'_>) -> Started {
        (self.start)(start)
    }
}

/// What decides about flows besides frontends.
pub(crate) struct Cluster<'a> {
    pub(crate) node: Option<&'a Node>,
    pub(crate) store: &'a Store,
}

/// One family, as the event loop sees it.
pub(crate) trait FamilyController: Send {
    /// Events came in, and touched this.
    fn take_events(&mut self, events: &Events, touched: &Touched, now: Instant);

    /// Takes in what there is of a Service now.
    fn set_service(
        &mut self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
        now: Instant,
    );

    /// Tells what changed about Services that claim the same.
    fn tell_conflicts(&mut self, store: &Store);

    /// Takes in what rules depend on besides Services.
    fn set_rules(
        &mut self,
        settings: &Settings,
        node: Option<&Node>,
        service_cidrs: &BTreeSet<IpNet>,
        now: Instant,
    );

    /// From now on everything is expected to be in force, even if that is nothing.
    fn request(&mut self, now: Instant);

    /// Has the target read before it is known what is wanted, where that is worth while.
    fn read_ahead(&mut self, now: Instant) -> Result<(), StartError>;

    /// Takes in what has come back from the threads. True: a large temporary value has been freed.
    fn take_reports(&mut self, now: Instant) -> Result<bool, StartError>;

    /// Gives the threads something to do, if there is something.
    fn advance(&mut self, cluster: &Cluster<'_>, now: Instant) -> Result<(), StartError>;

    /// Nothing may be programmed yet, so that nothing is expected to be in force.
    fn hold(&mut self, now: Instant);

    /// When to advance again, if nothing happens before.
    fn deadline(&self) -> Option<Instant>;

    /// Which it is.
    fn family(&self) -> IpFamily;

    /// Whether all has been in force at least once.
    fn was_synced(&self) -> bool;

    /// Whether the last attempt failed.
    fn has_failed(&self) -> bool;

    /// From now on wants to hear what others change, if all has been in force.
    fn start_watch(&mut self);

    /// Whether all that is known is in force.
    fn is_settled(&self) -> bool;

    /// Why nothing will ever be programmed, as far as one can tell.
    fn hopeless(&self) -> Option<&str>;

    /// How the family is.
    fn state(&self, now: Instant) -> FamilyState;

    /// Claims that lose, at most [`snapshot::MAX_CONFLICTS`].
    fn conflicts(&self) -> Vec<snapshot::Conflict>;

    /// The last changes.
    fn recent_changes(&self) -> Vec<snapshot::RecentChange>;

    /// What this node makes of a Service; `None` if it makes nothing of it.
    fn service(
        &self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
        now: Instant,
    ) -> Option<ServiceFamily>;

    /// Somebody looks at what went through.
    fn want_traffic(&mut self);
}
