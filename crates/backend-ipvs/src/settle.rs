//! What holds after a plan's steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mode::{Settled, StepResults, Target};
use model::{Destination, EndpointNode, Family};
use netlink::NetlinkError;

use crate::change::Change;
use crate::plan::{IpvsPlanner, Pending};
use crate::rules::Rules;
use crate::state::{Drain, Id, Server, Socket, State};
use crate::target::{IpvsTarget, Receipt, TargetError};

/// What came of a change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Made,
    /// The endpoint had no new connections, or still some old ones, at this time.
    Seen(tokio::time::Instant),
    Refused,
    /// What is there is not what was believed, or nobody knows.
    Unknown,
    Untried,
}

impl<F: Family, R: Rules<F>> IpvsPlanner<F, R> {
    pub(crate) fn settle_pending(
        &mut self,
        pending: Pending<F, R::Held>,
        results: StepResults<IpvsTarget<F, R::Target>>,
    ) -> Settled<F> {
        let Pending { rules, n_rules, rules_first, changes, servers, found } = pending;
        let (of_rules, of_changes) = split::<R::Target>(results, n_rules, rules_first, changes.len());
        let outcomes = outcomes(&changes, &of_changes);
        let rules_tried = of_rules.len() == n_rules || of_rules.iter().any(Result::is_err);
        let settled_rules = match rules {
            Some(held) if rules_tried => self.rules.settle(held, of_rules),
            Some(_) => Settled::unknown(),
            None => Settled::done(),
        };
        let is_unknown = outcomes.iter().any(|(_, outcome)| *outcome == Outcome::Unknown);
        let base = found.map(|found| *found).or_else(|| self.held.take());
        let Some((mut state, settings)) = base.filter(|_| settled_rules.is_known && !is_unknown) else {
            self.held = None;
            return Settled::unknown();
        };
        let mut settled = note(&mut state, &outcomes, servers);
        self.held = Some((state, settings));
        settled.failed.extend(&settled_rules.failed);
        settled.untried.extend(&settled_rules.untried);
        settled
    }
}

type ChangeResult<R, E> = Result<Receipt<R>, Arc<TargetError<E>>>;
type ChangeResults<R> = Vec<ChangeResult<<R as Target>::Receipt, <R as Target>::Error>>;

/// The results of the rules' steps and those of changes.
fn split<R: Target>(
    results: ChangeResults<R>,
    n_rules: usize,
    rules_first: bool,
    n_changes: usize,
) -> (StepResults<R>, ChangeResults<R>) {
    let mut first = results;
    let last = first.split_off(first.len().min(if rules_first { n_rules } else { n_changes }));
    let (rules, changes) = if rules_first { (first, last) } else { (last, first) };
    let of_rules = rules.into_iter().filter_map(|result| match result {
        Ok(Receipt::Rules(receipt)) => Some(Ok(receipt)),
        Ok(_) => None,
        Err(error) => match &*error {
            TargetError::Rules(error) => Some(Err(Arc::clone(error))),
            // The step itself was lost, with a panic for example.
            TargetError::OutcomeUnknown { why } => Some(Err(Arc::new(R::outcome_unknown(why)))),
            TargetError::Ipvs(_) | TargetError::Devices(_) => None,
        },
    });
    (of_rules.collect(), changes)
}

/// What came of each change.
fn outcomes<F: Family, R, E: std::error::Error>(
    changes: &[Change<F>],
    results: &[ChangeResult<R, E>],
) -> Vec<(Change<F>, Outcome)> {
    let mut not_made: Option<Id<F>> = None;
    let mut outcomes = Vec::with_capacity(changes.len());
    for (position, change) in changes.iter().enumerate() {
        let mut outcome = results.get(position).map_or(Outcome::Untried, |result| outcome(change, result));
        // What is refused about a virtual server that could not be made says nothing of its own.
        if change.id().is_some() && change.id() == not_made {
            outcome = outcome.min_refused();
        } else if matches!(change, Change::NewVirtual(..)) && outcome == Outcome::Refused {
            not_made = change.id();
        }
        outcomes.push((*change, outcome));
    }
    outcomes
}

impl Outcome {
    fn min_refused(self) -> Self {
        if self == Self::Unknown { Self::Refused } else { self }
    }
}

fn outcome<F: Family, R, E: std::error::Error>(change: &Change<F>, result: &ChangeResult<R, E>) -> Outcome {
    match result {
        Ok(Receipt::Drained(at) | Receipt::Busy(at)) => Outcome::Seen(*at),
        Ok(_) => Outcome::Made,
        Err(error) => match &**error {
            TargetError::Ipvs(NetlinkError::Refused { errno, .. }) if !contradicts(change, *errno) => {
                Outcome::Refused
            }
            TargetError::Devices(_) => Outcome::Refused,
            _ => Outcome::Unknown,
        },
    }
}

/// Whether what is there is not what the change presumed.
fn contradicts<F: Family>(change: &Change<F>, errno: i32) -> bool {
    const ENOENT: i32 = 2;
    const ESRCH: i32 = 3;
    const EEXIST: i32 = 17;
    match change {
        // `ENOENT` is about the scheduler.
        Change::NewVirtual(..) => errno == EEXIST,
        Change::SetVirtual(..) | Change::DeleteVirtual(_) => errno == ESRCH,
        _ => [ENOENT, ESRCH, EEXIST].contains(&errno),
    }
}

/// Takes note of what was made; what was not is to be planned again.
fn note<F: Family>(
    state: &mut State<F>,
    outcomes: &[(Change<F>, Outcome)],
    mut servers: BTreeMap<Id<F>, Option<Server<F>>>,
) -> Settled<F> {
    let mut settled = Settled::done();
    let mut by_server: BTreeMap<Id<F>, Vec<(Change<F>, Outcome)>> = BTreeMap::new();
    for (change, outcome) in outcomes {
        if let Some(id) = change.id() {
            by_server.entry(id).or_default().push((*change, *outcome));
        }
    }
    for (id, outcomes) in by_server {
        note_server(state, id, &outcomes, &mut servers, &mut settled);
    }
    for (id, server) in servers {
        state.set(id, server);
    }
    // Behind the servers, since they tell whose an address is.
    for (change, outcome) in outcomes {
        note_address(state, *change, *outcome, &mut settled);
    }
    settled
}

fn note_address<F: Family>(
    state: &mut State<F>,
    change: Change<F>,
    outcome: Outcome,
    settled: &mut Settled<F>,
) {
    let list = match outcome {
        Outcome::Untried => &mut settled.untried,
        _ => &mut settled.failed,
    };
    match (change, outcome) {
        (Change::AddAddress(address), Outcome::Made) => drop(state.on_device.insert(address)),
        (Change::DeleteAddress(address), Outcome::Made) => drop(state.on_device.remove(&address)),
        (Change::AddAddress(address) | Change::DeleteAddress(address), _) => {
            list.frontends.extend(state.keys_at(address));
        }
        _ => {}
    }
}

/// Takes note of one server's changes.
fn note_server<F: Family>(
    state: &mut State<F>,
    id: Id<F>,
    outcomes: &[(Change<F>, Outcome)],
    servers: &mut BTreeMap<Id<F>, Option<Server<F>>>,
    settled: &mut Settled<F>,
) {
    let wanted = servers.remove(&id);
    for (change, outcome) in outcomes {
        note_drain(state, id, *change, *outcome);
    }
    let is_made = |outcome: &Outcome| matches!(outcome, Outcome::Made | Outcome::Seen(_));
    if outcomes.iter().all(|(_, outcome)| is_made(outcome)) {
        if let Some(wanted) = wanted {
            state.set(id, wanted);
        }
        // The last endpoint that was drained takes its virtual server with it.
        if let Some(server) = state.server(&id)
            && server.exists
            && server.pool.is_empty()
            && state.draining(&id).next().is_none()
        {
            settled.untried.frontends.insert(id.key(server.kind));
        }
        return;
    }
    let mut server = partly(state.server(&id), wanted.flatten());
    for (change, _) in outcomes.iter().filter(|(_, outcome)| is_made(outcome)) {
        made(&mut server, *change);
    }
    let was_refused = outcomes.iter().any(|(_, outcome)| *outcome == Outcome::Refused);
    let list = if was_refused { &mut settled.failed } else { &mut settled.untried };
    list.frontends.insert(id.key(server.kind));
    state.set(id, Some(server));
}

fn note_drain<F: Family>(state: &mut State<F>, id: Id<F>, change: Change<F>, outcome: Outcome) {
    let drain = |state: &State<F>, socket| state.drain(&id, socket).copied().unwrap_or(Drain::BEGUN_EARLIER);
    match (change, outcome) {
        (Change::DrainReal(_, socket), Outcome::Seen(at)) => {
            state.set_drain(id, socket, Some(Drain::begun(at)));
        }
        (Change::ReleaseReal(_, socket), Outcome::Seen(at)) => {
            let drain = drain(state, &socket).busy(at);
            state.set_drain(id, socket, Some(drain));
        }
        (Change::ReleaseReal(_, socket) | Change::RestoreReal(_, socket), Outcome::Made) => {
            state.set_drain(id, socket, None);
        }
        (Change::ReleaseReal(_, socket), _) => {
            let drain = drain(state, &socket).failed();
            state.set_drain(id, socket, Some(drain));
        }
        (Change::DeleteVirtual(_), Outcome::Made) => state.forget_drains(&id),
        _ => {}
    }
}

/// What was there, as far as it is for the same as what is wanted.
fn partly<F: Family>(held: Option<&Server<F>>, wanted: Option<Server<F>>) -> Server<F> {
    let nothing = |wanted: Server<F>| Server { exists: false, pool: Arc::default(), ..wanted };
    match (held, wanted) {
        (Some(held), Some(wanted)) => Server { kind: wanted.kind, ..held.clone() },
        (Some(held), None) => held.clone(),
        (None, Some(wanted)) => nothing(wanted),
        (None, None) => nothing(crate::found::leftover()),
    }
}

fn made<F: Family>(server: &mut Server<F>, change: Change<F>) {
    match change {
        Change::NewVirtual(_, persistence) => {
            *server = Server { exists: true, pool: Arc::default(), persistence, differs: false, ..*server };
        }
        Change::SetVirtual(_, persistence) => {
            (server.persistence, server.differs) = (persistence, false);
        }
        Change::NewReal(_, socket) | Change::RestoreReal(_, socket) => {
            let mut pool: BTreeSet<Destination<F>> = server.pool.iter().copied().collect();
            pool.insert(Destination {
                address: socket.address,
                port: socket.port,
                node: EndpointNode::Other,
            });
            server.pool = pool.into_iter().collect();
        }
        Change::DrainReal(_, socket) | Change::DeleteReal(_, socket) => {
            server.pool = server.pool.iter().copied().filter(|found| Socket::of(found) != socket).collect();
        }
        Change::DeleteVirtual(_) => (server.exists, server.pool) = (false, Arc::default()),
        Change::ReleaseReal(..)
        | Change::AddAddress(_)
        | Change::DeleteAddress(_)
        | Change::SetTimeouts(_) => {}
    }
}
