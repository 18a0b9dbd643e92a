//! Our messages against those of the real kernel and of conntrack 1.4.7.
//!
//! `captured/<family>.hex` is what the kernel (6.18) sent to `conntrack -L -f <family>`, as shown by
//! `strace -e read=3`, one message to a line. Before, an empty network namespace sent a UDP packet to a virtual
//! address with a rule `dnat to` port 5353; for IPv4 also one each to ports 98 and 99 of its own, with the rules
//! `ct zone set 8` and `ct original zone set 7`.

use conntrack::{Batch, Conntrack, Family, Filter, Flow, Pass, Tuple, status};
use netlink::NetlinkError;

/// Sequence number in the captures.
const SEQ: u32 = 0x6b01_1383;
const CONFIRMED: u32 = 1 << 3;
const NAT_DONE: u32 = (1 << 7) | (1 << 8);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn tuple(src: &str, dst: &str) -> Tuple {
    let (src, dst): (std::net::SocketAddr, std::net::SocketAddr) =
        (src.parse().expect("an address"), dst.parse().expect("an address"));
    Tuple { src: src.ip(), dst: dst.ip(), src_port: src.port(), dst_port: dst.port() }
}

fn flow(orig: Tuple, reply: Tuple, id: u32) -> Flow {
    let status = CONFIRMED | NAT_DONE;
    Flow { protocol: 17, orig, reply, id, status, orig_zone: 0, reply_zone: 0 }
}

fn ip_flows() -> [Flow; 3] {
    let (client, vip) = ("127.0.0.1:40000", "10.96.0.10:53");
    let both = |port| (tuple(client, port), tuple(port, client));
    let (orig, reply) = both("127.0.0.1:98");
    let zone = Flow { orig_zone: 8, reply_zone: 8, ..flow(orig, reply, 0x6c63_7ac7) };
    let (orig, reply) = both("127.0.0.1:99");
    let half_zone = Flow { orig_zone: 7, ..flow(orig, reply, 0x7f0a_d5e9) };
    let translated = flow(tuple(client, vip), tuple("127.0.0.1:5353", client), 0x3dde_9409);
    [zone, half_zone, Flow { status: translated.status | status::DST_NAT, ..translated }]
}

fn ip6_flow() -> Flow {
    let (client, vip) = ("[::1]:40000", "[fd00::10]:53");
    let translated = flow(tuple(client, vip), tuple("[::1]:5353", client), 0xaf16_e96b);
    Flow { status: translated.status | status::DST_NAT, ..translated }
}

#[test]
fn flows_are_read() {
    let mut read = Vec::new();
    let filter = Filter::new(Family::Ip, 17);
    let mut pass = Pass::new(&filter, SEQ);
    let captured = bytes(include_str!("captured/ip.hex"));
    assert!(pass.take(&captured, &mut |flow| read.push(*flow)).unwrap(), "the end is in the capture");
    assert_eq!(read, ip_flows());
    assert!(!pass.is_disturbed());
    assert!(read[2].is_dnat() && !read[1].is_dnat() && !read[2].is_replied());

    let filter = Filter::new(Family::Ip6, 17);
    let captured = bytes(include_str!("captured/ip6.hex"));
    let ended = Pass::new(&filter, SEQ).take(&captured, &mut |flow| read.push(*flow)).unwrap();
    assert!(!ended);
    assert_eq!(read[3..], [ip6_flow()]);
}

#[test]
fn only_what_the_filter_selects_is_passed_on() {
    let captured = bytes(include_str!("captured/ip.hex"));
    let read = |filter: Filter, seq| {
        let mut read = Vec::new();
        let ended = Pass::new(&filter, seq).take(&captured, &mut |flow| read.push(*flow)).unwrap();
        (read, ended)
    };
    let udp = Filter::new(Family::Ip, 17);
    assert_eq!(read(udp.to_port(53), SEQ), (vec![ip_flows()[2]], true));
    assert_eq!(read(Filter::new(Family::Ip, 6), SEQ), (vec![], true));
    // The answer to another request.
    assert_eq!(read(udp, SEQ + 1), (vec![], false));
}

/// The whole message that `conntrack -L -f ipv4` and `-f ipv6` sends.
#[test]
fn requests_without_filter_are_those_of_conntrack() {
    for (family, sent) in [
        (Family::Ip, "14000000 0101 0103 8313016b 00000000 02000000"),
        (Family::Ip6, "14000000 0101 0103 8313016b 00000000 0a000000"),
    ] {
        let filter = Filter::new(family, 17).to("10.96.0.10:53".parse().unwrap());
        assert_eq!(Pass::new(&filter, SEQ).request(false), bytes(sent));
    }
}

/// `conntrack` filters in its own process; this layout is from `linux/netfilter/nfnetlink_conntrack.h` and
/// `ctnetlink_alloc_filter`, attribute by attribute.
#[test]
fn filters_are_laid_out_as_the_kernel_reads_them() {
    let udp = Filter::new(Family::Ip, 17);
    let full = udp.to("10.96.0.10:53".parse().unwrap()).answered_by("10.244.0.3:5353".parse().unwrap());
    check_request(
        &full,
        "2400 0180 0c00 0180 0800 0200 0a60000a  1400 0280 0500 0100 11000000 0600 0300 0035 0000
         2400 0280 0c00 0180 0800 0100 0af40003  1400 0280 0500 0100 11000000 0600 0200 14e9 0000
         1400 1980 0800 0100 2a000000 0800 0200 19000000",
    );
    check_request(
        &udp,
        "1000 0180 0c00 0280 0500 0100 11000000
         1000 0280 0c00 0280 0500 0100 11000000
         1400 1980 0800 0100 08000000 0800 0200 08000000",
    );
    // No address: the kernel gets those wrong.
    let to_address = Filter { orig_dst: Some("fd00::10".parse().unwrap()), ..Filter::new(Family::Ip6, 132) };
    check_request(
        &to_address,
        "1000 0180 0c00 0280 0500 0100 84000000
         1000 0280 0c00 0280 0500 0100 84000000
         1400 1980 0800 0100 08000000 0800 0200 08000000",
    );
}

#[track_caller]
fn check_request(filter: &Filter, attributes: &str) {
    let request = Pass::new(filter, SEQ).request(true);
    let length = u32::from_ne_bytes(*request.first_chunk().expect("a message")) as usize;
    assert_eq!((length, &request[4..8]), (request.len(), &[1, 1, 1, 3][..]));
    assert_eq!(request[20..], bytes(attributes));
}

/// A deletion is made of parts of what the kernel told of the flow: the tuple of the answers and the id.
#[test]
fn deletions_name_the_flow_as_the_kernel_does() {
    let flows = ip_flows();
    let encoded = Batch::new(flows.to_vec(), SEQ).encode();
    let [zone, half_zone, translated] = [0, 1, 2]
        .map(|n| bytes(include_str!("captured/ip.hex").lines().nth(n).expect("there are three messages")));
    let header =
        |len: &str, flags: &str, seq: &str| bytes(&format!("{len} 0201 {flags} {seq} 00000000 02000000"));
    let wanted = [
        header("58000000", "0100", "8313016b"),
        zone[0x48..0x84].to_vec(),
        zone[0x94..0x9c].to_vec(),
        header("50000000", "0100", "8413016b"),
        half_zone[0x50..0x84].to_vec(),
        half_zone[0x94..0x9c].to_vec(),
        header("50000000", "0500", "8513016b"),
        translated[0x48..0x7c].to_vec(),
        translated[0x8c..0x94].to_vec(),
    ];
    assert_eq!(encoded, wanted.concat());

    let captured = bytes(include_str!("captured/ip6.hex"));
    let encoded = Batch::new(vec![ip6_flow()], SEQ).encode();
    assert_eq!(encoded[16..20], [10, 0, 0, 0]);
    assert_eq!(encoded[20..], [&captured[0x60..0xac], &captured[0xbc..0xc4]].concat());
    let longest = Batch::new(vec![Flow { reply_zone: 1, ..ip6_flow() }], SEQ).encode();
    assert_eq!(longest.len(), Batch::MESSAGE_BYTES);
}

/// `struct nlmsgerr` without the request's payload.
fn answer(seq: u32, errno: i32) -> Vec<u8> {
    let header = [36_u32.to_ne_bytes(), [2, 0, 0, 1], seq.to_ne_bytes(), [0; 4]];
    [header.concat(), (-errno).to_ne_bytes().to_vec(), vec![0; 16]].concat()
}

#[test]
fn answers_to_deletions_are_counted() {
    const EBUSY: i32 = 16;
    let batch = || Batch::new(ip_flows().to_vec(), u32::MAX);
    assert_eq!(batch().next_seq(), 2);
    let outcome = |answers: &[(u32, i32)], lost| {
        let mut batch = batch();
        for (seq, errno) in answers {
            batch.take(&answer(*seq, *errno));
        }
        let outcome = batch.outcome(lost);
        (outcome.deleted, outcome.error.map(|error| error.to_string()))
    };
    assert_eq!(outcome(&[(1, 0)], false), (3, None));
    // One was gone already, and somebody else's answer does not matter.
    assert_eq!(outcome(&[(7, EBUSY), (u32::MAX, 2), (1, 0)], false), (2, None));
    // The last one's error is its answer.
    assert_eq!(outcome(&[(1, 2)], false), (2, None));
    let (deleted, error) = outcome(&[(0, EBUSY), (1, EBUSY)], false);
    assert_eq!(deleted, 1);
    let error = error.unwrap();
    assert!(
        error.starts_with(
            "kernel refused deletion of udp 127.0.0.1:40000 -> 127.0.0.1:99 (answered by 127.0.0.1:99) in zones 7 and 0: "
        ),
        "{error}"
    );
    for (answers, lost) in [(&[][..], false), (&[(0, 2)][..], false), (&[(1, 0)][..], true)] {
        let (deleted, error) = outcome(answers, lost);
        assert_eq!(deleted, 0);
        assert!(error.unwrap().starts_with("outcome of deletions is unknown: "));
    }
}

#[test]
fn disturbances_and_refusals_of_a_reading_are_seen() {
    let filter = Filter::new(Family::Ip, 17);
    let nobody = &mut |_: &Flow| {};
    let done = |flags: u8, error: i32| {
        [&[20, 0, 0, 0, 3, 0, flags, 0][..], &SEQ.to_ne_bytes(), &[0; 4], &error.to_ne_bytes()].concat()
    };
    let mut pass = Pass::new(&filter, SEQ);
    assert!(pass.take(&done(0x12, 0), nobody).unwrap());
    assert!(pass.is_disturbed());
    let mut pass = Pass::new(&filter, SEQ);
    assert!(pass.take(&done(0x2, 0), nobody).unwrap());
    assert!(!pass.is_disturbed());
    for refusal in [answer(SEQ, 1), done(0x2, -1)] {
        let error = Pass::new(&filter, SEQ).take(&refusal, nobody).unwrap_err();
        assert!(error.to_string().starts_with("kernel refused reading of ip udp flows: "), "{error}");
        assert!(matches!(error, NetlinkError::Refused { errno: 1, .. }));
    }
    // An answer to another request.
    assert!(!Pass::new(&filter, SEQ).take(&answer(SEQ + 1, 1), nobody).unwrap());
}

/// Callers hold it as a trait object.
#[test]
fn the_border_can_be_an_object() {
    fn object(_: Option<Box<dyn Conntrack>>) {}
    object(None);
}
