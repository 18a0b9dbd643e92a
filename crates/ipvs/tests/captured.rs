//! Our messages say what `ipvsadm` 1.31 says for the same commands, and what the kernel (6.12) answers is read.
//!
//! `captured/sent.hex` and `captured/told.hex` are from `strace -e trace=sendmsg,recvmsg -e write=3 -e read=3 ipvsadm ...`:
//! what follows the header of each message, one to a line.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use ipvs::{
    Command, Connections, Flags, Reader, RealServer, RealServerId, Scheduler, ServerId, Timeouts,
    VirtualServer,
};
use netlink::{Attrs, HEADER_BYTES, NLMSG_HEADER_BYTES, Writer, messages};

const FAMILY: u16 = 0x22;

fn id(protocol: u8, address: &str, port: u16) -> ServerId {
    ServerId { address: address.parse().unwrap(), protocol, port }
}

fn scheduled(id: ServerId, scheduler: &str) -> VirtualServer {
    VirtualServer {
        id,
        scheduler: Scheduler::new(scheduler).unwrap(),
        flags: Flags::default(),
        persistence: None,
    }
}

fn real(address: &str, port: u16, weight: u32) -> RealServer {
    RealServer::new(RealServerId { address: address.parse::<IpAddr>().unwrap(), port }, weight)
}

fn tcp() -> ServerId {
    id(6, "10.96.0.10", 80)
}

fn udp() -> VirtualServer {
    VirtualServer {
        flags: Flags::PORT,
        persistence: NonZeroU32::new(10_800),
        ..scheduled(id(17, "fd00:96::10", 53), "sh")
    }
}

fn sctp() -> VirtualServer {
    VirtualServer {
        flags: Flags::PORT.with(Flags::FALLBACK),
        persistence: NonZeroU32::new(600),
        ..scheduled(id(132, "10.96.0.10", 80), "mh")
    }
}

/// The commands of `captured/sent.hex`, in its order.
fn commands() -> Vec<Command> {
    vec![
        Command::NewVirtual(scheduled(tcp(), "rr")),
        Command::NewVirtual(udp()),
        Command::NewVirtual(sctp()),
        Command::NewReal(tcp(), real("10.244.0.1", 8080, 1)),
        Command::NewReal(udp().id, real("fd00:244::1", 5353, 3)),
        Command::SetReal(tcp(), real("10.244.0.1", 8080, 0)),
        Command::SetVirtual(scheduled(tcp(), "wlc")),
        Command::SetTimeouts(Timeouts { tcp: 900, tcp_fin: 120, udp: 300 }),
        Command::DeleteReal(tcp(), real("10.244.0.1", 8080, 1).id),
        Command::DeleteVirtual(tcp()),
    ]
}

fn lines(captured: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let lines = captured.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// The attributes of a message by their path; of a virtual server, of a real one, or neither.
fn attributes(command: &Command, payload: &[u8]) -> BTreeMap<(u16, u16), Vec<u8>> {
    let nested = !matches!(command, Command::SetTimeouts(_));
    let mut found = BTreeMap::new();
    for (outer, value) in Attrs::new(&payload[HEADER_BYTES - NLMSG_HEADER_BYTES..]) {
        if nested {
            found.extend(Attrs::new(value).map(|(inner, value)| ((outer, inner), value.to_vec())));
        } else {
            found.insert((0, outer), value.to_vec());
        }
    }
    found
}

/// Attributes that `ipvsadm` writes for nothing: the kernel reads no more of a virtual server than what tells it from others
/// unless it makes or changes it, and none about tunnels where there is none.
fn is_needless(command: &Command, (outer, inner): (u16, u16)) -> bool {
    let makes_virtual = matches!(command, Command::NewVirtual(_) | Command::SetVirtual(_));
    let deletes = matches!(command, Command::DeleteReal(..));
    match outer {
        1 => inner > 4 && !makes_virtual,
        2 => (13..=15).contains(&inner) || deletes && (3..=6).contains(&inner),
        _ => false,
    }
}

#[test]
fn messages_are_those_of_ipvsadm() {
    let captured = lines(include_str!("captured/sent.hex"));
    assert_eq!(captured.len(), commands().len());
    for (command, theirs) in commands().iter().zip(captured) {
        let mut out = Writer::default();
        command.encode(&mut out, FAMILY, 1, 0);
        let message = messages(&out.out).next().unwrap();
        assert_eq!(message.payload()[..4], theirs[..4], "{command}: number and version");
        let mut theirs = attributes(command, &theirs);
        theirs.retain(|path, _| !is_needless(command, *path));
        assert_eq!(attributes(command, message.payload()), theirs, "{command}");
    }
}

/// What was listed after `ipvsadm` had made all of the above up to the time-outs.
#[test]
fn what_the_kernel_tells_is_read() {
    let reader = Reader { family: FAMILY };
    let (mut virtual_servers, mut real_servers) = (Vec::new(), Vec::new());
    for payload in lines(include_str!("captured/told.hex")) {
        let mut out = Writer::default();
        let start = out.begin_message(FAMILY, 0, 1, payload[0], 0);
        out.out.truncate(NLMSG_HEADER_BYTES);
        out.out.extend(&payload);
        out.end_message(start);
        let message = messages(&out.out).next().unwrap();
        virtual_servers.extend(reader.virtual_server(&message));
        real_servers.extend(reader.real_server(&tcp(), &message));
    }
    assert_eq!(virtual_servers, [scheduled(tcp(), "wlc"), sctp(), udp()]);
    let idle = Connections::default();
    let expected = [(real("10.244.0.1", 8080, 0), idle), (real("fd00:244::1", 5353, 3), idle)];
    assert_eq!(real_servers, expected);
}

#[test]
fn what_is_cut_or_foreign_is_no_server() {
    let reader = Reader { family: FAMILY };
    for payload in lines(include_str!("captured/told.hex")) {
        for end in 0..payload.len() {
            let mut out = Writer::default();
            let start = out.begin_message(FAMILY, 0, 1, payload[0], 0);
            out.out.truncate(NLMSG_HEADER_BYTES);
            out.out.extend(&payload[..end]);
            out.end_message(start);
            for message in messages(&out.out) {
                let other = Reader { family: FAMILY + 1 };
                assert_eq!(other.virtual_server(&message), None);
                let found = reader.virtual_server(&message).is_some()
                    || reader.real_server(&tcp(), &message).is_some();
                assert!(!found || end > 60, "{end} bytes");
            }
        }
    }
}
