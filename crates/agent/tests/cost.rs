//! What a change costs does not depend on the number of Services: counted, not timed, at two sizes, from the change's
//! arrival at the agent to the messages for the kernel.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking and says what it counted; not all that tests share is used here"
)]

mod common;

use std::fmt;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent::Input;
use common::{plain_service, served_nftables, settings, telemetry};
use model::{
    Change, Conditions, Endpoint, EndpointSlice, Kind, Object, ObjectName, Protocol, SliceEndpoints,
    SlicePort, V4,
};
use netlink::NetlinkError;
use nft::{Applied, Counts, Kernel, Name, Reading, Transaction};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};

/// The two sizes that are compared.
const FEW: u32 = 100;
const MANY: u32 = 5000;
/// Endpoints of each Service.
const ENDPOINTS: u32 = 4;
/// How often each kind of change is made.
const REPETITIONS: u32 = 15;

/// A change of one Service, made by turns with what undoes it, if there is such a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Replace,
    Add,
    Remove,
    Create,
    Delete,
}

const STEPS: [Step; 5] = [Step::Replace, Step::Add, Step::Remove, Step::Create, Step::Delete];

/// What one change made the agent do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    transactions: usize,
    messages: usize,
    elements: usize,
    /// Sent to the kernel.
    bytes: usize,
    /// On the agent's thread.
    allocations: u64,
    allocated_bytes: u64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transactions, messages, elements, bytes, allocations, allocated_bytes } = self;
        write!(
            f,
            "{transactions} transactions, {messages} messages, {elements} elements, {bytes} bytes to the kernel, \
             {allocations} allocations of {allocated_bytes} bytes"
        )
    }
}

/// A kernel that takes everything, keeps nothing, and tells what it got.
struct Counter(UnboundedSender<Cost>);

impl Kernel for Counter {
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, NetlinkError> {
        let encoded = nft::encode(tx, None);
        let messages = encoded.batches.iter().map(nft::Batch::message_count).sum();
        let bytes = encoded.batches.iter().map(|batch| batch.bytes.len()).sum();
        let elements = tx.element_count();
        self.0.send(Cost { transactions: 1, messages, elements, bytes, ..Cost::default() }).unwrap();
        Ok(Applied { batches: encoded.batches.len(), messages, bytes, ..Applied::default() })
    }

    fn read(&mut self, _family: nft::Family, _table: &Name) -> Result<Reading, NetlinkError> {
        Ok(Reading::Whole(None))
    }

    fn counts(
        &mut self,
        _family: nft::Family,
        _table: &Name,
        _sets: &[Name],
    ) -> Result<Counts, NetlinkError> {
        Ok(Counts::new())
    }
}

/// An agent on the calling thread that serves so many Services.
struct Served {
    runtime: Runtime,
    inputs: Sender<Input>,
    committed: UnboundedReceiver<Cost>,
    services: u32,
}

impl Served {
    fn new(services: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (inputs, receiver) = channel(4096);
        let (sender, committed) = unbounded_channel();
        let families = served_nftables(move || Ok(Counter(sender.clone())));
        runtime.spawn(agent::run(families, settings(), telemetry(), receiver, Some));
        let mut served = Self { runtime, inputs, committed, services };
        served.list();
        served
    }

    fn list(&mut self) {
        let services = (0..self.services).map(service).collect();
        // The last slice belongs to a Service that is created by the way.
        let slices = (0..=self.services).map(|n| slice(n, 0, ENDPOINTS)).collect();
        let objects = [(Kind::Service, services), (Kind::EndpointSlice, slices)];
        let inputs =
            objects.map(|(kind, objects)| Input::Change(Change::Replace { kind, objects, keep: Vec::new() }));
        self.runtime.block_on(async {
            for input in inputs.into_iter().chain(Kind::ALL.map(Input::Listed)) {
                self.inputs.send(input).await.unwrap();
            }
        });
        let first = self.settle();
        assert_eq!(first.transactions, 1, "{first}");
        assert!(first.elements > self.services as usize * ENDPOINTS as usize, "{first}");
    }

    /// Lets the agent work until it has committed and has nothing left to do.
    fn settle(&mut self) -> Cost {
        self.runtime.block_on(async {
            let first = tokio::time::timeout(PATIENCE, self.committed.recv()).await;
            let mut cost = first.expect("a transaction").unwrap();
            // A second transaction for the same change would be found here.
            while let Ok(more) = tokio::time::timeout(REST, self.committed.recv()).await {
                let more = more.unwrap();
                cost.transactions += more.transactions;
                cost.messages += more.messages;
                cost.elements += more.elements;
                cost.bytes += more.bytes;
            }
            cost
        })
    }

    /// Makes a change and counts.
    fn carry(&mut self, step: Step, turn: u32) -> Cost {
        let change = self.change(step, turn);
        let mut cost = Cost::default();
        let counted = allocation_counter::measure(|| cost = carry_out(self, change));
        Cost { allocations: counted.count_total, allocated_bytes: counted.bytes_total, ..cost }
    }

    fn change(&self, step: Step, turn: u32) -> Change {
        // Somewhere in the middle, each time another one.
        let n = self.services / 2 + turn;
        match step {
            Step::Replace | Step::Remove => Change::Apply(slice(n, 1, ENDPOINTS)),
            Step::Add => Change::Apply(slice(n, 1, ENDPOINTS + 1)),
            Step::Create => Change::Apply(service(self.services)),
            Step::Delete => Change::Delete(Kind::Service, name(self.services)),
        }
    }
}

/// For a transaction, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_mins(1);
/// After this time without a transaction there is none to come.
const REST: Duration = Duration::from_millis(2);

/// One change on the agent's thread; a function of its own, so that a profiler finds it by its name.
#[inline(never)]
fn carry_out(served: &mut Served, change: Change) -> Cost {
    served.runtime.block_on(async { served.inputs.send(Input::Change(change)).await.unwrap() });
    served.settle()
}

fn name(n: u32) -> ObjectName {
    ObjectName::new("ns", &format!("svc-{n:07}"))
}

fn service(n: u32) -> Object {
    let ip = Ipv4Addr::from(u32::from_be_bytes([10, 96, 0, 1]) + n);
    Object::Service(plain_service(name(n), ip))
}

/// A Service's endpoints; those from the second on are the same in each version.
fn slice(n: u32, version: u32, endpoints: u32) -> Object {
    let first = u32::from_be_bytes([10, 128, 0, 0]) + n * 16;
    let address = |which: u32| first + if which == 0 { 8 + version } else { which };
    let endpoint = |which| Endpoint::<V4> {
        address: Ipv4Addr::from(address(which)),
        conditions: Conditions::default(),
        node: Some("node-2".into()),
        hints: None,
    };
    Object::EndpointSlice(EndpointSlice {
        name: ObjectName::new("ns", &format!("svc-{n:07}-a")),
        service: name(n),
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: SliceEndpoints::V4((0..endpoints).map(endpoint).collect()),
        details: None,
        trigger_time: None,
    })
}

/// The median cost of each step.
fn costs(services: u32) -> Vec<(Step, Cost)> {
    let mut served = Served::new(services);
    let mut all: Vec<Vec<Cost>> = vec![Vec::new(); STEPS.len()];
    for turn in 0..REPETITIONS {
        for (step, costs) in STEPS.into_iter().zip(&mut all) {
            costs.push(served.carry(step, turn));
        }
    }
    let median = |costs: &[Cost]| {
        let of = |field: &dyn Fn(&Cost) -> u64| {
            let mut values: Vec<u64> = costs.iter().map(field).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        let count = |field: &dyn Fn(&Cost) -> usize| usize::try_from(of(&|cost| field(cost) as u64)).unwrap();
        Cost {
            transactions: count(&|cost| cost.transactions),
            messages: count(&|cost| cost.messages),
            elements: count(&|cost| cost.elements),
            bytes: count(&|cost| cost.bytes),
            allocations: of(&|cost| cost.allocations),
            allocated_bytes: of(&|cost| cost.allocated_bytes),
        }
    };
    STEPS.into_iter().zip(&all).map(|(step, costs)| (step, median(costs))).collect()
}

/// At most a quarter more: trees are a level or two deeper, and nothing else may be.
fn is_alike(few: u64, many: u64) -> bool {
    many <= few + few / 4
}

#[test]
fn a_change_costs_the_same_among_a_hundred_services_and_among_thousands() {
    for ((step, few), (_, many)) in costs(FEW).into_iter().zip(costs(MANY)) {
        eprintln!("{step:?} among {FEW}: {few}\n{step:?} among {MANY}: {many}");
        assert_eq!(few.transactions, 1, "{step:?}");
        let to_kernel = |cost: &Cost| (cost.transactions, cost.messages, cost.elements, cost.bytes);
        assert_eq!(to_kernel(&few), to_kernel(&many), "{step:?}: transactions, messages, elements, bytes");
        assert!(is_alike(few.allocations, many.allocations), "{step:?}: allocations");
        assert!(is_alike(few.allocated_bytes, many.allocated_bytes), "{step:?}: allocated bytes");
    }
}

/// Says how many Services the program under the profiler serves.
const SERVICES: &str = "COST_SERVICES";

/// What `instructions_of_a_change_are_the_same` runs under a profiler; by itself, that every change is carried out.
#[test]
fn workload() {
    let services = std::env::var(SERVICES).map_or(FEW, |text| text.parse().unwrap());
    let mut served = Served::new(services);
    for turn in 0..REPETITIONS {
        for step in STEPS {
            let change = served.change(step, turn);
            carry_out(&mut served, change);
        }
    }
}

/// Instructions of all changes, on the agent's thread, as valgrind counts them.
fn instructions(services: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .args(["--toggle-collect=*carry_out*", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "workload"])
        .env(SERVICES, services.to_string())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split("Collected : ").nth(1));
    let collected = collected.and_then(|number| number.trim().parse().ok());
    assert!(output.status.success(), "{text}");
    collected.filter(|count| *count > 0).unwrap_or_else(|| panic!("nothing was counted:\n{text}"))
}

/// Only where valgrind is installed: no test of what the program does depends on it.
#[test]
fn instructions_of_a_change_are_the_same() {
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("not counted: there is no valgrind here");
    }
    let n_changes = u64::from(REPETITIONS) * STEPS.len() as u64;
    let [few, many] = [FEW, MANY].map(|services| instructions(services) / n_changes);
    eprintln!("instructions for a change: {few} among {FEW} Services, {many} among {MANY}");
    assert!(is_alike(few, many), "{few} instructions among {FEW} Services, {many} among {MANY}");
}
