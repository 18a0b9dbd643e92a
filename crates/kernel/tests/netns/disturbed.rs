//! A table is read while others commit to theirs.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kernel::{Channel, Nftables, Socket, SocketOption, Wait};
use nft::{Bytes, Data, Element, Family, Field, Kernel, Op, Reading, Ruleset, Set, SetData, Transaction};
use tokio::time::Instant;

use crate::common::{Sets, TABLE, addr, apply, fixture, in_netns, nft, pair, read, service_key, tx};

const FAMILY: Family = Family::Ip;
/// Enough that the kernel tells of them in several datagrams.
const ELEMENTS: u32 = 6_000;

/// Somebody who commits, again and again.
#[derive(Clone, Copy, Debug)]
enum Disturber {
    /// To a table of its own in the same family.
    Other,
    /// To our table of the other family.
    OtherFamily,
}

impl Disturber {
    fn prepare(self) {
        match self {
            Self::Other => {
                apply(&other(vec![Op::AddTable, Op::AddSet(others_set()), add_chain("first")]));
            }
            Self::OtherFamily => apply(&fixture(Family::Ip6)),
        }
    }

    /// The n-th commit: an element and a chain come, or go.
    fn commit(self, n: u32) -> Transaction {
        let (family, set) = match self {
            Self::Other => (Family::Ip, others_set()),
            Self::OtherFamily => (Family::Ip6, Sets::new().node_ips),
        };
        let key = Bytes::new().addr(addr(family, 100_000 + n / 2));
        let chain = format!("chain-{}", n / 2);
        let ops = if n.is_multiple_of(2) {
            let element = Element { key, data: Data::None, comment: None };
            vec![add_chain(&chain), Op::AddElements { set, elements: vec![element] }]
        } else {
            vec![Op::DeleteChain(chain.as_str().into()), Op::DeleteElements { set, elements: vec![key] }]
        };
        match self {
            Self::Other => other(ops),
            Self::OtherFamily => tx(family, ops),
        }
    }
}

fn others_set() -> Arc<Set> {
    Arc::new(Set::new("addresses".into(), vec![Field::DestAddr], SetData::None))
}

fn other(ops: Vec<Op>) -> Transaction {
    Transaction { family: Family::Ip, table: "a-table-of-others".into(), ops }
}

fn add_chain(name: &str) -> Op {
    Op::AddChain { name: name.into(), base: None }
}

/// Says that it is over when it is dropped, also by a panic.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs something while somebody commits with these pauses.
fn while_disturbed<T>(disturber: Disturber, pause: Duration, run: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| {
            let mut writer = Nftables::open().unwrap();
            for n in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                writer.apply(&disturber.commit(n)).unwrap();
                thread::sleep(pause);
            }
        });
        run()
    })
}

/// The fixture with many elements.
fn prepare() -> Ruleset {
    apply(&fixture(FAMILY));
    let elements = (0..ELEMENTS).map(|n| Element {
        key: service_key(FAMILY, 1000 + n).index(n % 10),
        data: Data::Value(Bytes::new().addr(addr(FAMILY, n)).port(8080)),
        comment: None,
    });
    apply(&tx(FAMILY, vec![Op::AddElements { set: Sets::new().endpoints, elements: elements.collect() }]));
    read(FAMILY)
}

/// Reads many times; each time it must be the truth.
fn read_often(what: &str, truth: &Ruleset) {
    const READINGS: u32 = 50;
    let mut reader = Nftables::open().unwrap();
    let begun = Instant::now();
    for n in 0..READINGS {
        match reader.read(FAMILY, &TABLE.into()).unwrap() {
            Reading::Whole(Some(found)) => assert!(found == *truth, "{what}: reading {n} differs"),
            other => panic!("{what}: reading {n} is {other:?}"),
        }
    }
    println!("{what}: {:.2?} a reading", begun.elapsed() / READINGS);
}

#[test]
fn commits_to_other_tables_do_not_disturb_a_reading() {
    for disturber in [Disturber::Other, Disturber::OtherFamily] {
        in_netns(|| {
            // Of those before ours in the kernel's list, chains come and go too.
            disturber.prepare();
            let truth = prepare();
            read_often("alone", &truth);
            for pause in [Duration::from_millis(50), Duration::from_millis(5), Duration::ZERO] {
                let what = format!("{disturber:?}, a commit each {pause:?}");
                while_disturbed(disturber, pause, || read_often(&what, &truth));
            }
            assert_eq!(read(FAMILY), truth);
        });
    }
}

/// A table that is touched is not taken for whole, and the reading ends.
#[test]
fn a_table_that_never_rests_is_unstable() {
    in_netns(|| {
        prepare();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _ends = Ends(&is_over);
            scope.spawn(|| {
                let mut writer = Nftables::open().unwrap();
                for n in (10_000..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    writer.apply(&pair(n)).unwrap();
                }
            });
            for _ in 0..3 {
                // Which of the two depends on who is faster; that it is either does not.
                if let Reading::Whole(found) = Nftables::open().unwrap().read(FAMILY, &TABLE.into()).unwrap()
                {
                    let sets = found.unwrap().sets;
                    assert_eq!(sets["hairpin"].elements.len(), sets["nodeport-ips"].elements.len());
                }
            }
        });
    });
}

thread_local! {
    /// What sockets of this thread have received, in bytes; and sent.
    static TRAFFIC: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// The next so many times, notifications are lost.
    static LOSSES: Cell<u32> = const { Cell::new(0) };
}

/// A socket whose traffic is counted, and which may lose notifications.
#[derive(Debug)]
struct Watched {
    socket: Socket,
    listens: Cell<bool>,
}

impl Channel for Watched {
    fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, listens: Cell::new(false) })
    }

    fn set(&self, option: SocketOption, value: i32) -> io::Result<()> {
        self.listens.set(self.listens.get() || matches!(option, SocketOption::Membership));
        self.socket.set(option, value)
    }

    fn get(&self, option: SocketOption) -> io::Result<i32> {
        self.socket.get(option)
    }

    fn port(&self) -> io::Result<u32> {
        self.socket.port()
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        TRAFFIC.with(|traffic| traffic.set((traffic.get().0, traffic.get().1 + bytes.len())));
        self.socket.send(bytes)
    }

    fn receive<'b>(&self, buffer: &'b mut [u8], wait: Wait) -> io::Result<&'b [u8]> {
        let losses = LOSSES.get();
        if self.listens.get() && losses > 0 {
            LOSSES.set(losses - 1);
            return Err(io::Error::from_raw_os_error(nix::libc::ENOBUFS));
        }
        let received = self.socket.receive(buffer, wait)?;
        TRAFFIC.with(|traffic| traffic.set((traffic.get().0 + received.len(), traffic.get().1)));
        Ok(received)
    }
}

fn open_watched() -> Nftables<Watched> {
    Nftables::over_channel().unwrap()
}

/// When the kernel had to drop notifications, it is not known whether the table was touched; then two equal readings count.
#[test]
fn lost_notifications_do_not_keep_a_table_from_being_read() {
    in_netns(|| {
        Disturber::Other.prepare();
        let truth = prepare();
        while_disturbed(Disturber::Other, Duration::ZERO, || {
            for losses in [1, 100, u32::MAX] {
                LOSSES.set(losses);
                let found = open_watched().read(FAMILY, &TABLE.into()).unwrap();
                assert!(found == Reading::Whole(Some(truth.clone())), "{losses} losses");
            }
            LOSSES.set(0);
        });
    });
}

/// Readings cost what our own table costs, whatever else there is. (A chain of ours without rules has to be looked for.)
#[test]
fn a_reading_does_not_grow_with_tables_of_others() {
    let cost = || {
        TRAFFIC.set((0, 0));
        let found = open_watched().read(FAMILY, &TABLE.into()).unwrap().whole().unwrap().unwrap();
        (found, TRAFFIC.get())
    };
    in_netns(|| {
        apply(&fixture(FAMILY));
        for chain in ["filter-forward", "filter-output"] {
            nft(&["add", "rule", "ip", TABLE, chain, "accept"], "");
        }
        let before = cost();
        let chains = (0..1000).map(|n| add_chain(&format!("chain-{n}"))).collect::<Vec<_>>();
        apply(&other([vec![Op::AddTable, Op::AddSet(others_set())], chains].concat()));
        nft(&["add", "counter", "ip", "a-table-of-others", "hits"], "");
        assert_eq!(cost(), before);
        // One without rules is found all the same.
        nft(&["add", "chain", "ip", TABLE, "empty"], "");
        assert!(cost().0.chains.contains_key("empty"));
    });
}
