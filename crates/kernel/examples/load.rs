//! Measures loading: `unshare -n cargo run --release -p kernel --example load [services] [endpoints of each]`.
//!
//! Prints for each step the time to encode, the time inside the kernel, and the size.
#![expect(clippy::print_stdout, reason = "prints its measurements")]

use std::error::Error;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use kernel::Nftables;
use nft::{
    BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Kernel, Name, Op, Rule, Set, SetData,
    Statement, Transaction, Verdict,
};
use tokio::time::Instant;

const DNAT: Field = Field::NumgenRandom { modulus: 65536 };
const FRONTEND: [Field; 3] = [Field::DestAddr, Field::L4Proto, Field::DestPort];

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse());
    let services: u32 = numbers.next().transpose()?.unwrap_or(10_000);
    let each: u32 = numbers.next().transpose()?.unwrap_or(10);
    let mut kernel = Nftables::open()?;
    let ips = Arc::new(Set::new("service-ips".into(), FRONTEND.to_vec(), SetData::Verdict));
    let key = [FRONTEND.as_slice(), &[DNAT]].concat();
    let data = SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
    let endpoints = Arc::new(Set::new("endpoints".into(), key, data));

    let mut cold = vec![Op::AddTable, Op::AddSet(Arc::clone(&endpoints)), Op::AddSet(Arc::clone(&ips))];
    for count in [each, each + 1] {
        cold.push(Op::AddChain { name: chain(count), base: None });
        cold.push(Op::SetRules { chain: chain(count), rules: vec![dnat(count)] });
    }
    // A base chain makes the kernel check at commit where verdicts lead.
    let nat = BaseChain { kind: ChainType::Nat, hook: Hook::Prerouting, priority: -100 };
    cold.push(Op::AddChain { name: "nat-prerouting".into(), base: Some(nat) });
    let vmap = Rule::new(vec![Statement::Vmap { key: FRONTEND.to_vec(), map: ips.name.clone() }]);
    cold.push(Op::SetRules { chain: "nat-prerouting".into(), rules: vec![vmap] });
    let all = (0..services).flat_map(|service| (0..each).map(move |index| endpoint(service, index, 0)));
    cold.push(Op::AddElements { set: Arc::clone(&endpoints), elements: all.collect() });
    let all = (0..services).map(|service| goto(service, each)).collect();
    cold.push(Op::AddElements { set: Arc::clone(&ips), elements: all });
    measure(&mut kernel, "cold", cold)?;

    for round in 1..=3 {
        let replaced = vec![endpoint(services / 2, 3, round)];
        let op = Op::ReplaceElements { set: Arc::clone(&endpoints), elements: replaced };
        measure(&mut kernel, "one endpoint replaced", vec![op])?;
    }
    for count in [each + 1, each, each + 1] {
        let op = Op::ReplaceElements { set: Arc::clone(&ips), elements: vec![goto(services / 2, count)] };
        measure(&mut kernel, "one count changed", vec![op])?;
    }
    read_back(&mut kernel, "read back")?;
    let (stop, stopped) = mpsc::channel::<()>();
    let other = thread::spawn(move || disturb(&stopped));
    for _ in 0..5 {
        read_back(&mut kernel, "read back, disturbed")?;
    }
    drop(stop);
    other.join().map_err(|_panic| "the other program panicked")??;
    measure(&mut kernel, "delete", vec![Op::DeleteTable])
}

fn read_back(kernel: &mut Nftables, what: &str) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let ruleset = kernel.read(Family::Ip, &"kube-proxy".into())?.whole()?.ok_or("the table is gone")?;
    let took = millis(started.elapsed());
    let elements: usize = ruleset.sets.values().map(|set| set.elements.len()).sum();
    println!("{what:<24} {took:>9.3} ms, {elements} elements");
    Ok(())
}

/// Another program that commits to its own table 20 times a second.
fn disturb(stopped: &mpsc::Receiver<()>) -> Result<(), netlink::NetlinkError> {
    let set = Arc::new(Set::new("addresses".into(), vec![Field::DestAddr], SetData::None));
    let mut kernel = Nftables::open()?;
    let mut apply =
        |ops| kernel.apply(&Transaction { family: Family::Ip, table: "other".into(), ops }).map(drop);
    apply(vec![Op::AddTable, Op::AddSet(Arc::clone(&set))])?;
    for n in 0_u32.. {
        let key = Bytes::new().addr(n.to_be_bytes().into());
        let element = Element { key, data: Data::None, comment: None };
        apply(vec![Op::AddElements { set: Arc::clone(&set), elements: vec![element] }])?;
        if stopped.recv_timeout(Duration::from_millis(50)) != Err(mpsc::RecvTimeoutError::Timeout) {
            break;
        }
    }
    Ok(())
}

fn measure(kernel: &mut Nftables, what: &str, ops: Vec<Op>) -> Result<(), Box<dyn Error>> {
    let tx = Transaction { family: Family::Ip, table: "kube-proxy".into(), ops };
    let started = Instant::now();
    let bytes: usize = nft::encode(&tx, None).batches.iter().map(|batch| batch.bytes.len()).sum();
    let encoding = millis(started.elapsed());
    let started = Instant::now();
    let applied = kernel.apply(&tx)?;
    println!(
        "{what:<24} encode {encoding:>8.3} ms, kernel {:>9.3} ms, whole {:>9.3} ms, {bytes} bytes, {} messages",
        millis(applied.kernel_time),
        millis(started.elapsed()),
        applied.messages,
    );
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn chain(count: u32) -> Name {
    format!("service-{count}-endpoints").into()
}

fn dnat(modulus: u32) -> Rule {
    let key = [FRONTEND.as_slice(), &[Field::NumgenRandom { modulus }]].concat();
    Rule::new(vec![Statement::DnatMap { key, map: "endpoints".into() }])
}

fn frontend(service: u32) -> Bytes {
    Bytes::new().addr((0x0a60_0000 + service).to_be_bytes().into()).proto(6).port(80)
}

fn goto(service: u32, count: u32) -> Element {
    let comment = Some(format!("namespace-{}/service-{service}:http", service % 100).into());
    Element { key: frontend(service), data: Data::Verdict(Verdict::Goto(chain(count))), comment }
}

fn endpoint(service: u32, index: u32, round: u32) -> Element {
    let addr = 0x0af4_0000 + service * 7 + index + round;
    let data = Data::Value(Bytes::new().addr(addr.to_be_bytes().into()).port(8080));
    Element { key: frontend(service).index(index), data, comment: None }
}
