//! Clients that mean harm: each gets its error, or is left, and nobody else notices.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use balance::Policy;
use common::{BOTH, OneConnection, PATIENCE, Proxy, Server, full};
use http::{Request, Response};
use hyper::body::Incoming;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// All that comes back until the connection ends.
async fn answer(proxy: &Proxy, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let mut received = Vec::new();
    let (written, _) = tokio::join!(
        async {
            // It may be left before it has said all.
            let written = write.write_all(sent).await;
            drop(write.shutdown().await);
            written
        },
        tokio::time::timeout(PATIENCE, read.read_to_end(&mut received)),
    );
    drop(written);
    received
}

async fn proxy() -> (Server, Proxy) {
    let server = Server::named("well").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    (server, proxy)
}

async fn is_well(proxy: &Proxy) {
    for version in BOTH {
        let mut client = OneConnection::to(proxy.address, version).await;
        assert_eq!(client.get().await.unwrap(), (200, "well".to_owned()));
    }
}

#[tokio::test]
async fn what_is_not_http_gets_its_error_and_never_an_endpoint() {
    let (server, proxy) = proxy().await;
    let headers = |n: usize, value: usize| {
        let header = |n| format!("x-{n}: {}\r\n", "a".repeat(value));
        format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", (0..n).map(header).collect::<String>())
    };
    let (many, big) = (headers(1000, 1), headers(1, 100_000));
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000));
    for (sent, status) in [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, x\r\n\r\n", 400),
        ("GET  / HTTP/9.9\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 400),
        (&many, 431),
        (&big, 431),
        (&long, 431),
    ] {
        let received = answer(&proxy, sent.as_bytes()).await;
        let head = String::from_utf8_lossy(&received);
        let shown: String = sent.chars().take(60).collect();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {head:?}");
    }
    assert_eq!(server.n_requests(), 0);
    is_well(&proxy).await;
}

/// Two readings of where a request ends would have one client's bytes read as another's request.
#[tokio::test]
async fn a_request_with_two_lengths_goes_on_with_one() {
    let server = Server::start(|request: Request<Incoming>| async move {
        use http_body_util::BodyExt as _;
        assert!(!request.headers().contains_key("content-length"));
        Response::new(full(request.into_body().collect().await.unwrap().to_bytes()))
    })
    .await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let both = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\nbody") && stream.read_buf(&mut received).await.unwrap() > 0 {}
    let text = String::from_utf8_lossy(&received);
    let is_refused = text.starts_with("HTTP/1.1 400 ");
    assert!(is_refused || text.ends_with("\r\n\r\nbody"), "{text}");
    assert_eq!(server.n_requests(), usize::from(!is_refused));
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;
/// `:method: GET`, `:scheme: http`, `:path: /` and `:authority: a`, compressed. (RFC 7541, appendix A.)
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

/// CVE-2024-27316 and its kind: headers without an end.
#[tokio::test]
async fn headers_without_end_end_the_connection() {
    let (_server, proxy) = proxy().await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(HEADERS, 0, 1, GET)).await.unwrap();
    // A literal header, not to be indexed, again and again.
    let mut header = vec![0, 1, b'x', 127, 0];
    header.extend_from_slice(&[b'a'; 127]);
    let more = frame(CONTINUATION, 0, 1, &header.repeat(100));
    let mut sent = 0;
    while stream.write_all(&more).await.is_ok() {
        sent += more.len();
        assert!(sent < 64 << 20, "{sent} bytes of headers were taken");
    }
    is_well(&proxy).await;
}

/// CVE-2023-44487: requests that are given up as soon as they are made.
#[tokio::test]
async fn a_client_that_gives_up_all_its_requests_is_left() {
    let (server, proxy) = proxy().await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let (mut read, mut write) = stream.split();
    let flood = async {
        for n in 0..100_000 {
            let mut frames = frame(HEADERS, END_STREAM_AND_HEADERS, 2 * n + 1, GET);
            frames.extend(frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]));
            if write.write_all(&frames).await.is_err() {
                return;
            }
        }
        panic!("100,000 requests were given up");
    };
    let drain = async {
        let mut received = [0; 4096];
        while read.read(&mut received).await.is_ok_and(|n| n > 0) {}
    };
    tokio::join!(flood, drain);
    assert!(server.n_requests() < 5000, "{} requests reached the endpoint", server.n_requests());
    is_well(&proxy).await;
}

/// The same, with requests that an endpoint works at when they are given up.
#[tokio::test]
async fn a_client_that_has_endpoints_work_for_nothing_is_left() {
    let server = Server::start(|_| async { std::future::pending::<Response<common::Body>>().await }).await;
    let well = Server::named("well").await;
    let proxy = Proxy::start(Policy::RoundRobin, &[server.address]).await;
    let mut client = OneConnection::to(proxy.address, common::Version::Http2).await;
    let mut n_given_up = 0;
    loop {
        let before = server.n_requests();
        let given_up = tokio::select! {
            answered = client.get() => answered.is_ok(),
            () = async { while server.n_requests() == before { tokio::task::yield_now().await } } => true,
        };
        if !given_up {
            break;
        }
        n_given_up += 1;
        assert!(n_given_up < 2000, "{n_given_up} requests were given up");
    }
    assert!(n_given_up >= 500, "{n_given_up}");
    proxy.set(&[well.address]);
    is_well(&proxy).await;
}

/// Pieces of requests, sound and damaged.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let http1 = proptest::sample::select(vec![
        &b"GET / HTTP/1.1\r\n"[..],
        b"POST /x HTTP/1.0\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"host: a\r\n",
        b"content-length: 5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"connection: upgrade\r\nupgrade: x\r\n",
        b"expect: 100-continue\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
    ]);
    let http2 = (0..12_u8, any::<u8>(), 0..5_u32, proptest::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload));
    let get = (1..9_u32).prop_map(|stream| frame(HEADERS, END_STREAM_AND_HEADERS, stream, GET));
    let noise = proptest::collection::vec(any::<u8>(), 0..40);
    let piece = prop_oneof![4 => http1.prop_map(<[u8]>::to_vec), 2 => http2, 2 => get, 1 => noise];
    let begin = prop_oneof![Just(PREFACE.to_vec()), Just(Vec::new())];
    (begin, proptest::collection::vec(piece, 0..20)).prop_map(|(mut begin, pieces)| {
        begin.extend(pieces.concat());
        begin
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(64), ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_client_sends_is_taken_without_harm_to_others(sent in proptest::collection::vec(pieces(), 1..8)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_server, proxy) = proxy().await;
            for sent in &sent {
                answer(&proxy, sent).await;
            }
            is_well(&proxy).await;
            while proxy.load() > 0 {
                tokio::task::yield_now().await;
            }
        });
    }
}
