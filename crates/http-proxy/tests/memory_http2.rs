//! What a client's idle connection of HTTP/2 takes of memory, which is for the library to say. Alone in its process, since it is the
//! process that is measured.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "figures, for whoever asks for them with --nocapture")]

mod common;

use std::net::{SocketAddr, TcpStream};

use common::{PATIENCE, ask_and_wait, connections_at_both_ends, resident, served};

const CONNECTIONS: u64 = 2000;
const LIMIT_BYTES: u64 = 40_000;

/// The preface, settings, and a request without a body: `:method: GET`, `:scheme: http`, `:path: /` and `:authority: a`. (RFC 9113,
/// section 3.4; RFC 7541, appendix A.)
const ASK: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a";

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    ask_and_wait(&stream, ASK, |answer| answer.windows(4).any(|bytes| bytes == b"well"));
    stream
}

#[test]
fn an_idle_connection_of_http_2_takes_what_the_library_has_for_it() {
    let (_runtime, _server, proxy) = served();
    let mut clients: Vec<TcpStream> = (0..100).map(|_| connect(proxy.address)).collect();
    let (n, before) = (connections_at_both_ends(CONNECTIONS) - 100, resident());
    clients.extend((0..n).map(|_| connect(proxy.address)));
    let of_each = resident().saturating_sub(before) / n;
    println!("{n} connections, {of_each} bytes each");
    assert!(of_each <= LIMIT_BYTES, "{of_each} bytes for each of {n} connections");
}
