//! Measures what counting costs: `unshare -n cargo run --release -p kernel --example counting_cost [endpoints]`.
//!
//! New flows are sent through a map of endpoints that count and through one whose don't, in turns, so that whatever else the
//! machine does meets both; then both are loaded with many endpoints. Prints medians, and the median of what each pair of rounds
//! differs by. The rules do nothing but translate: with all that a proxy's rules do, the share is smaller.
#![expect(clippy::print_stdout, reason = "prints its measurements")]

use std::error::Error;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kernel::Nftables;
use nft::{
    BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Kernel, Op, Rule, Set, SetData,
    Statement, Transaction,
};
use tokio::time::Instant;

/// Rounds of either kind.
const ROUNDS: usize = 101;
/// Flows in each; few enough to be tracked all.
const FLOWS: u32 = 20_000;
const SERVICE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const UDP: u8 = 17;

fn main() -> Result<(), Box<dyn Error>> {
    let endpoints: u32 = std::env::args().nth(1).map(|arg| arg.parse()).transpose()?.unwrap_or(100_000);
    run("ip", &["link", "set", "lo", "up"])?;
    let sink = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = sink.local_addr()?.port();
    let mut kernel = Nftables::open()?;
    let mut flows = [Vec::new(), Vec::new()];
    for round in 0..2 * ROUNDS {
        let counted = round % 2 == 1;
        load(&mut kernel, counted, [element(0, port)].into())?;
        flows[usize::from(counted)].push(send()?);
        run("conntrack", &["-F"])?;
    }
    print("new flow", &mut flows, FLOWS);
    let mut loads = [Vec::new(), Vec::new()];
    for round in 0..10 {
        let counted = round % 2 == 1;
        let elements = (0..endpoints).map(|n| element(n, port)).collect();
        loads[usize::from(counted)].push(load(&mut kernel, counted, elements)?);
    }
    print("element loaded", &mut loads, endpoints);
    Ok(())
}

/// Sends as many datagrams, each from a socket and thus a port of its own.
fn send() -> Result<Duration, Box<dyn Error>> {
    let begun = Instant::now();
    for _ in 0..FLOWS {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.send_to(b"x", (SERVICE, 80))?;
    }
    Ok(begun.elapsed())
}

fn element(n: u32, port: u16) -> Element {
    let data = Data::Value(Bytes::new().addr(Ipv4Addr::LOCALHOST.into()).port(port));
    Element { key: Bytes::new().proto(UDP).index(n), data, comment: None }
}

/// Makes the table anew; gives what that took the kernel.
fn load(kernel: &mut Nftables, counted: bool, elements: Vec<Element>) -> Result<Duration, Box<dyn Error>> {
    let key = vec![Field::L4Proto, Field::Priority];
    let set =
        Set::new("endpoints".into(), key.clone(), SetData::Fields(vec![Field::DestAddr, Field::DestPort]));
    let set = Arc::new(if counted { set.counted() } else { set });
    let base = Some(BaseChain { kind: ChainType::Nat, hook: Hook::Output, priority: -100 });
    let dnat = Rule::new(vec![Statement::DnatMap { key, map: set.name.clone() }]);
    let ops = vec![
        Op::AddTable,
        Op::DeleteTable,
        Op::AddTable,
        Op::AddSet(set.clone()),
        Op::AddElements { set, elements },
        Op::AddChain { name: "nat-output".into(), base },
        Op::SetRules { chain: "nat-output".into(), rules: vec![dnat] },
    ];
    let transaction = Transaction { family: Family::Ip, table: "counting-cost".into(), ops };
    Ok(kernel.apply(&transaction)?.kernel_time)
}

fn print(what: &str, [without, with]: &mut [Vec<Duration>; 2], n: u32) {
    let pairs = without.iter().zip(with.iter());
    let mut more: Vec<f64> =
        pairs.map(|(without, with)| (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0).collect();
    more.sort_unstable_by(f64::total_cmp);
    let (without, with) = (median(without) / n, median(with) / n);
    println!("{what}: {without:?} uncounted, {with:?} counted, {:+.1} %", more[more.len() / 2]);
}

fn median(values: &mut [Duration]) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

fn run(program: &str, args: &[&str]) -> Result<(), Box<dyn Error>> {
    let output = Command::new(program).args(args).output()?;
    if output.status.success() { Ok(()) } else { Err(format!("{program} {args:?} failed").into()) }
}
