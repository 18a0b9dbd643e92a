//! Maps in memory are as the kernel's.

use std::cell::RefCell;
use std::net::IpAddr;

use ebpf::{Capacity, Contents, Endpoint, FastPath, FrontendValue, Slot, Write};
use fakes::ebpf::FakePrograms;
use kernel::{Bpf, KernelFastPath};
use model::{Family, FrontendAddress, FrontendKey, Protocol, V4, V6};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::site::Site;

const CAPACITY: Capacity = Capacity { frontends: 8, slots: 16, endpoints: 8 };

fn address<F: Family>(n: u8) -> F::Addr {
    let v4 = F::narrow(IpAddr::from([10, 96, 0, n]));
    v4.or_else(|| F::narrow(IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]))).unwrap()
}

fn write<F: Family>((kind, a, b): (u8, u8, u16)) -> Write<F> {
    let (node, port) = (address::<F>(a), b);
    let target = if a == 0 { FrontendAddress::Node } else { FrontendAddress::Ip(node) };
    let key = FrontendKey { address: target, protocol: Protocol::Tcp, port: 80 + b % 3 };
    match kind {
        0 => Write::Endpoint(u32::from(a % 10), Endpoint { address: node, port, epoch: b.max(1) }),
        1 => Write::Slot(
            u32::from(a),
            Slot { endpoint: u32::from(b % 8), extent_epoch: b, endpoint_epoch: b.rotate_left(3) },
        ),
        2 => {
            let value = FrontendValue {
                base: u32::from(a),
                count: 1,
                host_only: b % 2 == 0,
                epoch: b,
                pool: b.into(),
            };
            Write::Frontend(key, value)
        }
        3 => Write::RemoveFrontend(key),
        6 => Write::RemoveEndpoint(u32::from(a % 10)),
        4 => Write::NodeAddress(node, b % 2 == 0),
        _ => Write::RemoveNodeAddress(node),
    }
}

fn runs_alike<F: Family>() {
    let site = Site::new();
    let real = KernelFastPath::<F>::open(site.place(), Bpf::default()).unwrap();
    let real = RefCell::new(real);
    let writes = proptest::collection::vec((0u8..7, 0u8..20, any::<u16>()), 0..80);
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&writes, |writes| {
        let fake = FakePrograms::<F>::default();
        let (mut real, mut fake) = (real.borrow_mut(), fake.open());
        let mut paths: [&mut dyn FastPath<F>; 2] = [&mut *real, &mut *fake];
        for path in &mut paths {
            path.rebuild(&Contents::empty(CAPACITY), &[]).unwrap();
        }
        for write in writes.into_iter().map(write::<F>) {
            let results = paths.each_mut().map(|path| path.write(&[write]).is_ok());
            prop_assert_eq!(results[0], results[1], "{}", write);
            if !results[0] {
                // Whatever a map without room has, nobody goes on with it.
                return Ok(());
            }
        }
        let [real, fake] = paths.each_mut().map(|path| path.read().unwrap());
        prop_assert_eq!(real, fake);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn any_writes_give_the_same_contents_over_ipv4() {
    runs_alike::<V4>();
}

#[test]
fn any_writes_give_the_same_contents_over_ipv6() {
    runs_alike::<V6>();
}
