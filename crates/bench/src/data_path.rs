//! What a Service costs its packets: the same exchanges with a pod, directly and by a Service, in turns.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use testkit::client::{Session, UdpFlow, tcp_once, udp_once};
use testkit::cluster::{LINE_PORT, UDP_PORT};
use tokio::time::Instant;

use crate::results::Notebook;
use crate::samples::{Samples, float, millis};
use crate::site::Site;
use crate::world::{ECHO, LINE, SINK, SINK_PORT};

/// How often it goes back and forth between the two.
const TURNS: usize = 4;
/// First packets, and connections, of each turn. Few enough for the table of tracked flows, which keeps the latter for two minutes.
const FLOWS: usize = 250;
const CONNECTIONS: usize = 1500;
/// Time of each turn where a rate is measured on one flow.
const SPELL: Duration = Duration::from_millis(250);
/// How much is written at once to see the throughput.
const BLOCK: usize = 128 * 1024;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Yields values of one turn, of exchanges with this address.
type Turn = fn(SocketAddr) -> anyhow::Result<Values>;

/// By metric.
type Values = Vec<(&'static str, Vec<f64>)>;

/// Measures all of it.
pub(crate) fn measure(site: &Site, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    let pod = site.server_ip(0);
    let turns: [(Turn, SocketAddr, SocketAddr); 4] = [
        (first_packets, ECHO.into(), (pod, UDP_PORT).into()),
        (connections, LINE.into(), (pod, LINE_PORT).into()),
        (requests, ECHO.into(), (pod, UDP_PORT).into()),
        (throughput, SINK.into(), (pod, SINK_PORT).into()),
    ];
    for (turn, service, direct) in turns {
        for _ in 0..TURNS {
            for (id, values) in site.client().run(|| turn(direct)).context("directly to the pod")? {
                book.floor(id, Samples::new(values));
            }
            for (id, values) in site.client().run(|| turn(service)).context("by the Service")? {
                book.values(id, values);
            }
        }
    }
    Ok(())
}

fn first_packets(target: SocketAddr) -> anyhow::Result<Values> {
    let ask = |_| {
        let begun = Instant::now();
        udp_once(target, PATIENCE).context("ask once")?;
        anyhow::Ok(millis(begun.elapsed()))
    };
    let times = (0..FLOWS).map(ask).collect::<anyhow::Result<_>>()?;
    Ok(vec![("first_packet", times)])
}

fn connections(target: SocketAddr) -> anyhow::Result<Values> {
    let begun = Instant::now();
    let connect = |_| {
        let begun = Instant::now();
        tcp_once(target, PATIENCE).context("connect")?;
        anyhow::Ok(millis(begun.elapsed()))
    };
    let times = (0..CONNECTIONS).map(connect).collect::<anyhow::Result<_>>()?;
    let rate = float(CONNECTIONS as u64) / begun.elapsed().as_secs_f64();
    Ok(vec![("tcp_connect", times), ("tcp_rate", vec![rate])])
}

fn requests(target: SocketAddr) -> anyhow::Result<Values> {
    let flow = UdpFlow::open(0, target, PATIENCE).context("open a flow")?;
    flow.ask().context("ask")?;
    let rate = rate(|| flow.ask().map(drop).context("ask"))?;
    Ok(vec![("udp_rate", vec![rate])])
}

fn throughput(target: SocketAddr) -> anyhow::Result<Values> {
    let block = vec![0; BLOCK];
    let mut session = Session::open(target, PATIENCE).context("connect")?;
    session.send(&block).context("send")?;
    let rate = rate(|| session.send(&block).context("send"))?;
    Ok(vec![("throughput", vec![rate * float(BLOCK as u64) * 8.0 / 1e9])])
}

/// How often a second it can be done.
fn rate(mut exchange: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < SPELL {
        exchange()?;
        count += 1;
    }
    Ok(float(count) / begun.elapsed().as_secs_f64())
}
