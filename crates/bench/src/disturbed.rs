//! The same work three times: alone, while another program commits rules to a table of its own, and while our own other
//! family commits. What must not happen whoever commits makes the run fail; times are only told.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use backend_nftables::table_name;
use kernel::Nftables;
use lab::client::Reply;
use nft::{Bytes, Data, Element, Family, Field, Kernel as _, Op, Set, SetData, Transaction};
use tokio::time::Instant;

use crate::churn::{self, Churn};
use crate::contender::Contender;
use crate::kernel_share::settle;
use crate::observe::start;
use crate::options::Options;
use crate::report::{aligned, say};
use crate::samples::Samples;
use crate::site::{LIMIT, Site, client_ips};
use crate::world::{self, PROBES, STICKY, World};

/// Somebody who commits all along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Disturber {
    Nobody,
    /// To a table of its own, in the family that is measured.
    OtherProgram,
    /// The program that is measured, to its table for IPv6, whose Service changes.
    OtherFamily,
}

/// Time between two commits.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the table is damaged, and how often it is touched without harm.
const REPAIRS: usize = 5;
/// Without a reading for this long there is none.
const QUIET: Duration = Duration::from_secs(1);
/// Clients with affinity.
const CLIENTS: u8 = 100;

/// Measures everything and prints it.
///
/// # Errors
/// Something could not be measured; all rules were written anew; a client was given another endpoint.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let contender = options.contenders.first().context("there is no program")?;
    anyhow::ensure!(contender.mode == "nftables", "rules of others are told of in mode nftables alone");
    let mut failures = Vec::new();
    for services in &options.sizes {
        let world = World::new(*services, options.endpoints)?;
        let mut columns: BTreeMap<Disturber, Figures> = BTreeMap::new();
        for round in 0..options.rounds {
            for disturber in [Disturber::Nobody, Disturber::OtherProgram, Disturber::OtherFamily] {
                say(&format!("{services} Services, round {}: {}", round + 1, disturber.name()))?;
                let figures = columns.entry(disturber).or_default();
                measure(&world, contender, disturber, options.churn, figures)
                    .with_context(|| disturber.name())?;
                settle(world.services());
            }
        }
        say(&format!("\n## {services} Services x {} endpoints\n\n{}", options.endpoints, table(&columns)))?;
        failures.extend(columns.iter().flat_map(|(disturber, figures)| figures.failures(*disturber)));
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// What is measured beside one disturber, of all rounds.
#[derive(Debug, Default)]
struct Figures {
    /// Process start -> packets arrive.
    started: Vec<Duration>,
    /// Touched without harm -> read and found right, as by an audit.
    audited: Vec<Duration>,
    /// Damaged -> packets arrive again.
    repaired: Vec<Duration>,
    /// A marked change during the churn: API write -> packets follow.
    churned: Vec<Duration>,
    /// The event loop's longest turn in each round, in seconds.
    turns: Vec<f64>,
    /// Commits a second of the disturber in each round.
    commits: Vec<f64>,
    /// Times that the table was read and compared in each round.
    readings: Vec<f64>,
    /// Times that all rules were written anew.
    rebuilds: f64,
    asked: u32,
    /// Answers from another endpoint than the client's first.
    moved: u32,
}

impl Figures {
    /// What must not happen whoever commits.
    fn failures(&self, disturber: Disturber) -> Vec<String> {
        let rebuilt =
            (self.rebuilds > 0.0).then(|| format!("all rules were written anew ({})", self.rebuilds));
        let moved = (self.moved > 0).then(|| format!("{} answers from another endpoint", self.moved));
        let failures = [rebuilt, moved].into_iter().flatten();
        failures.map(|failure| format!("{}: {failure}", disturber.name())).collect()
    }

    /// In the order of [`ROWS`].
    fn cells(&self) -> [String; ROWS.len()] {
        let times = |times: &[Duration], per_mille| {
            let samples = Samples::millis(times);
            samples.map(|samples| format!("{:.1}", samples.per_mille(per_mille))).unwrap_or_default()
        };
        let numbers = |values: &[f64], scale: f64| {
            let samples = Samples::new(values.to_vec());
            samples.map(|samples| format!("{:.1}", scale * samples.per_mille(1000))).unwrap_or_default()
        };
        [
            numbers(&self.commits, 1.0),
            times(&self.started, 500),
            times(&self.audited, 500),
            times(&self.repaired, 500),
            times(&self.repaired, 1000),
            times(&self.churned, 500),
            times(&self.churned, 990),
            numbers(&self.turns, 1000.0),
            numbers(&self.readings, 1.0),
            self.rebuilds.to_string(),
            self.asked.to_string(),
            self.moved.to_string(),
        ]
    }
}

const ROWS: [(&str, &str); 12] = [
    ("commits a second by others", "20"),
    ("process start -> packets arrive, ms, median", "1.2 x alone"),
    ("table touched -> read and found right, ms, median", ""),
    ("table damaged -> packets arrive again, ms, median", ""),
    ("the same, longest", "1000"),
    ("change during churn: API write -> packets follow, ms, median", ""),
    ("the same, p99", "10"),
    ("event loop: longest turn, ms", "50 at 1,000 Services"),
    ("times that the table was read and compared", "11"),
    ("times that all rules were written anew", "none"),
    ("new flows of clients with affinity", ""),
    ("of these, to another endpoint than before", "none"),
];

fn table(columns: &BTreeMap<Disturber, Figures>) -> String {
    let head = std::iter::once("").chain(columns.keys().map(|disturber| disturber.name())).chain(["budget"]);
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
    let cells: Vec<_> = columns.values().map(Figures::cells).collect();
    rows.extend(ROWS.iter().enumerate().map(|(row, (what, budget))| {
        let of_row = cells.iter().map(|column| column[row].clone());
        std::iter::once((*what).to_owned()).chain(of_row).chain([(*budget).to_owned()]).collect()
    }));
    aligned(&rows)
}

/// One round beside one disturber.
fn measure(
    world: &World,
    contender: &Contender,
    disturber: Disturber,
    churn: Churn,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let site = Site::build(world, "nftables", None).context("build the laboratory")?;
    let servers: Vec<_> = (0..3).map(|server| site.server_ip(server)).collect();
    let others = [world::other_family_service(), world::other_family_slice(0)];
    site.api.load(world::sticky_objects(&servers).into_iter().chain(others)).context("store Services")?;
    while_running(
        |go_on| disturber.commit_while(go_on, &site),
        || work(&site, world.clone(), contender, churn, figures),
    )
    .map(|(commits, ())| figures.commits.push(commits))
}

/// Whether to go on.
type GoOn<'a> = &'a (dyn Fn() -> bool + Sync);

/// Does one thing on a thread of its own for as long as the other takes.
fn while_running<A: Send, B>(
    beside: impl FnOnce(GoOn<'_>) -> anyhow::Result<A> + Send,
    work: impl FnOnce() -> anyhow::Result<B>,
) -> anyhow::Result<(A, B)> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| beside(&|| !is_over.load(Ordering::Relaxed)));
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let beside = beside.join().unwrap_or_else(|panic| resume_unwind(panic));
        // What failed first is the cause.
        let done = done?;
        Ok((beside?, done))
    })
}

fn work(
    site: &Site,
    mut world: World,
    contender: &Contender,
    churn: Churn,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let started = start(site, contender, &PROBES, 0)?;
    figures.started.push(started.served);
    let (clients, ()) = while_running(
        |go_on| site.client().run(|| ask_clients(go_on)),
        || {
            for _ in 0..REPAIRS {
                figures.audited.push(audit(site)?);
                rest(site)?;
                figures.repaired.push(repair(site)?);
                rest(site)?;
            }
            let churned = churn::make(site, &mut world, churn)?;
            figures.churned.extend(churned.marks.during);
            Ok(())
        },
    )?;
    figures.asked += clients.asked;
    figures.moved += clients.moved;
    figures.readings.push(readings(site)?);
    figures.rebuilds += metric(site, "kubeproxy_rebuilds_total")?;
    figures.turns.push(metric(site, "kubeproxy_event_loop_longest_turn_seconds")?);
    Ok(())
}

impl Disturber {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "alone",
            Self::OtherProgram => "another program commits",
            Self::OtherFamily => "our other family commits",
        }
    }

    /// Commits, as evenly as it can; yields how often a second.
    fn commit_while(self, go_on: GoOn<'_>, site: &Site) -> anyhow::Result<f64> {
        let mut commit: Box<dyn FnMut(u16) -> anyhow::Result<()>> = match self {
            Self::Nobody => return Ok(0.0),
            Self::OtherProgram => Box::new(commits_of_others(site)?),
            Self::OtherFamily => Box::new(|number| site.apply(world::other_family_slice(number))),
        };
        let begun = Instant::now();
        let mut n_commits = 0_u16;
        while go_on() {
            n_commits = n_commits.wrapping_add(1);
            commit(n_commits)?;
            std::thread::sleep((begun + PAUSE * n_commits.into()).saturating_duration_since(Instant::now()));
        }
        Ok(f64::from(n_commits) / begun.elapsed().as_secs_f64())
    }
}

/// Commits to a table of somebody else: an element and a chain come, and go the next time.
fn commits_of_others(site: &Site) -> anyhow::Result<impl FnMut(u16) -> anyhow::Result<()>> {
    let mut kernel = site.lab.node().run(Nftables::open).context("open netfilter's socket")?;
    let set = Arc::new(Set::new("addresses".into(), vec![Field::DestAddr], SetData::None));
    let commit = move |kernel: &mut Nftables, ops| {
        let transaction = Transaction { family: Family::Ip, table: "of-others".into(), ops };
        kernel.apply(&transaction).map(drop).context("commit to a table of others")
    };
    commit(&mut kernel, vec![Op::AddTable, Op::AddSet(set.clone())])?;
    Ok(move |number: u16| {
        let chain = format!("chain-{}", number / 2);
        let key = Bytes::new().addr(Ipv4Addr::from(u32::from(number / 2)).into());
        let ops = if number.is_multiple_of(2) {
            let element = Element { key, data: Data::None, comment: None };
            let elements = Op::AddElements { set: set.clone(), elements: vec![element] };
            vec![Op::AddChain { name: chain.as_str().into(), base: None }, elements]
        } else {
            let elements = Op::DeleteElements { set: set.clone(), elements: vec![key] };
            vec![Op::DeleteChain(chain.as_str().into()), elements]
        };
        if number == 1 { Ok(()) } else { commit(&mut kernel, ops) }
    })
}

/// Another program's commit to our table.
fn touch(site: &Site, ops: Vec<Op>) -> anyhow::Result<Instant> {
    let mut kernel = site.lab.node().run(Nftables::open).context("open netfilter's socket")?;
    let transaction = Transaction { family: Family::Ip, table: table_name(), ops };
    kernel.apply(&transaction).context("commit to our table")?;
    Ok(Instant::now())
}

/// Touches the table and leaves it as it was; then it is read and compared as by an audit, of which there is one each ten
/// minutes.
fn audit(site: &Site) -> anyhow::Result<Duration> {
    let before = readings(site)?;
    let chain = || "of-others".into();
    let touched = touch(site, vec![Op::AddChain { name: chain(), base: None }, Op::DeleteChain(chain())])?;
    while readings(site)? <= before {
        anyhow::ensure!(touched.elapsed() < LIMIT, "a commit to our table was not noticed");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(touched.elapsed())
}

/// Empties the chain by which Services are found, and waits until packets arrive again.
fn repair(site: &Site) -> anyhow::Result<Duration> {
    let damaged = touch(site, vec![Op::SetRules { chain: "services".into(), rules: Vec::new() }])?;
    let [_, probe] = PROBES;
    site.client().run(|| Ok(site.reach(probe.target(), 0)? - damaged))
}

/// Waits until the table is read no more: changes wait while it is.
fn rest(site: &Site) -> anyhow::Result<()> {
    let mut before = readings(site)?;
    loop {
        std::thread::sleep(QUIET);
        let now = readings(site)?;
        if now <= before {
            return Ok(());
        }
        before = now;
    }
}

/// How often the table has been read and compared.
fn readings(site: &Site) -> anyhow::Result<f64> {
    metric(site, "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}")
}

/// What clients with affinity met.
#[derive(Debug, Default)]
struct Clients {
    asked: u32,
    /// Answers from another endpoint than the client's first.
    moved: u32,
}

/// One client after the other opens a flow to the Service with affinity; on a thread of the client.
fn ask_clients(go_on: GoOn<'_>) -> anyhow::Result<Clients> {
    let mut clients = Clients::default();
    let mut endpoints: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    // At least twice each.
    for round in 0.. {
        for client in client_ips(CLIENTS) {
            if round > 1 && !go_on() {
                return Ok(clients);
            }
            let endpoint = ask_once(client).with_context(|| format!("{client} asks"))?;
            clients.asked += 1;
            let first = endpoints.entry(client).or_insert_with(|| endpoint.clone());
            clients.moved += u32::from(*first != endpoint);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(clients)
}

/// The name of the endpoint that answers. While the table is damaged, nobody does.
fn ask_once(client: Ipv4Addr) -> anyhow::Result<String> {
    let begun = Instant::now();
    let (target, port) = STICKY;
    loop {
        let socket = UdpSocket::bind((client, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.connect((target, port))?;
        let mut answer = [0; 512];
        if let Ok(length) = socket.send(b"?").and_then(|_| socket.recv(&mut answer)) {
            let reply: Result<Reply, _> = String::from_utf8_lossy(&answer[..length]).parse();
            return Ok(reply.map_err(std::io::Error::other)?.name);
        }
        anyhow::ensure!(begun.elapsed() < LIMIT, "nobody answers");
    }
}

/// The sum of all samples whose name, with labels, begins so.
fn metric(site: &Site, name: &str) -> anyhow::Result<f64> {
    let text = site.lab.node().run(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", 10249))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    let text = text.context("ask for the metrics")?;
    let values: Vec<f64> = samples(&text, name).collect();
    anyhow::ensure!(!values.is_empty(), "the program has no {name}");
    Ok(values.iter().sum())
}

fn samples<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = f64> + 't {
    let of_name = text.lines().filter(move |line| line.starts_with(name));
    of_name.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let text = "# TYPE a counter\na{f=\"4\"} 2\na{f=\"6\"} 3\nab 9\n";
        assert_eq!(samples(text, "a{").collect::<Vec<_>>(), [2.0, 3.0]);
        assert_eq!(samples(text, "a{f=\"6\"}").collect::<Vec<_>>(), [3.0]);
    }

    #[test]
    fn what_must_not_happen_is_told() {
        let good = Figures { asked: 9, repaired: vec![Duration::from_secs(100)], ..Figures::default() };
        assert!(good.failures(Disturber::Nobody).is_empty());
        let bad = Figures { rebuilds: 1.0, moved: 2, ..Figures::default() };
        assert_eq!(bad.failures(Disturber::OtherFamily).len(), 2);
    }

    #[test]
    fn each_row_has_a_cell_for_each_disturber() {
        let columns =
            [Disturber::Nobody, Disturber::OtherProgram].map(|disturber| (disturber, Figures::default()));
        let table = table(&columns.into());
        assert_eq!(table.lines().count(), ROWS.len() + 2);
        assert!(table.lines().all(|line| line.matches('|').count() == 5), "{table}");
    }
}
