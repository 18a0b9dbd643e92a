//! What holds after a plan's steps.

use std::collections::BTreeSet;
use std::sync::Arc;

use hcn::{Failure, Guid, LoadBalancer};
use mode::Settled;
use model::{Changed, Family, FrontendKey};

use crate::found::{still_there, without_endpoints};
use crate::plan::{KernelspacePlanner, Made, Pending};
use crate::state::{
    CHECKED_AT_ONCE, HeldBalancer, HeldEndpoint, Modify, Place, State, endpoint_key, stray_key,
};
use crate::step::{Receipt, Step};
use crate::target::TargetError;

/// What follows from a step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Refused; it is tried again after a pause.
    Failed,
    /// Another way leads there, and is taken at once.
    Again,
    /// It follows from something else that was not made.
    Later,
    /// What is believed is not so, or nobody knows.
    Unknown,
}

/// What has come of steps so far.
struct Progress<F: Family> {
    settled: Settled<F>,
    /// Calls that changed something.
    written: usize,
    /// Endpoints that load balancers led to which are other ones now.
    released: BTreeSet<Guid>,
}

type StepResult = Result<Receipt, Arc<TargetError>>;

impl<F: Family> KernelspacePlanner<F> {
    pub(crate) fn settle_pending(&mut self, pending: Pending<F>, results: &[StepResult]) -> Settled<F> {
        let Pending { steps, entries, found, checks } = pending;
        let (is_fresh, held) = (found.is_some(), self.held.take());
        let Some((mut state, settings)) = found.map(|found| *found).or(held) else {
            return Settled::unknown();
        };
        if is_fresh {
            still_there(&mut self.made, &state);
        }
        for (key, entry) in entries {
            state.set_entry(key, entry);
        }
        let mut progress = Progress { settled: Settled::done(), written: 0, released: BTreeSet::new() };
        for (n, step) in steps.iter().enumerate() {
            self.take(&mut state, step, results.get(n), is_fresh, &mut progress);
        }
        let Progress { mut settled, written, released } = progress;
        if !settled.is_known {
            return Settled::unknown();
        }
        if let Some(now) = checks {
            let last = steps.iter().filter_map(Step::frontend).next_back().copied();
            state.checked(now, last.filter(|_| steps.len() == CHECKED_AT_ONCE));
        } else if !steps.is_empty() {
            self.written = written;
        }
        // Endpoints that nothing leads to any more have their turn now.
        let free = released.iter().filter_map(|id| state.let_go(id)).map(endpoint_key);
        settled.untried.frontends.extend(free.filter(|key| !settled.failed.frontends.contains(key)));
        self.held = Some((state, settings));
        settled
    }

    /// Takes note of what came of a step; `None`: it was not tried.
    fn take(
        &mut self,
        state: &mut State<F>,
        step: &Step<F>,
        result: Option<&StepResult>,
        is_fresh: bool,
        progress: &mut Progress<F>,
    ) {
        let settled = &mut progress.settled;
        match result {
            None => settled.untried.extend(&concerned(state, step)),
            Some(Ok(receipt)) => {
                let held = step.frontend().and_then(|key| state.balancer(key));
                progress.released.extend(held.iter().flat_map(|held| &held.document.host_compute_endpoints));
                progress.written += usize::from(step.writes());
                let is_right = self.made_it(state, step, receipt);
                settled.untried.frontends.extend(step.frontend().filter(|_| !is_right));
            }
            Some(Err(error)) => {
                let verdict = verdict(state, step, error, is_fresh);
                self.modify_is_broken |= state.modify == Modify::Broken;
                match verdict {
                    Verdict::Failed => settled.failed.extend(&concerned(state, step)),
                    Verdict::Again => settled.untried.extend(&concerned(state, step)),
                    Verdict::Later => {}
                    Verdict::Unknown => settled.is_known = false,
                }
            }
        }
    }

    /// Takes note of a step that was made; false: what it found is to be made right.
    fn made_it(&mut self, state: &mut State<F>, step: &Step<F>, receipt: &Receipt) -> bool {
        match (step, receipt) {
            (Step::Check(key, id), Receipt::Checked(_, document)) => {
                return self.looked_at(state, key, *id, document.as_deref());
            }
            (Step::Make(key, _, form, _), Receipt::Balancer(id, document)) => {
                let asked = form.document(Vec::new());
                let made = Made { asked: asked.clone(), answered: without_endpoints(document) };
                self.made.insert(*id, made);
                state.blocked.remove(key);
                let held = HeldBalancer::new(*id, with_endpoints_of(asked, document));
                state.set_balancer(*key, Some(held));
            }
            (Step::Modify(key, change), Receipt::Balancer(id, document)) => {
                if change.verify && state.modify == Modify::Untried {
                    state.modify = Modify::Works;
                }
                let asked = change.form.document(Vec::new());
                let held = HeldBalancer::new(*id, with_endpoints_of(asked, document));
                state.set_balancer(*key, Some(held));
            }
            (Step::Delete(key, id), _) => {
                state.set_balancer(*key, None);
                self.made.remove(id);
            }
            (Step::DeleteStray(id), _) => {
                state.strays.remove(id);
                state.dead.retain(|_, dead| dead != id);
                self.made.remove(id);
            }
            _ => endpoint_made(state, step, receipt),
        }
        true
    }

    /// Whether a load balancer is as it was believed to be.
    fn looked_at(
        &mut self,
        state: &mut State<F>,
        key: &FrontendKey<F>,
        id: Guid,
        document: Option<&LoadBalancer>,
    ) -> bool {
        let Some(document) = document else {
            state.set_balancer(*key, None);
            self.made.remove(&id);
            return false;
        };
        let Some(held) = state.balancer(key) else { return true };
        let answered = self.made.get(&id).map(|made| &made.answered);
        let found = without_endpoints(document);
        let mut endpoints = document.host_compute_endpoints.clone();
        endpoints.sort_unstable();
        let is_same = endpoints == held.document.host_compute_endpoints
            && (answered == Some(&found) || found == without_endpoints(&held.document));
        if !is_same {
            state.set_balancer(*key, Some(HeldBalancer::new(id, document.clone())));
        }
        is_same
    }
}

/// The same for a step about an endpoint.
fn endpoint_made<F: Family>(state: &mut State<F>, step: &Step<F>, receipt: &Receipt) {
    match (step, receipt) {
        (Step::Locate(address), Receipt::Endpoint(id)) => {
            let here = HeldEndpoint { id: *id, place: Place::Here };
            let before = state.set_endpoint(*address, Some(here));
            state.spare.extend(before.filter(|held| !held.is_here()).map(|held| (held.id, *address)));
        }
        (Step::MakeEndpoint(address, _, endpoint), Receipt::Endpoint(id)) => {
            let place = if endpoint.is_remote() {
                Place::Elsewhere(endpoint.provider_address())
            } else {
                Place::Here
            };
            state.set_endpoint(*address, Some(HeldEndpoint { id: *id, place }));
        }
        (Step::DeleteEndpoint(address, id, _), _) => {
            state.spare.remove(id);
            if state.endpoint(address).is_some_and(|held| held.id == *id) {
                state.set_endpoint(*address, None);
            }
        }
        _ => {}
    }
}

fn with_endpoints_of(asked: LoadBalancer, document: &LoadBalancer) -> LoadBalancer {
    LoadBalancer { host_compute_endpoints: document.host_compute_endpoints.clone(), ..asked }
}

/// What is to be planned again if a step was not made.
fn concerned<F: Family>(state: &State<F>, step: &Step<F>) -> Changed<F> {
    match step {
        Step::Make(key, ..) | Step::Modify(key, _) | Step::Delete(key, _) => Changed::frontends([*key]),
        // It comes round again.
        Step::Check(..) => Changed::default(),
        Step::Locate(address) => Changed::frontends(state.users(address).copied()),
        Step::MakeEndpoint(address, ..) => {
            let users = state.users(address).copied();
            Changed::frontends(users.chain([endpoint_key(*address)]))
        }
        Step::DeleteStray(_) => Changed::frontends([stray_key()]),
        Step::DeleteEndpoint(address, ..) => Changed::frontends([endpoint_key(*address)]),
    }
}

fn verdict<F: Family>(
    state: &mut State<F>,
    step: &Step<F>,
    error: &Arc<TargetError>,
    is_fresh: bool,
) -> Verdict {
    let failure = match &**error {
        TargetError::Hcn(error) | TargetError::Taken { error, .. } => error.failure(),
        TargetError::ModifyIgnored => {
            state.modify = Modify::Broken;
            return Verdict::Again;
        }
        TargetError::NoEndpoint { .. } | TargetError::NoEndpoints => return Verdict::Failed,
        TargetError::StillUsed => return Verdict::Later,
        _ => return Verdict::Unknown,
    };
    match (failure, step) {
        (Failure::Away, _) => Verdict::Unknown,
        (Failure::NotImplemented, Step::Modify(..)) => {
            state.modify = Modify::Broken;
            Verdict::Again
        }
        (Failure::NotFound, Step::Modify(key, _)) => {
            state.set_balancer(*key, None);
            Verdict::Again
        }
        // What some codes mean nobody knows; and as far as is known nothing leads to an endpoint that is deleted.
        (Failure::NotFound | Failure::Stale | Failure::Other, _)
        | (Failure::Refused, Step::DeleteEndpoint(..)) => known_if(is_fresh),
        (Failure::Exists, Step::Make(key, ..)) => blocked(state, *key, is_fresh),
        (Failure::Exists, Step::MakeEndpoint(address, ..)) => {
            blocked(state, endpoint_key(*address), is_fresh)
        }
        (
            Failure::Exists
            | Failure::Refused
            | Failure::BadAddress
            | Failure::NotImplemented
            | Failure::Denied,
            _,
        ) => Verdict::Failed,
    }
}

/// What contradicts what has just been read is the object's own fault.
fn known_if(is_fresh: bool) -> Verdict {
    if is_fresh { Verdict::Failed } else { Verdict::Unknown }
}

/// Something has it already. If it is not known what, a reading tells.
fn blocked<F: Family>(state: &mut State<F>, key: FrontendKey<F>, is_fresh: bool) -> Verdict {
    let is_known = is_fresh || state.blocked.contains(&key) || state.foreign.contains_key(&key);
    if is_known {
        state.blocked.insert(key);
    }
    known_if(is_known)
}
