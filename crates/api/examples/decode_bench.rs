//! Times the decoding of a list: 10,000 slices with 10 endpoints each, in protobuf.
//!
//! `cargo run --release -p api --example decode_bench`
#![expect(clippy::print_stdout, reason = "printing the result is what it is for")]

use std::time::Duration;

use api::{Format, decode_list};
use model::{Interner, Kind};

const SLICES: usize = 10_000;
const ENDPOINTS: usize = 10;
const RUNS: usize = 9;

fn varint(mut value: usize, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    to.push(value.to_le_bytes()[0]);
}

fn bytes(number: usize, content: &[u8], to: &mut Vec<u8>) {
    varint(number << 3 | 2, to);
    varint(content.len(), to);
    to.extend_from_slice(content);
}

/// A message of fields that hold bytes.
fn message(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut message = Vec::new();
    for (number, content) in fields {
        bytes(*number, content, &mut message);
    }
    message
}

fn slice(i: usize) -> Vec<u8> {
    let label = message(&[(1, b"kubernetes.io/service-name"), (2, format!("service-{i}").as_bytes())]);
    let managed = vec![b'm'; 700];
    let meta = message(&[
        (1, format!("service-{i}-abcde").as_bytes()),
        (3, format!("namespace-{}", i % 100).as_bytes()),
        (5, b"68a8ae7f-f797-429c-91be-75eb30ae5b12"),
        (6, b"123456"),
        (11, &label),
        (17, &managed),
    ]);
    let mut slice = message(&[(1, &meta)]);
    for j in 0..ENDPOINTS {
        let address = format!("10.{}.{}.{j}", i >> 8 & 255, i & 255);
        let target = message(&[(1, b"Pod"), (2, b"namespace"), (3, b"service-abcde-fghij")]);
        let hints = message(&[(1, &message(&[(1, b"zone-a")]))]);
        let endpoint = message(&[
            (1, address.as_bytes()),
            (2, &[8, 1, 16, 1, 24, 0]),
            (4, &target),
            (6, format!("node-{}", (i + j) % 500).as_bytes()),
            (7, b"zone-a"),
            (8, &hints),
        ]);
        bytes(2, &endpoint, &mut slice);
    }
    let mut port = message(&[(1, b"http"), (2, b"TCP")]);
    port.extend([24, 0x90, 0x3f]);
    bytes(3, &port, &mut slice);
    bytes(4, b"IPv4", &mut slice);
    slice
}

fn main() {
    let mut list = message(&[(1, &message(&[(2, b"123456")]))]);
    for i in 0..SLICES {
        bytes(2, &slice(i), &mut list);
    }
    let type_meta = message(&[(2, b"EndpointSliceList")]);
    let body = [b"k8s\0", &message(&[(1, &type_meta), (2, &list)])[..]].concat();
    let times: Vec<Duration> = (0..RUNS).map(|_| decode(&body)).collect();
    let best = times.iter().min().copied().unwrap_or_default();
    println!("{} bytes, best of {RUNS}: {best:?}, all: {times:?}", body.len());
}

fn decode(body: &[u8]) -> Duration {
    let mut interner = Interner::default();
    let mut items = Vec::with_capacity(SLICES);
    let begin = std::time::SystemTime::now();
    let meta =
        decode_list(Kind::EndpointSlice, Format::Protobuf, body, &mut interner, |item| items.push(item));
    let time = begin.elapsed().unwrap_or_default();
    assert!(meta.is_ok() && items.iter().all(|item| item.notes.is_empty()) && items.len() == SLICES);
    time
}
