//! IPVS and its device in a real kernel. Needs one that has both: `make guest-test`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use ipvs::device::AddressChange::{Add, Delete};
use ipvs::{
    Command as Change, Devices as _, Flags, Ipvs as _, RealServer, RealServerId, Scheduler, ServerId,
    Statistics, VirtualServer,
};
use kernel::{KernelIpvs, SchedulerError, VirtualDevice, check_scheduler};
use netlink::NetlinkError;
use nix::sched::{CloneFlags, unshare};

const NAME: &str = "kube-ipvs0";

/// Runs the closure on a thread in a network namespace that ends with it.
fn in_netns<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need the right to make network namespaces");
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[track_caller]
fn ip(args: &str) -> String {
    run("ip", args)
}

#[track_caller]
fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split(' ')).output().expect(program);
    assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn held(device: &mut VirtualDevice) -> BTreeSet<IpAddr> {
    device.addresses().unwrap().device
}

#[test]
fn the_device_holds_addresses_of_both_families() {
    in_netns(|| {
        let mut device = VirtualDevice::open(NAME).unwrap();
        assert_eq!(device.index().unwrap(), None);
        let index = device.ensure().expect("these tests need a kernel with dummy devices");
        assert_eq!(device.ensure().unwrap(), index, "made once");
        let v4: Vec<IpAddr> = (0..3000_u32).map(|n| IpAddr::from((0x0a60_0000 + n).to_be_bytes())).collect();
        let v6 = address("fd00:96::10");
        let additions: Vec<_> = v4.iter().copied().chain([v6]).map(Add).collect();
        assert!(device.change(&additions).into_iter().all(|result| result.is_ok()));
        assert_eq!(held(&mut device), v4.iter().copied().chain([v6]).collect());
        // They are the host's own although the device is down, and nothing else is.
        assert!(ip("route get 10.96.0.1").contains("local 10.96.0.1 dev lo"));
        assert!(ip("-6 route get fd00:96::10").contains("dev lo"));
        assert!(ip("-4 route show table local dev kube-ipvs0").lines().all(|line| !line.contains('/')));
        // Nothing else is sent from them.
        ip("link set lo up");
        ip("link add eth0 type dummy");
        ip("link set eth0 up");
        // Without any other address of the scope, even one that is not preferred would have to do.
        ip("-6 address add 2001:db8:1::1/64 dev eth0 nodad");
        ip("route add default dev eth0");
        ip("-6 route add default dev eth0");
        assert!(!ip("route get 192.0.2.1").contains("src 10.96."));
        assert!(!ip("-6 route get 2001:db8::1").contains("src fd00:96::10"));
        assert!(ip("link show kube-ipvs0").contains("state DOWN"));
        // What is there, and what is gone, is no error; and the first address does not take others with it.
        let changes = [Add(v6), Delete(v4[0]), Delete(v4[0]), Delete(address("fd00:96::11"))];
        assert!(device.change(&changes).into_iter().all(|result| result.is_ok()));
        assert_eq!(held(&mut device).len(), v4.len());
    });
}

#[test]
fn one_bad_address_costs_only_itself() {
    in_netns(|| {
        let mut device = VirtualDevice::open(NAME).unwrap();
        let changes = [Add(address("10.96.0.1")), Add(address("ff02::1")), Add(address("10.96.0.2"))];
        let results = device.change(&changes);
        assert!(results[0].is_ok() && results[2].is_ok());
        let Err(error @ NetlinkError::Refused { .. }) = &results[1] else { panic!("{results:?}") };
        assert!(error.to_string().contains("add address ff02::1: "), "{error}");
        assert_eq!(held(&mut device).len(), 2);
        // A device that somebody deleted is made anew.
        ip("link del kube-ipvs0");
        assert!(device.addresses().unwrap().device.is_empty());
        assert!(matches!(device.change(&[Add(address("10.96.0.1"))])[..], [Ok(())]));
        assert_eq!(held(&mut device), [address("10.96.0.1")].into());
    });
}

#[test]
fn a_device_of_another_kind_is_an_error_that_says_so() {
    in_netns(|| {
        ip("link add kube-ipvs0 type bridge");
        let error = VirtualDevice::open(NAME).unwrap().ensure().unwrap_err();
        assert!(error.to_string().starts_with("device kube-ipvs0 is of kind bridge, not dummy"), "{error}");
        assert!(ip("-d link show kube-ipvs0").contains("bridge"), "it stays");
    });
}

#[test]
fn every_scheduler_of_the_kernel_can_be_used_and_an_unknown_one_names_them() {
    in_netns(|| {
        let mut ipvs = KernelIpvs::open().expect("these tests need a kernel with IPVS");
        for scheduler in Scheduler::ALL {
            check_scheduler(&mut ipvs, scheduler).unwrap();
        }
        let unknown = Scheduler::new("roundrobin").unwrap();
        let error = check_scheduler(&mut ipvs, unknown).unwrap_err();
        let SchedulerError::Unknown { usable, .. } = &error else { panic!("{error}") };
        assert_eq!(usable[..], Scheduler::ALL);
        let expected = "the kernel has no scheduler roundrobin for IPVS: its module ip_vs_roundrobin is not loaded, and could \
                        not be; it has rr, wrr, lc, wlc, fo, ovf, lblc, lblcr, dh, sh, mh, sed, nq, twos";
        assert_eq!(error.to_string(), expected);
        assert_eq!(ipvs.virtual_servers().unwrap(), []);
    });
}

/// As with a kernel that was built without it: this takes the module away, so it runs nowhere but in the guest.
#[test]
fn a_scheduler_without_its_module_is_not_among_those_that_work() {
    assert!(
        Path::new("/job/command").exists(),
        "this test keeps a module from being loaded: make guest-test"
    );
    const RULE: &str = "/etc/modprobe.d/no-ovf.conf";
    in_netns(|| {
        let mut ipvs = KernelIpvs::open().expect("these tests need a kernel with IPVS");
        // Nobody uses it: each of these tests deletes the server by which it tries schedulers.
        run("modprobe", "-r -q ip_vs_ovf");
        std::fs::create_dir_all("/etc/modprobe.d").unwrap();
        std::fs::write(RULE, "install ip_vs_ovf exit 1\n").unwrap();
        let error = check_scheduler(&mut ipvs, Scheduler::new("ovf").unwrap()).unwrap_err();
        std::fs::remove_file(RULE).unwrap();
        let SchedulerError::Unknown { usable, .. } = &error else { panic!("{error}") };
        assert_eq!(usable.len() + 1, Scheduler::ALL.len());
        assert!(error.to_string().contains(
            "its module ip_vs_ovf is not loaded, and could not be; it has rr, wrr, lc, wlc, fo, lblc,"
        ));
        check_scheduler(&mut ipvs, Scheduler::new("ovf").unwrap()).unwrap();
    });
}

/// What went through, as `ipvsadm` tells it too: for the virtual server and for its real one.
#[test]
fn what_went_through_is_counted() {
    const CONNECTIONS: u64 = 3;
    in_netns(|| {
        ip("link set lo up");
        ip("address add 10.0.0.1/32 dev lo");
        let mut device = VirtualDevice::open(NAME).unwrap();
        assert!(device.change(&[Add(address("10.96.0.1"))])[0].is_ok());
        let mut ipvs = KernelIpvs::open().expect("these tests need a kernel with IPVS");
        let id = ServerId { address: address("10.96.0.1"), protocol: 6, port: 80 };
        let server =
            VirtualServer { id, scheduler: Scheduler::ROUND_ROBIN, flags: Flags::OWN, persistence: None };
        let real = RealServerId { address: address("10.0.0.1"), port: 8080 };
        let made = ipvs.apply(&[Change::NewVirtual(server), Change::NewReal(id, RealServer::new(real, 1))]);
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        let listener = TcpListener::bind("10.0.0.1:8080").unwrap();
        for _ in 0..CONNECTIONS {
            let mut client = TcpStream::connect("10.96.0.1:80").unwrap();
            listener.accept().unwrap().0.write_all(b"hello").unwrap();
            assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 5);
        }
        // The kernel adds up its processors' counters every two seconds.
        let told = (0..100).find_map(|_| {
            thread::sleep(Duration::from_millis(200));
            let [(of_id, virtual_server)] = ipvs.virtual_statistics().unwrap()[..] else { return None };
            let [(of_real, real_server)] = ipvs.real_statistics(&id).unwrap()[..] else { return None };
            assert_eq!((of_id, of_real), (id, real));
            let both = [virtual_server, real_server];
            let is_complete = both.iter().all(|counted| counted.connections == CONNECTIONS);
            (is_complete && both == told_by_ipvsadm()).then_some(both)
        });
        let [virtual_server, real_server] = told.expect("ipvsadm tells the same");
        assert_eq!(virtual_server, real_server);
        assert!(
            real_server.packets_in >= 4 * CONNECTIONS && real_server.bytes_out > real_server.packets_out * 40
        );
        assert!(ipvs.real_statistics(&ServerId { port: 81, ..id }).unwrap().is_empty());
    });
}

/// The lines of the virtual server and of the real one.
fn told_by_ipvsadm() -> [Statistics; 2] {
    let told = run("ipvsadm", "-Ln --stats --exact");
    ["TCP  10.96.0.1:80", "-> 10.0.0.1:8080"].map(|server| {
        let line = told.lines().find(|line| line.contains(server)).unwrap_or_else(|| panic!("{told}"));
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [connections, packets_in, packets_out, bytes_in, bytes_out] = numbers[..] else {
            panic!("{line}")
        };
        Statistics { connections, packets_in, packets_out, bytes_in, bytes_out }
    })
}
