//! Large tables, and tables that do not stand still.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use conntrack::{Conntrack, Family, Filter};
use kernel::Flows;
use tokio::time::Instant;

use crate::made::{Made, Maker};
use crate::site::{FAMILIES, UDP, count, in_netns};

/// Several batches of stale flows, spread over the table; others to the same Service, to the same endpoint, of other
/// protocols.
#[test]
fn batches_are_counted_and_exact() {
    for family in FAMILIES {
        in_netns(|| {
            let maker = Maker::open();
            // Of 10 flows of each Service 2 go to endpoint 1.
            let made = |n| Made::new(family, n, n / 10 % 4, [1, 2, 3, 4, 1, 5, 6, 7, 8, 9][n as usize % 10]);
            maker.make((0..20_000).map(made));
            let other_protocol = |protocol| (0..2_000).map(move |n| Made { protocol, ..made(n) });
            maker.make(other_protocol(6));
            maker.make(other_protocol(132));
            let mut flows = Flows::open().unwrap();
            let (service, endpoint) = (made(0).service, made(0).endpoint);
            let filter = Filter::new(family, UDP).to(service);
            assert_eq!(count(&mut flows, &filter), 5_000);

            assert_eq!(flows.delete(&filter, &mut |flow| flow.answered_by() == endpoint).unwrap(), 1_000);

            assert_eq!(count(&mut flows, &filter), 4_000);
            assert_eq!(count(&mut flows, &filter.answered_by(endpoint)), 0);
            assert_eq!(count(&mut flows, &Filter::new(family, UDP).answered_by(endpoint)), 3_000);
            assert_eq!(count(&mut flows, &Filter::new(family, UDP)), 19_000);
            for protocol in [6, 132] {
                assert_eq!(count(&mut flows, &Filter::new(family, protocol)), 2_000);
            }
            // A second time there is nothing to do.
            assert_eq!(flows.delete(&filter, &mut |flow| flow.answered_by() == endpoint).unwrap(), 0);
            let sctp = Filter::new(family, 132).to(service).answered_by(endpoint);
            assert_eq!(flows.delete(&sctp, &mut |_| true).unwrap(), 100);
            assert_eq!(count(&mut flows, &Filter::new(family, 132)), 1_900);
        });
    }
}

/// Other flows come and go all the time while the table is read and deleted from.
#[test]
fn a_table_in_motion_loses_what_is_stale_and_nothing_else() {
    in_netns(|| {
        let maker = Maker::open();
        let stale = |n: u32| Made::new(Family::Ip, n, 1, 1);
        let lasting = |n: u32| Made::new(Family::Ip, 10_000 + n, 1, 2);
        let restless = |n: u32| Made::new(Family::Ip, 20_000 + n, 1, 3);
        maker.make((0..5_000).flat_map(|n| [stale(n), lasting(n)]));
        let is_over = AtomicBool::new(false);
        let restless_maker = Maker::open();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    restless_maker.make((0..500).map(restless));
                    restless_maker.delete((0..500).map(restless));
                }
            });
            let _ends_when_this_panics = Ends(&is_over);
            let mut flows = Flows::open().unwrap();
            let filter = Filter::new(Family::Ip, UDP).to(stale(0).service);
            let is_stale = |endpoint: SocketAddr| endpoint == stale(0).endpoint;
            let deleted = flows.delete(&filter, &mut |flow| is_stale(flow.answered_by()));
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(deleted.unwrap(), 5_000);
            assert_eq!(count(&mut flows, &filter.answered_by(stale(0).endpoint)), 0);
            let mut left = BTreeSet::new();
            let lasting_filter = filter.answered_by(lasting(0).endpoint);
            flows.each(&lasting_filter, &mut |flow| left.extend([*flow])).unwrap();
            assert_eq!(left.len(), 5_000);
        });
    });
}

/// Says that it is over when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Prints what a deletion costs in a table of 100,000 flows; see with `--nocapture --test-threads=1`.
#[test]
fn a_large_table_is_read_in_passing() {
    const N_FLOWS: u32 = 100_000;
    in_netns(|| {
        let maker = Maker::open();
        // One flow in a hundred goes to Service 1.
        maker.make((0..N_FLOWS).map(|n| Made::new(Family::Ip, n, u32::from(n % 100 == 0), n % 7)));
        let made = Made::new(Family::Ip, 0, 1, 0);
        let mut flows = Flows::open().unwrap();
        let udp = Filter::new(Family::Ip, UDP);
        let nothing = udp.to_port(9);
        let few = udp.to(made.service);
        measure("nothing matches", || flows.delete(&nothing, &mut |_| true).unwrap(), 0);
        measure("100,000 match, none is stale", || flows.delete(&udp, &mut |_| false).unwrap(), 0);
        flows.set_kernel_filter(false);
        measure(
            "nothing matches, no filter in the kernel",
            || flows.delete(&nothing, &mut |_| true).unwrap(),
            0,
        );
        flows.set_kernel_filter(true);
        measure("1,000 match and are stale", || flows.delete(&few, &mut |_| true).unwrap(), 1_000);
        measure("99,000 match and are stale", || flows.delete(&udp, &mut |_| true).unwrap(), 99_000);
        assert_eq!(count(&mut flows, &udp), 0);
    });
}

#[track_caller]
fn measure(what: &str, run: impl FnOnce() -> u64, wanted: u64) {
    // Forgets the highest memory use so far (`Documentation/filesystems/proc.rst`).
    fs::write("/proc/self/clear_refs", "5").expect("a process may do that with itself");
    let (before, start) = (memory("VmRSS:"), Instant::now());
    let deleted = run();
    let (time, after) = (start.elapsed(), memory("VmHWM:"));
    println!("{what}: {time:.1?}, at most {} KiB more than before", after.saturating_sub(before));
    assert_eq!(deleted, wanted);
}

/// In KiB.
fn memory(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("there is /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("it tells of memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
