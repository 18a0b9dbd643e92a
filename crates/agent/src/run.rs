//! The event loop itself.

mod answers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use metrics::health::BEAT_EVERY;
use model::view::ThisNode;
use model::{Change, Kind, Node, ServiceName, Store, Touched};
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use crate::family::{Cluster, FamilyController, ServedFamily, Start};
use crate::log::{log_node, millis};
use crate::node::{NodeError, NodeState};
use crate::notice::Notice;
use crate::settings::Settings;
use crate::telemetry::{Events, Question, Telemetry};

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
    /// A thread ended by itself, which only a defect can cause.
    #[error("a thread ended")]
    WorkerDied,
    /// No family could ever be programmed, and trying again has no chance.
    #[error("rules can't be programmed here: {0}")]
    Refused(String),
    /// What has to be known of the Node is not known after a long time.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Serves until the source ends (all senders of `events` are dropped). `read` says what an event of the source means
/// here; `None` for those that are not for the agent.
///
/// # Errors
/// A thread can't be started, or died; or the Node's pod CIDRs are needed and don't come; or none of the families can ever be
/// programmed. Other failures are not errors: they are logged and repaired.
pub async fn run<E>(
    families: Vec<ServedFamily>,
    settings: Settings,
    telemetry: Telemetry,
    events: Receiver<E>,
    read: impl Fn(E) -> Option<Input>,
) -> Result<(), StartError> {
    let questions = telemetry.take_questions();
    let agent = Agent::new(families, settings, telemetry)?;
    agent.serve(Inputs { events, read }, questions).await
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

/// How many changes are taken in at once: a flood of events must not starve anything else.
const MAX_CHANGES_AT_ONCE: usize = 1024;
/// How many Services are looked at in one turn of the loop.
const MAX_SERVICES_AT_ONCE: usize = 256;

/// Below this many Services no memory is worth giving back.
const MANY_SERVICES: usize = 1024;

struct Agent {
    settings: Settings,
    this_node: ThisNode,
    node: NodeState,
    store: Store,
    /// Kinds that have not been listed completely.
    missing: BTreeSet<Kind>,
    families: Vec<Box<dyn FamilyController>>,
    /// Services that have to be looked at. Nothing else is taken in before that.
    touched: BTreeSet<ServiceName>,
    telemetry: Telemetry,
    /// Something has come back from a thread.
    wake: Arc<Notify>,
    /// The most Services there have been since memory was last given back.
    most_services: usize,
    /// Families of which it was told that they can't be served.
    told: BTreeSet<usize>,
    started: Instant,
}

impl Agent {
    fn new(
        families: Vec<ServedFamily>,
        settings: Settings,
        telemetry: Telemetry,
    ) -> Result<Self, StartError> {
        let wake = Arc::new(Notify::new());
        let start = |family: ServedFamily| {
            family.start(Start { settings: &settings, telemetry: &telemetry, wake: &wake })
        };
        let families = families.into_iter().map(start).collect::<Result<_, _>>()?;
        Ok(Self {
            this_node: settings.this_node(None),
            node: NodeState::new(&settings),
            settings,
            store: Store::default(),
            missing: Kind::ALL.into(),
            families,
            touched: BTreeSet::new(),
            telemetry,
            wake,
            most_services: 0,
            told: BTreeSet::new(),
            started: Instant::now(),
        })
    }

    /// Turn by turn. A turn takes in what is here, as much of it as is quickly done, and gives the threads what follows.
    async fn serve<E, R: Fn(E) -> Option<Input>>(
        mut self,
        mut inputs: Inputs<E, R>,
        mut questions: UnboundedReceiver<Question>,
    ) -> Result<(), StartError> {
        let (wake, begun) = (self.wake.clone(), Instant::now());
        self.families.iter_mut().try_for_each(|family| family.read_ahead(begun))?;
        loop {
            let deadline = self.deadline();
            let is_busy = !self.touched.is_empty();
            let (mut input, mut question) = (None, None);
            tokio::select! {
                biased;
                () = wake.notified() => {}
                Some(asked) = questions.recv() => question = Some(asked),
                () = std::future::ready(()), if is_busy => {}
                received = inputs.recv() => match received {
                    Some(received) => input = Some(received),
                    None => return Ok(()),
                },
                () = sleep_until(deadline) => {}
            }
            let begun = Instant::now();
            self.telemetry.health.lock().beat(begun);
            if let Some(question) = question.or_else(|| questions.try_recv().ok()) {
                self.answer(question, begun);
            }
            let n_services = self.turn(input, &mut inputs, begun)?;
            self.telemetry.metrics.loop_turn.observe(begun.elapsed(), n_services);
        }
    }

    /// Gives how many Services were looked at.
    fn turn<E, R: Fn(E) -> Option<Input>>(
        &mut self,
        input: Option<Input>,
        inputs: &mut Inputs<E, R>,
        now: Instant,
    ) -> Result<usize, StartError> {
        let mut has_freed = false;
        for family in &mut self.families {
            has_freed |= family.take_reports(now)?;
        }
        // All that is held has been read, and compared with all that should be; or much has changed; or most of what there was is
        // gone.
        if has_freed || self.has_shrunk() {
            (self.settings.release_memory)();
        }
        if self.touched.is_empty() {
            self.take_inputs(input, inputs, now);
        }
        let n_services = self.look_at_some(now);
        if n_services > 0 {
            self.telemetry.tell_news();
        }
        if !self.touched.is_empty() || !self.missing.is_empty() {
            return Ok(n_services);
        }
        match self.node.waits_until() {
            Some(limit) if limit <= now => return Err(self.node.error().into()),
            Some(_) => self.families.iter_mut().for_each(|family| family.hold(now)),
            None => self.advance(now)?,
        }
        self.start_watches(now);
        self.give_up_if_hopeless()?;
        Ok(n_services)
    }

    /// Has changes of others told, once no family is at its first sync any more.
    fn start_watches(&mut self, now: Instant) {
        let is_at_start = |family: &dyn FamilyController| !family.was_synced() && !family.has_failed();
        let at_start = self.families.iter().any(|family| is_at_start(family.as_ref()));
        if may_watch(at_start, now.saturating_duration_since(self.started)) {
            self.families.iter_mut().for_each(|family| family.start_watch());
        }
    }

    /// Whether there are far fewer Services than there were, and their frontends are gone.
    fn has_shrunk(&mut self) -> bool {
        let services = self.store.entries().len();
        self.most_services = self.most_services.max(services);
        let is_settled = self.touched.is_empty() && self.families.iter().all(|family| family.is_settled());
        let has_shrunk =
            is_settled && self.most_services > MANY_SERVICES && services < self.most_services / 2;
        if has_shrunk {
            self.most_services = services;
        }
        has_shrunk
    }

    /// Gives the threads something to do, if there is something.
    fn advance(&mut self, now: Instant) -> Result<(), StartError> {
        let cluster = Cluster { node: self.node.get(), store: &self.store };
        self.families.iter_mut().try_for_each(|family| family.advance(&cluster, now))
    }

    /// Ends if nothing will ever be programmed. If something is, tells once what is not.
    fn give_up_if_hopeless(&mut self) -> Result<(), StartError> {
        let hopeless = self.families.iter().enumerate();
        let hopeless: Vec<(usize, &str)> =
            hopeless.filter_map(|(idx, family)| Some((idx, family.hopeless()?))).collect();
        if let [(_, error), ..] = hopeless[..]
            && hopeless.len() == self.families.len()
        {
            return Err(StartError::Refused(error.to_owned()));
        }
        if self.families.iter().any(|family| family.was_synced()) {
            for (idx, error) in hopeless {
                if self.told.insert(idx) {
                    error!(ipFamily = %self.families[idx].family(), error, "Only the other IP family can be served");
                }
            }
        }
        Ok(())
    }

    /// When to look again without an event: when something is due, and often enough to show that the loop turns.
    fn deadline(&self) -> Instant {
        let beat = Instant::now() + BEAT_EVERY;
        if !self.missing.is_empty() {
            return beat;
        }
        if let Some(limit) = self.node.waits_until() {
            return limit.min(beat);
        }
        self.families.iter().filter_map(|family| family.deadline()).fold(beat, Instant::min)
    }

    /// Takes in what has arrived. All of it together makes one step, so that a burst costs one transaction.
    fn take_inputs<E, R: Fn(E) -> Option<Input>>(
        &mut self,
        first: Option<Input>,
        inputs: &mut Inputs<E, R>,
        now: Instant,
    ) {
        let (mut touched, mut events) = (Touched::default(), Events::default());
        let mut completed = false;
        let mut next = first;
        for _ in 0..MAX_CHANGES_AT_ONCE {
            match next.take().or_else(|| inputs.try_recv()) {
                Some(Input::Change(change)) => {
                    let is_listing = matches!(change, Change::Replace { .. });
                    events.count(&change);
                    self.store.apply(change, &mut touched);
                    if is_listing {
                        // Which may have been large.
                        break;
                    }
                }
                Some(Input::Listed(kind)) => completed |= self.listed(kind),
                None => break,
            }
        }
        touched.node |= completed;
        self.tell(&events, &touched, now);
        if touched.node || completed {
            self.telemetry.tell_news();
        }
        if self.missing.is_empty() {
            self.look_at(touched, now);
        }
        if completed {
            // From now on what is known is expected to be in force, even if that is nothing.
            self.families.iter_mut().for_each(|family| family.request(now));
        }
    }

    /// Tells metrics and health what came in.
    fn tell(&mut self, events: &Events, touched: &Touched, now: Instant) {
        if touched.node {
            let node = self.store.node(&self.settings.node_name);
            self.telemetry.health.lock().set_node_eligible(node.is_some_and(Node::is_eligible));
        }
        self.telemetry.take_events(events);
        self.families.iter_mut().for_each(|family| family.take_events(events, touched, now));
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
        if touched.node {
            self.look_at_node(now);
        }
        if touched.node || touched.service_cidrs {
            self.set_rules(now);
        }
        self.touched.extend(touched.services);
        if touched.node {
            // Its zone and addresses are part of what decides about every Service.
            self.touched.extend(self.store.entries().map(|(name, _)| name.clone()));
        }
    }

    /// Looks at Services that were touched, at a limited number of them in one turn; gives that number.
    fn look_at_some(&mut self, now: Instant) -> usize {
        let names = next_services(&mut self.touched);
        for name in &names {
            let entry = self.store.entry(name);
            for family in &mut self.families {
                family.set_service(&self.this_node, name, entry, now);
            }
        }
        if !names.is_empty() {
            self.families.iter_mut().for_each(|family| family.tell_conflicts(&self.store));
        }
        names.len()
    }

    /// Takes in the Node, and tells what is new about it.
    fn look_at_node(&mut self, now: Instant) {
        let found = self.store.node(&self.settings.node_name);
        if let Some(news) = self.node.take(found, now) {
            log_node(&self.settings.node_name, news, self.node.get(), self.node.waits_until().is_some());
            self.settings.notices.tell(Notice::Node(self.node.get().cloned()));
        }
    }

    fn set_rules(&mut self, now: Instant) {
        let node = self.node.get();
        self.this_node = self.settings.this_node(node);
        let service_cidrs: BTreeSet<IpNet> = self.store.service_cidrs();
        for family in &mut self.families {
            family.set_rules(&self.settings, node, &service_cidrs, now);
        }
    }
}

/// Whether changes of others can be told from now on. While somebody listens, the kernel describes each change, which makes the
/// large transaction of a family's start dearer by half; but no family waits for ever for another one.
fn may_watch(some_family_is_at_its_start: bool, since_start: Duration) -> bool {
    !some_family_is_at_its_start || since_start >= MAX_WATCH_DELAY
}

/// A family is watched at the latest this long after the start, if it is in force.
const MAX_WATCH_DELAY: Duration = Duration::from_secs(30);

/// The Services to look at next.
fn next_services(touched: &mut BTreeSet<ServiceName>) -> BTreeSet<ServiceName> {
    let rest = touched.iter().nth(MAX_SERVICES_AT_ONCE).cloned();
    let later = rest.map(|first| touched.split_off(&first)).unwrap_or_default();
    std::mem::replace(touched, later)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ObjectName;

    #[test]
    fn no_family_is_watched_while_another_starts_unless_that_takes_long() {
        assert!(may_watch(false, Duration::ZERO));
        assert!(!may_watch(true, Duration::ZERO));
        assert!(may_watch(true, MAX_WATCH_DELAY));
    }

    #[test]
    fn a_turn_looks_at_a_limited_number_of_services() {
        let all: BTreeSet<_> =
            (0..=MAX_SERVICES_AT_ONCE * 2).map(|n| ObjectName::new("ns", &format!("svc-{n}"))).collect();
        let mut touched = all.clone();
        let turns: Vec<_> = std::iter::repeat_with(|| next_services(&mut touched)).take(4).collect();
        let sizes: Vec<_> = turns.iter().map(BTreeSet::len).collect();
        assert_eq!(sizes, [MAX_SERVICES_AT_ONCE, MAX_SERVICES_AT_ONCE, 1, 0]);
        assert_eq!(turns.into_iter().flatten().collect::<BTreeSet<_>>(), all);
    }
}
