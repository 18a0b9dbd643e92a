//! Each call of `bpf(2)` in a life fails, once or for good.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backend_ebpf::{Change, Condition};
use kernel::Bpf;
use model::{FrontendAddress, V4};

use crate::site::{PATIENCE, Server, Site, VIP, all, apply, ask, change, frontend, remove, web};

const ENOMEM: i32 = 12;

/// Calls so far, and those that fail.
#[derive(Clone, Default)]
struct Fault(Arc<Failing>);

#[derive(Default)]
struct Failing {
    calls: AtomicUsize,
    /// The first one that fails; 0: none.
    first: AtomicUsize,
    /// All after it fail too.
    for_good: AtomicBool,
}

impl Fault {
    fn bpf(&self) -> Bpf {
        let this = self.0.clone();
        Bpf::gated(Arc::new(move |_command| {
            let call = this.calls.fetch_add(1, Ordering::SeqCst) + 1;
            let first = this.first.load(Ordering::SeqCst);
            let is_later = first != 0 && call > first && this.for_good.load(Ordering::SeqCst);
            if call == first || is_later { Err(io::Error::from_raw_os_error(ENOMEM)) } else { Ok(()) }
        }))
    }

    fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    fn fail_at(&self, call: usize) {
        self.0.calls.store(0, Ordering::SeqCst);
        self.0.first.store(call, Ordering::SeqCst);
    }

    fn fail_from(&self, call: usize) {
        self.0.for_good.store(true, Ordering::SeqCst);
        self.fail_at(call);
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

/// Gives the maps that are there the name of another layout, as another version would have left them.
fn age_maps(site: &Site) {
    let dir = site.socket_site.bpffs().join("kube-proxy/ipv4");
    let own = format!("{}-", ebpf::SCHEMA);
    for entry in std::fs::read_dir(&dir).unwrap().flatten() {
        if let Some(number) = entry.file_name().to_string_lossy().strip_prefix(&own) {
            std::fs::rename(entry.path(), dir.join(format!("0-{number}"))).unwrap();
        }
    }
}

/// A process finds what another one has left, wants other endpoints, and from some call on nothing succeeds any more.
fn nothing_stale_is_left(has_other_layout: bool) {
    let site = Site::new();
    let [old, new] = ["old", "new"].map(|name| Server::start(&site.node, "127.0.0.1", name));
    let [left, wanted] = [&old, &new].map(|server| all(vec![web((Ipv4Addr::LOCALHOST, server.port))]));
    let to = SocketAddr::from((VIP, 80));
    // What comes of a start of which so many calls succeed, and how many calls there were.
    let start = |first_failing: usize| {
        remove(&site, ebpf::FastPathRemoval::Everything);
        apply(&site, &mut site.path::<V4>(&Bpf::default()), &left);
        assert_eq!(ask(&site.node, to).unwrap().0, "old");
        if has_other_layout {
            age_maps(&site);
        }
        let fault = Fault::default();
        fault.fail_from(first_failing);
        let mut path = site.path::<V4>(&fault.bpf());
        let condition = site.node.run(|| change(&mut path, &wanted));
        (condition, fault.calls(), path)
    };
    let (condition, calls, path) = start(0);
    assert_eq!(condition, Condition::On);
    drop(path);
    let mut refused = 0;
    for call in 1..=calls {
        let (condition, _, _path) = start(call);
        match condition {
            Condition::On => assert_eq!(ask(&site.node, to).unwrap().0, "new", "call {call}"),
            Condition::Off(why) => {
                refused += 1;
                // Without rules nobody answers. A program is taken off some time after its link is gone.
                let is_untranslated = || ask(&site.node, to).is_err();
                assert!(lab::proxy::wait_until(PATIENCE, is_untranslated), "call {call}: {why}");
            }
        }
    }
    assert!(refused * 2 > calls, "{refused} of {calls}");
    for server in [old, new] {
        server.stop(&site.node, "127.0.0.1");
    }
}

#[test]
fn whatever_fails_for_good_nothing_stale_is_left() {
    nothing_stale_is_left(false);
}

#[test]
fn whatever_fails_for_good_nothing_stale_is_left_of_another_layout() {
    nothing_stale_is_left(true);
}

/// Frontends for which the smallest maps have room.
const ROOM: u16 = 1024;

fn vip(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 96, 1 + high, low)
}

/// So many Services with one endpoint.
fn services(count: u16, port: u16) -> Change<V4> {
    let service =
        |n: u16| frontend(&format!("s-{n}"), FrontendAddress::Ip(vip(n)), 80, &[(Ipv4Addr::LOCALHOST, port)]);
    all((0..count).map(service).collect())
}

#[test]
fn a_full_map_serves_all_that_is_in_it_and_refused_growth_leaves_all_to_the_rules() {
    let site = Site::new();
    let server = Server::start(&site.node, "127.0.0.1", "web");
    let refuses = Arc::new(AtomicBool::new(false));
    let flag = refuses.clone();
    let bpf = Bpf::gated(Arc::new(move |command| {
        let is_refused = command == "BPF_MAP_CREATE" && flag.load(Ordering::SeqCst);
        if is_refused { Err(io::Error::from_raw_os_error(ENOMEM)) } else { Ok(()) }
    }));
    let mut path = site.path::<V4>(&bpf);
    let answers = |n: u16| ask(&site.node, (vip(n), 80).into()).is_ok();
    apply(&site, &mut path, &services(4, server.port));
    apply(&site, &mut path, &services(ROOM, server.port));
    assert_eq!((path.statistics().rebuilds, path.statistics().frontends), (1, usize::from(ROOM)), "full");
    let some = || (0..ROOM).step_by(93).chain([ROOM - 1]);
    assert!(some().all(answers));

    refuses.store(true, Ordering::SeqCst);
    let more = services(ROOM + 1, server.port);
    let Condition::Off(why) = site.node.run(|| change(&mut path, &more)) else { panic!("it has grown") };
    assert!(why.contains("Cannot allocate memory"), "{why}");
    assert!(!some().chain([ROOM]).any(answers), "there are no rules here");

    refuses.store(false, Ordering::SeqCst);
    apply(&site, &mut path, &more);
    assert_eq!(path.statistics().rebuilds, 2);
    assert!(some().chain([ROOM]).all(answers));
    server.stop(&site.node, "127.0.0.1");
}

/// A cgroup of version 1 that has a limit of memory, with the thread that made it inside; threads that it starts are inside, too. Maps
/// that they make count.
struct MemoryLimit(std::path::PathBuf);

impl MemoryLimit {
    const ROOT: &str = "/sys/fs/cgroup/memory";

    fn enter(bytes: u64) -> Self {
        let dir = format!("{}/kube-proxy-test-{}", Self::ROOT, std::process::id());
        std::fs::create_dir(&dir).unwrap_or_else(|error| panic!("make {dir}: {error}"));
        let limit = Self(dir.into());
        limit.write("memory.limit_in_bytes", &bytes.to_string());
        limit.write("tasks", &thread());
        limit
    }

    fn lift(&self) {
        self.write("memory.limit_in_bytes", "-1");
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

fn thread() -> String {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_string_lossy().into_owned()
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        drop(std::fs::write(format!("{}/tasks", Self::ROOT), thread()));
        drop(std::fs::remove_dir(&self.0));
    }
}

#[test]
#[ignore = "needs cgroups of version 1 for memory: `make ebpf-memory`"]
fn a_kernel_that_has_no_memory_for_larger_maps_leaves_all_to_the_rules_and_that_is_told() {
    let site = Site::new();
    let server = Server::start(&site.node, "127.0.0.1", "web");
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &services(4, server.port));
    let answers = || ask(&site.node, (vip(0), 80).into()).is_ok();
    assert!(answers());
    // Twelve megabytes of maps.
    let many = |n: u32| (Ipv4Addr::from(0x0af4_0000 + n / 1000), 1000 + u16::try_from(n % 1000).unwrap());
    let many: Vec<(Ipv4Addr, u16)> = (0..200_000).map(many).collect();
    let endpoint = (Ipv4Addr::LOCALHOST, server.port);
    let large = all(vec![
        frontend("s-0", FrontendAddress::Ip(vip(0)), 80, &[endpoint]),
        frontend("many", FrontendAddress::Ip(vip(9)), 80, &many),
    ]);
    let limit = MemoryLimit::enter(6 << 20);
    let Condition::Off(why) = site.node.run(|| change(&mut path, &large)) else { panic!("it has grown") };
    assert!(why.contains("Cannot allocate memory"), "{why}");
    assert!(!answers(), "there are no rules here");
    // What there was before fits as ever.
    apply(&site, &mut path, &services(4, server.port));
    assert!(answers());
    limit.lift();
    apply(&site, &mut path, &large);
    assert!(answers());
    server.stop(&site.node, "127.0.0.1");
}
