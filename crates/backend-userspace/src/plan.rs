//! The planner: what a worker is to know, and when, beside what rules are to say.

use std::collections::BTreeSet;
use std::sync::Arc;

use mode::{
    Cause, EndpointOutage, Meter, NeedsReading, Plan, PlanOf, Planner, Rule, RuleCount, Settled, StepResults,
    Target,
};
use model::{Balancer, Family, Frontend as Wanted, FrontendKey, Proxied, RuleSettings, Table};
use proxy::frame::{Frontend, Route, Routes};
use tokio::time::Instant;

use crate::outages::Outages;
use crate::routes;
use crate::supervisor::Site;
use crate::target::{Receipt, Step, UserspaceTarget};
use crate::traffic::{self, Counted};

/// One family's routes, with the rules that `R` makes. `ALL`: workers carry the flows of all Services, not only of those that ask
/// for it.
pub struct UserspacePlanner<R, S, const ALL: bool> {
    rules: R,
    /// Frontends that a worker may know of.
    told: BTreeSet<Frontend>,
    /// A plan that was to end with the beginning of capture did not come to its end.
    is_capture_due: bool,
    outages: Outages,
    site: std::marker::PhantomData<fn() -> S>,
}

/// What a plan leads to.
pub struct Pending<H> {
    rules: H,
    told: BTreeSet<Frontend>,
    forgotten: BTreeSet<Frontend>,
    n_steps: usize,
    captures: bool,
}

impl<R, S, const ALL: bool> UserspacePlanner<R, S, ALL> {
    const PROXIED: Proxied = if ALL { Proxied::All } else { Proxied::Asking };

    /// A planner that knows nothing yet.
    pub fn new(rules: R) -> Self {
        Self {
            rules,
            told: BTreeSet::new(),
            is_capture_due: false,
            outages: Outages::default(),
            site: std::marker::PhantomData,
        }
    }

    /// The same, which knows what a worker tells of endpoints.
    #[must_use]
    pub fn hearing(self, outages: Outages) -> Self {
        Self { outages, ..self }
    }
}

fn route<F: Family>(proxied: Proxied, wanted: &Wanted<F>) -> Option<Route> {
    proxied.has(wanted).then(|| routes::route(wanted)).flatten()
}

/// What a worker is to hear.
#[derive(Default)]
struct News {
    set: Vec<Route>,
    gone: Vec<Frontend>,
}

impl<R, S, const ALL: bool> UserspacePlanner<R, S, ALL> {
    fn news_of_changed<F: Family>(&self, table: &Table<F>, keys: &BTreeSet<FrontendKey<F>>) -> News {
        let mut news = News::default();
        for key in keys {
            let wanted = table.get(key).and_then(|wanted| route(Self::PROXIED, wanted));
            match (wanted, routes::frontend(key)) {
                (Some(route), _) => news.set.push(route),
                (None, Some(frontend)) if self.told.contains(&frontend) => news.gone.push(frontend),
                (None, _) => {}
            }
        }
        news
    }

    fn news_of_all<F: Family>(&self, table: &Table<F>) -> News {
        let mut set: Vec<Route> = table.iter().filter_map(|wanted| route(Self::PROXIED, wanted)).collect();
        set.sort_unstable_by_key(|route| route.frontend);
        let is_set = |frontend: &Frontend| set.binary_search_by_key(frontend, |route| route.frontend).is_ok();
        let gone = self.told.iter().filter(|frontend| !is_set(frontend)).copied().collect();
        News { set, gone }
    }
}

impl News {
    /// The worker knows of a frontend before rules hand its flows over, and for as long as they do.
    fn around<S, H>(self, rules: Plan<S, H>, captures: bool) -> Plan<Step<S>, Pending<H>> {
        let told = self.set.iter().map(|route| route.frontend).collect();
        let forgotten = self.gone.iter().copied().collect();
        let set = Routes { set: self.set, ..Routes::default() };
        let gone = Routes { gone: self.gone, ..Routes::default() };
        let some = |routes: Routes| {
            let is_empty = routes.set.is_empty() && routes.gone.is_empty();
            (!is_empty).then(|| Step::Routes(Box::new(routes)))
        };
        let rule_steps = rules.steps.into_iter().map(|step| Step::Rules(Box::new(step)));
        let steps = some(set).into_iter().chain(rule_steps).chain(some(gone));
        let steps: Vec<_> = steps.chain(captures.then_some(Step::Capture)).collect();
        let pending = Pending { rules: rules.held, told, forgotten, n_steps: steps.len(), captures };
        Plan { steps, writes: rules.writes, held: pending }
    }
}

impl<F: Family, R: Planner<F>, S: Site + 'static, const ALL: bool> Planner<F>
    for UserspacePlanner<R, S, ALL>
{
    const NAME: &'static str = if ALL { "userspace" } else { R::NAME };
    type Settings = R::Settings;
    type Target = UserspaceTarget<R::Target, S>;
    type Held = Pending<R::Held>;

    fn settings(&self, rules: &RuleSettings) -> R::Settings {
        self.rules.settings(&RuleSettings { balancer: Balancer::Proxies(Self::PROXIED), ..rules.clone() })
    }

    fn held_settings(&self) -> Option<&R::Settings> {
        self.rules.held_settings()
    }

    fn plan(
        &self,
        table: &Table<F>,
        settings: &R::Settings,
        cause: Cause<'_, F, <R::Target as Target>::Found>,
    ) -> Result<PlanOf<Self, F>, NeedsReading> {
        let (news, captures) = match &cause {
            Cause::Changed(changed) => (self.news_of_changed(table, &changed.frontends), false),
            Cause::Found(_) | Cause::Anew(_) => (self.news_of_all(table), true),
            Cause::Settings | Cause::Woken(_) => (News::default(), false),
        };
        let rules = self.rules.plan(table, settings, cause)?;
        Ok(news.around(rules, captures || self.is_capture_due))
    }

    fn detached(&self) -> Self {
        let (told, is_capture_due) = (self.told.clone(), self.is_capture_due);
        Self { told, is_capture_due, ..Self::new(self.rules.detached()) }
    }

    fn settle(&mut self, held: Self::Held, results: StepResults<Self::Target>) -> Settled<F> {
        let Pending { rules, told, forgotten, n_steps, captures } = held;
        // Whatever became of it, a worker may have heard of these.
        self.told.extend(told);
        let is_done = results.len() == n_steps && results.iter().all(Result::is_ok);
        if is_done {
            for frontend in &forgotten {
                self.told.remove(frontend);
            }
        }
        self.is_capture_due = captures && !is_done;
        let of_rules = results.into_iter().filter_map(|result| match result {
            Ok(Receipt::Rules(receipt)) => Some(Ok(receipt)),
            Ok(Receipt::Done) => None,
            Err(error) => Some(Err(Arc::clone(&error))),
        });
        self.rules.settle(rules, of_rules.collect())
    }

    fn wake_at(&self) -> Option<Instant> {
        self.rules.wake_at()
    }

    fn rules(&self, key: &FrontendKey<F>) -> Vec<Rule> {
        self.rules.rules(key)
    }

    fn rule_counts(&self) -> Vec<RuleCount> {
        self.rules.rule_counts()
    }

    fn outages(&self, table: &Table<F>, now: Instant) -> Vec<EndpointOutage> {
        self.outages.of(table, |frontend| Self::PROXIED.has(frontend), now)
    }

    fn meters(&self, table: &Table<F>, counted: Counted<<R::Target as Target>::Counted>) -> Vec<Meter> {
        let of_workers = counted.carried.into_iter().filter_map(|count| traffic::meter(table, &count));
        let mut meters: Vec<Meter> = of_workers.collect();
        meters.extend(counted.rules.into_iter().flat_map(|rules| self.rules.meters(table, rules)));
        meters
    }
}
