//! IPVS in memory against the real one: the same commands are done and refused, with the same error numbers, and leave the
//! same servers. Needs a kernel with IPVS and all its schedulers: `make guest-test`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use fakes::ipvs::{FakeIpvs, Servers};
use ipvs::{
    Command, Flags, Forwarding, Ipvs, RealServer, RealServerId, Scheduler, ServerId, Timeouts, VirtualServer,
};
use kernel::KernelIpvs;
use lab::Namespace;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

fn id(protocol: u8, address: &str, port: u16) -> ServerId {
    ServerId { address: address.parse().unwrap(), protocol, port }
}

fn web() -> ServerId {
    id(TCP, "10.96.0.10", 80)
}

fn server(id: ServerId) -> VirtualServer {
    VirtualServer { id, scheduler: Scheduler::ROUND_ROBIN, flags: Flags::OWN, persistence: None }
}

fn scheduled(id: ServerId, scheduler: &str) -> VirtualServer {
    VirtualServer { scheduler: Scheduler::new(scheduler).unwrap(), ..server(id) }
}

fn real(address: &str, weight: u32) -> RealServer {
    RealServer::new(RealServerId { address: address.parse().unwrap(), port: 8080 }, weight)
}

/// Does the commands in both; each has the same answer, and afterwards there is the same.
#[track_caller]
fn check(commands: &[Command]) {
    let host = Namespace::new("host").unwrap();
    host.run(|| {
        let mut fake = FakeIpvs::new();
        let mut kernel = KernelIpvs::open().expect("these tests need a kernel with IPVS");
        let errnos = |results: Vec<Result<(), netlink::NetlinkError>>| -> Vec<Option<i32>> {
            results.into_iter().map(|result| result.err().map(|error| error.errno().unwrap())).collect()
        };
        let expected = errnos(kernel.apply(commands));
        let got = errnos(fake.apply(commands));
        for ((command, expected), got) in commands.iter().zip(&expected).zip(&got) {
            assert_eq!(got, expected, "{command}");
        }
        assert_eq!(fake.servers(), servers(&mut kernel));
        assert_eq!(fake.timeouts().unwrap(), kernel.timeouts().unwrap());
    });
}

fn servers(kernel: &mut KernelIpvs) -> Servers {
    let mut found = BTreeMap::new();
    for server in kernel.virtual_servers().unwrap() {
        let mut reals: Vec<_> =
            kernel.real_servers(&server.id).unwrap().into_iter().map(|(real, _)| real).collect();
        reals.sort_unstable();
        found.insert(server.id, (server, reals));
    }
    found
}

#[test]
fn virtual_servers() {
    let v6 = server(id(UDP, "fd00:96::10", 53));
    let sticky = VirtualServer { persistence: NonZeroU32::new(10_800), ..server(id(SCTP, "10.96.0.10", 80)) };
    check(&[
        Command::NewVirtual(server(web())),
        Command::NewVirtual(server(web())),
        Command::NewVirtual(v6),
        Command::NewVirtual(sticky),
        Command::SetVirtual(VirtualServer { persistence: None, ..sticky }),
        Command::SetVirtual(VirtualServer { persistence: NonZeroU32::new(1), ..v6 }),
        Command::SetVirtual(scheduled(web(), "nosuch")),
        Command::NewVirtual(scheduled(id(TCP, "10.96.0.11", 80), "nosuch")),
        Command::SetVirtual(server(id(TCP, "10.96.0.12", 80))),
        Command::DeleteVirtual(id(TCP, "10.96.0.12", 80)),
        Command::DeleteVirtual(v6.id),
        Command::DeleteVirtual(v6.id),
        Command::NewVirtual(server(id(TCP, "10.96.0.13", 0))),
    ]);
}

#[test]
fn every_scheduler_and_its_change_in_place() {
    let mut commands = vec![Command::NewVirtual(server(web())), Command::NewReal(web(), real("10.0.0.1", 1))];
    for (n, scheduler) in (1..).zip(Scheduler::ALL) {
        let flags = Flags::OWN.with(Flags::PORT).with(Flags::FALLBACK);
        commands.push(Command::NewVirtual(VirtualServer { scheduler, ..server(id(TCP, "10.96.1.1", n)) }));
        commands.push(Command::SetVirtual(VirtualServer { scheduler, flags, ..server(web()) }));
    }
    check(&commands);
}

#[test]
fn real_servers() {
    let elsewhere = id(TCP, "10.96.0.11", 80);
    let v6 = id(TCP, "fd00:96::10", 80);
    let direct = RealServer { forwarding: Forwarding::Other(3), ..real("10.0.0.3", 1) };
    check(&[
        Command::NewVirtual(server(web())),
        Command::NewVirtual(server(v6)),
        Command::NewReal(web(), real("10.0.0.1", 1)),
        Command::NewReal(web(), real("10.0.0.1", 5)),
        Command::NewReal(web(), real("10.0.0.2", 0)),
        Command::NewReal(web(), direct),
        Command::NewReal(v6, real("fd00::1", 65_535)),
        Command::NewReal(web(), real("fd00::1", 1)),
        Command::NewReal(v6, real("10.0.0.1", 1)),
        Command::NewReal(web(), real("10.0.0.4", 1 << 31)),
        Command::SetReal(web(), real("10.0.0.1", 1 << 31)),
        Command::SetReal(web(), real("10.0.0.1", 0)),
        Command::SetReal(web(), real("10.0.0.3", 2)),
        Command::SetReal(web(), real("10.0.0.5", 1)),
        Command::SetReal(elsewhere, real("10.0.0.1", 1)),
        Command::NewReal(elsewhere, real("10.0.0.1", 1)),
        Command::DeleteReal(elsewhere, real("10.0.0.1", 1).id),
        Command::DeleteReal(web(), real("10.0.0.2", 1).id),
        Command::DeleteReal(web(), real("10.0.0.2", 1).id),
        Command::NewReal(web(), real("10.0.0.2", 1)),
    ]);
}

#[test]
fn time_outs() {
    let set = |tcp, tcp_fin, udp| Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp });
    check(&[set(100, 0, 0), set(0, 50, 0), set(0, 0, u32::MAX), set(0, 0, 25)]);
}

/// More than are sent in one go, among them refused ones.
#[test]
fn many() {
    let mut commands = vec![Command::NewVirtual(server(web()))];
    for n in 0..2500_u16 {
        let [high, low] = n.to_be_bytes();
        commands.push(Command::NewReal(web(), real(&format!("10.0.{high}.{low}"), 1)));
        if n % 7 == 0 {
            commands.push(Command::NewReal(web(), real(&format!("10.0.{high}.{low}"), 1)));
        }
    }
    check(&commands);
}
