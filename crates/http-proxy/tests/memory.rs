//! What a client's idle connection takes of memory. Alone in its process, since it is the process that is measured.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "figures, for whoever asks for them with --nocapture")]

mod common;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::{PATIENCE, ask_and_wait, connections_at_both_ends, resident, served};
use tokio::time::Instant;

/// As many as there are open files for, at both ends.
const CONNECTIONS: u64 = 10_000;
/// 10,000 in less than 100 MB.
const LIMIT_BYTES: u64 = 10_000;

fn ask(stream: &TcpStream) {
    ask_and_wait(stream, b"GET / HTTP/1.1\r\nhost: web\r\n\r\n", |answer| answer.ends_with(b"well"));
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(&stream);
    stream
}

#[test]
fn ten_thousand_idle_connections_take_less_than_a_hundred_megabytes() {
    let (_runtime, _server, proxy) = served();
    // What is there once.
    let mut clients: Vec<TcpStream> = (0..100).map(|_| connect(proxy.address)).collect();
    let (n, before) = (connections_at_both_ends(CONNECTIONS) - 100, resident());
    clients.extend((0..n).map(|_| connect(proxy.address)));
    let of_each = || resident().saturating_sub(before) / n;
    let deadline = Instant::now() + PATIENCE;
    // What served them may still be there.
    while of_each() > LIMIT_BYTES && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{n} connections, {} bytes each", of_each());
    assert!(of_each() <= LIMIT_BYTES, "{} bytes for each of {n} connections", of_each());
    // They are well.
    for client in clients.iter().step_by(997) {
        ask(client);
    }
}
