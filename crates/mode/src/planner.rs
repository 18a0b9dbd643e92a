//! What decides.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use model::{Changed, Family, Frontend, FrontendKey, RuleSettings, Table};
use tokio::time::Instant;

use crate::outage::EndpointOutage;
use crate::target::Target;
use crate::traffic::Meter;

/// One family's rules in a mode: knows what the target holds, and decides what to do. Does no I/O and takes no time; `plan`
/// must not change what the planner believes, since a plan may come to nothing.
///
/// The event loop has at most one plan under way. [`Planner::settle`] is called for each plan that was handed over, before
/// the next one is asked for.
pub trait Planner<F: Family>: Send + Sized + 'static {
    /// As `--proxy-mode` spells it.
    const NAME: &'static str;
    /// Whether [`Planner::shortcomings`] and [`Planner::occupant`] ever say something. Only then they are asked.
    const TELLS_SERVICES: bool = false;
    /// What the rules depend on besides the table.
    type Settings: Clone + Debug + PartialEq + Send;
    /// What does the steps.
    type Target: Target;
    /// What will be held if all steps are made; waits in the event loop for their results.
    type Held: Send;

    /// The mode's settings, from what all modes are told.
    fn settings(&self, rules: &RuleSettings) -> Self::Settings;

    /// The settings that what is held follows; `None`: nothing is held, or it is not known what.
    fn held_settings(&self) -> Option<&Self::Settings>;

    /// The steps that a cause asks for. Work for [`Cause::Changed`] is proportional to the change.
    ///
    /// # Errors
    /// What is held does not tell what to do: the target has to be read first ([`Cause::Found`]). An answer to
    /// [`Cause::Found`] never is this, nor one to [`Cause::Anew`] with a reading.
    fn plan(
        &self,
        table: &Table<F>,
        settings: &Self::Settings,
        cause: Cause<'_, F, <Self::Target as Target>::Found>,
    ) -> Result<PlanOf<Self, F>, NeedsReading>;

    /// One that plans [`Cause::Found`] and [`Cause::Anew`] as this one does now, and is asked for nothing else: on the worker's thread, so
    /// that the event loop goes on while a large table is compared. It needs nothing of what is held but what such a plan looks at.
    #[must_use]
    fn detached(&self) -> Self;

    /// Takes note of what came of a plan's steps: a result for each one that was tried, in their order. Those behind the last
    /// result were not tried. A plan without steps is settled with no results, and holds.
    fn settle(&mut self, held: Self::Held, results: StepResults<Self::Target>) -> Settled<F>;

    /// When [`Cause::Woken`] is due, if it ever is; asked after each plan.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// The rules that serve a frontend, as far as they are held.
    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        let _ = key;
        Vec::new()
    }

    /// What a frontend asks for and this mode can't do, each in a sentence without its end that never changes: the Service is told.
    fn shortcomings(&self, frontend: &Frontend<F>) -> Vec<&'static str> {
        let _ = frontend;
        Vec::new()
    }

    /// What of somebody else's has a frontend's address and port, in words, where the target gives these to one alone. Known once it
    /// has refused the frontend.
    fn occupant(&self, frontend: &Frontend<F>) -> Option<String> {
        let _ = frontend;
        None
    }

    /// How many rules there are, by table, in a mode that counts them.
    fn rule_counts(&self) -> Vec<RuleCount> {
        Vec::new()
    }

    /// Endpoints that get nothing for now although they are in the table, in a mode that has such.
    fn outages(&self, table: &Table<F>, now: Instant) -> Vec<EndpointOutage> {
        let _ = (table, now);
        Vec::new()
    }

    /// Whose what the target counted is. What has counted nothing, or is nobody's any more, may be left out.
    fn meters(&self, table: &Table<F>, counted: <Self::Target as Target>::Counted) -> Vec<Meter> {
        let _ = (table, counted);
        Vec::new()
    }
}

impl<F: Family, R> Cause<'_, F, R> {
    /// Whether everything is planned: by a [detached](Planner::detached) planner.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Found(_) | Self::Anew(_))
    }
}

/// A planner's plan.
pub type PlanOf<P, F> = Plan<<<P as Planner<F>>::Target as Target>::Step, <P as Planner<F>>::Held>;

/// The results of steps, for the planner. Errors are shared with those who tell of them.
pub type StepResults<T> = Vec<Result<<T as Target>::Receipt, Arc<<T as Target>::Error>>>;

/// Why there is something to do.
#[derive(Debug)]
pub enum Cause<'a, F: Family, R> {
    /// This differs from when it was last planned. What is held is known.
    Changed(&'a Changed<F>),
    /// The settings differ from [`Planner::held_settings`]. What is held is known.
    Settings,
    /// The target was read, and this was found, whatever is believed. Everything that differs from it is to be made right.
    Found(&'a R),
    /// Everything of ours is to be made anew, as atomically as the target can: the way out when differences were refused
    /// again and again, and for a target that can't be read. With what was found there, if it could be read.
    Anew(Option<&'a R>),
    /// It is the time of [`Planner::wake_at`]. What is held is known.
    Woken(Instant),
}

/// What is to be done.
#[derive(Debug)]
#[must_use]
pub struct Plan<S, H> {
    /// In this order; none: nothing to do.
    pub steps: Vec<S>,
    /// How much they write and delete, counted in what the mode consists of: elements, rules, servers.
    pub writes: usize,
    /// For [`Planner::settle`].
    pub held: H,
}

/// See [`Planner::plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NeedsReading;

/// What holds after some steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled<F: Family> {
    /// It is known what is held. If not, the target is read (or all is made anew) after a pause.
    pub is_known: bool,
    /// What was refused: alone planned again, after a pause that grows.
    pub failed: Changed<F>,
    /// What was not tried: planned again at once, together with what changed meanwhile.
    pub untried: Changed<F>,
}

impl<F: Family> Settled<F> {
    /// All is as planned.
    pub fn done() -> Self {
        Self { is_known: true, failed: Changed::default(), untried: Changed::default() }
    }

    /// Nobody knows what is held.
    pub fn unknown() -> Self {
        Self { is_known: false, ..Self::done() }
    }
}

/// A rule, an element, a server: one thing in the target that serves a frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Where it is, such as `map service-ips` or `chain KUBE-SERVICES of table nat`.
    pub place: String,
    /// As the mode's own tools print it.
    pub text: String,
}

/// Rules in one of a mode's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleCount {
    /// The table's name.
    pub table: &'static str,
    /// How many are ours.
    pub held: usize,
    /// How many the last changes wrote.
    pub written: usize,
}

/// All frontends of a table, and whatever else there is in it: what a plan for the whole has tried.
pub fn everything<F: Family>(table: &Table<F>) -> Changed<F> {
    let frontends: BTreeSet<_> = table.iter().map(|frontend| frontend.key).collect();
    Changed { frontends, health_check_ports: table.health_check_ports().map(|(port, _)| port).collect() }
}
