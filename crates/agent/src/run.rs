//! The event loop itself.

use std::collections::BTreeSet;
use std::time::Duration;

use model::view::{self, ThisNode};
use model::{Change, Family, IpFamily, Kind, ServiceName, Store, Touched, V4, V6};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::pipeline::{Done, Failed, Pipeline, Progress, Step};
use crate::settings::Settings;
use crate::worker::{Job, OpenKernel, Report, Worker};

/// What a source tells the agent.
#[derive(Clone, Debug)]
pub enum Input {
    /// A change of one object, or a complete listing.
    Change(Change),
    /// The first complete listing of a kind has been delivered. Nothing is programmed before all kinds have been.
    Listed(Kind),
}

/// The agent could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refused a thread.
    #[error("start the kernel thread of {family}")]
    Thread {
        /// The family it was for.
        family: IpFamily,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A kernel thread ended by itself, which only a defect can cause.
    #[error("a kernel thread ended")]
    WorkerDied,
}

/// Serves until the source ends (all senders of `events` are dropped). `read` says what an event of the source means
/// here; `None` for those that are not for the agent.
///
/// # Errors
/// A thread can't be started, or died. Failures of the kernel are not errors: they are logged and repaired.
pub async fn run<E>(
    settings: Settings,
    open: OpenKernel,
    events: Receiver<E>,
    read: impl Fn(E) -> Option<Input>,
) -> Result<(), StartError> {
    let (reports_tx, reports) = unbounded_channel();
    Agent::new(settings, &open, &reports_tx)?.serve(Inputs { events, read }, reports).await
}

/// The source's events as the agent's inputs.
struct Inputs<E, R> {
    events: Receiver<E>,
    read: R,
}

impl<E, R: Fn(E) -> Option<Input>> Inputs<E, R> {
    /// The next one; `None` when the source has ended.
    async fn recv(&mut self) -> Option<Input> {
        loop {
            let event = self.events.recv().await?;
            if let Some(input) = (self.read)(event) {
                return Some(input);
            }
        }
    }

    /// The next one that is here already.
    fn try_recv(&mut self) -> Option<Input> {
        std::iter::from_fn(|| self.events.try_recv().ok()).find_map(&self.read)
    }
}

/// How many changes are taken in before the kernel is looked after again: a flood of events must not starve it.
const MAX_CHANGES_AT_ONCE: usize = 1024;

struct Agent {
    settings: Settings,
    this_node: ThisNode,
    store: Store,
    /// Kinds that have not been listed completely.
    missing: BTreeSet<Kind>,
    v4: Option<Side<V4>>,
    v6: Option<Side<V6>>,
    started: Instant,
}

/// One family: its state and its kernel thread.
struct Side<F: Family> {
    pipeline: Pipeline<F>,
    worker: Worker,
}

impl Agent {
    fn new(
        settings: Settings,
        open: &OpenKernel,
        reports: &UnboundedSender<Report>,
    ) -> Result<Self, StartError> {
        let wanted = |family| settings.families.contains(&family);
        let v4 = wanted(IpFamily::V4).then(|| Side::start(&settings, open, reports)).transpose()?;
        let v6 = wanted(IpFamily::V6).then(|| Side::start(&settings, open, reports)).transpose()?;
        Ok(Self {
            this_node: ThisNode::new(settings.node_name.clone(), None),
            settings,
            store: Store::default(),
            missing: Kind::ALL.into(),
            v4,
            v6,
            started: Instant::now(),
        })
    }

    async fn serve<E, R: Fn(E) -> Option<Input>>(
        mut self,
        mut inputs: Inputs<E, R>,
        mut reports: UnboundedReceiver<Report>,
    ) -> Result<(), StartError> {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                Some(report) = reports.recv() => self.take_report(report)?,
                input = inputs.recv() => match input {
                    Some(input) => self.take_inputs(input, &mut inputs),
                    None => return Ok(()),
                },
                () = sleep_until(deadline) => {}
            }
            if self.missing.is_empty() {
                let now = Instant::now();
                self.v4.as_mut().map_or(Ok(()), |side| side.advance(now))?;
                self.v6.as_mut().map_or(Ok(()), |side| side.advance(now))?;
            }
        }
    }

    /// When something is due without an event: a day ahead if nothing is.
    fn deadline(&self) -> Instant {
        const IDLE: Duration = Duration::from_hours(24);
        let none = || Instant::now() + IDLE;
        if !self.missing.is_empty() {
            return none();
        }
        let v4 = self.v4.as_ref().and_then(|side| side.pipeline.deadline());
        let v6 = self.v6.as_ref().and_then(|side| side.pipeline.deadline());
        v4.into_iter().chain(v6).min().unwrap_or_else(none)
    }

    /// Takes in what has arrived. All of it together makes one step, so that a burst costs one transaction.
    fn take_inputs<E, R: Fn(E) -> Option<Input>>(&mut self, first: Input, inputs: &mut Inputs<E, R>) {
        let now = Instant::now();
        let mut touched = Touched::default();
        let mut completed = false;
        let mut next = Some(first);
        for _ in 0..MAX_CHANGES_AT_ONCE {
            match next.take().or_else(|| inputs.try_recv()) {
                Some(Input::Change(change)) => self.store.apply(change, &mut touched),
                Some(Input::Listed(kind)) => completed |= self.listed(kind),
                None => break,
            }
        }
        touched.node |= completed;
        if self.missing.is_empty() {
            self.look_at(touched, now);
        }
    }

    /// Notes a complete listing; true if it was the last one that was missing.
    fn listed(&mut self, kind: Kind) -> bool {
        let was_missing = self.missing.remove(&kind);
        let completed = was_missing && self.missing.is_empty();
        if completed {
            info!(after_ms = millis(self.started.elapsed()), "all kinds are listed");
        }
        completed
    }

    fn look_at(&mut self, touched: Touched, now: Instant) {
        let mut services = touched.services;
        if touched.node || touched.service_cidrs {
            self.look_at_config(now);
        }
        if touched.node {
            // Its zone and addresses are part of what decides about every Service.
            services.extend(self.store.entries().map(|(name, _)| name.clone()));
        }
        for name in &services {
            let entry = self.store.entry(name);
            if let Some(side) = &mut self.v4 {
                side.look_at(&self.this_node, name, entry, now);
            }
            if let Some(side) = &mut self.v6 {
                side.look_at(&self.this_node, name, entry, now);
            }
        }
    }

    fn look_at_config(&mut self, now: Instant) {
        let node = self.store.node(&self.settings.node_name);
        self.this_node = ThisNode::new(self.settings.node_name.clone(), node);
        let service_cidrs = self.store.service_cidrs();
        if let Some(side) = &mut self.v4 {
            side.pipeline.set_config(self.settings.config::<V4>(node, &service_cidrs), now);
        }
        if let Some(side) = &mut self.v6 {
            side.pipeline.set_config(self.settings.config::<V6>(node, &service_cidrs), now);
        }
    }

    fn take_report(&mut self, report: Report) -> Result<(), StartError> {
        let step = match report.family {
            nft::Family::Ip => self.v4.as_mut().map(|side| side.take_report(report)),
            nft::Family::Ip6 => self.v6.as_mut().map(|side| side.take_report(report)),
        };
        // A repair has read the whole table, and compared it with all that should be in it.
        if let Some(Step::Repair | Step::Unchanged) = step.transpose()?.flatten() {
            (self.settings.release_memory)();
        }
        Ok(())
    }
}

impl<F: Family> Side<F> {
    fn start(
        settings: &Settings,
        open: &OpenKernel,
        reports: &UnboundedSender<Report>,
    ) -> Result<Self, StartError> {
        let family = match F::FAMILY {
            IpFamily::V4 => nft::Family::Ip,
            IpFamily::V6 => nft::Family::Ip6,
        };
        let worker = Worker::start(family, open.clone(), reports.clone())
            .map_err(|source| StartError::Thread { family: F::FAMILY, source })?;
        Ok(Self {
            pipeline: Pipeline::new(settings.config::<F>(None, &BTreeSet::new()), Instant::now()),
            worker,
        })
    }

    fn look_at(
        &mut self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&model::ServiceEntry>,
        now: Instant,
    ) {
        let frontends = entry.map(|entry| view::frontends::<F>(node, entry)).unwrap_or_default();
        for loser in self.pipeline.set_service(name, frontends, now) {
            warn!(
                service = %loser.service, family = %F::FAMILY, address = ?loser.key.address,
                protocol = %loser.key.protocol, port = loser.key.port,
                "another Service has this address and port",
            );
        }
    }

    /// Gives the kernel thread something to do, if there is something.
    fn advance(&mut self, now: Instant) -> Result<(), StartError> {
        let job = self.pipeline.next(now);
        self.submit(job)
    }

    /// Takes in what came of a job; says which step that completed.
    fn take_report(&mut self, report: Report) -> Result<Option<Step>, StartError> {
        let took = report.took;
        let (progress, job) = self.pipeline.report(report.answer, Instant::now(), fastrand::f64());
        let step = match progress {
            Progress::Working => None,
            Progress::Done(done) => {
                log_done::<F>(&done, took, self.pipeline.is_settled());
                Some(done.step)
            }
            Progress::Failed(failed) => {
                log_failed::<F>(&failed);
                None
            }
        };
        self.submit(job)?;
        Ok(step)
    }

    fn submit(&self, job: Option<Job>) -> Result<(), StartError> {
        let accepted = job.is_none_or(|job| self.worker.submit(job));
        if accepted { Ok(()) } else { Err(StartError::WorkerDied) }
    }
}

fn log_done<F: Family>(done: &Done, took: Duration, settled: bool) {
    let Done { step, elements, applied, latency } = done;
    let family = F::FAMILY;
    let (latency_us, kernel_us) = (micros(*latency), micros(applied.kernel_time));
    match step {
        Step::Change => {
            debug!(%family, elements, latency_us, took_us = micros(took), kernel_us, settled, "changed the kernel's rules");
        }
        Step::Repair => {
            info!(%family, elements, latency_us, took_us = micros(took), kernel_us, "brought the kernel's rules up to date");
        }
        Step::Unchanged => info!(%family, latency_us, "the kernel's rules are right as they are"),
    }
}

fn log_failed<F: Family>(failed: &Failed) {
    let Failed { error, failures, retry_in } = failed;
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let retry_in_ms = millis(*retry_in);
    if error.is_retryable() {
        warn!(family = %F::FAMILY, %error, source, failures, retry_in_ms, "the kernel refused a change");
    } else {
        error!(family = %F::FAMILY, %error, source, failures, retry_in_ms, "the kernel can't be programmed");
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
