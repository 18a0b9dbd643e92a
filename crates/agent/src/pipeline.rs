//! One family's way from changed Services to the kernel, as a state machine without I/O and clock.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{
    Backend, ConflictChange, Extent, Family, Frontend, FrontendKey, Mode, Protocol, RuleCount, ServiceName,
    Table,
};
use tokio::time::Instant;

use crate::backoff::pause;
use crate::worker::{Answer, Job};

/// A completed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A transaction that carried changed frontends.
    Change,
    /// A transaction that brought the table right.
    Repair(Reason),
    /// The table was read and found right; nothing was sent.
    Unchanged(Reason),
}

/// Why a table is read and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing is known of it yet.
    Start,
    /// A transaction or a reading failed.
    Failure,
    /// The ruleset's settings changed.
    Settings,
    /// Somebody else changed it.
    ForeignChange,
    /// It has not been looked at for a while.
    Audit,
}

/// One family's state.
pub(crate) struct Pipeline<M: Mode, F: Family> {
    table: Table<F>,
    backend: M::Backend<F>,
    config: M::Config,
    /// Frontends that differ from what the kernel was last told.
    dirty: BTreeSet<FrontendKey<F>>,
    /// When the first of `dirty` became so.
    dirty_since: Option<Instant>,
    phase: Phase<M, F>,
    failures: u32,
    /// When the first of `failures` happened.
    failing_since: Option<Instant>,
    /// Since when somebody else's change of the table has not been looked at.
    doubted: Option<Instant>,
    /// When the present attempt began, or the last one.
    attempt: Instant,
    /// When the table was last read, or a first time is due.
    looked_at: Instant,
    /// How long that took.
    reading_took: Duration,
    /// Changed frontends whose flows may be stale once the kernel has the change.
    stale_flows: BTreeSet<FrontendKey<F>>,
    /// Frontends whose flows may be stale now.
    ready_flows: BTreeSet<FrontendKey<F>>,
}

enum Phase<M: Mode, F: Family> {
    /// Nothing under way; the kernel holds what the backend says.
    Idle,
    /// The table has to be read and compared, not before this moment.
    Unsure { not_before: Instant, reason: Reason },
    /// Being read.
    Reading { reason: Reason },
    /// A transaction is in flight.
    Committing(Box<InFlight<M, F>>),
}

/// Changes of a mode for a family.
type PlanOf<M, F> = <<M as Mode>::Backend<F> as Backend<F, M>>::Plan;

/// What waits for the outcome of a transaction.
struct InFlight<M: Mode, F: Family> {
    plan: PlanOf<M, F>,
    step: Step,
    elements: usize,
    /// When the oldest change in it became known.
    since: Instant,
    /// When it was made: later changes are not in it.
    planned: Instant,
}

/// What came of a report.
pub(crate) enum Progress<M: Mode> {
    /// Goes on; nothing to say.
    Working,
    Done(Done),
    Failed(Failed<M>),
}

/// A success.
pub(crate) struct Done {
    pub(crate) step: Step,
    /// Elements in the transaction.
    pub(crate) elements: usize,
    /// What the kernel itself took for it, if that is known.
    pub(crate) kernel_time: Option<Duration>,
    /// From the moment the oldest change in it was known.
    pub(crate) latency: Duration,
    /// When it was planned: what was known then is in the kernel now.
    pub(crate) planned: Instant,
    /// How long the whole attempt took, with reading and planning.
    pub(crate) duration: Duration,
}

/// What an attempt did when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    /// It read the table.
    Read,
    /// It brought the table right.
    Repair,
    /// It carried changes over.
    Change,
}

/// A failure, and what is done about it.
pub(crate) struct Failed<M: Mode> {
    pub(crate) error: M::Error,
    pub(crate) during: Failing,
    pub(crate) failures: u32,
    pub(crate) retry_in: Duration,
    /// How long the attempt took.
    pub(crate) duration: Duration,
}

/// From this many failures in a row the table is written anew.
const REBUILD_AFTER: u32 = 3;
/// Two programs that undo each other's changes shall not keep the machine busy.
const DOUBT_PAUSE: Duration = Duration::from_millis(250);
/// How often the table is read without a cause, at most.
const AUDIT_EVERY: Duration = Duration::from_mins(10);
/// Audits take at most one part in so many of the time.
const AUDIT_SHARE: u32 = 500;

impl<M: Mode, F: Family> Pipeline<M, F> {
    /// A pipeline that knows nothing of the kernel and will read it first.
    pub(crate) fn new(config: M::Config, now: Instant) -> Self {
        Self {
            table: Table::default(),
            backend: M::Backend::<F>::new(config.clone()),
            config,
            dirty: BTreeSet::new(),
            dirty_since: None,
            phase: Phase::Unsure { not_before: now, reason: Reason::Start },
            failures: 0,
            failing_since: None,
            doubted: None,
            attempt: now,
            looked_at: now,
            reading_took: Duration::ZERO,
            stale_flows: BTreeSet::new(),
            ready_flows: BTreeSet::new(),
        }
    }

    /// Takes in the frontends of one Service.
    pub(crate) fn set_service(&mut self, name: &ServiceName, frontends: Vec<Frontend<F>>, now: Instant) {
        let changed = self.table.set_service(name, frontends);
        if !changed.is_empty() {
            self.dirty_since.get_or_insert(now);
        }
        self.dirty.extend(&changed);
        self.stale_flows.extend(changed.iter().filter(|key| key.protocol != Protocol::Tcp));
    }

    /// What changed about conflicts between Services since this was last asked.
    pub(crate) fn take_conflict_changes(&mut self) -> Vec<ConflictChange<F>> {
        self.table.take_conflict_changes()
    }

    /// Takes in settings; a difference is carried over like a repair.
    pub(crate) fn set_config(&mut self, config: M::Config, now: Instant) {
        if self.config == config {
            return;
        }
        self.config = config;
        if self.is_settled() {
            // It is as it was before a difference that nobody has taken up.
            self.dirty_since = None;
        } else {
            self.request(now);
        }
    }

    /// Has something wait from now on until the kernel is known to be right.
    pub(crate) fn request(&mut self, now: Instant) {
        self.dirty_since.get_or_insert(now);
    }

    /// Takes note that somebody else changed the table.
    pub(crate) fn doubt(&mut self, now: Instant) {
        self.doubted.get_or_insert(now);
    }

    /// Since when the oldest of what the kernel lacks has been known, may lack after somebody else's change, or has failed;
    /// `None`: it has all that is known. A change that arrives during a commit is not in it and goes on waiting.
    pub(crate) fn pending_since(&self) -> Option<Instant> {
        let in_flight = match &self.phase {
            Phase::Committing(flight) => Some(flight.since),
            Phase::Idle | Phase::Unsure { .. } | Phase::Reading { .. } => None,
        };
        [in_flight, self.dirty_since, self.failing_since, self.doubted].into_iter().flatten().min()
    }

    /// Whether something is known that no transaction has taken up.
    pub(crate) fn has_waiting(&self) -> bool {
        self.dirty_since.is_some()
    }

    /// The frontends in force.
    pub(crate) fn table(&self) -> &Table<F> {
        &self.table
    }

    /// How many rules the kernel holds, in a mode that counts them.
    pub(crate) fn rule_counts(&self) -> Vec<RuleCount> {
        self.backend.rule_counts()
    }

    /// Whether there are frontends whose flows may be stale.
    pub(crate) fn has_ready_flows(&self) -> bool {
        !self.ready_flows.is_empty()
    }

    /// The frontends that changed in the kernel since they were last taken, and whose flows may be stale.
    pub(crate) fn take_ready_flows(&mut self) -> BTreeSet<FrontendKey<F>> {
        std::mem::take(&mut self.ready_flows)
    }

    /// The flows of these frontends have not been looked at after all.
    pub(crate) fn put_back_flows(&mut self, keys: BTreeSet<FrontendKey<F>>) {
        self.ready_flows.extend(keys);
    }

    /// Whether all that is known is in the kernel.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.dirty.is_empty() && self.config == *self.backend.config()
    }

    /// When [`Pipeline::next`] should be asked again, if nothing else happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Unsure { not_before, .. } => Some(not_before),
            Phase::Idle if self.doubted.is_some() => Some(self.looked_at + DOUBT_PAUSE),
            Phase::Idle => Some(self.looked_at + self.audit_pause()),
            Phase::Reading { .. } | Phase::Committing(_) => None,
        }
    }

    /// The next job for the kernel, if there is one to be done now.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Job<M>> {
        match self.phase {
            Phase::Unsure { not_before, reason } if not_before <= now => Some(self.read(reason, now)),
            Phase::Idle if self.config != *self.backend.config() => Some(self.read(Reason::Settings, now)),
            Phase::Idle if self.doubted.is_some() && now >= self.looked_at + DOUBT_PAUSE => {
                Some(self.read(Reason::ForeignChange, now))
            }
            Phase::Idle if !self.dirty.is_empty() => self.change(now),
            Phase::Idle if now >= self.looked_at + self.audit_pause() => Some(self.read(Reason::Audit, now)),
            Phase::Idle | Phase::Unsure { .. } | Phase::Reading { .. } | Phase::Committing(_) => None,
        }
    }

    /// Changes wait while a table is read, so one that takes long is read less often.
    fn audit_pause(&self) -> Duration {
        AUDIT_EVERY.max(self.reading_took * AUDIT_SHARE)
    }

    fn read(&mut self, reason: Reason, now: Instant) -> Job<M> {
        self.phase = Phase::Reading { reason };
        self.attempt = now;
        // What happens from here on may be missing from what is read.
        if let Some(doubted) = self.doubted.take() {
            self.dirty_since = Some(self.dirty_since.map_or(doubted, |since| since.min(doubted)));
        }
        Job::Read
    }

    fn change(&mut self, now: Instant) -> Option<Job<M>> {
        self.attempt = now;
        let plan = self.backend.plan(&self.table, &self.dirty);
        self.carry_over(plan, Step::Change, now).ok()
    }

    /// Starts a transaction; or takes note that there is nothing to do and gives back since when that was asked for.
    fn carry_over(&mut self, mut plan: PlanOf<M, F>, step: Step, now: Instant) -> Result<Job<M>, Instant> {
        self.dirty.clear();
        let since = self.dirty_since.take().unwrap_or(now);
        // The changes go to the kernel's thread; the rest of the plan waits here for the outcome.
        let Some((changes, elements)) = M::Backend::<F>::take_changes(&mut plan) else {
            self.committed(plan);
            return Err(since);
        };
        self.phase = Phase::Committing(Box::new(InFlight { plan, step, elements, since, planned: now }));
        Ok(Job::Apply(changes))
    }

    /// Takes in what came of the last job, which took so long, and gives the next one if it follows directly. `random` is
    /// from 0 up to 1.
    pub(crate) fn report(
        &mut self,
        answer: Answer<M>,
        took: Duration,
        now: Instant,
        random: f64,
    ) -> (Progress<M>, Option<Job<M>>) {
        match (answer, std::mem::replace(&mut self.phase, Phase::Idle)) {
            (Answer::Read(Ok(found)), Phase::Reading { reason }) => {
                self.reading_took = took;
                self.compare(&found, reason, now)
            }
            (Answer::Applied(Ok(kernel_time)), Phase::Committing(flight)) => {
                let InFlight { plan, step, elements, since, planned } = *flight;
                self.committed(plan);
                let latency = now.saturating_duration_since(since);
                let duration = self.succeeded(now);
                (Progress::Done(Done { step, elements, kernel_time, latency, planned, duration }), None)
            }
            (Answer::Read(Err(error)) | Answer::Applied(Err(error)), phase) => {
                let mut during = Failing::Read;
                if let Phase::Committing(flight) = phase {
                    self.dirty_since = Some(flight.since);
                    during = if flight.step == Step::Change { Failing::Change } else { Failing::Repair };
                }
                (self.failed(error, during, now, random), None)
            }
            (Answer::Read(Ok(_)) | Answer::Applied(Ok(_)), phase) => {
                debug_assert!(false, "nothing of the kind was asked for");
                self.phase = phase;
                (Progress::Working, None)
            }
        }
    }

    fn compare(&mut self, found: &M::Found, reason: Reason, now: Instant) -> (Progress<M>, Option<Job<M>>) {
        self.looked_at = now;
        let extent = if self.failures >= REBUILD_AFTER { Extent::Rebuild } else { Extent::Difference };
        let plan = self.backend.repair(&self.config, &self.table, found, extent);
        match self.carry_over(plan, Step::Repair(reason), now) {
            Ok(job) => (Progress::Working, Some(job)),
            Err(since) => {
                let latency = now.saturating_duration_since(since);
                let step = Step::Unchanged(reason);
                let duration = self.succeeded(now);
                (
                    Progress::Done(Done {
                        step,
                        elements: 0,
                        kernel_time: None,
                        latency,
                        planned: now,
                        duration,
                    }),
                    None,
                )
            }
        }
    }

    /// The kernel has the plan's changes. Frontends that changed again meanwhile are not in it.
    fn committed(&mut self, plan: PlanOf<M, F>) {
        self.backend.committed(plan);
        let (later, ready) =
            std::mem::take(&mut self.stale_flows).into_iter().partition(|key| self.dirty.contains(key));
        self.stale_flows = later;
        self.ready_flows.extend::<BTreeSet<_>>(ready);
    }

    /// Nothing is known to be wrong any more; gives the attempt's duration.
    fn succeeded(&mut self, now: Instant) -> Duration {
        self.failures = 0;
        self.failing_since = None;
        if self.is_settled() {
            // What differed for a moment is as it was, and nobody has taken it up.
            self.dirty_since = None;
        }
        now.saturating_duration_since(self.attempt)
    }

    fn failed(&mut self, error: M::Error, during: Failing, now: Instant, random: f64) -> Progress<M> {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        let retry_in = pause(self.failures, random);
        self.phase = Phase::Unsure { not_before: now + retry_in, reason: Reason::Failure };
        let duration = now.saturating_duration_since(self.attempt);
        Progress::Failed(Failed { error, during, failures: self.failures, retry_in, duration })
    }
}

#[cfg(test)]
mod tests;
