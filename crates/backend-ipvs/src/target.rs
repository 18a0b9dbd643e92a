//! Does the steps.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use ipvs::device::AddressChange;
use ipvs::{
    Addresses, Command, Connections, Devices, Ipvs, RealServer, RealServerId, Timeouts, VirtualServer,
};
use mode::{Applied, Reading, Target};
use model::Family;
use netlink::NetlinkError;
use tokio::time::Instant;

use crate::change::{Change, Means};
use crate::options::Options;
use crate::state::{Id, Socket};
use crate::traffic::{Counted, Readings};
use crate::watch::{Activity, Presence};

/// One family's virtual servers with their device, and the rules that go with them.
pub struct IpvsTarget<F: Family, R: Target> {
    rules: R,
    ipvs: Box<dyn Ipvs>,
    devices: Box<dyn Devices>,
    options: Arc<Options>,
    activity: Activity,
    readings: Readings,
    family: std::marker::PhantomData<F>,
}

/// Something that is done or fails as a whole.
#[derive(Debug)]
pub enum Step<F: Family, S> {
    /// A step of the rules.
    Rules(Box<S>),
    /// A change of servers or addresses.
    Change(Change<F>),
}

/// What came of a step.
#[derive(Debug)]
pub enum Receipt<R> {
    /// A step of the rules was made.
    Rules(R),
    /// The change was made.
    Done,
    /// The endpoint has no new connections since then.
    Drained(Instant),
    /// The endpoint had connections left then.
    Busy(Instant),
    /// The endpoint is gone.
    Released,
}

/// What is read back.
#[derive(Clone, Debug, Default)]
pub struct Found<R> {
    /// The rules.
    pub rules: R,
    /// The virtual servers of the family, whosesoever they are.
    pub servers: Vec<FoundServer>,
    /// The addresses of all devices.
    pub addresses: Addresses,
    /// IPVS's time-outs.
    pub timeouts: Timeouts,
}

/// A virtual server that was read.
#[derive(Clone, Debug)]
pub struct FoundServer {
    /// What it is.
    pub settings: VirtualServer,
    /// Its real servers.
    pub reals: Vec<(RealServer, Connections)>,
}

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError<R: std::error::Error + 'static> {
    /// The rules.
    #[error(transparent)]
    Rules(Arc<R>),
    /// Virtual or real servers.
    #[error(transparent)]
    Ipvs(NetlinkError),
    /// Addresses.
    #[error(transparent)]
    Devices(NetlinkError),
    /// Nothing came back.
    #[error("{why}")]
    OutcomeUnknown {
        /// Why not.
        why: &'static str,
    },
}

/// Changes that are made in one go; between them others may cut in.
const AT_ONCE: usize = 1000;

impl<F: Family, R: Target> IpvsTarget<F, R> {
    /// A target of these parts.
    pub fn new(rules: R, ipvs: Box<dyn Ipvs>, devices: Box<dyn Devices>, options: Arc<Options>) -> Self {
        let (activity, readings) = Default::default();
        Self { rules, ipvs, devices, options, activity, readings, family: std::marker::PhantomData }
    }

    /// The same, which counts what it does there.
    #[must_use]
    pub fn telling(self, activity: Activity) -> Self {
        Self { activity, ..self }
    }

    fn run(&mut self, changes: &[Change<F>], results: &mut Results<R>) {
        let mut pending = Batch::default();
        for change in changes {
            let means = change.means(&self.options);
            if !pending.takes(&means) {
                self.flush(&mut pending, results);
            }
            match means {
                Means::Command(command) => {
                    pending.commands.push(command);
                    pending.drains.push(matches!(change, Change::DrainReal(..)));
                }
                Means::Address(change) => pending.addresses.push(change),
                Means::Release(id, socket) => pending.releases.push((id, socket)),
            }
        }
        self.flush(&mut pending, results);
    }

    /// Does what has been gathered, which is of one kind.
    fn flush(&mut self, batch: &mut Batch<F>, results: &mut Results<R>) {
        self.flush_addresses(batch, results);
        self.flush_commands(batch, results);
        self.flush_releases(batch, results);
    }

    fn flush_commands(&mut self, batch: &mut Batch<F>, results: &mut Results<R>) {
        if batch.commands.is_empty() {
            return;
        }
        let answers = self.ipvs.apply(&batch.commands);
        let now = Instant::now();
        for (answer, drains) in answers.into_iter().zip(batch.drains.drain(..)) {
            let receipt = if drains { Receipt::Drained(now) } else { Receipt::Done };
            results.push(answer.map(|()| receipt).map_err(TargetError::Ipvs));
        }
        batch.commands.clear();
    }

    fn flush_addresses(&mut self, batch: &mut Batch<F>, results: &mut Results<R>) {
        if !batch.addresses.is_empty() {
            let answers = self.devices.change(&batch.addresses).into_iter();
            results
                .extend(answers.map(|answer| answer.map(|()| Receipt::Done).map_err(TargetError::Devices)));
            batch.addresses.clear();
        }
    }

    /// Deletes endpoints of one virtual server that have no connections: it is read once for all of them. One that is gone is
    /// released too.
    fn flush_releases(&mut self, batch: &mut Batch<F>, results: &mut Results<R>) {
        let Some((id, _)) = batch.releases.first() else { return };
        let id = id.server_id();
        let sockets: Vec<_> = batch.releases.drain(..).map(|(_, socket)| socket.real_id()).collect();
        let found: HashMap<_, _> = match self.ipvs.real_servers(&id) {
            Ok(found) => found.into_iter().map(|(real, connections)| (real.id, connections)).collect(),
            Err(error) => return fail_together::<R>(error, sockets.len(), results),
        };
        let is_idle = |real: &RealServerId| found.get(real).is_some_and(Connections::is_idle);
        let idle = sockets.iter().filter(|real| is_idle(real));
        let deletions: Vec<_> = idle.map(|real| Command::DeleteReal(id, *real)).collect();
        // If one is gone by now, the next reading tells what else is.
        let mut deleted = self.ipvs.apply(&deletions).into_iter();
        let now = Instant::now();
        results.extend(sockets.iter().map(|real| match found.get(real) {
            Some(connections) if !connections.is_idle() => Ok(Receipt::Busy(now)),
            Some(_) => {
                deleted.next().unwrap_or(Ok(())).map(|()| Receipt::Released).map_err(TargetError::Ipvs)
            }
            None => Ok(Receipt::Released),
        }));
    }

    fn read_servers(&mut self) -> Result<Vec<FoundServer>, NetlinkError> {
        let settings = self.ipvs.virtual_servers()?;
        let of_family = settings.into_iter().filter(|server| F::narrow(server.id.address).is_some());
        of_family
            .map(|settings| Ok(FoundServer { settings, reals: self.ipvs.real_servers(&settings.id)? }))
            .collect()
    }
}

/// Changes of one kind.
struct Batch<F: Family> {
    commands: Vec<Command>,
    /// For each of them, whether it drains an endpoint.
    drains: Vec<bool>,
    addresses: Vec<AddressChange>,
    /// Of one virtual server.
    releases: Vec<(Id<F>, Socket<F>)>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Batch<F> {
    fn default() -> Self {
        Self { commands: Vec::new(), drains: Vec::new(), addresses: Vec::new(), releases: Vec::new() }
    }
}

impl<F: Family> Batch<F> {
    /// Whether this can be done together with what there is.
    fn takes(&self, means: &Means<F>) -> bool {
        let is_free = [self.commands.is_empty(), self.addresses.is_empty(), self.releases.is_empty()];
        match (means, is_free) {
            (Means::Command(_), [_, true, true]) | (Means::Address(_), [true, _, true]) => true,
            (Means::Release(id, _), [true, true, _]) => self.releases.first().is_none_or(|(of, _)| of == id),
            _ => false,
        }
    }
}

/// Endpoints of a virtual server that could not be read stay as they are.
fn fail_together<R: Target>(error: NetlinkError, count: usize, results: &mut Vec<TargetResult<R>>) {
    let with_it = || NetlinkError::OutcomeUnknown { why: "its virtual server could not be read" };
    let errors = std::iter::once(error).chain(std::iter::repeat_with(with_it)).take(count);
    results.extend(errors.map(|error| Err(TargetError::Ipvs(error))));
}

type TargetResult<R> = Result<Receipt<<R as Target>::Receipt>, TargetError<<R as Target>::Error>>;
type Results<R> = Vec<TargetResult<R>>;

impl<F: Family, R: Target> Target for IpvsTarget<F, R> {
    type Step = Step<F, R::Step>;
    type Receipt = Receipt<R::Receipt>;
    type Found = Found<R::Found>;
    type Counted = Counted<R::Counted>;
    type Error = TargetError<R::Error>;

    /// A step of the rules that fails ends it; a server or an address that fails does not keep others from being tried.
    fn apply(&mut self, steps: Vec<Self::Step>, yields: &dyn Fn() -> bool) -> Applied<Self> {
        let mut steps: VecDeque<_> = steps.into();
        let mut rules_left = steps.iter().filter(|step| matches!(step, Step::Rules(_))).count();
        let mut applied =
            Applied { results: Vec::with_capacity(steps.len()), kernel_time: None, is_usable: true };
        while !steps.is_empty() {
            let changes = take_changes(&mut steps);
            let n_before = applied.results.len();
            self.activity.begin();
            self.run(&changes, &mut applied.results);
            let made = changes.iter().zip(&applied.results[n_before..]).filter(|(_, result)| result.is_ok());
            self.activity.end(made.map(|(change, _)| *change));
            let rules = take_rules(&mut steps);
            if !rules.is_empty() {
                rules_left -= rules.len();
                let done = self.rules.apply(rules, &|| false);
                applied.kernel_time = done.kernel_time;
                applied.is_usable &= done.is_usable;
                let has_failed = done.results.iter().any(Result::is_err);
                let results = done.results.into_iter();
                applied.results.extend(results.map(|result| {
                    result.map(Receipt::Rules).map_err(|error| TargetError::Rules(Arc::new(error)))
                }));
                if has_failed {
                    break;
                }
            }
            if rules_left == 0 && yields() {
                break;
            }
        }
        applied
    }

    fn read(&mut self) -> Reading<Self::Found, Self::Error> {
        let rules = match self.rules.read() {
            Reading::Whole(rules) => rules,
            Reading::Unstable => return Reading::Unstable,
            Reading::NotReadable => return Reading::NotReadable,
            Reading::Failed(error) => return Reading::Failed(TargetError::Rules(Arc::new(error))),
        };
        let servers = match self.read_servers() {
            Ok(servers) => servers,
            Err(NetlinkError::Interrupted) => return Reading::Unstable,
            Err(error) => return Reading::Failed(TargetError::Ipvs(error)),
        };
        let timeouts = match self.ipvs.timeouts() {
            Ok(timeouts) => timeouts,
            Err(error) => return Reading::Failed(TargetError::Ipvs(error)),
        };
        match self.devices.addresses() {
            Ok(addresses) => {
                let ids = servers.iter().map(|server| server.settings.id);
                self.activity.expect(Presence::of::<F>(ids, &addresses));
                Reading::Whole(Found { rules, servers, addresses, timeouts })
            }
            Err(error) => Reading::Failed(TargetError::Devices(error)),
        }
    }

    fn traffic(&mut self) -> Result<Option<Self::Counted>, Self::Error> {
        let rules = self.rules.traffic().map_err(|error| TargetError::Rules(Arc::new(error)))?;
        let servers = self.readings.read::<F>(&mut *self.ipvs).map_err(TargetError::Ipvs)?;
        Ok(Some(Counted { rules, servers }))
    }

    /// Modules that are missing don't come by themselves; all else may pass.
    fn is_retryable(error: &Self::Error) -> bool {
        match error {
            TargetError::Rules(error) => R::is_retryable(error),
            TargetError::Ipvs(error) | TargetError::Devices(error) => !error.is_missing(),
            TargetError::OutcomeUnknown { .. } => true,
        }
    }

    fn outcome_unknown(why: &'static str) -> Self::Error {
        TargetError::OutcomeUnknown { why }
    }
}

/// The changes at the front, as many as are made in one go.
fn take_changes<F: Family, S>(steps: &mut VecDeque<Step<F, S>>) -> Vec<Change<F>> {
    let mut changes = Vec::new();
    while changes.len() < AT_ONCE
        && let Some(Step::Change(change)) = steps.front()
    {
        changes.push(*change);
        steps.pop_front();
    }
    changes
}

/// The steps of rules at the front.
fn take_rules<F: Family, S>(steps: &mut VecDeque<Step<F, S>>) -> Vec<S> {
    let mut rules = Vec::new();
    while matches!(steps.front(), Some(Step::Rules(_))) {
        if let Some(Step::Rules(step)) = steps.pop_front() {
            rules.push(*step);
        }
    }
    rules
}

impl<F: Family, S: fmt::Display> fmt::Display for Step<F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(step) => step.fmt(f),
            Self::Change(change) => change.fmt(f),
        }
    }
}
