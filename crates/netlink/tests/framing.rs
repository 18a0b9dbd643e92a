//! What is written is read as it was, and what is malformed ends the reading.

use netlink::{Ack, Attrs, Writer, be_u16, be_u32, flag, messages};

fn message() -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(0x102, flag::REQUEST, 7, 10, 0);
    out.u8(1, 200);
    out.nest(2, |out| {
        out.u16(1, 0x1234);
        out.u32(2, 0x1234_5678);
    });
    out.text(3, "name");
    out.built(4, |bytes| bytes.extend([1, 2, 3, 4, 5]));
    out.end_message(start);
    out.add_flags(start, flag::ACK);
    out.out
}

/// Laid out as `linux/netlink.h` says.
#[test]
fn messages_are_written_as_the_kernel_reads_them() {
    let head = [72, 0, 0, 0, 2, 1, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0];
    let number = [5, 0, 1, 0, 200, 0, 0, 0];
    let nest = [20, 0, 2, 128, 6, 0, 1, 0, 0x12, 0x34, 0, 0, 8, 0, 2, 0, 0x12, 0x34, 0x56, 0x78];
    let text = [9, 0, 3, 0, b'n', b'a', b'm', b'e', 0, 0, 0, 0];
    let built = [9, 0, 4, 0, 1, 2, 3, 4, 5, 0, 0, 0];
    assert_eq!(message(), [&head[..], &number, &nest, &text, &built].concat());
}

#[test]
fn what_is_written_is_read() {
    let twice = [message(), message()].concat();
    assert_eq!(messages(&twice).count(), 2);
    let message = messages(&twice).nth(1).unwrap();
    assert_eq!((message.kind, message.seq, message.family()), (0x102, 7, Some(10)));
    assert!(!message.is_done() && !message.is_interrupted() && message.ack().is_none());
    let attrs = message.attrs().unwrap();
    assert_eq!(attrs.clone().map(|(kind, _)| kind).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!((attrs.find(1), attrs.find(4)), (Some(&[200][..]), Some(&[1, 2, 3, 4, 5][..])));
    assert_eq!((attrs.text(3), attrs.u32(3), attrs.u16(1)), (Some("name"), None, None));
    let nest = attrs.nest(2).unwrap();
    assert_eq!((nest.u16(1), nest.u32(2), nest.find(3)), (Some(0x1234), Some(0x1234_5678), None));
}

#[test]
fn what_is_cut_short_is_not_read() {
    let whole = message();
    for len in 0..whole.len() {
        assert_eq!(messages(&whole[..len]).count(), 0, "{len}");
    }
    // An attribute that is longer than the rest, and one that is shorter than its own header.
    assert_eq!(Attrs::new(&[8, 0, 1, 0, 1, 2]).count(), 0);
    assert_eq!(Attrs::new(&[3, 0, 1, 0, 1, 2]).count(), 0);
    assert_eq!((be_u16(&[1]), be_u32(&[1, 2, 3, 4, 5])), (None, None));
}

#[test]
fn errors_come_with_explanations() {
    let words = [12, 0, 1, 0, b'b', b'a', b'd', 0, 0, 0, 0, 0];
    let offset = [8, 0, 2, 0, 20, 0, 0, 0];
    // Capped and explained.
    let head = [56, 0, 0, 0, 2, 0, 0, 3, 9, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255];
    let bytes = [&head[..], &[0; 16], &words, &offset].concat();
    let ack = messages(&bytes).next().unwrap().ack();
    assert_eq!(ack, Some(Ack { errno: 2, offset: Some(20), message: Some("bad".to_owned()) }));
    // An error number that has no opposite is none.
    let head = [20, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128];
    assert_eq!(messages(&head).next().unwrap().ack(), None);
}
