//! One family's way from changed Services to the kernel, as a state machine without I/O and clock.

use std::collections::BTreeSet;
use std::time::Duration;

use backend_nftables::{Backend, Config, Extent, Plan};
use model::{Family, Frontend, FrontendKey, ServiceName, Table};
use nft::{KernelError, Ruleset, Transaction};
use tokio::time::Instant;

use crate::backoff::pause;
use crate::worker::{Answer, Job};

/// A committed step, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A transaction that carried changed frontends.
    Change,
    /// A transaction that brought the table right after a start or a failure.
    Repair,
    /// The table was read and found right; nothing was sent.
    Unchanged,
}

/// One family's state.
pub(crate) struct Pipeline<F: Family> {
    table: Table<F>,
    backend: Backend<F>,
    config: Config,
    /// Frontends that differ from what the kernel was last told.
    dirty: BTreeSet<FrontendKey<F>>,
    /// When the first of `dirty` became so.
    dirty_since: Option<Instant>,
    phase: Phase<F>,
    failures: u32,
}

enum Phase<F: Family> {
    /// Nothing under way; the kernel holds what the backend says.
    Idle,
    /// The table has to be read and compared, not before this moment.
    Unsure { not_before: Instant },
    /// Being read.
    Reading,
    /// A transaction is in flight.
    Committing(Box<InFlight<F>>),
}

/// What waits for the outcome of a transaction.
struct InFlight<F: Family> {
    plan: Plan<F>,
    step: Step,
    elements: usize,
    /// When the oldest change in it became known.
    since: Instant,
}

/// What came of a report.
pub(crate) enum Progress {
    /// Goes on; nothing to say.
    Working,
    Done(Done),
    Failed(Failed),
}

/// A success.
pub(crate) struct Done {
    pub(crate) step: Step,
    /// Elements in the transaction.
    pub(crate) elements: usize,
    /// What the kernel took for it.
    pub(crate) applied: nft::Applied,
    /// From the moment the oldest change in it was known.
    pub(crate) latency: Duration,
}

/// A failure, and what is done about it.
pub(crate) struct Failed {
    pub(crate) error: KernelError,
    pub(crate) failures: u32,
    pub(crate) retry_in: Duration,
}

/// From this many failures in a row the table is written anew.
const REBUILD_AFTER: u32 = 3;

impl<F: Family> Pipeline<F> {
    /// A pipeline that knows nothing of the kernel and will read it first.
    pub(crate) fn new(config: Config, now: Instant) -> Self {
        Self {
            table: Table::default(),
            backend: Backend::new(config.clone()),
            config,
            dirty: BTreeSet::new(),
            dirty_since: None,
            phase: Phase::Unsure { not_before: now },
            failures: 0,
        }
    }

    /// Takes in the frontends of one Service; returns the claims that lost against another Service's.
    pub(crate) fn set_service(
        &mut self,
        name: &ServiceName,
        frontends: Vec<Frontend<F>>,
        now: Instant,
    ) -> Vec<&Frontend<F>> {
        let changed = self.table.set_service(name, frontends);
        if !changed.is_empty() {
            self.dirty_since.get_or_insert(now);
        }
        self.dirty.extend(&changed);
        let losers = changed.into_iter().flat_map(|key| self.table.conflicts(&key));
        losers.filter(|loser| loser.service.service == *name).collect()
    }

    /// Takes in settings; a difference is carried over like a repair.
    pub(crate) fn set_config(&mut self, config: Config, now: Instant) {
        if self.config != config {
            self.config = config;
            self.dirty_since.get_or_insert(now);
        }
    }

    /// Whether all that is known is in the kernel.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.dirty.is_empty() && self.config == *self.backend.config()
    }

    /// When [`Pipeline::next`] should be asked again, if nothing else happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Unsure { not_before } => Some(not_before),
            Phase::Idle | Phase::Reading | Phase::Committing(_) => None,
        }
    }

    /// The next job for the kernel, if there is one to be done now.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Job> {
        match self.phase {
            Phase::Reading | Phase::Committing(_) => None,
            Phase::Unsure { not_before } if not_before > now => None,
            Phase::Unsure { .. } => Some(self.read()),
            Phase::Idle if self.config != *self.backend.config() => Some(self.read()),
            Phase::Idle if self.dirty.is_empty() => None,
            Phase::Idle => self.change(now),
        }
    }

    fn read(&mut self) -> Job {
        self.phase = Phase::Reading;
        Job::Read
    }

    fn change(&mut self, now: Instant) -> Option<Job> {
        let plan = self.backend.plan(&self.table, &self.dirty);
        self.carry_over(plan, Step::Change, now).ok()
    }

    /// Starts a transaction; or takes note that there is nothing to do and gives back since when that was asked for.
    fn carry_over(&mut self, mut plan: Plan<F>, step: Step, now: Instant) -> Result<Job, Instant> {
        self.dirty.clear();
        let since = self.dirty_since.take().unwrap_or(now);
        if plan.transaction.is_empty() {
            self.backend.committed(plan);
            return Err(since);
        }
        // The transaction goes to the kernel's thread; the rest of the plan waits here for the outcome.
        let nothing = Transaction::new(plan.transaction.family, plan.transaction.table.clone());
        let transaction = std::mem::replace(&mut plan.transaction, nothing);
        let elements = transaction.element_count();
        self.phase = Phase::Committing(Box::new(InFlight { plan, step, elements, since }));
        Ok(Job::Apply(transaction))
    }

    /// Takes in what came of the last job, and gives the next one if it follows directly. `random` is from 0 up to 1.
    pub(crate) fn report(&mut self, answer: Answer, now: Instant, random: f64) -> (Progress, Option<Job>) {
        match (answer, std::mem::replace(&mut self.phase, Phase::Idle)) {
            (Answer::Read(Ok(found)), _) => self.compare(found.as_ref(), now),
            (Answer::Applied(Ok(applied)), Phase::Committing(flight)) => {
                let InFlight { plan, step, elements, since } = *flight;
                self.backend.committed(plan);
                (self.done(step, elements, applied, since, now), None)
            }
            (Answer::Read(Err(error)) | Answer::Applied(Err(error)), phase) => {
                if let Phase::Committing(flight) = phase {
                    self.dirty_since = Some(flight.since);
                }
                (self.failed(error, now, random), None)
            }
            (Answer::Applied(Ok(_)), phase) => {
                debug_assert!(false, "only a transaction in flight is answered so");
                self.phase = phase;
                (Progress::Working, None)
            }
        }
    }

    fn compare(&mut self, found: Option<&Ruleset>, now: Instant) -> (Progress, Option<Job>) {
        let extent = if self.failures >= REBUILD_AFTER { Extent::Rebuild } else { Extent::Difference };
        let plan = self.backend.repair(&self.config, &self.table, found, extent);
        match self.carry_over(plan, Step::Repair, now) {
            Ok(job) => (Progress::Working, Some(job)),
            Err(since) => (self.done(Step::Unchanged, 0, nft::Applied::default(), since, now), None),
        }
    }

    fn done(
        &mut self,
        step: Step,
        elements: usize,
        applied: nft::Applied,
        since: Instant,
        now: Instant,
    ) -> Progress {
        self.failures = 0;
        let latency = now.saturating_duration_since(since);
        Progress::Done(Done { step, elements, applied, latency })
    }

    fn failed(&mut self, error: KernelError, now: Instant, random: f64) -> Progress {
        self.failures = self.failures.saturating_add(1);
        let retry_in = pause(self.failures, random);
        self.phase = Phase::Unsure { not_before: now + retry_in };
        Progress::Failed(Failed { error, failures: self.failures, retry_in })
    }
}
