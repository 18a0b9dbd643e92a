//! IPVS and its device in a real kernel. Needs one that has both: `make guest-test`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::thread;

use ipvs::device::AddressChange::{Add, Delete};
use ipvs::{Devices as _, Ipvs as _, Scheduler};
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
    let output = Command::new("ip").args(args.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
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
        assert!(error.to_string().starts_with("add address ff02::1: "), "{error}");
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
