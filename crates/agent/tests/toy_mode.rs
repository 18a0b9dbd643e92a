//! A mode that is all that the modes of netfilter are not: each frontend is a thing of its own that may be refused alone, steps
//! give receipts, what is held can't be read back, and what was removed is kept for a while and then dropped by itself. It
//! comes to what is wanted all the same, however its target fails.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking; not all that tests share is used here"
)]

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{Input, Telemetry};
use common::{Given, NODE, served, service, settings, slice, telemetry};
use fakes::conntrack::FakeConntrack;
use mode::{Applied, Cause, NeedsReading, PlanOf, Planner, Settled, StepResults, Target, Touch, Unobserved};
use model::view::{ThisNode, frontends};
use model::{
    Change, Changed, Frontend, FrontendKey, Kind, Object, ObjectName, RuleSettings, Store, Table, Touched, V4,
};
use proptest::prelude::*;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::Instant;

type Key = FrontendKey<V4>;

/// How long something that is not wanted any more drains.
const DRAINS: Duration = Duration::from_millis(40);

/// A number that the target gives to each thing that it makes.
type Id = u32;

/// What one frontend is in the target: where its packets go.
type Server = Vec<(std::net::Ipv4Addr, u16)>;

#[derive(Clone, Debug)]
enum Step {
    /// Drops whatever is there.
    Flush,
    Make(Key, Server),
    /// Changes a thing in place.
    Alter(Key, Id, Server),
    /// Takes no new flows from here on.
    Drain(Key, Id),
    Drop(Key, Id),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What is in the target.
#[derive(Debug, Default)]
struct World {
    things: BTreeMap<Id, Thing>,
    last_id: Id,
    /// What to do with the next steps instead of making them.
    faults: VecDeque<Option<Fault>>,
    flushes: u32,
}

#[derive(Clone, Debug, PartialEq)]
struct Thing {
    key: Key,
    server: Server,
    drains: bool,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Refused; the next step is tried.
    Refused,
    /// Made, but nothing is said of it.
    AnswerLost,
    /// The target makes room for others.
    Stops,
    Panic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum ToyError {
    #[error("refused")]
    Refused,
    #[error("outcome unknown: {0}")]
    Unknown(&'static str),
}

struct ToyTarget(Arc<Mutex<World>>);

impl World {
    fn step(&mut self, step: &Step) -> Result<Option<Id>, ToyError> {
        match step {
            Step::Flush => {
                self.flushes += 1;
                self.things.clear();
            }
            Step::Make(key, server) => {
                let is_there = self.things.values().any(|thing| thing.key == *key && !thing.drains);
                if is_there {
                    return Err(ToyError::Refused);
                }
                self.last_id += 1;
                self.things.insert(self.last_id, Thing { key: *key, server: server.clone(), drains: false });
                return Ok(Some(self.last_id));
            }
            Step::Alter(key, id, server) => {
                let thing = self.things.get_mut(id).filter(|thing| thing.key == *key);
                thing.ok_or(ToyError::Refused)?.server.clone_from(server);
            }
            Step::Drain(_, id) => self.things.get_mut(id).ok_or(ToyError::Refused)?.drains = true,
            Step::Drop(_, id) => drop(self.things.remove(id).ok_or(ToyError::Refused)?),
        }
        Ok(None)
    }
}

impl Target for ToyTarget {
    type Step = Step;
    type Receipt = Option<Id>;
    type Found = ();
    type Counted = ();
    type Error = ToyError;

    fn apply(&mut self, steps: Vec<Step>, _yields: &dyn Fn() -> bool) -> Applied<Self> {
        let mut world = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut applied = Applied { results: Vec::new(), kernel_time: None, is_usable: true };
        for step in &steps {
            let fault = world.faults.pop_front().flatten();
            let result = match fault {
                Some(Fault::Refused) => Err(ToyError::Refused),
                Some(Fault::Stops) => break,
                Some(Fault::Panic) => panic!("staged"),
                Some(Fault::AnswerLost) => world.step(step).and(Err(ToyError::Unknown("staged"))),
                None => world.step(step),
            };
            applied.results.push(result);
        }
        applied
    }

    fn is_retryable(_error: &ToyError) -> bool {
        true
    }

    fn outcome_unknown(why: &'static str) -> ToyError {
        ToyError::Unknown(why)
    }
}

/// What the planner believes.
#[derive(Debug, Default)]
struct Toy {
    settings: Option<RuleSettings>,
    held: BTreeMap<Key, (Id, Server)>,
    draining: BTreeMap<Id, (Key, Instant)>,
    /// Frontends are made to panic the planner by this, for a while.
    panics: Arc<AtomicU32>,
}

/// What a plan comes to: its steps, and the settings that it follows.
struct Outcome {
    steps: Vec<Step>,
    settings: Option<RuleSettings>,
    now: Instant,
}

fn server(frontend: &Frontend<V4>) -> Server {
    frontend.pool.endpoints().iter().map(|endpoint| (endpoint.address, endpoint.port)).collect()
}

impl Toy {
    fn difference(&self, table: &Table<V4>, keys: impl IntoIterator<Item = Key>) -> Vec<Step> {
        let step = |key: Key| match (self.held.get(&key), table.get(&key).map(server)) {
            (None, Some(server)) => Some(Step::Make(key, server)),
            (Some((id, held)), Some(server)) if *held != server => Some(Step::Alter(key, *id, server)),
            (Some((id, _)), None) => Some(Step::Drain(key, *id)),
            (None, None) | (Some(_), Some(_)) => None,
        };
        keys.into_iter().filter_map(step).collect()
    }

    fn made(&mut self, step: Step, id: Option<Id>, now: Instant) {
        match step {
            Step::Flush => {
                self.held.clear();
                self.draining.clear();
            }
            Step::Make(key, server) => drop(self.held.insert(key, (id.unwrap(), server))),
            Step::Alter(key, id, server) => drop(self.held.insert(key, (id, server))),
            Step::Drain(key, id) => {
                self.held.remove(&key);
                self.draining.insert(id, (key, now + DRAINS));
            }
            Step::Drop(_, id) => drop(self.draining.remove(&id)),
        }
    }
}

fn key_of(step: &Step) -> Option<Key> {
    match step {
        Step::Flush => None,
        Step::Make(key, _) | Step::Alter(key, ..) | Step::Drain(key, _) | Step::Drop(key, _) => Some(*key),
    }
}

impl Planner<V4> for Toy {
    const NAME: &'static str = "toy";
    type Settings = RuleSettings;
    type Target = ToyTarget;
    type Held = Outcome;

    fn settings(&self, rules: &RuleSettings) -> RuleSettings {
        rules.clone()
    }

    fn held_settings(&self) -> Option<&RuleSettings> {
        self.settings.as_ref()
    }

    fn plan(
        &self,
        table: &Table<V4>,
        settings: &RuleSettings,
        cause: Cause<'_, V4, ()>,
    ) -> Result<PlanOf<Self, V4>, NeedsReading> {
        let panics = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        assert!(panics.is_err(), "staged");
        let now = Instant::now();
        let (steps, settings) = match cause {
            Cause::Changed(Changed { frontends, .. }) => {
                (self.difference(table, frontends.iter().copied()), self.settings.clone())
            }
            Cause::Settings => (Vec::new(), Some(settings.clone())),
            Cause::Found(()) => unreachable!("it is never read"),
            Cause::Anew(_) => {
                let all = table.iter().map(|frontend| Step::Make(frontend.key, server(frontend)));
                (std::iter::once(Step::Flush).chain(all).collect(), Some(settings.clone()))
            }
            Cause::Woken(now) => {
                let over = self.draining.iter().filter(|(_, (_, until))| *until <= now);
                (over.map(|(id, (key, _))| Step::Drop(*key, *id)).collect(), self.settings.clone())
            }
        };
        let held = Outcome { steps: steps.clone(), settings, now };
        Ok(mode::Plan { writes: steps.len(), steps, held })
    }

    fn detached(&self) -> Self {
        Self { panics: Arc::clone(&self.panics), ..Self::default() }
    }

    fn settle(&mut self, held: Outcome, results: StepResults<ToyTarget>) -> Settled<V4> {
        let mut settled = Settled::done();
        let mut results = results.into_iter();
        for step in held.steps {
            let key = key_of(&step);
            match results.next() {
                Some(Ok(id)) => self.made(step, id, held.now),
                // Without the flush, or with an answer lost, nobody knows what is there.
                Some(Err(error)) if key.is_none() || *error != ToyError::Refused => {
                    return Settled::unknown();
                }
                Some(Err(_)) => match step {
                    // It is not there any more, which is what was wanted.
                    Step::Drop(_, id) => drop(self.draining.remove(&id)),
                    _ => settled.failed.frontends.extend(key),
                },
                None if key.is_none() => return Settled::unknown(),
                // A drop is asked for again by waking.
                None if matches!(step, Step::Drop(..)) => {}
                None => settled.untried.frontends.extend(key),
            }
        }
        self.settings = held.settings;
        settled
    }

    fn wake_at(&self) -> Option<Instant> {
        self.draining.values().map(|(_, until)| *until).min()
    }
}

struct Bench {
    world: Arc<Mutex<World>>,
    panics: Arc<AtomicU32>,
    given: Given,
    inputs: Sender<Input>,
    store: Store,
    telemetry: Telemetry,
}

impl Bench {
    fn start(faults: impl IntoIterator<Item = Option<Fault>>) -> Self {
        let world = Arc::new(Mutex::new(World { faults: faults.into_iter().collect(), ..World::default() }));
        let (inputs, receiver) = channel(1024);
        let (panics, given) = (Arc::<AtomicU32>::default(), Given::default());
        let planner = Toy { panics: panics.clone(), ..Toy::default() };
        let target = world.clone();
        let open: mode::OpenTarget<ToyTarget> = Arc::new(move || Ok(ToyTarget(target.clone())));
        let family = served(planner, open, &FakeConntrack::new(), &given, Box::new(Unobserved));
        let telemetry = telemetry();
        tokio::spawn(agent::run(vec![family], settings(), telemetry.clone(), receiver, Some));
        Self { world, panics, given, inputs, store: Store::default(), telemetry }
    }

    async fn send(&mut self, change: Change) {
        self.store.apply(change.clone(), &mut Touched::default());
        self.inputs.send(Input::Change(change)).await.unwrap();
    }

    async fn apply(&mut self, object: Object) {
        self.send(Change::Apply(object)).await;
    }

    async fn listed(&self) {
        for kind in Kind::ALL {
            self.inputs.send(Input::Listed(kind)).await.unwrap();
        }
    }

    fn wanted(&self) -> BTreeMap<Key, Server> {
        let mut table = Table::<V4>::default();
        let node = ThisNode::new(NODE.into(), None);
        for (name, entry) in self.store.entries() {
            table.set_service(name, frontends(&node, entry));
        }
        table.iter().map(|frontend| (frontend.key, server(frontend))).collect()
    }

    /// What serves now, and how much of it drains.
    fn there(&self) -> (BTreeMap<Key, Server>, usize) {
        let world = self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let serving = world.things.values().filter(|thing| !thing.drains);
        let serving: Vec<_> = serving.map(|thing| (thing.key, thing.server.clone())).collect();
        let n_serving = serving.len();
        let by_key: BTreeMap<_, _> = serving.into_iter().collect();
        assert_eq!(by_key.len(), n_serving, "nothing is there twice");
        (by_key, world.things.len() - n_serving)
    }

    /// Waits until exactly what is wanted is there, and nothing that drains.
    async fn converged(&self) {
        let waiting = async {
            while self.there() != (self.wanted(), 0) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_mins(1), waiting).await;
        assert!(outcome.is_ok(), "wanted {:?}, there is {:?}", self.wanted(), self.there());
    }

    /// Waits until it has begun.
    async fn begun(&self) {
        let waiting = async {
            while self.flushes() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), waiting).await.unwrap();
    }

    fn flushes(&self) -> u32 {
        self.world.lock().unwrap().flushes
    }
}

#[tokio::test]
async fn it_starts_anew_without_a_reading_and_then_only_changes() {
    let mut bench = Bench::start([]);
    bench.apply(service(1)).await;
    bench.apply(slice(1, &[1, 2])).await;
    bench.listed().await;
    bench.converged().await;
    for last in 3..20 {
        bench.apply(slice(1, &[last])).await;
        bench.apply(service(last)).await;
        bench.converged().await;
    }
    assert_eq!(bench.flushes(), 1);
}

/// It wakes itself, so that what drains is gone without any event.
#[tokio::test]
async fn what_drains_is_dropped_by_itself() {
    let mut bench = Bench::start([]);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    bench.send(Change::Delete(Kind::Service, ObjectName::new("ns", "svc-1"))).await;
    let draining = async {
        while bench.there().1 == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), draining).await.unwrap();
    bench.converged().await;
}

/// A frontend that is refused for a long time costs nobody else anything.
#[tokio::test]
async fn what_is_refused_is_tried_again_alone() {
    let mut bench = Bench::start([]);
    bench.listed().await;
    // Else the faults were for the beginning.
    bench.begun().await;
    let refused = bench.telemetry.metrics.family(model::IpFamily::V4).refused;
    bench.world.lock().unwrap().faults = [Some(Fault::Refused); 4].into();
    bench.apply(service(1)).await;
    let waiting = async {
        while refused.get() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
    bench.apply(service(2)).await;
    bench.converged().await;
    let over = async {
        while refused.get() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), over).await.unwrap();
    assert_eq!(bench.flushes(), 1, "nothing was made anew for it");
}

/// Somebody else's change, which it can't look at, is undone all the same.
#[tokio::test]
async fn a_foreign_change_is_undone_by_making_everything_anew() {
    let mut bench = Bench::start([]);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    bench.world.lock().unwrap().things.clear();
    let touches = async {
        loop {
            if let Some(touches) = bench.given.touches.lock().unwrap().clone() {
                return touches;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(30), touches).await.unwrap().tell(Touch::Foreign("staged"))
    );
    bench.converged().await;
}

/// A planner that panics is asked again.
#[tokio::test]
async fn panics_of_the_planner_are_survived() {
    let mut bench = Bench::start([]);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    bench.panics.store(3, Ordering::SeqCst);
    bench.apply(service(2)).await;
    bench.converged().await;
    assert_eq!(bench.panics.load(Ordering::SeqCst), 0);
}

#[derive(Clone, Debug)]
enum Event {
    Service(u8),
    Endpoints(u8, Vec<u8>),
    Gone(u8),
    /// All that is wanted is there before it goes on.
    Settle,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..6u8).prop_map(Event::Service),
        6 => (0..6u8, proptest::collection::btree_set(0..30u8, 0..4)).prop_map(|(n, endpoints)| {
            Event::Endpoints(n, endpoints.into_iter().collect())
        }),
        2 => (0..6u8).prop_map(Event::Gone),
        1 => Just(Event::Settle),
    ]
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        4 => Just(None),
        2 => Just(Some(Fault::Refused)),
        1 => Just(Some(Fault::AnswerLost)),
        1 => Just(Some(Fault::Stops)),
        1 => Just(Some(Fault::Panic)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens, and however steps fail, it ends with exactly what is wanted.
    #[test]
    fn it_ends_with_what_is_wanted(
        events in proptest::collection::vec(event(), 1..30),
        faults in proptest::collection::vec(fault(), 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut bench = Bench::start(faults);
            bench.listed().await;
            for event in events {
                match event {
                    Event::Service(n) => bench.apply(service(n)).await,
                    Event::Endpoints(n, endpoints) => bench.apply(slice(n, &endpoints)).await,
                    Event::Gone(n) => {
                        let name = ObjectName::new("ns", &format!("svc-{n}"));
                        bench.send(Change::Delete(Kind::Service, name)).await;
                    }
                    Event::Settle => bench.converged().await,
                }
            }
            bench.converged().await;
        });
    }
}

/// No two keys of the things that serve are the same, which the world itself sees to.
#[test]
fn the_world_refuses_what_is_there() {
    let mut world = World::default();
    let key = Key { address: model::FrontendAddress::Node, protocol: model::Protocol::Tcp, port: 1 };
    assert_eq!(world.step(&Step::Make(key, Vec::new())), Ok(Some(1)));
    assert_eq!(world.step(&Step::Make(key, Vec::new())), Err(ToyError::Refused));
    assert_eq!(world.step(&Step::Drain(key, 1)), Ok(None));
    assert_eq!(world.step(&Step::Make(key, Vec::new())), Ok(Some(2)));
}
