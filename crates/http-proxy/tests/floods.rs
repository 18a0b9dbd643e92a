//! Clients that send much, or slowly, or never read: each is held to its limits, memory stays what it is, and others are served.
//! Alone in its process, since it is the process that is measured.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "figures, for whoever asks for them with --nocapture")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use balance::Policy;
use common::{BOTH, Body, OneConnection, Proxy, Server, full, resident};
use http::{Request, Response};
use hyper::body::Incoming;

/// Of one flood: a million frames or more, which would take far more than they may if each were kept; and more than what is read
/// of a client that was refused, with what the kernel keeps.
const FLOOD_BYTES: usize = 24 << 20;
/// What any of the floods may leave behind, or take meanwhile: buffers, and what the allocator keeps.
const MAX_GROWTH_BYTES: u64 = 48 << 20;
/// A client that is not read from for so long has been stopped.
const STOPPED: Duration = Duration::from_secs(5);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `:method: POST`, `:scheme: http`, `:path: /held` and `:authority: a`, compressed. (RFC 7541, appendix A.)
const POST: &[u8] = b"\x83\x86\x04\x05/held\x41\x01a";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// How a flood came to its end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The connection was ended.
    Left,
    /// Nobody reads what comes.
    Stopped,
    /// All was taken.
    Taken,
}

/// Sends the beginning, and then the same again and again.
fn flood(to: SocketAddr, begin: &[u8], again: &[u8], is_reading: bool) -> End {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_write_timeout(Some(STOPPED)).unwrap();
    stream.write_all(begin).unwrap();
    let mut reading = stream.try_clone().unwrap();
    let reader = is_reading
        .then(|| std::thread::spawn(move || while reading.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}));
    let many = again.repeat((64 * 1024 / again.len()).max(1));
    let mut sent = 0;
    let end = loop {
        match stream.write_all(&many) {
            Ok(()) if sent > FLOOD_BYTES => break End::Taken,
            Ok(()) => sent += many.len(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break End::Stopped,
            Err(_ended) => break End::Left,
        }
    };
    // It may be closed already.
    drop(stream.shutdown(std::net::Shutdown::Both));
    if let Some(reader) = reader {
        reader.join().unwrap();
    }
    end
}

/// Floods of HTTP/2 that never end of themselves: name, what comes first, and what comes again.
fn floods() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let with = |frames: Vec<u8>| [PREFACE, &frames].concat();
    let request = with(frame(HEADERS, 4, 1, POST));
    let header: Vec<u8> = [&[0, 1, b'x', 127, 0][..], &[b'a'; 127]].concat();
    vec![
        (
            "CONTINUATION (CVE-2024-27316)",
            with(frame(HEADERS, 0, 1, POST)),
            frame(CONTINUATION, 0, 1, &header.repeat(100)),
        ),
        ("CONTINUATION without content", with(frame(HEADERS, 0, 1, POST)), frame(CONTINUATION, 0, 1, &[])),
        ("PING (CVE-2019-9512)", with(Vec::new()), frame(PING, 0, 0, b"12345678")),
        ("SETTINGS (CVE-2019-9515)", with(Vec::new()), frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY (CVE-2019-9513)", with(Vec::new()), frame(PRIORITY, 0, 1, b"\0\0\0\0\x10")),
        ("DATA without content (CVE-2019-9518)", request.clone(), frame(DATA, 0, 1, &[])),
        ("WINDOW_UPDATE", request.clone(), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 0])),
        ("RST_STREAM of what is no request", with(Vec::new()), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        ("nothing that is known", with(Vec::new()), frame(0xfa, 0, 0, b"12345678")),
    ]
}

/// Requests of a new stream each, which are given up at once.
fn rapid_reset(to: SocketAddr) -> End {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(PREFACE).unwrap();
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || while reading.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {});
    let mut end = End::Taken;
    for n in 0..200_000 {
        let frames =
            [frame(HEADERS, 5, 2 * n + 1, POST), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
        if stream.write_all(&frames).is_err() {
            end = End::Left;
            break;
        }
    }
    drop(stream.shutdown(std::net::Shutdown::Both));
    reader.join().unwrap();
    end
}

/// A server that answers all but what it is to hold.
async fn server() -> Server {
    Server::start(|request: Request<Incoming>| async move {
        if request.uri().path() == "/held" {
            std::future::pending::<Response<Body>>().await
        } else {
            Response::new(full("well"))
        }
    })
    .await
}

struct Bed {
    runtime: tokio::runtime::Runtime,
    proxy: Proxy,
    _server: Server,
    before: u64,
}

impl Bed {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (server, proxy) = runtime.block_on(async {
            let server = server().await;
            let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
            (server, proxy)
        });
        let mut bed = Self { runtime, proxy, _server: server, before: 0 };
        bed.check("nothing");
        bed.before = resident();
        bed
    }

    /// Others are served, and memory is what it was.
    fn check(&self, what: &str) {
        self.runtime.block_on(async {
            for version in BOTH {
                let mut client = OneConnection::to(self.proxy.address, version).await;
                assert_eq!(client.get().await.unwrap(), (200, "well".to_owned()), "beside {what}");
            }
        });
        let growth = resident().saturating_sub(self.before);
        let is_begun = self.before > 0;
        assert!(!is_begun || growth < MAX_GROWTH_BYTES, "{what}: {growth} bytes more");
    }
}

#[test]
fn floods_take_no_memory_and_harm_nobody_else() {
    let bed = Bed::new();
    let to = bed.proxy.address;
    for (name, begin, again) in floods() {
        for is_reading in [false, true] {
            let (begin, again) = (begin.clone(), again.clone());
            let flooding = std::thread::spawn(move || flood(to, &begin, &again, is_reading));
            let mut n = 0;
            while !flooding.is_finished() || n == 0 {
                bed.check(name);
                n += 1;
            }
            let end = flooding.join().unwrap();
            bed.check(&format!("{name}, which was {end:?}"));
            if name.starts_with("CONTINUATION") {
                assert_eq!(end, End::Left, "{name}");
            }
        }
    }
    assert_eq!(rapid_reset(to), End::Left);
    bed.check("requests that are given up (CVE-2023-44487)");
    // Heads of HTTP/1.1 without an end, many at once.
    let floods: Vec<_> = (0..50)
        .map(|_| std::thread::spawn(move || flood(to, b"GET / HTTP/1.1\r\n", b"x-header: value\r\n", true)))
        .collect();
    bed.check("heads without an end");
    for flood in floods {
        assert_eq!(flood.join().unwrap(), End::Left);
    }
    // Heads that hardly move.
    let mut slow: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(to).unwrap()).collect();
    for piece in [&b"GET / HTTP/1.1\r\n"[..], b"host: a\r\n", b"x: y\r\n"] {
        for stream in &mut slow {
            stream.write_all(piece).unwrap();
        }
        bed.check("400 heads that hardly move");
    }
}
