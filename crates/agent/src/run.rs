//! The event loop itself.

use std::collections::BTreeSet;

use metrics::health::BEAT_EVERY;
use model::view::ThisNode;
use model::{Change, IpFamily, Kind, Mode, Node, Store, Touched, V4, V6};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::flows::{OpenConntrack, Sweeper, Swept};
use crate::log::{log_node, millis};
use crate::node::{NodeError, NodeState};
use crate::notice::Notice;
use crate::pipeline::Step;
use crate::settings::Settings;
use crate::side::{Side, Surroundings};
use crate::telemetry::{Events, Question, Telemetry};
use crate::worker::{OpenKernel, Report};

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
    #[error("start the thread {what}")]
    Thread {
        /// What it was for.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A kernel thread ended by itself, which only a defect can cause.
    #[error("a kernel thread ended")]
    WorkerDied,
    /// What has to be known of the Node is not known after a long time.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Serves until the source ends (all senders of `events` are dropped). `read` says what an event of the source means
/// here; `None` for those that are not for the agent.
///
/// # Errors
/// A thread can't be started, or died; or the Node's pod CIDRs are needed and don't come. Failures of the kernel are not errors: they are logged and repaired.
pub async fn run<M: Mode, E>(
    mode: M,
    settings: Settings,
    kernel: KernelAccess<M>,
    telemetry: Telemetry,
    events: Receiver<E>,
    read: impl Fn(E) -> Option<Input>,
) -> Result<(), StartError> {
    let (reports_tx, reports) = unbounded_channel();
    let (swept_tx, swept) = unbounded_channel();
    let (foreign_tx, foreign) = unbounded_channel();
    let (old_rules_tx, old_rules) = unbounded_channel();
    let sweeper = Sweeper::start(kernel.open_conntrack, swept_tx)
        .map_err(|source| StartError::Thread { what: "flows", source })?;
    let after_sync: Box<dyn FnOnce() + Send> = Box::new(move || {
        (kernel.watch)(foreign_tx);
        (kernel.synced)(old_rules_tx);
    });
    let questions = telemetry.take_questions();
    let agent = Agent::new(&mode, settings, &kernel.open, &reports_tx, telemetry, sweeper, after_sync)?;
    agent
        .serve(Inputs { events, read }, Reports { kernel: reports, swept, foreign, old_rules, questions })
        .await
}

/// The agent's ways to the kernel.
pub struct KernelAccess<M: Mode> {
    /// Opens a connection to the ruleset.
    pub open: OpenKernel<M>,
    /// Opens a connection to the tracked flows.
    pub open_conntrack: OpenConntrack,
    /// Starts to tell of changes that others make to our tables. Called once, after the first complete sync: before, such
    /// a watch would only be told of our own changes.
    pub watch: Box<dyn FnOnce(UnboundedSender<ForeignChange>) + Send>,
    /// Called once, after the first complete sync of all families: rules that others left can go now. Must return at once.
    pub synced: Box<dyn FnOnce(UnboundedSender<OldRulesGone>) + Send>,
}

/// Rules that others had left are gone. Until then they may have directed flows to endpoints of long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldRulesGone;

/// Somebody else changed a table of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignChange {
    /// The table's family; `None`: either.
    pub family: Option<nft::Family>,
    /// What happened, for the log.
    pub what: &'static str,
}

/// What comes back from the threads.
struct Reports<M: Mode> {
    kernel: UnboundedReceiver<Report<M>>,
    swept: UnboundedReceiver<Swept>,
    foreign: UnboundedReceiver<ForeignChange>,
    old_rules: UnboundedReceiver<OldRulesGone>,
    questions: UnboundedReceiver<Question>,
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

struct Agent<M: Mode> {
    settings: Settings,
    this_node: ThisNode,
    node: NodeState,
    store: Store,
    /// Kinds that have not been listed completely.
    missing: BTreeSet<Kind>,
    v4: Option<Side<M, V4>>,
    v6: Option<Side<M, V6>>,
    telemetry: Telemetry,
    sweeper: Sweeper,
    /// What follows the first complete sync; gone once it was called.
    after_sync: Option<Box<dyn FnOnce() + Send>>,
    started: Instant,
}

impl<M: Mode> Agent<M> {
    fn new(
        mode: &M,
        settings: Settings,
        open: &OpenKernel<M>,
        reports: &UnboundedSender<Report<M>>,
        telemetry: Telemetry,
        sweeper: Sweeper,
        after_sync: Box<dyn FnOnce() + Send>,
    ) -> Result<Self, StartError> {
        let wanted = |family| settings.families.contains(&family);
        let v4 = wanted(IpFamily::V4)
            .then(|| Side::start(mode, &settings, open, reports, &telemetry))
            .transpose()?;
        let v6 = wanted(IpFamily::V6)
            .then(|| Side::start(mode, &settings, open, reports, &telemetry))
            .transpose()?;
        Ok(Self {
            this_node: settings.this_node(None),
            node: NodeState::new(&settings),
            settings,
            store: Store::default(),
            missing: Kind::ALL.into(),
            v4,
            v6,
            telemetry,
            sweeper,
            after_sync: Some(after_sync),
            started: Instant::now(),
        })
    }

    async fn serve<E, R: Fn(E) -> Option<Input>>(
        mut self,
        mut inputs: Inputs<E, R>,
        mut back: Reports<M>,
    ) -> Result<(), StartError> {
        loop {
            let deadline = self.deadline();
            self.telemetry.health.lock().beat(Instant::now());
            tokio::select! {
                biased;
                Some(report) = back.kernel.recv() => self.take_report(report)?,
                Some(swept) = back.swept.recv() => self.take_swept(swept),
                Some(change) = back.foreign.recv() => self.take_foreign_change(change),
                Some(OldRulesGone) = back.old_rules.recv() => self.sweep_again(),
                Some(question) = back.questions.recv() => self.answer(question),
                input = inputs.recv() => match input {
                    Some(input) => self.take_inputs(input, &mut inputs),
                    None => return Ok(()),
                },
                () = sleep_until(deadline) => {}
            }
            let now = Instant::now();
            match self.node.waits_until() {
                Some(limit) if limit <= now => return Err(self.node.error().into()),
                None if self.missing.is_empty() => self.advance(now)?,
                Some(_) | None => {}
            }
        }
    }

    /// Gives the threads something to do, if there is something.
    fn advance(&mut self, now: Instant) -> Result<(), StartError> {
        let around = Surroundings { node: self.node.get(), store: &self.store };
        self.v4.as_mut().map_or(Ok(()), |side| side.advance(&self.sweeper, &around, now))?;
        self.v6.as_mut().map_or(Ok(()), |side| side.advance(&self.sweeper, &around, now))?;
        let synced = self.v4.as_ref().is_none_or(|side| side.synced)
            && self.v6.as_ref().is_none_or(|side| side.synced);
        if synced && let Some(after_sync) = self.after_sync.take() {
            after_sync();
        }
        Ok(())
    }

    fn take_foreign_change(&mut self, change: ForeignChange) {
        let family = change.family.map_or("either", nft::Family::as_str);
        warn!(ipFamily = family, what = change.what, "somebody else changed our table");
        self.doubt(change.family);
    }

    fn answer(&self, Question { service, answer }: Question) {
        let entry = self.store.entry(&service);
        let v4 = self.v4.as_ref().and_then(|side| side.explain(&self.this_node, &service, entry));
        let v6 = self.v6.as_ref().and_then(|side| side.explain(&self.this_node, &service, entry));
        let text = (v4.is_some() || v6.is_some()).then(|| [v4, v6].into_iter().flatten().collect());
        // Whoever asked may have gone.
        drop(answer.send(text));
    }

    fn sweep_again(&mut self) {
        self.v4.as_mut().map(Side::sweep_again);
        self.v6.as_mut().map(Side::sweep_again);
    }

    /// Has the table read again soon; of both families if none is given.
    fn doubt(&mut self, family: Option<nft::Family>) {
        let now = Instant::now();
        if let Some(side) = &mut self.v4
            && family != Some(nft::Family::Ip6)
        {
            side.pipeline.doubt(now);
        }
        if let Some(side) = &mut self.v6
            && family != Some(nft::Family::Ip)
        {
            side.pipeline.doubt(now);
        }
    }

    fn take_swept(&mut self, swept: Swept) {
        let (now, Swept { family, result, took }) = (Instant::now(), swept);
        match family {
            nft::Family::Ip => self.v4.as_mut().map(|side| side.take_swept(result, took, now)),
            nft::Family::Ip6 => self.v6.as_mut().map(|side| side.take_swept(result, took, now)),
        };
    }

    /// When to look again without an event: when something is due, and often enough to show that the loop turns.
    fn deadline(&self) -> Instant {
        let beat = Instant::now() + BEAT_EVERY;
        if !self.missing.is_empty() {
            return beat;
        }
        if let Some(limit) = self.node.waits_until() {
            return limit;
        }
        let v4 = self.v4.as_ref().and_then(Side::deadline);
        let v6 = self.v6.as_ref().and_then(Side::deadline);
        v4.into_iter().chain(v6).fold(beat, Instant::min)
    }

    /// Takes in what has arrived. All of it together makes one step, so that a burst costs one transaction.
    fn take_inputs<E, R: Fn(E) -> Option<Input>>(&mut self, first: Input, inputs: &mut Inputs<E, R>) {
        let now = Instant::now();
        let (mut touched, mut events) = (Touched::default(), Events::default());
        let mut completed = false;
        let mut next = Some(first);
        for _ in 0..MAX_CHANGES_AT_ONCE {
            match next.take().or_else(|| inputs.try_recv()) {
                Some(Input::Change(change)) => {
                    events.count(&change);
                    self.store.apply(change, &mut touched);
                }
                Some(Input::Listed(kind)) => completed |= self.listed(kind),
                None => break,
            }
        }
        touched.node |= completed;
        self.tell(&events, &touched, now);
        if self.missing.is_empty() {
            self.look_at(touched, now);
        }
        if completed {
            self.request(now);
        }
    }

    /// Tells metrics and health what came in.
    fn tell(&mut self, events: &Events, touched: &Touched, now: Instant) {
        if touched.node {
            let node = self.store.node(&self.settings.node_name);
            self.telemetry.health.lock().set_node_eligible(node.is_some_and(Node::is_eligible));
        }
        self.telemetry.take_events(events);
        if let Some(side) = &mut self.v4 {
            side.telemetry.take_events(events, touched, now);
        }
        if let Some(side) = &mut self.v6 {
            side.telemetry.take_events(events, touched, now);
        }
    }

    /// From now on both families are expected to have what is known in the kernel, even if that is nothing.
    fn request(&mut self, now: Instant) {
        if let Some(side) = &mut self.v4 {
            side.pipeline.request(now);
        }
        if let Some(side) = &mut self.v6 {
            side.pipeline.request(now);
        }
    }

    /// Notes a complete listing; true if it was the last one that was missing.
    fn listed(&mut self, kind: Kind) -> bool {
        let was_missing = self.missing.remove(&kind);
        let completed = was_missing && self.missing.is_empty();
        if completed {
            info!(after_ms = millis(self.started.elapsed()), "Caches are synced");
        }
        completed
    }

    fn look_at(&mut self, touched: Touched, now: Instant) {
        let mut services = touched.services;
        if touched.node {
            self.look_at_node(now);
        }
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
        if let Some(side) = &mut self.v4 {
            side.looked_at_all(&self.store, now);
        }
        if let Some(side) = &mut self.v6 {
            side.looked_at_all(&self.store, now);
        }
    }

    /// Takes in the Node, and tells what is new about it.
    fn look_at_node(&mut self, now: Instant) {
        let found = self.store.node(&self.settings.node_name);
        if let Some(news) = self.node.take(found, now) {
            log_node(&self.settings.node_name, news, self.node.get(), self.node.waits_until().is_some());
            self.settings.notices.tell(Notice::Node(self.node.get().cloned()));
        }
    }

    fn look_at_config(&mut self, now: Instant) {
        let node = self.node.get();
        self.this_node = self.settings.this_node(node);
        let service_cidrs = self.store.service_cidrs();
        if let Some(side) = &mut self.v4 {
            side.set_rules(self.settings.rules::<V4>(node, &service_cidrs), now);
        }
        if let Some(side) = &mut self.v6 {
            side.set_rules(self.settings.rules::<V6>(node, &service_cidrs), now);
        }
    }

    fn take_report(&mut self, report: Report<M>) -> Result<(), StartError> {
        let step = match report.family {
            IpFamily::V4 => self.v4.as_mut().map(|side| side.take_report(report)),
            IpFamily::V6 => self.v6.as_mut().map(|side| side.take_report(report)),
        };
        // A repair has read the whole table, and compared it with all that should be in it.
        if let Some(Step::Repair(_) | Step::Unchanged(_)) = step.transpose()?.flatten() {
            (self.settings.release_memory)();
        }
        Ok(())
    }
}
