//! Each call of `bpf(2)` in a life fails once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backend_ebpf::{Change, Condition};
use kernel::Bpf;
use model::{FrontendAddress, V4};

use crate::site::{Server, Site, VIP, all, ask, change, frontend, remove, web};

const ENOMEM: i32 = 12;

/// Calls so far, and the one that fails.
#[derive(Clone, Default)]
struct Fault(Arc<(AtomicUsize, AtomicUsize)>);

impl Fault {
    fn bpf(&self) -> Bpf {
        let this = self.clone();
        Bpf::gated(Arc::new(move |_command| {
            let (calls, fails_at) = &*this.0;
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            if call == fails_at.load(Ordering::SeqCst) {
                Err(io::Error::from_raw_os_error(ENOMEM))
            } else {
                Ok(())
            }
        }))
    }

    fn calls(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    fn fail_at(&self, call: usize) {
        self.0.0.store(0, Ordering::SeqCst);
        self.0.1.store(call, Ordering::SeqCst);
    }
}

/// A start, a change, an audit, a restart: gives how often it was off.
fn live(site: &Site, fault: &Fault, port: u16) -> usize {
    let mut off = 0;
    let one = all(vec![web((Ipv4Addr::LOCALHOST, port))]);
    let two = all(vec![
        web((Ipv4Addr::LOCALHOST, port)),
        frontend(
            "more",
            FrontendAddress::Ip(Ipv4Addr::new(10, 96, 0, 11)),
            80,
            &[(Ipv4Addr::LOCALHOST, port)],
        ),
    ]);
    for wanted in [&one, &two] {
        let mut path = site.path::<V4>(&fault.bpf());
        off += usize::from(until_on(site, &mut path, wanted));
        off += usize::from(site.node.run(|| path.check()) != Condition::On);
    }
    // An audit that failed has switched it off.
    let mut path = site.path::<V4>(&fault.bpf());
    off + usize::from(until_on(site, &mut path, &two))
}

/// Tries again once; whether it had to.
#[track_caller]
fn until_on(site: &Site, path: &mut backend_ebpf::SocketPath<V4>, wanted: &Change<V4>) -> bool {
    site.node.run(|| {
        let first = change(path, wanted);
        if first != Condition::On {
            let second = change(path, wanted);
            assert_eq!(second, Condition::On, "after {first:?}");
        }
        first != Condition::On
    })
}

#[test]
fn whatever_call_fails_once_the_state_converges() {
    let site = Site::new();
    let server = Server::start(&site.node, "127.0.0.1", "web");
    let fault = Fault::default();
    assert_eq!(live(&site, &fault, server.port), 0);
    let empty = || remove(&site, ebpf::FastPathRemoval::Everything);
    empty();
    fault.fail_at(0);
    live(&site, &fault, server.port);
    let calls = fault.calls();
    assert!(calls > 60, "{calls}");
    let mut noticed = 0;
    for call in 1..=calls {
        empty();
        fault.fail_at(call);
        noticed += usize::from(live(&site, &fault, server.port) > 0);
        for vip in [VIP, Ipv4Addr::new(10, 96, 0, 11)] {
            assert_eq!(ask(&site.node, SocketAddr::from((vip, 80))).unwrap().0, "web", "call {call}");
        }
    }
    // What is read only to be compared is read anew without a word.
    assert!(noticed * 2 > calls, "{noticed} of {calls}");
    server.stop(&site.node, "127.0.0.1");
}
