//! What a Service costs its packets: the same exchanges with a pod, directly and by a Service.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use lab::client::{Session, UdpFlow, tcp_once, udp_once};
use testkit::cluster::{LINE_PORT, UDP_PORT};
use tokio::time::Instant;

use crate::results::Notebook;
use crate::samples::{Samples, float};
use crate::site::{Site, direct};
use crate::world::{ECHO, LINE, SINK, SINK_PORT, Target};

/// First packets, and connections, each way. Few enough for the table of tracked flows, which keeps the latter for two
/// minutes.
const FLOWS: usize = 1000;
const CONNECTIONS: usize = 6000;
/// Requests each way on one flow.
const REQUESTS: usize = 10_000;
/// How often the throughput goes back and forth, and how long each way.
const TURNS: usize = 6;
const SPELL: Duration = Duration::from_millis(150);
/// How much is written at once to see the throughput.
const BLOCK: usize = 128 * 1024;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where an exchange goes: to the pod itself, and to it by the Service.
struct Targets {
    direct: SocketAddr,
    service: SocketAddr,
}

/// Measures all of it.
pub(crate) fn measure(site: &Site, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    // The same pod, because two may be served by different processors.
    let pod = site.server_ip(0);
    let targets =
        |port, service: Target| Targets { direct: (pod, direct(port)).into(), service: service.into() };
    let (echo, line, sink) = (targets(UDP_PORT, ECHO), targets(LINE_PORT, LINE), targets(SINK_PORT, SINK));
    site.client().run(|| {
        first_packets(&echo, book).context("first packets")?;
        connections(&line, book).context("connections")?;
        connect_calls(&line, book).context("connect()")?;
        requests(&echo, book).context("requests")?;
        throughput(&sink, book).context("throughput")
    })
}

fn first_packets(targets: &Targets, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    let ask = |target| udp_once(target, PATIENCE).map(drop).context("ask once");
    let [direct, service] = in_turns(FLOWS, || ask(targets.direct), || ask(targets.service))?;
    book.times("first_packet", &service);
    book.floor("first_packet", Samples::millis(&direct));
    Ok(())
}

fn connections(targets: &Targets, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    let connect = |target| tcp_once(target, PATIENCE).map(drop).context("connect");
    let [direct, service] = in_turns(CONNECTIONS, || connect(targets.direct), || connect(targets.service))?;
    book.times("tcp_connect", &service);
    book.floor("tcp_connect", Samples::millis(&direct));
    book.values("tcp_rate", [rate(&service)]);
    book.floor("tcp_rate", Samples::new(vec![rate(&direct)]));
    Ok(())
}

/// The system call alone; what follows is not timed.
fn connect_calls(targets: &Targets, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    let connect = |target| {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(target).context("connect")?;
        let took = begun.elapsed();
        // The server closes first, and then the port is free at once.
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.read_to_end(&mut Vec::new()))?;
        Ok(took)
    };
    let [direct, service] =
        taking_turns(CONNECTIONS, || connect(targets.direct), || connect(targets.service))?;
    book.times("connect_call", &service);
    book.floor("connect_call", Samples::millis(&direct));
    Ok(())
}

fn requests(targets: &Targets, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    let open = |target| UdpFlow::open(0, target, PATIENCE).context("open a flow");
    let (direct, service) = (open(targets.direct)?, open(targets.service)?);
    let ask = |flow: &UdpFlow| flow.ask().map(drop).context("ask");
    let [direct, service] = in_turns(REQUESTS, || ask(&direct), || ask(&service))?;
    book.values("udp_rate", [rate(&service)]);
    book.floor("udp_rate", Samples::new(vec![rate(&direct)]));
    Ok(())
}

/// In spells and not in turns, because what is written to one connection is still under way while the other has its turn.
fn throughput(targets: &Targets, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    for _ in 0..TURNS {
        book.floor("throughput", Samples::new(vec![gigabits(targets.direct)?]));
        book.values("throughput", [gigabits(targets.service)?]);
    }
    Ok(())
}

fn gigabits(target: SocketAddr) -> anyhow::Result<f64> {
    let block = vec![0; BLOCK];
    let mut session = Session::open(target, PATIENCE).context("connect")?;
    // Until the connection is up to speed.
    let warm = Instant::now() + SPELL / 5;
    while Instant::now() < warm {
        session.send(&block).context("send")?;
    }
    let begun = Instant::now();
    let mut n_bits = 0;
    while begun.elapsed() < SPELL {
        session.send(&block).context("send")?;
        n_bits += BLOCK as u64 * 8;
    }
    Ok(float(n_bits) / begun.elapsed().as_secs_f64() / 1e9)
}

/// As [`taking_turns`], for exchanges that count as a whole.
fn in_turns(
    n_times: usize,
    direct: impl Fn() -> anyhow::Result<()>,
    service: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<[Vec<Duration>; 2]> {
    let timed = |exchange: &dyn Fn() -> anyhow::Result<()>| {
        let begun = Instant::now();
        exchange().map(|()| begun.elapsed())
    };
    taking_turns(n_times, || timed(&direct), || timed(&service))
}

/// Times of both targets, one exchange after the other, so that whatever else the machine does befalls both alike.
fn taking_turns(
    n_times: usize,
    mut direct: impl FnMut() -> anyhow::Result<Duration>,
    mut service: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<[Vec<Duration>; 2]> {
    let mut timed =
        [&mut direct as &mut dyn FnMut() -> _, &mut service].map(|exchange| (exchange, Vec::new()));
    for number in 0..n_times {
        // Each goes first as often, because what is left of an exchange is dealt with during the next.
        for way in [number % 2, 1 - number % 2] {
            let (exchange, times) = &mut timed[way];
            times.push(exchange()?);
        }
    }
    Ok(timed.map(|(_, times)| times))
}

/// How many of these there are in a second.
fn rate(times: &[Duration]) -> f64 {
    float(times.len() as u64) / times.iter().sum::<Duration>().as_secs_f64()
}
